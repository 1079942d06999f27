# SPDX-License-Identifier: Apache-2.0
"""Records: the module's streams and ``perf record`` side by side, from before perf's first sample until after its last."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import perfguest
from perfguest.capture import events, host, module, preflight
from perfguest.capture.debugfs import LOST_REASONS, ModuleFiles, ModuleSettings, Stats
from perfguest.capture.drain import Drain
from perfguest.capture.guests import Guests, GuestSettings
from perfguest.capture.host import HostPaths
from perfguest.capture.kallsyms import KallsymsCopy
from perfguest.capture.messages import Messages, human_size, plural
from perfguest.capture.perf import Perf, PerfSettings, perf_version
from perfguest.capture.rings import ring_bytes
from perfguest.capture.signals import Signals
from perfguest.capture.vms import Vm, VmList, select_vms
from perfguest.capture.waiting import wait_readable
from perfguest.capture.workload import Workload, check_command
from perfguest.errors import CaptureError, PerfguestError
from perfguest.formats.guest_snapshot import DIRECTORY as SNAPSHOT
from perfguest.formats.recording import FORMAT_VERSION, prepare_directory, write_recording
from perfguest.proto import recording_pb2 as pb
from perfguest.terminal import printable

_TICK_SECONDS = 0.5
_REFRESH_SECONDS = 1.0
#: Kept free on the disk while recording, so that recording.pb can still be finished when the disk is full.
_RESERVE_BYTES = 1 << 20


@dataclass(frozen=True)
class RecordSettings:
    """What to record. ``event``: None for the best one here. ``pids`` and ``vm``: which VMs, all by default. ``duration``: seconds, None for no limit.
    ``guests``: what may be read of their memory."""

    output: Path = Path("perfguest.data")
    event: str | None = None
    frequency: int = 997
    pids: tuple[int, ...] = ()
    vm: str | None = None
    module: ModuleSettings = field(default_factory=ModuleSettings)
    duration: float | None = None
    command: tuple[str, ...] = ()
    perf: str = "perf"
    kdir: Path | None = None
    guests: GuestSettings = field(default_factory=GuestSettings)


def record(settings: RecordSettings, paths: HostPaths | None = None, kernel: module.Kernel | None = None, messages: Messages | None = None) -> int:
    """Records until the command ends, the time is over, or a signal comes; gives the status to exit with: the command's.

    Raises :class:`PerfguestError`: before anything has begun with what this host lacks, later with what went wrong; what was recorded until then stays.
    """
    paths = paths or HostPaths()
    messages = messages or Messages()
    preflight.check_root()
    perf = preflight.find_perf(settings.perf)
    version = perf_version(perf)
    preflight.check_kvm(paths)
    preflight.check_debugfs(paths)
    check_command(settings.command)
    vms = VmList(paths.proc)
    vms.refresh()
    selected = select_vms(vms.vms, settings.pids, settings.vm)
    if not selected:
        messages.warn("no VM runs on this host: there will be no guest stacks until one starts")
    if preflight.hidden_kallsyms(paths):
        messages.warn("the kernel hides its addresses (kernel.kptr_restrict=2): the host's functions will have no names")
    event = events.guest_event(settings.event) if settings.event else events.default_event(paths, messages.say)
    with Signals() as signals:
        built = module.prepare(settings.kdir, paths, messages.say)
        signals.hold()
        with module.loaded(built, paths, messages.say, kernel), ModuleFiles(paths.debugfs).exclusive():
            session = _Session(settings, paths, messages, signals, vms=vms, selected=selected)
            return session.run(perf, version, event)


class _Session:
    """One recording, while the module is loaded."""

    def __init__(self, settings: RecordSettings, paths: HostPaths, messages: Messages, signals: Signals, *, vms: VmList, selected: list[Vm]) -> None:
        self._settings = settings
        self._paths = paths
        self._messages = messages
        self._signals = signals
        self._vms = vms
        self._pids = tuple(vm.pid for vm in selected) if settings.pids or settings.vm is not None else ()
        self._files = ModuleFiles(paths.debugfs)
        self._stats = Stats()
        self._problems: list[PerfguestError] = []
        self._guests: Guests | None = None

    def run(self, perf: str, version: str, event: str) -> int:
        applied = self._files.apply(replace(self._settings.module, pids=self._pids, buffer_kb=self._buffer_kb(event)))
        if applied.trigger == "nmi" and events.is_software(event):
            self._messages.warn(f"{event} raises no NMI, which the trigger nmi waits for: use a hardware event, or --trigger probe")
        self._to = prepare_directory(self._settings.output)
        self._recording = self._describe(version, event, applied)
        self._write_recording()
        perf_settings = PerfSettings(perf, event, self._settings.frequency, self._pids, applied.clock, self._to.perf_data, self._to.perf_log)
        try:
            with ExitStack() as stack:
                return self._record(stack, perf_settings)
        except PerfguestError as error:
            self._recording.ended_by = str(error)
            self._write_recording(must=False)
            raise

    def _buffer_kb(self, event: str) -> int:
        module = self._settings.module
        if module.buffer_kb is not None:
            return module.buffer_kb
        return ring_bytes(module, self._settings.frequency * events.number(event), len(host.online_cpus(self._paths))) >> 10

    def _describe(self, version: str, event: str, applied: ModuleSettings) -> pb.Recording:
        sampling = pb.Sampling(
            perf_version=version,
            event=event,
            frequency=self._settings.frequency,
            clock=applied.clock,
            trigger=applied.trigger,
            locator=applied.locator,
            kernel_stack_bytes=applied.kernel_stack,
            user_stack_bytes=applied.user_stack,
            chain_depth=applied.chain_depth,
            buffer_kb=applied.buffer_kb,
            command=[os.fsencode(word).decode(errors="replace") for word in self._settings.command],
        )
        return pb.Recording(
            format_version=FORMAT_VERSION,
            perfguest_version=perfguest.__version__,
            host=host.describe(self._paths),
            sampling=sampling,
            vms=[vm.to_proto() for vm in self._vms.vms],
            started=time.time(),
        )

    def _record(self, stack: ExitStack, perf_settings: PerfSettings) -> int:
        # The two children first: they are forked, which is for programs without threads.
        workload = Workload(self._settings.command) if self._settings.command else None
        if workload:
            stack.callback(workload.close)
        perf = Perf(perf_settings)
        stack.callback(perf.kill)
        self._recording.sampling.perf_command[:] = perf.command
        reserve = stack.enter_context(_Reserve(self._to.directory))
        drain = self._start_drain(stack)
        kallsyms = KallsymsCopy(self._paths.proc / "kallsyms", self._to.kallsyms)
        begun = perf.enable(self._signals.fd)
        self._recording.started = time.time()
        if begun and workload:
            workload.start()
        if begun:
            self._watch(perf, drain, workload)
        else:
            self._problems.append(CaptureError("interrupted before perf sampled anything", "Record again."))
        self._finish(perf, drain, kallsyms, reserve)
        status = self._end_workload(workload)
        if self._problems:
            raise self._problems[0]
        return status

    def _start_drain(self, stack: ExitStack) -> Drain:
        streams = self._files.open_streams(host.online_cpus(self._paths))
        format_text = self._files.read("format")
        self._guests = self._start_guests(stack, format_text)
        drain = Drain(streams, self._to.guest_stream, format_text, self._guests.observe if self._guests else None)
        stack.callback(drain.close)
        self._files.enable()
        stack.callback(self._disable)
        if self._recording.sampling.locator == "auto":
            # The module tries them in this order; it knows which there are while it samples.
            available = self._files.stats().values.get("locators", "").split()
            self._recording.sampling.locator = available[0] if available else "auto"
        drain.start()
        return drain

    def _start_guests(self, stack: ExitStack, format_text: bytes) -> Guests | None:
        if self._settings.guests.mode == "off":
            return None
        guests = Guests(self._settings.guests, self._paths.proc, self._to.directory / SNAPSHOT, format_text, self._files.write_task_layout)
        stack.callback(guests.close)
        guests.start()
        return guests

    def _finish_guests(self) -> None:
        """Gives what is being read of the guests' memory a little more time; a signal ends that too."""
        if self._guests:
            self._signals.clear()
            self._guests.finish(self._signals.fd)

    def _watch(self, perf: Perf, drain: Drain, workload: Workload | None) -> None:
        """Until something ends it."""
        if self._messages.live_line and not workload and self._settings.duration is None:
            self._messages.say("recording; Ctrl-C ends it")
        readable: set[int] = set()
        ends = [self._signals.fd, perf.exited, drain.failed, *([workload.exited] if workload else [])]
        begin = refreshed = time.monotonic()
        deadline = begin + self._settings.duration if self._settings.duration is not None else float("inf")
        while (now := time.monotonic()) < deadline:
            if readable := wait_readable(ends, min(_TICK_SECONDS, deadline - now)):
                break
            if now - refreshed >= _REFRESH_SECONDS:
                self._vms.refresh()
                refreshed = now
            self._show_live(now - begin)
        self._messages.clear()
        if perf.exited in readable and self._pids and perf.ended_well():
            self._messages.say("the VM has ended")

    def _finish(self, perf: Perf, drain: Drain, kallsyms: KallsymsCopy, reserve: _Reserve) -> None:
        """Stops everything in its order: perf, so that each of its samples still gets a record, the module, the streams."""
        ended = time.time()
        for step in (perf.stop, self._files.disable, self._read_stats, drain.stop, kallsyms.finish):
            try:
                step()
            except PerfguestError as error:
                self._problems.append(error)
        self._finish_guests()
        self._vms.refresh(thorough=True)
        self._recording.ended = ended
        del self._recording.vms[:]
        self._recording.vms.extend(vm.to_proto() for vm in self._vms.vms)
        self._recording.losses.extend(_losses(self._stats))
        self._recording.ended_by = "\n".join(map(str, self._problems))
        self._recording.complete = not self._problems
        reserve.give_back()
        self._write_recording()
        self._summarize()

    def _end_workload(self, workload: Workload | None) -> int:
        received = self._signals.received
        interrupted = 128 + received[0] if received else 0
        if not workload:
            # Ctrl-C is how a recording without a command ends.
            return 0 if interrupted == 128 + signal.SIGINT else interrupted
        if (status := workload.status()) is None:
            # That it ends by our signal is no failure of it.
            self._signals.clear()
            workload.end(self._signals.fd)
        return interrupted or status or 0

    def _write_recording(self, must: bool = True) -> None:
        try:
            write_recording(self._to.directory, self._recording)
        except OSError as error:
            if must and not self._problems:
                raise CaptureError(f"cannot write {self._to.meta}: {error.strerror}", "Make room, or record elsewhere with -o.") from error

    def _read_stats(self) -> None:
        self._stats = self._files.stats()
        disagreements = self._stats.values.get("disagreements", "0")
        if disagreements != "0":
            self._messages.warn(f"the ways to find the running vCPU disagreed {disagreements} times: please report this kernel ({os.uname().release})")

    def _disable(self) -> None:
        try:
            self._files.disable()
        except PerfguestError as error:
            # Closing the streams, which comes next, ends sampling too.
            self._messages.warn(error.message)

    def _show_live(self, seconds: float) -> None:
        if not self._messages.live_line:
            return
        stats = self._files.stats()
        self._messages.live(
            f"{seconds:6.0f} s   perf.data {human_size(_size(self._to.perf_data))}   {plural(stats.written, 'guest stack')}   {stats.lost:,} lost"
        )

    def _summarize(self) -> None:
        seconds = max(0.0, self._recording.ended - self._recording.started)
        vms = self._stats.vms if self._stats.vms is not None else len(self._recording.vms)
        name = printable(str(self._settings.output))
        for line in self._guests.summary({vm.pid: vm.name for vm in self._vms.vms}) if self._guests else ():
            self._messages.result(line)
        self._messages.result(
            f"{name}: {seconds:.1f} s, {plural(vms, 'VM')}, {plural(self._stats.written, 'guest stack')}, {self._stats.lost:,} lost, "
            f"perf.data {human_size(_size(self._to.perf_data))}"
        )
        if not self._problems:
            place = "" if self._settings.output == RecordSettings.output else f" {name}"
            self._messages.result(f"next: perfguest convert{place} --flamegraph")


class _Reserve:
    """Room on the disk, held by a file without a name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> _Reserve:
        try:
            self._fd = os.open(self._directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._fd, 0, _RESERVE_BYTES)
        except OSError:
            # Not every file system can; it only matters when the disk is full.
            return self
        return self

    def give_back(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *_: object) -> None:
        self.give_back()


def _losses(stats: Stats) -> list[pb.CpuLosses]:
    return [
        pb.CpuLosses(cpu=cpu, taken=counts.get("taken", 0), written=counts.get("written", 0), lost=[counts.get(reason, 0) for reason in LOST_REASONS])
        for cpu, counts in sorted(stats.cpus.items())
        if any(counts.values())
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
