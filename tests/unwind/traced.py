# SPDX-License-Identifier: Apache-2.0
"""Real programs, stopped: their registers, mappings and stacks, as a guest's would be taken."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples

PTRACE_CONT, PTRACE_SINGLESTEP, PTRACE_GETREGS, PTRACE_ATTACH, PTRACE_DETACH = 7, 9, 12, 16, 17
PTRACE_SETOPTIONS, PTRACE_GETEVENTMSG = 0x4200, 0x4201
PTRACE_O_TRACECLONE, PTRACE_EVENT_CLONE = 8, 3
RED_ZONE = 128
WALL = 0x40000000  # other threads than a process's first, too (linux/wait.h)
# struct user_regs_struct (sys/user.h).
USER_REGS = [
    "r15",
    "r14",
    "r13",
    "r12",
    "rbp",
    "rbx",
    "r11",
    "r10",
    "r9",
    "r8",
    "rax",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "orig_rax",
    "rip",
    "cs",
    "eflags",
    "rsp",
    "ss",
    "fs_base",
    "gs_base",
    "ds",
    "es",
    "fs",
    "gs",
]
ORDER = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, data: ctypes.Array[ctypes.c_uint64] | int | None = None) -> None:
    if _libc.ptrace(request, pid, None, data):
        raise OSError(ctypes.get_errno(), f"ptrace({request}) of {pid}")


def step(pid: int) -> bool:
    """One instruction; false if the process has ended with it. Signals are not delivered."""
    _ptrace(PTRACE_SINGLESTEP, pid)
    _, status = os.waitpid(pid, WALL)
    return os.WIFSTOPPED(status)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Holds a process that a signal has stopped, or that runs, still."""
    _ptrace(PTRACE_ATTACH, pid)
    os.waitpid(pid, WALL)
    try:
        yield
    finally:
        _ptrace(PTRACE_DETACH, pid)


@contextmanager
def new_thread(pid: int) -> Iterator[int]:
    """The next thread that a stopped process makes, before its first instruction."""
    with stopped(pid):
        _ptrace(PTRACE_SETOPTIONS, pid, PTRACE_O_TRACECLONE)
        status = 0
        while status >> 16 != PTRACE_EVENT_CLONE:
            _ptrace(PTRACE_CONT, pid)
            _, status = os.waitpid(pid, WALL)
            assert os.WIFSTOPPED(status)
        thread = (ctypes.c_uint64 * 1)()
        _ptrace(PTRACE_GETEVENTMSG, pid, thread)
        os.waitpid(thread[0], WALL)
        try:
            yield thread[0]
        finally:
            _ptrace(PTRACE_DETACH, thread[0])


@contextmanager
def running(*command: str | Path, **options: object) -> Iterator[int]:
    """A program that stops itself with SIGSTOP: its pid, once it has done so."""
    child = subprocess.Popen(list(map(str, command)), **options)  # type: ignore[call-overload]
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"{command} ended before it stopped: status {status:#x}"
        yield child.pid
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@dataclass(frozen=True)
class Mapping:
    start: int
    end: int
    executable: bool
    offset: int
    path: str


def mappings(pid: int) -> list[Mapping]:
    result = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, rights, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in addresses.split("-"))
        result.append(Mapping(start, end, "x" in rights, int(offset, 16), path[0] if path else ""))
    return result


def registers(pid: int) -> np.ndarray:
    """(17,) uint64 in the unwinder's order; the process is stopped."""
    block = (ctypes.c_uint64 * len(USER_REGS))()
    _ptrace(PTRACE_GETREGS, pid, block)
    values = dict(zip(USER_REGS, block, strict=True))
    return np.array([values[name] for name in ORDER], dtype=np.uint64)


def read(pid: int, address: int, size: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def without_header(data: bytes) -> bytes:
    """An ELF file with its PT_GNU_EH_FRAME, where it has one, made PT_NULL."""
    elf, changed = ELFFile(io.BytesIO(data)), bytearray(data)
    for i, segment in enumerate(elf.iter_segments()):
        if segment["p_type"] == "PT_GNU_EH_FRAME":
            at = elf["e_phoff"] + i * elf["e_phentsize"]
            changed[at : at + 4] = bytes(4)
    return bytes(changed)


def add_process(engine: Engine, pid: int, tables: bool = True, code: bool = True) -> int:
    """The number of the process's address space, its binaries whole, or without their tables, or as if all of it was in no file."""
    known: dict[str, int] = {}
    rows = []
    for m in mappings(pid):
        if not m.executable or m.start >> 63:
            continue
        if code and m.path == "[vdso]":
            data = read(pid, m.start, m.end - m.start)
            binary = engine.add_binary(len(data), [(0, data)])
        elif code and m.path.startswith("/"):
            if m.path not in known:
                data = Path(f"/proc/{pid}/root{m.path}").read_bytes()
                data = data if tables else without_header(data)
                known[m.path] = engine.add_binary(len(data), [(0, data)])
            binary = known[m.path]
        else:
            binary = -1
        rows.append((m.start, m.end, m.offset, binary))
    start, end, offset, numbers = zip(*rows, strict=True)
    return engine.add_space(start, end, offset, numbers)


def user_samples(registers: np.ndarray, stacks: list[tuple[int, bytes]], space: int) -> Samples:
    """One sample of user code, with these copies."""
    memory = b"".join(data for _, data in stacks)
    sizes = [len(data) for _, data in stacks]
    return Samples(
        memory,
        registers.reshape(1, 17),
        np.array([_native.MODE_USER], np.uint8),
        np.array([-1], np.int32),
        np.array([space], np.int32),
        np.array([0, len(stacks)], np.int64),
        np.array([address for address, _ in stacks], np.uint64),
        np.array([sum(sizes[:i]) for i in range(len(sizes))], np.int64),
        np.array(sizes, np.int64),
    )


def stack_of(pid: int, sp: int) -> tuple[int, bytes]:
    """From below the stack pointer, as user code keeps data there, to the mapping's end."""
    mapping = next(m for m in mappings(pid) if m.start <= sp < m.end)
    start = max(sp - RED_ZONE, mapping.start)
    return start, read(pid, start, mapping.end - start)
