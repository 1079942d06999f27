# SPDX-License-Identifier: Apache-2.0
"""Where what was read of guests goes: the recording's ``guests/``, and the cache of kernels. Keeps the budgets, and goes on when a file cannot be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfguest.capture.guest_cache import KernelCache
from perfguest.formats.guest_snapshot import SnapshotWriter
from perfguest.guest import wire
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

#: Bytes of one file's pages, and of all files' of a recording.
FILE_BUDGET = 64 << 20
RECORDING_BUDGET = 512 << 20
#: Bytes of processes and other events of a recording.
_EVENTS_BUDGET = 512 << 20
#: Kernels whose tables are held for the next VMs: some 4 MB each.
_MOST_TABLES = 8


class GuestStore:
    """``directory``: ``guests/``, made with the first thing that is stored. ``problem``: the first reason why something was not stored, in words."""

    def __init__(self, directory: Path, cache: KernelCache) -> None:
        self._directory = directory
        self._cache = cache
        self._writer: SnapshotWriter | None = None
        self._kernels: dict[str, str] = {}
        self._tables: dict[str, tables_pb2.KernelTables] = {}
        self._unused = cache.with_tables()[:_MOST_TABLES]
        self._events_left = _EVENTS_BUDGET
        self.budget = RECORDING_BUDGET
        self.binaries: dict[str, int] = {}
        self.taken: Counter[str] = Counter()
        self.problem = ""

    def known_kernels(self) -> list[str]:
        """Fingerprints of kernels that need not be sent."""
        return [*self._kernels.values(), *self._cache.known()]

    def candidates(self) -> list[dict[str, Any]]:
        """The kernels whose tables are there, as a request to open has them."""
        for mark in self._unused:
            if (tables := self._cache.tables(mark)) is not None:
                self._add_tables(mark, tables)
        self._unused.clear()
        return [
            {"mark": mark, "build_id": one.build_id.hex(), "entry": one.raw.entry, "notes": [one.raw.notes.address, one.raw.notes.size]}
            for mark, one in self._tables.items()
        ]

    def tables(self, mark: str) -> tables_pb2.KernelTables:
        """Empty where there are none."""
        return self._tables.get(mark, tables_pb2.KernelTables())

    def has_tables(self, mark: str = "") -> bool:
        """Of this kernel, or of any."""
        return mark in self._tables if mark else bool(self._tables)

    def keep_tables(self, mark: str, tables: tables_pb2.KernelTables) -> None:
        """``mark``: of a kernel that is stored."""
        self._add_tables(mark, tables)
        self._cache.keep_tables(mark, tables)

    def kernel(self, kernel: pb.Kernel) -> str:
        """Stores it; gives its key, empty if it could not be stored."""
        mark = wire.fingerprint(kernel)
        key = self._key(kernel.build_id.hex(), mark)
        if key not in self._kernels and self._attempt(lambda writer: writer.kernel(key, kernel)):
            self._kernels[key] = mark
            self._cache.keep(key, mark, self._directory / "kernels" / f"{key}.pb.gz")
        return key if key in self._kernels else ""

    def known_kernel(self, build_id: str, mark: str) -> str:
        """Stores a kernel that is known by its fingerprint; gives its key, empty if it is not known after all."""
        key = self._key(build_id, mark)
        if key not in self._kernels:
            path = self._directory / "kernels" / f"{key}.pb.gz"
            if not self._attempt(lambda writer: self._cache.fetch(mark, path)) or not path.exists():
                return ""
            self._kernels[key] = mark
        return key

    def event(self, event: pb.GuestEvent) -> None:
        size = event.ByteSize()
        if size > self._events_left:
            self.problem = self.problem or "more of processes than a recording takes was left out"
        elif self._attempt(lambda writer: writer.event(event)):
            self._events_left -= size

    def binary(self, key: str, binary: pb.Binary, size: int) -> bool:
        """Stores it; ``size``: bytes of its pages."""
        if not self._attempt(lambda writer: writer.binary(key, binary)):
            return False
        self.budget -= size
        self.binaries[key] = size
        return True

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        self._cache.close()

    def _add_tables(self, mark: str, tables: tables_pb2.KernelTables) -> None:
        self._tables.pop(mark, None)
        self._tables[mark] = tables
        while len(self._tables) > _MOST_TABLES:
            del self._tables[next(iter(self._tables))]

    def _key(self, build_id: str, mark: str) -> str:
        # Another guest's kernel with the same build id and other contents does not take its place.
        return build_id if self._kernels.get(build_id, mark) == mark else build_id[: 128 - len(mark)] + mark

    def _attempt(self, store: Callable[[SnapshotWriter], object]) -> bool:
        try:
            if self._writer is None:
                self._writer = SnapshotWriter(self._directory)
            store(self._writer)
        except OSError as error:
            self.problem = self.problem or f"{self._directory} could not be written: {error.strerror}"
            return False
        except ValueError as error:
            self.problem = self.problem or f"something was left out: {error}"
            return False
        return True
