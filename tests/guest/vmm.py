# SPDX-License-Identifier: Apache-2.0
"""A process that holds a copy of a guest's memory as a VMM does, and does with it what a test says."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

from perfguest.formats.guest_stream import Memslot
from perfguest.guest.memory import GuestMemory

_HOLD = """
import ctypes, mmap, os, sys
size = os.fstat(int(sys.argv[1])).st_size
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
at = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, int(sys.argv[1]), 0)
print(at, flush=True)
for line in sys.stdin:
    start, length = map(int, line.split())
    print(libc.munmap(start, length), flush=True)
"""


class HeldMemory:
    """Holds ``original``, whose file is one of ours (see tests/guest/patched.py), from ``with`` to its end. What is written here stays here."""

    def __init__(self, original: GuestMemory) -> None:
        self._original = original

    def __enter__(self) -> HeldMemory:
        fd = self._original.fd
        self._process = subprocess.Popen([sys.executable, "-c", _HOLD, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        base = int(self._process.stdout.readline())
        self.slots = [Memslot(slot.gpa, slot.size, base + slot.hva) for slot in self._original.slots]
        self._fd = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)
        self.end()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def memory(self) -> GuestMemory:
        memory = GuestMemory(self._fd, self.slots)
        memory.la57 = self._original.la57
        return memory

    def write(self, gpa: int, data: bytes) -> None:
        """Writes to the guest's memory; in one slot."""
        slot = next(slot for slot in self.slots if slot.gpa <= gpa < slot.gpa + slot.size)
        assert os.pwrite(self._fd, data, slot.hva + gpa - slot.gpa) == len(data)

    def unmap(self, slot: Memslot) -> None:
        """Takes the slot's memory away, as far as whole pages go."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(f"{slot.hva} {slot.size}\n")
        stdin.flush()
        assert stdout.readline() == "0\n"

    def end(self) -> None:
        """The VMM is no more."""
        self._process.kill()
        self._process.wait()
