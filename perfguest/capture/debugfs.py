# SPDX-License-Identifier: Apache-2.0
"""The files of the loaded module under debugfs: settings, streams, statistics."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from perfguest.errors import CaptureError, EnvironmentProblem, PerfguestError, UsageError

#: In the order of ``enum pg_lost_reason`` in kmod/perfguest_abi.h.
LOST_REASONS = ("full", "nested", "no_reader", "no_vcpu")

#: As large as stacks of x86-64 Linux kernels are.
WHOLE_STACK = 16384


@dataclass(frozen=True)
class ModuleSettings:
    """What the module is told before it samples. Sizes in bytes; ``pids``: VMM processes, none for all.

    ``kernel_stack``: of that at most so much is copied, 0 for no copy; :data:`WHOLE_STACK` for all of it. ``user_stack`` likewise. ``chain_depth``: of each
    chain of frame pointers, 0 for none. ``buffer_kb``: of each CPU's ring; None: as the module has it.
    """

    trigger: str = "auto"
    locator: str = "auto"
    clock: str = "local"
    kernel_stack: int = WHOLE_STACK
    user_stack: int = 8192
    chain_depth: int = 127
    buffer_kb: int | None = None
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskLayout:
    """Where a guest's kernel keeps its running task. ``current``, added to the GS base modulo 2^64, is the address of the pointer to it; the others are byte
    offsets in ``struct task_struct``."""

    current: int
    pid: int
    tgid: int
    comm: int
    start: int
    stack: int


@dataclass(frozen=True)
class Stats:
    """The module's ``stats``: single values as text, and counts per host CPU."""

    values: dict[str, str] = field(default_factory=dict)
    cpus: dict[int, dict[str, int]] = field(default_factory=dict)

    def total(self, name: str) -> int:
        """The sum of a count over all CPUs."""
        return sum(counts.get(name, 0) for counts in self.cpus.values())

    @property
    def written(self) -> int:
        return self.total("written")

    @property
    def lost(self) -> int:
        """Samples that were taken and not written, and hits that the kernel skipped."""
        missed = self.values.get("missed", "")
        return sum(self.total(reason) for reason in LOST_REASONS) + self.total("missed") + (int(missed) if re.fullmatch("[0-9]{1,20}", missed) else 0)

    @property
    def vms(self) -> int | None:
        vms = self.values.get("vms", "")
        return int(vms) if re.fullmatch("[0-9]{1,10}", vms) else None


def parse_stats(text: str) -> Stats:
    """Reads ``key value`` and ``cpuN name count name count…`` lines; keys and names that are not known are kept."""
    values: dict[str, str] = {}
    cpus: dict[int, dict[str, int]] = {}
    for line in text.splitlines():
        key, _, rest = line.strip().partition(" ")
        cpu = re.fullmatch(r"cpu([0-9]{1,6})", key)
        words = rest.split()
        if cpu:
            cpus[int(cpu[1])] = {name: int(count) for name, count in zip(words[::2], words[1::2], strict=False) if re.fullmatch("[0-9]{1,20}", count)}
        elif key:
            values[key] = rest.strip()
    return Stats(values, cpus)


def parse_choices(text: str) -> tuple[list[str], str]:
    """``[probe] nmi`` as all choices and the active one (empty if none is marked)."""
    words = text.split()
    active = [word[1:-1] for word in words if re.fullmatch(r"\[.+\]", word)]
    return [word.strip("[]") for word in words], active[0] if active else ""


class ModuleFiles:
    """``debugfs/perfguest/``. Every method raises :class:`PerfguestError` with words if the kernel refuses."""

    def __init__(self, debugfs: Path = Path("/sys/kernel/debug")) -> None:
        self.directory = debugfs / "perfguest"

    def read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            raise self._problem("read", name, error) from error

    def choices(self, name: str) -> tuple[list[str], str]:
        return parse_choices(self.read(name).decode(errors="replace"))

    def stats(self) -> Stats:
        return parse_stats(self.read("stats").decode(errors="replace"))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other recorders away from the settings as well, which the module itself guards only while it samples."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._problem("open", "", error) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._problem("lock", "", OSError(errno.EBUSY, "")) from error
            yield
        finally:
            os.close(fd)

    def apply(self, settings: ModuleSettings) -> ModuleSettings:
        """Writes the settings, also those that stand already: another session may have left its own. Gives them back with the trigger that was chosen."""
        trigger = self._trigger(settings.trigger)
        written: dict[str, str | int] = {
            "trigger": trigger,
            "locator": settings.locator,
            "clock": settings.clock,
            "kernel_stack": settings.kernel_stack,
            "user_stack": settings.user_stack,
            "chain_depth": settings.chain_depth,
            "pids": " ".join(map(str, settings.pids)),
        }
        if settings.buffer_kb is not None:
            written["buffer_kb"] = settings.buffer_kb
        for name, value in written.items():
            self._write(name, str(value))
        return replace(settings, trigger=trigger)

    def open_streams(self, cpus: list[int]) -> dict[int, int]:
        """Opens these CPUs' streams for reading: file descriptors, non-blocking, by CPU. All or none."""
        opened: dict[int, int] = {}
        try:
            for cpu in cpus:
                opened[cpu] = os.open(self.directory / f"cpu{cpu}/stream", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            for fd in opened.values():
                os.close(fd)
            raise self._problem("open", f"cpu{cpu}/stream", error) from error
        return opened

    def enable(self) -> None:
        self._write("enable", "1")

    def disable(self) -> None:
        self._write("enable", "0")

    def write_task_layout(self, vm_id: int, layout: TaskLayout | None) -> None:
        """From now on samples of this VM say which thread of the guest ran; with None no more. A VM that is not there any more needs nothing."""
        if not (self.directory / "tasks").exists():
            raise EnvironmentProblem("the loaded module is too old for that", "Unload it: rmmod perfguest.")
        words = (vm_id, *(astuple(layout) if layout else ()))
        try:
            self._put("tasks", " ".join(map(str, words)))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._problem("write", "tasks", error) from error

    def _trigger(self, wanted: str) -> str:
        available, _ = self.choices("trigger")
        if wanted == "auto":
            # With the probe, each of perf's guest samples has exactly one record.
            return "probe" if "probe" in available or not available else available[0]
        if wanted not in available:
            raise EnvironmentProblem(f"the trigger {wanted} is not available on this kernel", f"Available: {', '.join(available)}. Leave out --trigger.")
        return wanted

    def _put(self, name: str, value: str) -> None:
        # In one write(2), without truncation, as the kernel's files want it.
        fd = os.open(self.directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{value}\n".encode())
        finally:
            os.close(fd)

    def _write(self, name: str, value: str) -> None:
        try:
            self._put(name, value)
        except OSError as error:
            raise self._problem("write", f"{name} ({value})" if value else name, error) from error

    def _problem(self, action: str, name: str, error: OSError) -> PerfguestError:
        what = f"cannot {action} {self.directory}/{name}: {os.strerror(error.errno or 0)}"
        starting = name.startswith("enable")
        match error.errno:
            case errno.EBUSY:
                return CaptureError("the module is in use by another recorder", f"Wait for it or end it; `perfguest module status` shows what runs. ({what})")
            case errno.ENODEV if starting:
                return EnvironmentProblem(
                    "KVM is not loaded, or the module knows no way to this KVM's vCPUs", f"Load kvm_intel or kvm_amd, and see dmesg. ({what})"
                )
            case errno.EMSGSIZE if starting:
                return UsageError("the buffer is too small for samples of this size", "Raise --buffer or ask for smaller stacks.")
            case errno.EOPNOTSUPP:
                return EnvironmentProblem("this kernel does not offer the trigger or locator that was chosen", f"Leave out --trigger and --locator. ({what})")
            case errno.ENOMEM:
                return EnvironmentProblem("there is not enough memory for the buffers of all CPUs", f"Lower --buffer. ({what})")
            case errno.EPERM | errno.EACCES:
                return EnvironmentProblem(what, "Run as root; under kernel lockdown debugfs is closed (see /sys/kernel/security/lockdown).")
            case errno.ENOENT | errno.ENOTDIR:
                return EnvironmentProblem(what, "The module is not loaded, is of another version, or debugfs is not mounted: `perfguest module status`.")
            case errno.EINVAL:
                return UsageError(what, "The module does not take this value.")
        return CaptureError(what, "See dmesg.")
