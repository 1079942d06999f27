# SPDX-License-Identifier: Apache-2.0
"""How the kernel of one VM is opened: with what, when it is tried again, and what the reader has said of it so far."""

from __future__ import annotations

import time
from typing import Any

from perfguest.capture.guest_check import check_kernel, not_asked_for, parse
from perfguest.capture.guest_reader import Message
from perfguest.capture.guest_store import GuestStore
from perfguest.formats.guest_stream import VmRecord
from perfguest.guest import wire
from perfguest.guest.wire import Kind
from perfguest.proto import guest_pb2 as pb

_MOST_HINTS = 64
_MOST_SLOTS = 4096
_OPENINGS = 6
# Of one opening.
_MOST_WANTS = 8


class Opening:
    """``kernel``: what the reader said of the kernel, once it has; ``raw``: what tables of it can be made of, or nothing.

    ``page_tables``: those that samples have shown since the VM's last reboot, the latest last.
    """

    def __init__(self, store: GuestStore) -> None:
        self.kernel: pb.VmKernel | None = None
        self.raw = b""
        self.tries = 0
        self._store = store
        self._key = ""
        self._wants = 0
        # By page table: whether it is the kernel's own.
        self._hints: dict[int, bool] = {}
        self._la57 = False
        self._reboots = 0
        self._again_at = 0.0

    @property
    def page_tables(self) -> list[int]:
        return list(self._hints)

    def saw_page_tables(self, hints: dict[int, bool], la57: bool) -> None:
        self._la57 = self._la57 or la57
        for cr3, of_kernel in hints.items():
            of_kernel = self._hints.pop(cr3, False) or of_kernel  # noqa: PLW2901 - known once is known
            self._hints[cr3] = of_kernel
        while len(self._hints) > _MOST_HINTS:
            del self._hints[next(iter(self._hints))]

    def begin_again(self) -> None:
        """The VM has booted another kernel."""
        self.tries = 0
        self._reboots += 1
        # A guest that does nothing but change its kernel is not to keep the host busy.
        self._again_at = time.monotonic() + min(60.0, 0.1 * self._reboots**2)
        self._hints.clear()

    def is_due(self) -> bool:
        """Whether the pause since the last try is over."""
        return time.monotonic() >= self._again_at

    def failed(self) -> bool:
        """A try has failed. False if it was the last one."""
        self._again_at = time.monotonic() + min(8.0, 0.25 * 2**self.tries)
        return self.tries < _OPENINGS

    def begin(self, record: VmRecord) -> dict[str, Any]:
        """What the reader is asked for the next try."""
        # The kernel's own page tables map the kernel surely; the latest are the likeliest to be alive.
        latest = list(self._hints.items())[::-1]
        hints = sorted(latest, key=lambda hint: not hint[1])
        self.tries += 1
        self.kernel, self._key, self.raw, self._wants = None, "", b"", 0
        return {
            "do": "open",
            "slots": [[slot.gpa, slot.size, slot.hva] for slot in record.memslots[:_MOST_SLOTS]],
            "hints": [[cr3, record.lstar] for cr3, _ in hints],
            "la57": self._la57,
            "known": self._store.known_kernels()[-4096:],
            "tables": self._store.candidates(),
        }

    def take(self, message: Message) -> bytes | None:
        """Takes what the reader says while the kernel is opened; gives the frame that it waits for, if it does. Raises CaptureError for what has no place
        there."""
        if message.kind == Kind.KERNEL:
            kernel = pb.Kernel()
            parse(kernel, message.payload)
            check_kernel(kernel)
            self._key = self._store.kernel(kernel)
        elif message.kind == Kind.RAW and not self.raw:
            self.raw = message.payload
        elif message.kind == Kind.WANT and self._wants < _MOST_WANTS:
            self._wants += 1
            return wire.frame(Kind.TABLES, self._store.tables(str(message.value.get("mark"))).SerializeToString())
        else:
            raise not_asked_for()
        return None

    def find_stored(self, mark: str) -> bool:
        """Has ``kernel`` name the stored kernel, which was sent now or is known by its fingerprint ``mark``. False if it was in the cache, and is damaged."""
        if self.kernel is not None and self.kernel.kernel:
            self.kernel.kernel = self._key or self._store.known_kernel(self.kernel.kernel, mark)
            return not mark or bool(self.kernel.kernel) or mark in self._store.known_kernels()
        return True

    def raw_of_new(self) -> bytes:
        """What tables can be made of, of a kernel that was sent now; nothing else, and once."""
        raw, self.raw = self.raw, b""
        return raw if self._key else b""
