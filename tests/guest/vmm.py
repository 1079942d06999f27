# SPDX-License-Identifier: Apache-2.0
"""A process that holds a copy of a guest's memory as a VMM does, and does with it what a test says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType

from perfguest.formats.guest_stream import Memslot
from perfguest.guest.memory import GuestMemory

# Commands: ``unmap ADDRESS LENGTH``; ``flip FD OFFSET...``, after which a thread makes the pages at these offsets those of the other file, and of the first
# again, as fast as it can, until ``stop``, which gives how often.
_HOLD = """
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
def mapped(fd, prot):
    return libc.mmap(None, os.fstat(fd).st_size, prot, mmap.MAP_PRIVATE, fd, 0)
original = int(sys.argv[1])
at = mapped(original, mmap.PROT_READ | mmap.PROT_WRITE)
stopping, rounds, thread = threading.Event(), 0, None
def flip(sources, offsets):
    global rounds
    while not stopping.is_set():
        for source in sources:
            for offset in offsets:
                libc.memcpy(at + offset, source + offset, 4096)
        rounds += 1
print(at, flush=True)
for line in sys.stdin:
    command, *words = line.split()
    numbers = [int(word) for word in words]
    if command == "unmap":
        print(libc.munmap(*numbers), flush=True)
    elif command == "flip":
        sources = mapped(numbers[0], mmap.PROT_READ), mapped(original, mmap.PROT_READ)
        thread = threading.Thread(target=flip, args=(sources, numbers[1:]), daemon=True)
        thread.start()
        print(0, flush=True)
    else:
        stopping.set()
        thread.join()
        print(rounds, flush=True)
"""


class HeldMemory:
    """Holds ``original``, whose file is one of ours (see tests/guest/patched.py), from ``with`` to its end. What is written here stays here.
    ``other``: another state of the same memory, for :meth:`flip`."""

    def __init__(self, original: GuestMemory, other: GuestMemory | None = None) -> None:
        self._original, self._other = original, other

    def __enter__(self) -> HeldMemory:
        fds = [self._original.fd, *([self._other.fd] if self._other else [])]
        command = [sys.executable, "-c", _HOLD, str(self._original.fd)]
        self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
        assert self._command(f"unmap {slot.hva} {slot.size}") == 0

    def flip(self, pages: Iterable[int]) -> None:
        """From now on until :meth:`stop` the pages at these guest-physical addresses change, each by itself, between what they are in the two states."""
        assert self._other
        assert [(slot.gpa, slot.size, slot.hva) for slot in self._other.slots] == [(slot.gpa, slot.size, slot.hva) for slot in self._original.slots]
        offsets = [slot.hva + page - slot.gpa for page in pages for slot in self._original.slots if slot.gpa <= page < slot.gpa + slot.size]
        assert self._command(f"flip {self._other.fd} {' '.join(map(str, offsets))}") == 0

    def stop(self) -> int:
        """Ends the flipping; gives how often each page was changed to the other state and back."""
        return self._command("stop")

    def _command(self, line: str) -> int:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(line + "\n")
        stdin.flush()
        return int(stdout.readline())

    def end(self) -> None:
        """The VMM is no more."""
        self._process.kill()
        self._process.wait()
