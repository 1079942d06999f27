# SPDX-License-Identifier: Apache-2.0
"""Which processes and files of a VM are to be read, in which order: processes as samples show them, then their files, the most hit first."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from perfguest.capture.guest_store import FILE_BUDGET, GuestStore
from perfguest.capture.observer import TaskSeen
from perfguest.errors import CaptureError
from perfguest.proto import guest_pb2 as pb

_MOST_PROCESSES = 20_000
_MOST_PAGES = 4096
#: A process is read again for code at unknown places only so often.
_AGAIN_SECONDS, _AGAIN_TIMES = 1.0, 16
#: No pid is given to another process so soon.
_SURE_SECONDS = 5.0
_HOLDERS = 4
_MOST_FILES = 10_000
#: Executable mappings of all processes.
_MOST_CODE = 1 << 20


@dataclass
class _Process:
    """A process of the guest. ``start``: of its main thread, once it was read; before, of the thread that was seen.

    ``code``: its executable mappings as (first page, end page, key of the file), ascending. ``pages``: hits without a mapping.
    """

    tgid: int
    start: int
    comm: bytes
    time: int
    queued: bool = False
    answered: bool = False
    gone: bool = False
    read_at: float = 0.0
    code: list[tuple[int, int, str]] = field(default_factory=list)
    pages: Counter[int] = field(default_factory=Counter)
    again: int = 0

    def key_of(self, page: int) -> str | None:
        at = bisect_right(self.code, page, key=lambda part: part[0]) - 1
        return self.code[at][2] if at >= 0 and page < self.code[at][1] else None


@dataclass
class _File:
    """``holders``: processes that have it mapped, by tgid."""

    hits: int = 0
    holders: list[int] = field(default_factory=list)


class GuestTasks:
    """Of one VM. ``note``: takes what is to be said of it, in words. ``answered``: how many processes were read."""

    def __init__(self, store: GuestStore, note: Callable[[str], None]) -> None:
        self.answered = 0
        self._store = store
        self._note = note
        self._processes: dict[int, _Process] = {}
        self._reading: _Process | None = None
        self._queue: deque[_Process] = deque()
        self._files: dict[str, _File] = {}
        self._code = _MOST_CODE

    @property
    def missed(self) -> int:
        """How many processes were neither read nor gone."""
        return sum(not process.answered and not process.gone for process in self._processes.values())

    def saw_task(self, task: TaskSeen) -> None:
        process = self._processes.get(task.tgid)
        if process is None or (task.start != process.start and (process.gone or (task.comm and process.answered))):
            # None had this pid before, or an earlier process had.
            if len(self._processes) >= _MOST_PROCESSES:
                self._note(f"more than {_MOST_PROCESSES} processes: the later ones were left out")
                return
            process = self._processes[task.tgid] = _Process(task.tgid, task.start, task.comm, task.time)
            self._enqueue(process)
        elif task.comm and task.comm != process.comm:
            # Most likely it has executed another program.
            process.comm = task.comm
            self._enqueue_again(process, task.time)
        elif process.read_at and time.monotonic() > process.read_at + _SURE_SECONDS:
            # A thread that was not seen before: by now it may be of another process.
            process.start = max(process.start, task.start)
            self._enqueue_again(process, task.time)

    def saw_hits(self, tgid: int, page: int, count: int, when: int) -> None:
        process = self._processes.get(tgid)
        if process is None:
            return
        key = process.key_of(page)
        if key:
            if key in self._files:
                self._files[key].hits += count
        elif key is None and len(process.pages) < _MOST_PAGES:
            process.pages[page] += count
            if process.read_at and time.monotonic() > process.read_at + _AGAIN_SECONDS:
                self._enqueue_again(process, when)

    def next_request(self) -> dict[str, Any] | None:
        """What is to be asked for next; None if there is nothing."""
        while self._queue and self._queue[0].gone:
            self._queue.popleft()
        if self._queue:
            process = self._queue[0]
            return {"do": "process", "time": process.time, "tgid": process.tgid, "start": process.start}
        wanted = [(file.hits, key) for key, file in self._files.items() if file.holders and key not in self._store.binaries]
        if not wanted or self._store.budget <= 0:
            return None
        key = max(wanted)[1]
        return {"do": "binary", "tgid": self._files[key].holders[-1], "key": key, "budget": min(FILE_BUDGET, self._store.budget)}

    def begin(self, request: dict[str, Any]) -> None:
        """The request is being asked."""
        self._reading = self._queue.popleft() if request["do"] == "process" else None
        if self._reading:
            self._reading.queued = False

    def take_process(self, process: pb.Process, asked: dict[str, Any]) -> None:
        """What was read of the process that was asked for. Raises :class:`CaptureError` if it is another one."""
        known = self._reading
        if known is None or process.tgid != asked["tgid"] or process.start_time > asked["start"]:
            raise CaptureError("the reader of the guest's memory gave another process than was asked for", "The guest may be hostile.")
        self.answered += not known.answered
        known.answered, known.start, known.comm, known.read_at = True, process.start_time, process.comm, time.monotonic()
        self._code += len(known.code)
        known.code = sorted((part.start >> 12, -(-part.end >> 12), part.binary) for part in process.mappings if part.executable)
        self._code -= len(known.code)
        if self._code < 0:
            self._code, known.code = self._code + len(known.code), []
            self._note("more mappings than are kept: hits on some files were not counted")
        for _, _, key in known.code:
            if key and (key in self._files or len(self._files) < _MOST_FILES):
                holders = self._files.setdefault(key, _File()).holders
                if known.tgid not in holders:
                    holders.append(known.tgid)
                    del holders[:-_HOLDERS]
        pages, known.pages = known.pages, Counter()
        for page, count in pages.items():
            if (owner := known.key_of(page)) in self._files and owner:
                self._files[owner].hits += count

    def end_process(self, gone: bool) -> None:
        """Reading the process has ended, well or not."""
        process, self._reading = self._reading, None
        if process:
            process.gone = process.gone or gone
            process.read_at = time.monotonic()

    def end_file(self, asked: dict[str, Any]) -> None:
        """The file was read or not: this process is not asked for it again."""
        file = self._files.get(asked["key"])
        if file and asked["tgid"] in file.holders:
            file.holders.remove(asked["tgid"])

    def lost(self, asked: dict[str, Any], again: bool) -> None:
        """The reader ended at this request, which is not made again. ``again``: another reader goes on, which is to know the processes' files."""
        self.end_process(gone=True)
        if asked.get("do") == "binary":
            self._files.pop(asked["key"], None)
        for process in self._processes.values():
            if again and process.answered and not process.gone:
                self._enqueue(process)

    def forget(self) -> None:
        """The guest has started anew."""
        self._queue.clear()
        self._files.clear()
        for process in self._processes.values():
            process.queued, process.gone = False, True

    def _enqueue_again(self, process: _Process, when: int) -> None:
        if process.again < _AGAIN_TIMES and not process.gone and not process.queued:
            process.again += 1
            process.time = when
            self._enqueue(process)

    def _enqueue(self, process: _Process) -> None:
        if not process.queued:
            process.queued = True
            self._queue.append(process)
