# SPDX-License-Identifier: Apache-2.0
"""A Linux guest's stacks, as the pure C is to find them."""

from __future__ import annotations

from typing import Any

from tests.kmod.page_tables import BY_NAME, PageTables
from tests.kmod.pure_library import PAGE, Guest, Memory, Pure

STACK = 16384
USER_TOP, KERNEL_TOP, IRQ_TOP = 0x7FFD_1234_8000, 0xFFFF_C900_0010_4000, 0xFFFF_FE00_0000_8000
USER_TEXT, KERNEL_TEXT = 0x5555_5555_0000, 0xFFFF_FFFF_8100_0000
TOP32 = 0xFFFC_0000
FLAGS = 0x246


class Stacks:
    """A Linux guest's address space with a user stack, a task's and an interrupt's kernel stack, and a 32-bit one."""

    def __init__(self, pure: Pure, mode: str = "4-level") -> None:
        self.pure, self.memory = pure, Memory()
        self.tables = PageTables(BY_NAME[mode], self.memory)
        for i, top in enumerate((USER_TOP, KERNEL_TOP, IRQ_TOP, TOP32)):
            for offset in range(0, STACK, PAGE):
                self.tables.map(top - STACK + offset, 0x1_0000 * i + offset)
        self.memory.write(0, b"\0" * 0x4_0000)
        self.guest = Guest(pure, self.memory, **self.tables.registers())

    def put(self, gva: int, *words: int, size: int = 8) -> None:
        for i, word in enumerate(words):
            found = self.tables.lookup(gva + i * size)
            assert found
            self.memory.write(found[0], word.to_bytes(size, "little"))

    def put_regs(self, gva: int, *, ip: int, cs: int, sp: int, bp: int = 0, ss: int = 0x2B, flags: int = FLAGS) -> None:
        """struct pt_regs: r15 r14 r13 r12 bp ... orig_ax, then ip cs flags sp ss."""
        self.put(gva, *range(100, 104), bp, *range(105, 116), ip, cs, flags, sp, ss)

    def walk(self, ip: int, sp: int, bp: int, *, kernel: bool, code64: bool = True, span: int = STACK, depth: int = 127) -> tuple[list[int], int, Any]:
        ffi = self.pure.ffi
        user = ffi.new("struct pg_user_regs *")
        frames = ffi.new("struct pg_frames_in *", {"ip": ip, "sp": sp, "bp": bp, "code64": code64, "kernel": kernel, "max_span": span, "user": user})
        entries, end = ffi.new("__u64[]", depth), ffi.new("int *")
        count = self.pure.lib.pg_frames_walk(self.guest.virt, frames, entries, depth, end)
        assert count <= depth
        return list(entries[0:count]), end[0], user

    def map(self, gva: int, gpa: int) -> None:
        """One more page, of zeros."""
        self.tables.map(gva, gpa)
        self.memory.write(gpa, bytes(PAGE))
        self.guest.forget()

    def find(self, regs: list[int], *, ip: int = KERNEL_TEXT, lstar: int = 0, tss: int = 0, task_stack: int = 0) -> tuple[list[tuple[int, int]], Any]:
        """The stacks as (SP, top), and the user's registers or None."""
        ffi = self.pure.ffi
        live, out = ffi.new("__u64[16]", regs), ffi.new("struct pg_stacks *")
        given = ffi.new("struct pg_stacks_in *", {"regs": live, "ip": ip, "lstar": lstar, "tss": tss, "task_stack": task_stack})
        self.pure.lib.pg_find_stacks(self.guest.virt, given, out)
        found = [(out.stack[i].sp, out.stack[i].top) for i in range(out.nr)]
        assert all(0 < (top - sp) % 2**64 <= STACK for sp, top in found)
        return found, ffi.new("struct pg_user_regs *", out.user) if out.has_user else None

    def user_regs(self, kernel_sp: int) -> tuple[int, Any]:
        user = self.pure.ffi.new("struct pg_user_regs *")
        return self.pure.lib.pg_find_user_regs(self.guest.virt, kernel_sp, self.pure.ffi.NULL, user), user
