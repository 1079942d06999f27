# SPDX-License-Identifier: Apache-2.0
"""Has the tables of a guest's kernel made for the guests after it: in a process of their own, which sees the kernel's bytes and nothing else of any guest."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from perfguest.capture.guest_check import check_tables, parse
from perfguest.capture.guest_reader import Message, ReaderProcess
from perfguest.capture.guest_store import GuestStore
from perfguest.errors import CaptureError
from perfguest.guest import wire
from perfguest.guest.tables import hashes
from perfguest.guest.wire import Kind
from perfguest.proto import tables_pb2

_MOST_WAITING = 2


class TablesMaker:
    """``start``: makes a reader of the memory behind a descriptor. What fails costs the next guests with that kernel time, and nothing else."""

    def __init__(self, store: GuestStore, start: Callable[[int], ReaderProcess]) -> None:
        self.reader: ReaderProcess | None = None
        self._store = store
        self._start = start
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._mark = ""
        self._raw: tables_pb2.KernelRaw | None = None

    @property
    def busy(self) -> bool:
        return self.reader is not None or bool(self._waiting)

    def offer(self, mark: str, raw: bytes) -> None:
        """A kernel (its fingerprint) is made of these bytes, says a guest's reader."""
        if len(self._waiting) < _MOST_WAITING and not self._store.has_tables(mark) and mark not in {self._mark, *(one for one, _ in self._waiting)}:
            self._waiting.append((mark, raw))

    def step(self) -> None:
        """Begins with the next, if there is one."""
        try:
            if self.reader:
                self.reader.check_time()
            elif self._waiting:
                self.reader = self._start(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except CaptureError:
            self._waiting.clear()
            self.close()

    def talk(self) -> None:
        """Takes what the process has to say."""
        if not self.reader:
            return
        try:
            self.reader.write()
            for message in self.reader.read():
                self._take(message)
        except CaptureError:
            self.close()

    def close(self) -> None:
        """Ends the process; what it was at is not tried again."""
        if self.reader:
            self.reader.close()
            self.reader = None
            self._mark, self._raw = "", None

    def _take(self, message: Message) -> None:
        if message.kind == Kind.HELLO and self.reader and self._waiting:
            self._mark, data = self._waiting.popleft()
            raw = tables_pb2.KernelRaw()
            parse(raw, data)
            self._raw = hashes(raw)
            self.reader.ask({"do": "tables"}, wire.frame(Kind.RAW, data))
        elif message.kind == Kind.TABLES and self._raw is not None:
            tables = tables_pb2.KernelTables()
            parse(tables, message.payload)
            check_tables(tables, self._raw, self._mark)
            self._store.keep_tables(self._mark, tables)
        else:
            self.close()
