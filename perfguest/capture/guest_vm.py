# SPDX-License-Identifier: Apache-2.0
"""What is read of one VM, in its order: kernel, then the running processes as samples show them, then their files, the most hit first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from perfguest.capture.debugfs import TaskLayout
from perfguest.capture.guest_check import check_binary, check_layout, check_module_text, check_owners, check_process, check_vm_kernel, not_asked_for, parse
from perfguest.capture.guest_modules import ModuleTexts, ModuleWatch, keep_known
from perfguest.capture.guest_opening import Opening
from perfguest.capture.guest_reader import Message, ReaderProcess
from perfguest.capture.guest_store import GuestStore
from perfguest.capture.guest_tasks import GuestTasks
from perfguest.capture.observer import TaskSeen
from perfguest.errors import CaptureError, PerfguestError
from perfguest.formats.guest_stream import VmRecord
from perfguest.guest.memory import VM_ENDED
from perfguest.guest.wire import Kind
from perfguest.proto import guest_pb2 as pb

_READERS = 3
#: Slots at least so large are the guest's RAM: when they change, what was known of it does not hold.
_LARGE_SLOT = 64 << 20


@dataclass
class GuestState:
    """What the summary says of a VM. ``level``: as in ``VmKernel``; empty as long as nothing was tried."""

    release: str = ""
    level: str = ""
    reason: str = ""
    processes: int = 0
    missed: int = 0
    binaries: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


class GuestVm:
    """``start``: makes a reader for a VMM's process, or gives None to be asked again later; ``tell``: tells the module where tasks are (None: forget).
    ``offer``: takes what tables of a kernel (its fingerprint) can be made of."""

    def __init__(
        self,
        vm_id: int,
        store: GuestStore,
        start: Callable[[int], ReaderProcess | None],
        tell: Callable[[int, TaskLayout | None], None],
        offer: Callable[[str, bytes], None],
        *,
        with_processes: bool,
    ) -> None:
        self.vm_id = vm_id
        self.pid = 0
        self.state = GuestState()
        self.reader: ReaderProcess | None = None
        self._store = store
        self._start = start
        self._tell = tell
        self._offer = offer
        self._modules = ModuleWatch()
        self._texts = ModuleTexts()
        self._when = 0
        self._with_processes = with_processes
        self._record: VmRecord | None = None
        self._opening = Opening(store)
        # Page tables of samples from before the module knew the running tasks.
        self._orphans: list[int] = []
        self._ready = False
        self._open = False
        self._readers = 0
        self._given_up = False
        self._asked: dict[str, Any] = {}
        self._told_parts = False
        self.tasks = GuestTasks(store, self._note)

    # What the samples tell.

    def saw_record(self, record: VmRecord) -> None:
        before, self._record, self.pid = self._record, record, record.pid
        if before and (before.lstar != record.lstar or _ram(before) != _ram(record)) and (self._opening.tries or self._open):
            self._begin_again()

    def saw_page_tables(self, hints: dict[int, bool], la57: bool, when: int) -> None:
        self._when = when
        self._opening.saw_page_tables(hints, la57)

    def saw_task(self, task: TaskSeen) -> None:
        if self._with_processes:
            self.tasks.saw_task(task)

    def saw_hits(self, tgid: int, page: int, count: int, when: int) -> None:
        if self._with_processes:
            self.tasks.saw_hits(tgid, page, count, when)

    def saw_code(self, pages: set[int], when: int) -> None:
        self._modules.saw(pages, when)

    # What is done about it.

    @property
    def idle(self) -> bool:
        """Whether there is nothing to wait for now."""
        return self._given_up or self._record is None or (not (self.reader and self.reader.busy) and not self.wants_opening and self._next() is None)

    @property
    def opening(self) -> bool:
        return self.reader is not None and self.reader.busy and not self._open

    @property
    def wants_opening(self) -> bool:
        """Whether its kernel is to be opened, and can be."""
        record = self._record
        return not self._open and not self._given_up and record is not None and record.lstar != 0 and bool(self._opening.page_tables)

    def step(self, may_open: bool, hurry: bool = False) -> None:
        """Asks for what is next, if nothing is asked for. ``hurry``: without the pauses between openings."""
        try:
            if self.reader:
                self.reader.check_time()
            if self._given_up or (self.reader and self.reader.busy):
                return
            if self.wants_opening:
                if may_open and (hurry or self._opening.is_due()):
                    self._ask_opening(hurry)
            elif request := self._next():
                self._ask(request)
        except CaptureError as error:
            self._lost_reader(error)

    def talk(self) -> None:
        """Takes what the reader has to say."""
        if not self.reader:
            return
        try:
            self.reader.write()
            for message in self.reader.read():
                self._take(message)
        except CaptureError as error:
            self._lost_reader(error)

    def end(self) -> None:
        """Sampling has ended: there will be nothing new."""
        if self._open and self._record is not None:
            self._modules.end(self._last_time())

    def finish(self) -> None:
        """Ends it; what is not there yet will not be."""
        unfinished = self._ready and (not self.idle)
        if self._record is not None and not self._open and not self._given_up:
            self._give_up(
                self.state.reason or ("the recording ended before the kernel was read" if self._opening.page_tables else "no sample gave a page table")
            )
        self.state.processes, self.state.missed = self.tasks.answered, self.tasks.missed
        if unfinished:
            self._note("the recording ended before all was read")
        self.close()

    def close(self) -> None:
        if self.reader:
            self.reader.close()
            self.reader = None
        self._ready = False

    def _begin_again(self) -> None:
        if self._open and self._with_processes:
            self._forget_tasks()
        self._modules = ModuleWatch()
        self._texts = ModuleTexts()
        self._open = self._given_up = False
        self._readers = 0
        self._opening.begin_again()
        self._orphans = []
        self.tasks.forget()
        if self.reader and self.reader.busy:
            # Its answer would be of what no longer is.
            self.close()

    def _ask_opening(self, hurry: bool) -> None:
        record = self._record
        if record is None:
            return
        if self.reader is None:
            if self._readers >= _READERS:
                self._give_up(self.state.reason)
                return
            self.reader = self._start(record.pid)
            self._readers += self.reader is not None
            if self.reader is None and hurry:
                self._give_up("there are more VMs than are read at once")
            self._ready = False
            self._asked = {}
            return
        if self._ready:
            self._ask({**self._identity(record.time), **self._opening.begin(record)})

    def _last_time(self) -> int:
        return max(self._when, self._record.time if self._record else 0)

    def _identity(self, when: int) -> dict[str, Any]:
        return {"vm_pid": self.pid, "vm_id": self.vm_id, "time": when}

    def _ask(self, request: dict[str, Any]) -> None:
        if self.reader:
            self._asked = request
            if request["do"] == "modules":
                self._modules.asked()
            elif request["do"] == "text":
                self._texts.asked()
            elif request["do"] == "owners":
                self._orphans = []
            self.tasks.begin(request)
            self.reader.ask(request)

    def _next(self) -> dict[str, Any] | None:
        if not self._open:
            return None
        if self._orphans:
            return {**self._identity(self._last_time()), "do": "owners", "tables": self._orphans}
        # Without types there is nothing to read of processes: that is said once, not of each.
        reads_tasks = self._with_processes and self.state.level == "processes"
        request = self._modules.request() or (self.tasks.next_request() if reads_tasks else None) or self._texts.request()
        return {**self._identity(request.get("time", 0)), **request} if request else None

    def _take(self, message: Message) -> None:
        if message.kind == Kind.HELLO:
            self._take_hello(message.value)
        elif message.kind == Kind.DONE:
            self._take_done(message.value)
        elif message.kind == Kind.EVENT:
            event = pb.GuestEvent()
            parse(event, message.payload)
            self._take_event(event)
        elif message.kind == Kind.BINARY and self._asked.get("do") == "binary":
            binary = pb.Binary()
            parse(binary, message.payload)
            size = check_binary(binary, self._asked["budget"])
            key = self._asked["key"]
            if size and key not in self._store.binaries and self._store.binary(key, binary, size):
                self.state.binaries.add(key)
        elif self._asked.get("do") == "open":
            answer = self._opening.take(message)
            if answer and self.reader:
                self.reader.push(answer)
        else:
            raise not_asked_for()

    def _take_hello(self, value: dict[str, Any]) -> None:
        self._ready = True
        if value.get("unusable"):
            self._give_up(str(value["unusable"])[:1000])
        elif value.get("missing"):
            self._note(str(value["missing"])[:1000])

    def _take_event(self, event: pb.GuestEvent) -> None:
        which, asked = event.WhichOneof("event"), self._asked.get("do")
        if which == "kernel" and asked == "open":
            check_vm_kernel(event.kernel)
            self._opening.kernel = event.kernel
        elif which == "kernel" and asked == "modules":
            check_vm_kernel(event.kernel)
            self._take_modules(event.kernel)
        elif which == "module_text" and asked == "text":
            self._take_text(event)
        elif which == "process" and asked == "process":
            check_process(event.process)
            process = event.process
            process.vm_pid, process.vm_id, process.time = self.pid, self.vm_id, self._asked["time"]
            self.tasks.take_process(process, self._asked)
            self._store.event(event)
        else:
            raise not_asked_for()

    def _take_modules(self, kernel: pb.VmKernel) -> None:
        """Of the kernel that is open: what else the message says of it is not taken."""
        told = self._opening.kernel
        if told is None:
            return
        self._texts.took(kernel.modules)
        keep_known(told.modules, kernel.modules)
        if not self._modules.took(pb.VmKernel(lstar=told.lstar, modules=kernel.modules, bpf=kernel.bpf)):
            return
        if kernel.reason and kernel.reason != told.reason:
            self._note(f"not all of the modules that were loaded since could be read: {kernel.reason}")
        del told.modules[:]
        told.modules.extend(kernel.modules)
        again = pb.VmKernel(modules=kernel.modules, bpf=kernel.bpf, reason=kernel.reason, cpu_seconds=kernel.cpu_seconds)
        again.vm_pid, again.vm_id, again.time = self.pid, self.vm_id, self._asked["time"]
        again.kernel, again.kaslr_offset, again.lstar, again.level = told.kernel, told.kaslr_offset, told.lstar, told.level
        self._store.event(pb.GuestEvent(kernel=again))

    def _take_text(self, event: pb.GuestEvent) -> None:
        text = event.module_text
        check_module_text(text, self._asked["address"], self._asked["size"])
        if self._opening.kernel:
            text.vm_pid, text.vm_id, text.time, text.lstar = self.pid, self.vm_id, self._last_time(), self._opening.kernel.lstar
            self._store.event(event)

    def _take_done(self, value: dict[str, Any]) -> None:
        asked, self._asked = self._asked, {}
        failed = str(value.get("failed", ""))[:1000]
        if value.get("ended") is True:
            self.tasks.end_process(gone=False)
            self._note(VM_ENDED)
            self._give_up(VM_ENDED)
        elif asked.get("do") == "open":
            self._opened(value, failed)
        elif asked.get("do") == "owners":
            if failed:
                self._note(f"the processes of the first samples could not be found: {failed}")
                return
            for tgid, start in check_owners(value.get("owners")):
                self.tasks.saw_task(TaskSeen(self.vm_id, tgid, start, b"", asked["time"]))
        elif asked.get("do") == "process":
            self.tasks.end_process(gone=not failed and not value.get("found"))
            if failed:
                self._note(f"a process could not be read: {failed}")
            self._note_parts(value.get("problems"))
        elif asked.get("do") == "modules" and failed:
            self._modules.failed()
            self._note(f"modules that were loaded since could not be read: {failed}")
        elif asked.get("do") == "text" and failed:
            self._note(f"a module's code could not be read: {failed}")
        elif asked.get("do") == "binary":
            self.tasks.end_file(asked)
            if failed:
                self._note(f"a file could not be read: {failed}")

    def _opened(self, value: dict[str, Any], failed: str) -> None:
        kernel, record = self._opening.kernel, self._record
        layout = check_layout(value.get("layout"))
        mark = str(value.get("fingerprint", ""))
        if not failed and not self._opening.find_stored(mark):
            failed = "its kernel in the cache is damaged"
        if failed or kernel is None:
            self.state.reason = failed or "its reader said nothing"
            if not self._opening.failed():
                self._give_up(self.state.reason)
            return
        if raw := self._opening.raw_of_new():
            self._offer(mark, raw)
        kernel.vm_pid, kernel.vm_id = self.pid, self.vm_id
        if record:
            kernel.time, kernel.lstar = record.time, record.lstar
        self._store.event(pb.GuestEvent(kernel=kernel))
        self._modules.took(kernel)
        self._texts.took(kernel.modules)
        self._open = True
        self.state.level, self.state.reason = kernel.level, kernel.reason
        self.state.release = str(value.get("release", ""))[:100]
        if layout and self._with_processes:
            self._tell_tasks(layout)
            self._orphans = self._opening.page_tables

    def _tell_tasks(self, layout: TaskLayout) -> None:
        try:
            self._tell(self.vm_id, layout)
        except PerfguestError as error:
            self._note(f"the module cannot tell this VM's processes: {error.message}")

    def _forget_tasks(self) -> None:
        try:
            self._tell(self.vm_id, None)
        except PerfguestError as error:
            self._note(f"the module cannot forget this VM's processes: {error.message}")

    def _lost_reader(self, error: CaptureError) -> None:
        """The reader is no more, or not to be listened to any more. Another one may go on, without what this one ended at."""
        asked, self._asked = self._asked, {}
        was_open, self._open = self._open, False
        self.close()
        self.state.reason = error.message
        self._note(error.message)
        self.tasks.lost(asked, again=was_open)
        if not was_open or self._readers >= _READERS:
            self._give_up(error.message)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self.close()
        if not self.state.level:
            self.state.level, self.state.reason = "addresses", reason
            lstar = self._record.lstar if self._record else 0
            when = self._record.time if self._record else 0
            kernel = pb.VmKernel(vm_pid=self.pid, vm_id=self.vm_id, time=when, lstar=lstar, level="addresses", reason=reason)
            self._store.event(pb.GuestEvent(kernel=kernel))

    def _note_parts(self, problems: Any) -> None:
        """``problems``: what JSON holds. One stands for all: of a guest that changes all the time something is often missed."""
        if isinstance(problems, list) and problems and not self._told_parts:
            self._told_parts = True
            self._note(f"parts of a process could not be read: {str(problems[0])[:1000]}")

    def _note(self, text: str) -> None:
        if text not in self.state.problems and len(self.state.problems) < 16:
            self.state.problems.append(text)
            self._store.event(pb.GuestEvent(problem=pb.Problem(vm_pid=self.pid, text=text)))


def _ram(record: VmRecord) -> set[tuple[int, int, int]]:
    return {(slot.gpa, slot.size, slot.hva) for slot in record.memslots if slot.size >= _LARGE_SLOT}
