# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kmod.linux_stacks import FLAGS, IRQ_TOP, KERNEL_TEXT, KERNEL_TOP, STACK, TOP32, USER_TEXT, USER_TOP, Stacks
from tests.kmod.page_tables import BY_NAME, PageTables
from tests.kmod.pure_library import PAGE, Guest, Memory, Pure

TEXT = {"user": USER_TEXT, "kernel": KERNEL_TEXT}
TOPS = {"user": USER_TOP, "kernel": KERNEL_TOP}


@pytest.fixture
def stacks(pure: Pure) -> Stacks:
    return Stacks(pure)


@dataclass
class Chain:
    sp: int
    bp: int
    returns: list[int]


def build(stacks: Stacks, top: int, gaps: list[int], returns: list[int], *, last_bp: int = 0, size: int = 8) -> Chain:
    """Frames up to `top`, leaf lowest, each `gaps[i]` words above the end of the one before it; the first gap is from SP."""
    sp = top - (sum(gaps) + 2 * len(gaps)) * size
    frames, at = [], sp
    for gap in gaps:
        at += gap * size
        frames.append(at)
        at += 2 * size
    for i, frame in enumerate(frames):
        stacks.put(frame, frames[i + 1] if i + 1 < len(frames) else last_bp, returns[i], size=size)
    return Chain(sp, frames[0], returns)


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    world=st.sampled_from(["user", "kernel"]),
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=45),
    mode=st.sampled_from(["4-level", "5-level"]),
)
def test_chain_to_the_root(pure: Pure, data: st.DataObject, world: str, gaps: list[int], mode: str) -> None:
    stacks = Stacks(pure, mode)
    returns = [TEXT[world] + data.draw(st.integers(1, 2**24)) for _ in gaps]
    chain = build(stacks, TOPS[world], gaps, returns)
    entries, end, _ = stacks.walk(TEXT[world], chain.sp, chain.bp, kernel=world == "kernel")
    assert (entries, end) == ([TEXT[world], *returns], pure.lib.PG_END_ROOT)
    depth = data.draw(st.integers(0, len(returns)))
    entries, end, _ = stacks.walk(TEXT[world], chain.sp, chain.bp, kernel=world == "kernel", depth=depth)
    assert (entries, end) == ([TEXT[world], *returns][:depth], pure.lib.PG_END_FULL)


@pytest.mark.parametrize("mode", ["4-level", "PAE", "32-bit"])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), kernel=st.booleans(), gaps=st.lists(st.integers(0, 40), min_size=1, max_size=45))
def test_chain_of_32_bit_code(pure: Pure, mode: str, data: st.DataObject, kernel: bool, gaps: list[int]) -> None:
    """In a 32-bit guest, and as a 32-bit program in a 64-bit one. Upper halves of the registers are undefined there."""
    memory = Memory()
    stacks = Stacks.__new__(Stacks)
    stacks.pure, stacks.memory, stacks.tables = pure, memory, PageTables(BY_NAME[mode], memory)
    for offset in range(0, STACK, PAGE):
        stacks.tables.map(TOP32 - STACK + offset, offset)
    memory.write(0, b"\0" * STACK)
    stacks.guest = Guest(pure, memory, **stacks.tables.registers())
    returns = [data.draw(st.integers(1, 2**32 - 1)) for _ in gaps]
    chain = build(stacks, TOP32, gaps, returns, size=4)
    junk = data.draw(st.integers(0, 2**32 - 1)) << 32
    entries, end, _ = stacks.walk(junk | 0x0804_8123, junk | chain.sp, junk | chain.bp, kernel=kernel, code64=False)
    assert (entries, end) == ([0x0804_8123, *returns], pure.lib.PG_END_ROOT)


BASE = KERNEL_TOP - 0x800
RETURN = TEXT["kernel"] + 0x1234
"""In the tests below one good frame stands at BASE, and what its saved frame pointer is, or that of the leaf, is bad."""

BAD_FRAMES = {
    "to itself": BASE,
    "down": BASE - 64,
    "into its own frame": BASE + 8,
    "below SP": BASE - 0x100 - 8,
    "not aligned": BASE + 0x44,
    "too far": BASE - 0x100 + STACK + 8,
    "user half": USER_TOP - 64,
    "zero page": 16,
    "last 16 bytes": 2**64 - 16,
    "last 8 bytes": 2**64 - 8,
    "not canonical": 0x8000_0000_0000_0000,
}


@pytest.mark.parametrize("bp", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_bad_frame_pointer(stacks: Stacks, bp: int) -> None:
    stacks.put(BASE, bp, RETURN)
    entries, end, _ = stacks.walk(RETURN - 8, BASE - 0x100, BASE, kernel=True)
    assert (entries, end) == ([RETURN - 8, RETURN], stacks.pure.lib.PG_END_BAD_FRAME)


def test_span_and_sp_are_included(stacks: Stacks) -> None:
    stacks.put(BASE, BASE + 0x300, RETURN)
    stacks.put(BASE + 0x300, 0, RETURN + 1)
    assert stacks.walk(RETURN, BASE, BASE, kernel=True, span=0x300)[:2] == ([RETURN, RETURN, RETURN + 1], stacks.pure.lib.PG_END_ROOT)
    assert stacks.walk(RETURN, BASE, BASE, kernel=True, span=0x2FF)[:2] == ([RETURN, RETURN], stacks.pure.lib.PG_END_BAD_FRAME)
    assert stacks.walk(RETURN, BASE + 8, BASE, kernel=True)[:2] == ([RETURN], stacks.pure.lib.PG_END_BAD_FRAME)


def test_frame_not_mapped(stacks: Stacks) -> None:
    stacks.put(BASE, KERNEL_TOP + 64, RETURN)
    assert stacks.walk(RETURN, BASE, BASE, kernel=True)[:2] == ([RETURN, RETURN], stacks.pure.lib.PG_END_NOT_MAPPED)
    stacks.put(KERNEL_TOP - 8, 1)
    assert stacks.walk(RETURN, BASE, KERNEL_TOP - 8, kernel=True)[:2] == ([RETURN], stacks.pure.lib.PG_END_NOT_MAPPED)


@pytest.mark.parametrize("sp", [2**64 - 64, 2**32 - 64])
def test_frame_at_the_end_of_memory(stacks: Stacks, sp: int) -> None:
    for bp in (sp + 56, sp + 60, sp + 64):
        _, end, _ = stacks.walk(RETURN, sp, bp & (2**64 - 1), kernel=True, code64=sp > 2**32, span=2**64 - 1)
        assert end in (stacks.pure.lib.PG_END_BAD_FRAME, stacks.pure.lib.PG_END_ROOT)


@pytest.mark.parametrize(
    ("kernel", "ip", "address", "good"),
    [
        (True, TEXT["kernel"], 0xFFFF_8000_0000_0000, True),
        (True, TEXT["kernel"], 0xFFFF_7FFF_FFFF_FFFF, False),
        (True, TEXT["kernel"], TEXT["user"], False),
        (True, TEXT["kernel"], 0x0000_8000_0000_0000, False),
        (True, 0x0010_0000, 0x0010_1234, True),  # a unikernel's code
        (True, 0x0010_0000, TEXT["kernel"], False),
        (False, TEXT["user"], 0x0000_7FFF_FFFF_FFFF, True),
        (False, TEXT["user"], 0x0000_8000_0000_0000, False),
        (False, TEXT["user"], TEXT["kernel"], False),
        (False, 0xFFFF_FFFF_FF60_0000, TEXT["user"], True),  # the vsyscall page is user code up high
    ],
)
def test_return_address(stacks: Stacks, kernel: bool, ip: int, address: int, good: bool) -> None:
    stacks.put(BASE, 0, address)
    expected = ([ip, address], stacks.pure.lib.PG_END_ROOT) if good else ([ip], stacks.pure.lib.PG_END_BAD_RETURN)
    assert stacks.walk(ip, BASE, BASE, kernel=kernel)[:2] == expected


def test_user_half_of_five_levels(pure: Pure) -> None:
    stacks = Stacks(pure, "5-level")
    for address, end in ((0x00FF_FFFF_FFFF_FFFF, pure.lib.PG_END_ROOT), (0x0100_0000_0000_0000, pure.lib.PG_END_BAD_RETURN)):
        stacks.put(USER_TOP - 64, 0, address)
        assert stacks.walk(TEXT["user"], USER_TOP - 64, USER_TOP - 64, kernel=False)[1] == end


def test_roots(stacks: Stacks) -> None:
    root = stacks.pure.lib.PG_END_ROOT
    assert stacks.walk(RETURN, BASE, 0, kernel=True)[:2] == ([RETURN], root)
    stacks.put(BASE, BASE + 16, 0)
    assert stacks.walk(RETURN, BASE, BASE, kernel=True)[:2] == ([RETURN], root)


def test_interrupts_in_the_kernel_up_to_the_user(stacks: Stacks) -> None:
    """Frames on the interrupt's stack, the interrupted kernel's on the task's stack, and at its top the entry from user mode."""
    entry, task_regs = KERNEL_TOP - 168, IRQ_TOP - 168
    stacks.put_regs(entry, ip=TEXT["user"] + 7, cs=0x33, sp=USER_TOP - 0x500, bp=USER_TOP - 0x480)
    task = build(stacks, entry, [3, 5], [RETURN + 1, RETURN + 2], last_bp=entry + 1)
    stacks.put_regs(task_regs, ip=RETURN + 3, cs=0x10, sp=task.sp, bp=task.bp, ss=0x18, flags=0x46)
    irq = build(stacks, task_regs, [1, 4], [RETURN + 4, RETURN + 5], last_bp=task_regs + 1)
    entries, end, user = stacks.walk(RETURN, irq.sp, irq.bp, kernel=True)
    assert entries == [RETURN + i for i in (0, 4, 5, 3, 1, 2)]
    assert end == stacks.pure.lib.PG_END_USER_ENTRY
    assert (user.ip, user.regs[4], user.regs[5], user.cs) == (TEXT["user"] + 7, USER_TOP - 0x500, USER_TOP - 0x480, 0x33)
    assert stacks.walk(RETURN, irq.sp, irq.bp, kernel=True, depth=3)[:2] == (entries[:3], stacks.pure.lib.PG_END_FULL)


def test_nobody_wants_the_user_registers(stacks: Stacks) -> None:
    ffi, lib = stacks.pure.ffi, stacks.pure.lib
    stacks.put_regs(KERNEL_TOP - 168, ip=0x0804_8000, cs=0x23, sp=0x1000)
    frames = ffi.new("struct pg_frames_in *", {"ip": RETURN, "sp": BASE, "bp": KERNEL_TOP - 167, "code64": True, "kernel": True})
    entries, end = ffi.new("__u64[4]"), ffi.new("int *")
    assert lib.pg_frames_walk(stacks.guest.virt, frames, entries, 4, end) == 1
    assert end[0] == lib.PG_END_USER_ENTRY


SOUND = {"ip": TEXT["user"], "cs": 0x33, "sp": USER_TOP - 64, "ss": 0x2B, "flags": FLAGS}
NOT_USER = [
    {"cs": 0x30},
    {"cs": 0x10},
    {"cs": 0},
    {"ss": 0x18},
    {"flags": 0},
    {"flags": FLAGS & ~0x2},
    {"flags": FLAGS & ~0x200},
    {"flags": FLAGS | 1 << 40},
    {"flags": FLAGS | 8},
    {"ip": TEXT["kernel"]},
    {"ip": 0x8000_0000_0000},
    {"sp": KERNEL_TOP},
    {"cs": 0x23},  # with an IP above 4 GiB
    {"cs": 0x23, "ip": 0x0804_8000},  # with an SP above 4 GiB
]


@pytest.mark.parametrize("change", NOT_USER, ids=str)
def test_what_is_not_the_entry_from_user_mode(stacks: Stacks, change: dict[str, int]) -> None:
    lib = stacks.pure.lib
    stacks.put_regs(KERNEL_TOP - 168, **SOUND)
    assert stacks.user_regs(BASE)[0] == 0
    assert stacks.walk(RETURN, BASE, KERNEL_TOP - 167, kernel=True)[1] == lib.PG_END_USER_ENTRY
    stacks.put_regs(KERNEL_TOP - 168, **SOUND | change)
    assert stacks.user_regs(BASE)[0] == lib.PG_END_BAD_FRAME
    assert stacks.walk(RETURN, BASE, KERNEL_TOP - 167, kernel=True)[1] == lib.PG_END_BAD_FRAME


def test_kernel_thread_has_nobodys_registers(stacks: Stacks) -> None:
    stacks.put(KERNEL_TOP - 168, *[0] * 21)
    assert stacks.walk(RETURN, BASE, KERNEL_TOP - 167, kernel=True)[:2] == ([RETURN], stacks.pure.lib.PG_END_ROOT)
    assert stacks.user_regs(BASE)[0] == stacks.pure.lib.PG_END_BAD_FRAME


@pytest.mark.parametrize("change", [{"ip": TEXT["user"]}, {"sp": USER_TOP - 64}, {"cs": 0x18}, {"flags": 0}])
def test_what_is_not_an_interrupt_in_the_kernel(stacks: Stacks, change: dict[str, int]) -> None:
    good = {"ip": RETURN + 1, "cs": 0x10, "sp": BASE, "ss": 0x18, "flags": 0x46}
    stacks.put_regs(IRQ_TOP - 168, **good)
    assert stacks.walk(RETURN, IRQ_TOP - 512, IRQ_TOP - 167, kernel=True)[:2] == ([RETURN, RETURN + 1], stacks.pure.lib.PG_END_ROOT)
    stacks.put_regs(IRQ_TOP - 168, **good | change)
    assert stacks.walk(RETURN, IRQ_TOP - 512, IRQ_TOP - 167, kernel=True)[:2] == ([RETURN], stacks.pure.lib.PG_END_BAD_FRAME)


@pytest.mark.parametrize("bp", [KERNEL_TOP - 165, USER_TOP - 167, 0x8000_0000_0000_0001])
def test_bad_pointer_to_registers(stacks: Stacks, bp: int) -> None:
    stacks.put_regs(USER_TOP - 168, **SOUND)
    assert stacks.walk(RETURN, BASE, bp, kernel=True)[:2] == ([RETURN], stacks.pure.lib.PG_END_BAD_FRAME)


def test_user_code_has_no_encoded_frame_pointers(stacks: Stacks) -> None:
    stacks.put_regs(KERNEL_TOP - 168, **SOUND)
    assert stacks.walk(RETURN, BASE, KERNEL_TOP - 167, kernel=False)[1] == stacks.pure.lib.PG_END_BAD_FRAME


def test_interrupts_in_a_circle(stacks: Stacks) -> None:
    stacks.put_regs(BASE, ip=RETURN, cs=0x10, sp=BASE - 64, bp=BASE + 1, ss=0x18)
    entries, end, _ = stacks.walk(RETURN, BASE - 64, BASE + 1, kernel=True)
    assert end == stacks.pure.lib.PG_END_BAD_FRAME
    assert 2 < len(entries) < 16


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("depth", [0, 8, 4000, STACK - 168 - 16 - 8])
def test_user_registers_at_the_top_of_the_stack(stacks: Stacks, padding: int, depth: int) -> None:
    """With FRED, the upper bits of CS and SS hold other things."""
    junk = (1 << 40 | 3 << 16) if padding else 0
    regs = KERNEL_TOP - 168 - padding
    stacks.put_regs(regs, **SOUND | {"bp": 77, "cs": 0x33 | junk, "ss": 0x2B | junk})
    err, user = stacks.user_regs(regs - depth)
    assert err == 0
    assert (user.ip, user.regs[4], user.regs[5], user.cs) == (SOUND["ip"], SOUND["sp"], 77, 0x33)


@pytest.mark.parametrize("offset", [8, 160, 168])
def test_user_registers_are_above_sp(stacks: Stacks, offset: int) -> None:
    """An SP at the top is that of an empty stack, not of the stack above."""
    stacks.put_regs(KERNEL_TOP - 168, **SOUND)
    assert stacks.user_regs(KERNEL_TOP - 168 + offset)[0] == stacks.pure.lib.PG_END_BAD_FRAME


@pytest.mark.parametrize("sp", [0, 8, 2**64 - 8, 2**64 - 1, 2**63, 0xFFFF_C900_0020_0008])
def test_no_stack_there(stacks: Stacks, sp: int) -> None:
    assert stacks.user_regs(sp)[0] != 0


@settings(max_examples=40, deadline=None)
@given(random=st.randoms(use_true_random=True), kernel=st.booleans(), code64=st.booleans())
def test_garbage_ends(pure: Pure, random: Random, kernel: bool, code64: bool) -> None:
    """Stacks full of pointers into stacks, to code, and of pieces of saved registers."""
    stacks = Stacks(pure)
    tops = (USER_TOP, KERNEL_TOP, IRQ_TOP, TOP32)
    pool = [random.choice(tops) - random.randrange(-16, STACK) for _ in range(256)]
    pool += random.choices([*TEXT.values(), 0, 1, 0x10, 0x33, 0x2B, FLAGS], k=256)
    data = struct.pack("<2048Q", *random.choices(pool, k=2048))
    for i in range(4):
        stacks.memory.write(0x1_0000 * i, data)
    for _ in range(50):
        sp = random.choice(pool)
        bp = random.choice([sp, sp & ~7, random.choice(pool)])
        stacks.memory.reads = 0
        entries, _, _ = stacks.walk(random.choice(pool), sp, bp, kernel=kernel, code64=code64, span=random.choice([STACK, 2**64 - 1]))
        assert stacks.memory.reads <= 10 * (len(entries) + 2)
        stacks.user_regs(sp)
