# SPDX-License-Identifier: Apache-2.0
"""Kernels of a few instructions, and stacks of them."""

from __future__ import annotations

import struct

import numpy as np

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples, Stacks

TEXT = 0xFFFFFFFF81000000
STACK = 0xFFFFC90000100000
IRQ_STACK = 0xFFFFC90000200000
SIZE = 16384
REGISTERS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)), "rip"]
PT_REGS = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_ax", "rip", "cs", "flags", "rsp", "ss"]
USER_CS, USER_DS, KERNEL_CS, FLAGS = 0x33, 0x2B, 0x10, 0x246

UNDEFINED, PREV_SP, DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT, AX = range(11)
# Of those the numbers since Linux 7.1, which has AX besides.
_NUMBERS_V6 = {UNDEFINED: 0, DX: 2, SP: 3, BP: 4, DI: 5, R10: 6, R13: 7, PREV_SP: 8, SP_INDIRECT: 9, BP_INDIRECT: 10, AX: 1}
# Types as the newest layout numbers them.
TYPE_UNDEFINED, TYPE_END, TYPE_CALL, TYPE_REGS, TYPE_PARTIAL = range(5)


def entry(
    layout: int, kind: int = TYPE_CALL, *, sp: int = SP, sp_offset: int = 8, bp: int = UNDEFINED, bp_offset: int = 0, signal: bool | None = None
) -> bytes:
    """An ORC entry in that layout; signal as the kernel's hints have it by default."""
    signal = kind >= TYPE_REGS if signal is None else signal
    if kind <= TYPE_END:
        sp = UNDEFINED
    flags = _NUMBERS_V6[sp] | _NUMBERS_V6[bp] << 4 if layout == _native.ORC_V6 else sp | bp << 4
    old_type = max(kind - TYPE_CALL, 0)
    end = kind == TYPE_END
    match layout:
        case _native.ORC_V1:
            flags |= old_type << 8
        case _native.ORC_V2 | _native.ORC_V3:
            flags |= old_type << 8 | end << 10
        case _native.ORC_V4:
            flags |= old_type << 8 | signal << 10 | end << 11
        case _native.ORC_V5 | _native.ORC_V6:
            flags |= kind << 8 | signal << 11
    return struct.pack("<hhH", sp_offset, bp_offset, flags)


def pt_regs(**values: int) -> bytes:
    return struct.pack("<21Q", *(values.get(name, 0) for name in PT_REGS))


def add_kernel(engine: Engine, layout: int, entries: dict[int, bytes], text: bytes | None = None) -> int:
    """A kernel with these entries, at offsets in its text. By default nothing in it follows a call."""
    places = sorted(entries)
    addresses = np.array([TEXT + place for place in places], np.uint64)
    code = bytes(SIZE) if text is None else text
    return engine.add_kernel([(addresses, b"".join(entries[place] for place in places))], layout, [(TEXT, code)])


class Stack:
    """A copy of memory that ends at a stack's top."""

    def __init__(self, base: int = STACK, size: int = SIZE) -> None:
        self.base, self.data = base, bytearray(size)

    def put(self, offset: int, *words: int) -> int:
        """Gives where the first of the words stands."""
        self.data[offset : offset + 8 * len(words)] = struct.pack(f"<{len(words)}Q", *words)
        return self.base + offset

    def put_bytes(self, offset: int, data: bytes) -> int:
        self.data[offset : offset + len(data)] = data
        return self.base + offset


def sample(stacks: list[Stack], kernel: int, space: int = -1, mode: int = _native.MODE_KERNEL, **registers: int) -> Samples:
    sizes = [len(stack.data) for stack in stacks]
    return Samples(
        b"".join(stack.data for stack in stacks),
        np.array([[registers.get(name, 0) for name in REGISTERS]], np.uint64),
        np.array([mode], np.uint8),
        np.array([kernel], np.int32),
        np.array([space], np.int32),
        np.array([0, len(stacks)], np.int64),
        np.array([stack.base for stack in stacks], np.uint64),
        np.cumsum([0, *sizes[:-1]], dtype=np.int64)[: len(stacks)],
        np.array(sizes, np.int64),
    )


def frames(stacks: Stacks) -> list[tuple[int, int]]:
    return list(zip(stacks.address.tolist(), stacks.how.tolist(), strict=True))
