# SPDX-License-Identifier: Apache-2.0
"""Reads what naming and unwinding need out of the recorded guests' memory, beside the recording: in a thread of its own, with a process for each VM.

Whatever becomes of it, the recording goes on; :meth:`Guests.summary` says what is missing and why.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perfguest.capture.debugfs import TaskLayout
from perfguest.capture.guest_cache import KernelCache
from perfguest.capture.guest_reader import ReaderLimits, ReaderProcess
from perfguest.capture.guest_store import GuestStore
from perfguest.capture.guest_tables import TablesMaker
from perfguest.capture.guest_vm import GuestState, GuestVm
from perfguest.capture.guest_zygote import Zygote
from perfguest.capture.messages import human_size
from perfguest.capture.observer import Observer, Seen
from perfguest.capture.vms import holds_vm
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError, PerfguestError
from perfguest.guest.memory import VM_ENDED
from perfguest.terminal import printable

_TICK_SECONDS = 0.25
#: A reader takes some 100 MB.
_MOST_READERS = 32
#: Opening a kernel that is not known yet takes a core for about a second, and makes it known to the next: so one after the other. One that takes longer than so
#: many seconds holds the others up no more, as long as so many are at it at most: then each waits until another has ended, or has had its time.
_OPENING_SECONDS, _MOST_OPENING = 5.0, 4
#: On a machine that is slower, as an emulated one, it is so many times what loading the reader took of CPU time, of which opening takes about as much.
_OPENING_LOADS = 4.0


@dataclass(frozen=True)
class GuestSettings:
    """``mode``: what may be read, ``all``, ``kernel``, or ``off``. ``wait``: seconds after the end of sampling for what is being read. ``cache``: of kernels,
    None for none. ``reader``: another command than our own to start readers."""

    mode: str = "all"
    wait: float = 30.0
    cache: Path | None = None
    limits: ReaderLimits = field(default_factory=ReaderLimits)
    reader: Sequence[str] = ()


class Guests:
    """``proc`` is /proc; ``directory`` the recording's ``guests/``; ``tell`` writes a layout of tasks to the module (None: forget it)."""

    def __init__(self, settings: GuestSettings, proc: Path, directory: Path, format_text: bytes, tell: Callable[[int, TaskLayout | None], None]) -> None:
        self._settings = settings
        self._proc = proc
        self._tell = tell
        self._directory = directory
        self._vms: dict[int, GuestVm] = {}
        self._inbox: deque[Seen] = deque()
        self._stopping = self._abandoned = False
        self._failure = ""
        self._store: GuestStore | None = None
        self._zygote: Zygote | None = None
        self._tables: TablesMaker | None = None
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._finished = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._observer: Observer | None = None
        try:
            self._observer = Observer(format_text)
        except PerfguestError as error:
            self._failure = error.message

    def start(self) -> None:
        if self._observer:
            self._thread = threading.Thread(target=self._run, name="guests", daemon=True)
            self._thread.start()

    def observe(self, data: bytes) -> None:
        """Whole records, from the thread that drains them. Never raises, never waits."""
        if self._observer is None:
            return
        try:
            seen = self._observer.look(data)
        except Exception as error:  # a defect of ours must not end the recording
            self._failure = f"the stream was not understood: {type(error).__name__}: {error}"
            self._observer = None
            return
        if seen:
            self._inbox.append(seen)
            os.eventfd_write(self._wake, 1)

    def finish(self, interrupted: int = -1) -> None:
        """Waits for what is being read, at most as long as the settings say, or until ``interrupted`` is readable; then ends all readers."""
        thread = self._thread
        if thread:
            self._stopping = True
            os.eventfd_write(self._wake, 1)
            wait_readable([self._finished, *([interrupted] if interrupted >= 0 else [])], self._settings.wait)
            self._end_thread()

    def close(self) -> None:
        """Afterwards there are no readers."""
        self._end_thread()
        for fd in (self._wake, self._finished):
            if fd >= 0:
                os.close(fd)
        self._wake = self._finished = -1

    def cached_tables(self) -> bool:
        """Whether the next VM with a kernel that was read costs little."""
        return bool(self._store and self._tables and not self._tables.busy and self._store.has_tables())

    def summary(self, names: Mapping[int, str]) -> list[str]:
        """A line for each VM, and one for what failed. ``names``: of VMs by their processes."""
        lines = []
        sizes = self._store.binaries if self._store else {}
        for vm in self._vms.values():
            name = printable(names.get(vm.pid, f"pid {vm.pid}"))
            lines.append(f"{name}: {printable(_describe(vm.state, sizes))}")
        problem = self._failure or (self._store.problem if self._store else "")
        return [*lines, *([f"guests' memory: {printable(problem)}"] if problem else [])]

    def _end_thread(self) -> None:
        if self._thread:
            self._stopping = self._abandoned = True
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        cache = KernelCache(self._settings.cache)
        self._store = GuestStore(self._directory, cache)
        self._tables = TablesMaker(self._store, self._make_reader)
        # It loads what readers need while the first samples come.
        with contextlib.suppress(CaptureError):
            self._zygote = Zygote(self._settings.reader)
        try:
            self._work()
        except Exception as error:  # a defect of ours must not end the recording
            self._failure = f"reading ended early: {type(error).__name__}: {error}"
        finally:
            self._tables.close()
            for vm in self._vms.values():
                vm.close()
            if self._zygote:
                self._zygote.close()
            self._store.close()
            os.eventfd_write(self._finished, 1)

    def _work(self) -> None:
        tables = self._tables
        assert tables is not None  # noqa: S101 - made before this is called
        while True:
            stopping, abandoned = self._stopping, self._abandoned
            self._take_inbox()
            tables.step()
            for vm in self._vms.values():
                if stopping:
                    vm.end()
                vm.step(may_open=vm.wants_opening and self._may_open(tables), hurry=stopping)
            if abandoned or (stopping and not self._inbox and not tables.busy and all(vm.idle for vm in self._vms.values())):
                break
            self._wait(tables)
        for vm in self._vms.values():
            vm.finish()

    def _may_open(self, tables: TablesMaker) -> bool:
        """Whether another kernel may be opened. The next VM most likely runs the same: then it costs little once its tables are made."""
        running = [vm.reader.busy_seconds() for vm in self._vms.values() if vm.opening and vm.reader]
        if tables.busy:
            running.append(tables.reader.busy_seconds() if tables.reader else 0.0)
        patience = max(_OPENING_SECONDS, _OPENING_LOADS * self._zygote.cpu_seconds() if self._zygote else 0.0)
        return len(running) < _MOST_OPENING and all(seconds > patience for seconds in running)

    def _wait(self, tables: TablesMaker) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        talking: list[GuestVm | TablesMaker] = [tables, *self._vms.values()]
        readers = {one.reader.fd: one for one in talking if one.reader}
        for fd, one in readers.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if one.reader and one.reader.wants_to_write else 0))
        for fd, _ in poll.poll(_TICK_SECONDS * 1000):
            if fd == self._wake:
                os.eventfd_read(self._wake)
            else:
                readers[fd].talk()

    def _take_inbox(self) -> None:
        while self._inbox:
            seen = self._inbox.popleft()
            for record in seen.vms:
                self._vm(record.vm_id).saw_record(record)
            for vm_id, hints in seen.hints.items():
                self._vm(vm_id).saw_page_tables(hints, vm_id in seen.la57, seen.time)
            for task in seen.new:
                self._vm(task.vm_id).saw_task(task)
            for vm_id, pages in seen.code.items():
                self._vm(vm_id).saw_code(pages, seen.time)
            for (vm_id, tgid, _, page), count in seen.hits.items():
                self._vm(vm_id).saw_hits(tgid, page, count, seen.time)

    def _vm(self, vm_id: int) -> GuestVm:
        if vm_id not in self._vms:
            if self._store is None:
                raise AssertionError
            self._vms[vm_id] = GuestVm(vm_id, self._store, self._start_reader, self._tell_module, self._offer, with_processes=self._settings.mode == "all")
        return self._vms[vm_id]

    def _tell_module(self, vm_id: int, layout: TaskLayout | None) -> None:
        # Once sampling has ended the module takes no more.
        if not self._stopping:
            self._tell(vm_id, layout)

    def _start_reader(self, pid: int) -> ReaderProcess | None:
        if sum(vm.reader is not None for vm in self._vms.values()) >= _MOST_READERS:
            return None
        process = self._proc / str(pid)
        try:
            memory = os.open(process / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if not holds_vm(process):
                raise CaptureError(VM_ENDED, "Recording went on without its memory.") from error
            raise CaptureError(f"the memory of process {pid} cannot be opened: {error.strerror}", "Recording went on without it.") from error
        if not holds_vm(process):
            os.close(memory)
            raise CaptureError(VM_ENDED, "Recording went on without its memory.")
        return self._make_reader(memory)

    def _make_reader(self, memory: int) -> ReaderProcess:
        if self._zygote is None:
            try:
                self._zygote = Zygote(self._settings.reader)
            except CaptureError:
                os.close(memory)
                raise
        return ReaderProcess(memory, self._settings.limits, self._zygote)

    def _offer(self, mark: str, raw: bytes) -> None:
        if self._tables:
            self._tables.offer(mark, raw)


def _describe(state: GuestState, sizes: Mapping[str, int]) -> str:
    system = f"Linux {state.release}" if state.release else "kernel not known"
    missing = "; ".join(dict.fromkeys(reason for reason in (state.reason, *state.problems) if reason))
    if state.level == "processes":
        size = human_size(sum(sizes.get(key, 0) for key in state.binaries))
        processes = f"{state.processes:,} process" + ("" if state.processes == 1 else "es")
        binaries = f"{len(state.binaries):,} binar" + ("y" if len(state.binaries) == 1 else "ies")
        text = f"{system}, {processes}, {binaries} ({size}) from its memory"
        if state.missed:
            text += f", {state.missed:,} not read in time"
    elif state.level == "symbols":
        text = f"{system}, its functions from its memory, no processes"
    else:
        text = f"{system}, nothing from its memory"
    return f"{text}: {missing}" if missing else text
