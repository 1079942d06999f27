# SPDX-License-Identifier: Apache-2.0
"""Which stacks a kernel is on, and whose: the layouts are those of Linux's entry code, the values made up."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kmod.linux_stacks import FLAGS, KERNEL_TEXT, KERNEL_TOP, STACK, USER_TEXT, USER_TOP, Stacks
from tests.kmod.pure_library import PAGE, Pure

#: Of an interrupt's stack, at no multiple of its size; behind it is nothing.
IRQ_TOP = 0xFFFF_C900_0020_3000
#: A CPU's entry area: entry stack, task state segment, an exception's stack of two pages between guards.
ENTRY_TOP, IST_TOP = 0xFFFF_FE12_3456_2000, 0xFFFF_FE12_3457_8000
TSS = ENTRY_TOP
#: Where system calls enter.
LSTAR = KERNEL_TEXT + 0xC0_0080
USER = {"ip": USER_TEXT + 0x123, "cs": 0x33, "sp": USER_TOP - 0x200, "ss": 0x2B, "flags": FLAGS}
KERNEL = {"ip": KERNEL_TEXT + 0x456, "cs": 0x10, "ss": 0x18, "flags": 0x46}
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = range(12)
#: The order of pt_regs from its top down, below what the processor pushes: orig_ax (no register), then these.
PUSHED = [RDI, RSI, RDX, RCX, RAX, R8, R9, R10, R11, RBX, RBP, 12, 13, 14, 15]


def live(sp: int, **changes: int) -> list[int]:
    """The processor's registers: 1000 and its number in each but RSP."""
    regs = [1000 + i for i in range(16)]
    regs[RSP] = sp
    for name, value in changes.items():
        regs[globals()[name.upper()]] = value
    return regs


def user_of(sp: int = USER["sp"], **changes: int) -> tuple[list[int], int, int, int]:
    return live(sp, **changes), USER["ip"], FLAGS, 0x33


def values(user: Any) -> tuple[list[int], int, int, int] | None:
    return None if user is None else (list(user.regs), user.ip, user.flags, user.cs)


class Kernel(Stacks):
    """With an interrupt's stack and a CPU's entry area."""

    def __init__(self, pure: Pure, mode: str = "4-level") -> None:
        super().__init__(pure, mode)
        for i in range(4):
            self.map(IRQ_TOP - STACK + i * PAGE, 0x5_0000 + i * PAGE)
        self.map(ENTRY_TOP - PAGE, 0x6_0000)
        self.map(TSS, 0x6_1000)
        for i in (1, 2):
            self.map(IST_TOP - i * PAGE, 0x6_2000 + i * PAGE)
        # At offset 4 RSP0 to RSP2, at 36 IST1 to IST7.
        self.put32(TSS + 4, ENTRY_TOP)
        self.put32(TSS + 36 + 8, IST_TOP)

    def put32(self, gva: int, word: int) -> None:
        self.put(gva, word & 0xFFFF_FFFF, word >> 32, size=4)

    def put_user(self, top: int, pushes: int = 20) -> int:
        """What the entry code has pushed below `top` by then: SS first, at most 20 words and orig_ax. Gives SP."""
        words = [USER["ss"], USER["sp"], USER["flags"], USER["cs"], USER["ip"], 2**64 - 1, *(1000 + reg for reg in PUSHED)][:pushes]
        for i, word in enumerate(words):
            self.put(top - 8 - 8 * i, word)
        return top - 8 * len(words)


@pytest.fixture
def kernel(pure: Pure) -> Kernel:
    return Kernel(pure)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("depth", [0, 8, 0x900, STACK - 168 - 16 - 8])
def test_task_stack(kernel: Kernel, padding: int, depth: int, known: bool) -> None:
    sp = kernel.put_user(KERNEL_TOP - padding, 21) - depth
    stacks, user = kernel.find(live(sp, rbp=7, rbx=8), task_stack=(KERNEL_TOP - STACK) * known)
    assert stacks == [(sp, KERNEL_TOP)]
    assert values(user) == user_of()


@pytest.mark.parametrize("known", [False, True])
def test_kernel_thread(kernel: Kernel, known: bool) -> None:
    """Nobody's registers on top; what it keeps at page borders are pointers to other tasks' stacks."""
    other = kernel.put_user(IRQ_TOP + 5 * PAGE - IRQ_TOP % STACK, 0)
    for i in range(4):
        kernel.map(0xFFFF_C900_0030_0000 + i * PAGE, 0x7_0000 + i * PAGE)
    other = kernel.put_user(0xFFFF_C900_0030_4000, 21) - 64
    for border in (1, 2, 3):
        kernel.put(KERNEL_TOP - border * PAGE - 8, other)
    sp = KERNEL_TOP - STACK + 0x100
    assert kernel.find(live(sp), task_stack=(KERNEL_TOP - STACK) * known) == ([(sp, KERNEL_TOP)], None)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("has_user", [False, True])
@pytest.mark.parametrize("depth", [8, 16, PAGE, PAGE + 8, STACK - 8, STACK])
def test_interrupt_stack(kernel: Kernel, depth: int, has_user: bool, known: bool) -> None:
    """Of a kernel thread, too."""
    sp = kernel.put_user(KERNEL_TOP, 21 * has_user) - 0x700
    kernel.put(IRQ_TOP - 8, sp)
    stacks, user = kernel.find(live(IRQ_TOP - depth), task_stack=(KERNEL_TOP - STACK) * known)
    assert stacks == [(IRQ_TOP - depth, IRQ_TOP), (sp, KERNEL_TOP)]
    assert values(user) == (user_of() if has_user else None)


def test_pointers_at_page_borders_within_an_interrupt_stack(kernel: Kernel) -> None:
    sp = kernel.put_user(KERNEL_TOP, 21) - 0x700
    kernel.put(IRQ_TOP - 8, sp)
    for border, word in ((1, KERNEL_TOP - 0x300), (2, IRQ_TOP - 0x800), (3, USER_TOP - 8)):
        kernel.put(IRQ_TOP - border * PAGE - 8, word)
    assert kernel.find(live(IRQ_TOP - STACK + 64))[0] == [(IRQ_TOP - STACK + 64, IRQ_TOP), (sp, KERNEL_TOP)]


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("pushes", range(22))
def test_system_call_that_enters(kernel: Kernel, pushes: int, padding: int) -> None:
    """At each push. Before five are there, RCX and R11 are the user's RIP and RFLAGS, and its SP is where the entry code keeps it."""
    # A former system call of another program.
    for word in range(21):
        kernel.put(KERNEL_TOP - padding - 8 - 8 * word, 0xBAD)
    kernel.put_regs(KERNEL_TOP - padding - 168, **{**USER, "sp": USER_TOP - 0x900, "ip": USER_TEXT + 9})
    sp = kernel.put_user(KERNEL_TOP - padding, pushes)
    kernel.put32(TSS + 20, USER["sp"])
    syscall = {"rcx": USER["ip"], "r11": FLAGS}
    for i, word in enumerate([USER["ss"], USER["sp"], FLAGS, 0x33, USER["ip"], 0, *(live(0, **syscall)[reg] for reg in PUSHED)][:pushes]):
        kernel.put(KERNEL_TOP - padding - 8 - 8 * i, word)
    stacks, user = kernel.find(live(sp, **syscall), ip=LSTAR + 0x40, lstar=LSTAR, tss=TSS)
    assert stacks == ([(sp, KERNEL_TOP)] if pushes or padding else [])
    assert values(user) == user_of(**syscall)
    # Not known where the entry code keeps the user's SP: nothing is made up.
    _, user = kernel.find(live(sp, **syscall), ip=LSTAR + 0x40, lstar=LSTAR)
    assert values(user) == (user_of(**syscall) if pushes >= 5 else None)


@pytest.mark.parametrize("offset", [0, 3, 0x140])
def test_system_call_on_the_users_stack(kernel: Kernel, offset: int) -> None:
    """The first instructions, and the last before SYSRET."""
    regs = live(USER["sp"], rcx=USER["ip"], r11=FLAGS)
    stacks, user = kernel.find(regs, ip=LSTAR + offset, lstar=LSTAR, tss=TSS)
    assert (stacks, values(user)) == ([], (regs, USER["ip"], FLAGS, 0x33))


@pytest.mark.parametrize(
    ("changes", "ip", "lstar"),
    [
        ({"rcx": KERNEL_TEXT}, LSTAR, LSTAR),
        ({"r11": 0}, LSTAR, LSTAR),
        ({"r11": FLAGS & ~0x200}, LSTAR, LSTAR),
        ({"rcx": 0}, LSTAR, LSTAR),
        ({}, LSTAR - 1, LSTAR),
        ({}, LSTAR + 512, LSTAR),
        ({}, 0x1000, 0x1000),
        ({}, LSTAR, 0),
    ],
)
def test_what_is_no_system_call(kernel: Kernel, changes: dict[str, int], ip: int, lstar: int) -> None:
    regs = live(USER["sp"], **{"rcx": USER["ip"], "r11": FLAGS, **changes})
    assert kernel.find(regs, ip=ip, lstar=lstar, tss=TSS) == ([], None)


@pytest.mark.parametrize("bits", [0, 1 << 12, 0x800, 1 << 63 | 0x1801])
def test_system_call_with_the_page_table_in_rsp(kernel: Kernel, bits: int) -> None:
    kernel.put32(TSS + 20, USER["sp"])
    syscall = {"rcx": USER["ip"], "r11": FLAGS}
    regs = live(kernel.tables.root | bits, **syscall)
    stacks, user = kernel.find(regs, ip=LSTAR + 0x20, lstar=LSTAR, tss=TSS)
    assert (stacks, values(user)) == ([], user_of(**syscall))
    assert kernel.find(regs, ip=LSTAR + 0x20, lstar=LSTAR) == ([], None)


@pytest.mark.parametrize("pushes", range(5, 22))
def test_exception_on_the_entry_stack(kernel: Kernel, pushes: int) -> None:
    """What the processor pushed, then the registers until they are copied to the task's stack."""
    sp = kernel.put_user(ENTRY_TOP, pushes)
    stacks, user = kernel.find(live(sp), tss=TSS)
    assert (stacks, values(user)) == ([(sp, ENTRY_TOP)], user_of())


@pytest.mark.parametrize("pushes", [0, 1, 2, 3])
def test_return_from_a_system_call_by_the_entry_stack(kernel: Kernel, pushes: int) -> None:
    """The user's SP and RDI, and RAX while the page table is changed."""
    syscall = {"rcx": USER["ip"], "r11": FLAGS}
    for i, word in enumerate([USER["sp"], 1000 + RDI, 1000 + RAX][:pushes]):
        kernel.put(ENTRY_TOP - 8 - 8 * i, word)
    sp = ENTRY_TOP - 8 * pushes
    stacks, user = kernel.find(live(sp, **syscall), ip=LSTAR + 0x130, lstar=LSTAR, tss=TSS)
    assert stacks == ([(sp, ENTRY_TOP)] if pushes else [])
    assert values(user) == (user_of(**syscall) if pushes else None)


def test_return_by_iret_is_not_taken_for_sysret(kernel: Kernel) -> None:
    """RCX and R11 may still be those of the program's last system call."""
    for pushes in range(1, 5):
        sp = kernel.put_user(ENTRY_TOP, pushes)
        assert kernel.find(live(sp, rcx=USER["ip"], r11=FLAGS), ip=LSTAR + 0x180, lstar=LSTAR, tss=TSS)[1] is None
        # From an NMI's stack to the task's, by code that is not the system call's.
        sp = kernel.put_user(KERNEL_TOP, pushes)
        assert kernel.find(live(sp, rcx=USER["ip"], r11=FLAGS), ip=LSTAR + 0x300, lstar=LSTAR, tss=TSS)[1] is None


@pytest.mark.parametrize("depth", [40, 48, 0x400, PAGE + 0x100])
def test_exception_stack(kernel: Kernel, depth: int) -> None:
    sp = kernel.put_user(KERNEL_TOP, 21) - 0x300
    kernel.put(IST_TOP - 40, KERNEL["ip"], KERNEL["cs"], KERNEL["flags"], sp, KERNEL["ss"])
    stacks, user = kernel.find(live(IST_TOP - depth), tss=TSS)
    assert stacks == [(IST_TOP - depth, IST_TOP), (sp, KERNEL_TOP)]
    assert values(user) == user_of()


def test_exception_in_an_interrupt(kernel: Kernel) -> None:
    sp = kernel.put_user(KERNEL_TOP, 21) - 0x300
    kernel.put(IRQ_TOP - 8, sp)
    kernel.put(IST_TOP - 40, KERNEL["ip"], KERNEL["cs"], KERNEL["flags"], IRQ_TOP - 0x200, KERNEL["ss"])
    stacks, user = kernel.find(live(IST_TOP - 0x100), tss=TSS)
    assert stacks == [(IST_TOP - 0x100, IST_TOP), (IRQ_TOP - 0x200, IRQ_TOP), (sp, KERNEL_TOP)]
    assert values(user) == user_of()


def test_exception_in_a_program(kernel: Kernel) -> None:
    sp = kernel.put_user(IST_TOP, 5)
    stacks, user = kernel.find(live(sp), tss=TSS)
    assert (stacks, values(user)) == ([(sp, IST_TOP)], user_of())


@pytest.mark.parametrize("tss", [0, 0xFFFF_FE00_0000_0000, 2**64 - 8, 0x8000_0000_0000_0000])
def test_entry_area_without_a_task_state_segment(kernel: Kernel, tss: int) -> None:
    """The page is copied, and nothing made of it."""
    sp = kernel.put_user(ENTRY_TOP, 21)
    assert kernel.find(live(sp), tss=tss) == ([(sp, ENTRY_TOP)], None)


@pytest.mark.parametrize("sp", [0, 8, USER_TOP - 64, 1 << 47, 2**63, 2**64 - 2**47 - 8])
def test_no_kernel_stack_there(kernel: Kernel, sp: int) -> None:
    assert kernel.find(live(sp), tss=TSS) == ([], None)


@pytest.mark.parametrize("sp", [2**64 - 8, 2**64 - 1, 2**64 - STACK + 8])
def test_the_end_of_the_address_space(kernel: Kernel, sp: int) -> None:
    """A stack whose top would be 2^64: what there is to copy ends by itself."""
    stacks, user = kernel.find(live(sp), tss=TSS, task_stack=2**64 - STACK)
    assert user is None and [(one, (top - one) % 2**64) for one, top in stacks] == [(sp, 2**64 - sp)]


@settings(max_examples=40, deadline=None)
@given(random=st.randoms(use_true_random=True))
def test_garbage(pure: Pure, random: Random) -> None:
    """Everything may point anywhere. What is found is a user's registers, and stacks of at most 16 KiB; the reads are few."""
    kernel = Kernel(pure)
    tops = (USER_TOP, KERNEL_TOP, IRQ_TOP, ENTRY_TOP, IST_TOP)
    pool = [random.choice(tops) - random.randrange(-16, STACK) & -random.choice([1, 8]) for _ in range(256)]
    pool += random.choices([USER_TEXT, LSTAR, LSTAR + 64, 0, 1, 0x10, 0x33, 0x2B, FLAGS, TSS, kernel.tables.root], k=256)
    for page in [*range(0, 0x4_0000, PAGE), *range(0x5_0000, 0x5_4000, PAGE), *range(0x6_0000, 0x6_5000, PAGE)]:
        kernel.memory.write(page, b"".join(random.choice(pool).to_bytes(8, "little") for _ in range(PAGE // 8)))
    for _ in range(100):
        regs = random.choices(pool, k=16)
        given = {"ip": random.choice(pool), "lstar": random.choice([0, LSTAR]), "tss": random.choice([0, TSS, *pool]), "task_stack": random.choice([0, *pool])}
        kernel.guest.forget()
        kernel.memory.reads = 0
        stacks, user = kernel.find(regs, **given)
        assert kernel.memory.reads <= 120 and len(stacks) <= 3
        if user is not None:
            assert user.cs in (0x33, 0x23) and 0 < user.ip < 1 << 47 and user.regs[RSP] < 1 << 47 and user.flags & 0x202 == 0x202
