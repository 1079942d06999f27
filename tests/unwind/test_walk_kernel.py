# SPDX-License-Identifier: Apache-2.0
"""Kernel stacks: every base, type and layout of ORC, what follows where ORC ends, and what is done where it has nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine
from tests.unwind import kernel_stacks as k

LAYOUTS = [_native.ORC_V1, _native.ORC_V2, _native.ORC_V3, _native.ORC_V4, _native.ORC_V5, _native.ORC_V6]
CALLED, CALLER, USER_IP, USER_SP = k.TEXT + 0x10, k.TEXT + 0x110, 0x555555555000, 0x7FFD12340000
ORC_FRAME = _native.HOW_ORC | _native.FRAME_RETURN


def kernel(engine: Engine, layout: int, leaf: bytes, text: bytes | None = None) -> int:
    """The leaf's entry at 0, a caller that is the thread's start at 0x100."""
    return k.add_kernel(engine, layout, {0: leaf, 0x100: k.entry(layout, k.TYPE_END)}, text)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("base", "register"), [(k.SP, "rsp"), (k.BP, "rbp"), (k.R10, "r10"), (k.R13, "r13"), (k.DI, "rdi"), (k.DX, "rdx")])
def test_bases(layout: int, base: int, register: str) -> None:
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, layout, k.entry(layout, sp=base, sp_offset=24))
    stack.put(0x100 + 16, CALLER)
    out = engine.walk(k.sample([stack], number, rip=CALLED, **{"rsp": k.STACK, register: k.STACK + 0x100}))
    assert k.frames(out) == [(CALLED, 0), (CALLER, ORC_FRAME)]
    assert out.kernel_end[0] == _native.END_THREAD_START and out.user_end[0] == _native.END_NONE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ax_is_a_base_since_7_1(layout: int) -> None:
    """Where entry code has moved the registers to the task's stack and is about to go there itself. Before, its number was no register's."""
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, layout, k.entry(layout, sp=k.AX, sp_offset=24))
    stack.put(0x100 + 16, CALLER)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK, rax=k.STACK + 0x100))
    if layout == _native.ORC_V6:
        assert k.frames(out) == [(CALLED, 0), (CALLER, ORC_FRAME)]
    else:
        assert ORC_FRAME not in [how for _, how in k.frames(out)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_indirect_bases(layout: int) -> None:
    """*(BP + offset) always; *(SP + offset) before Linux 5.12, *SP + offset since."""
    for base, register in ((k.BP_INDIRECT, "rbp"), (k.SP_INDIRECT, "rsp")):
        engine, old, new = Engine(), k.Stack(), k.Stack(k.IRQ_STACK)
        number = kernel(engine, layout, k.entry(layout, sp=base, sp_offset=8))
        offset_after = base == k.SP_INDIRECT and layout >= _native.ORC_V3
        old.put(0x200 - 8, *((0, CALLER) if offset_after else (CALLER, 0)))
        new.put(0x100, *((k.STACK + 0x200, 0) if offset_after else (0, k.STACK + 0x200)))
        out = engine.walk(k.sample([new, old], number, rip=CALLED, **{"rsp": k.IRQ_STACK, register: k.IRQ_STACK + 0x100}))
        assert k.frames(out) == [(CALLED, 0), (CALLER, ORC_FRAME)], base
        assert out.kernel_end[0] == _native.END_THREAD_START


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bp", "bp_offset"), [(k.PREV_SP, -16), (k.BP, 8)])
def test_saved_frame_pointers(layout: int, bp: int, bp_offset: int) -> None:
    """The caller is found by the RBP that the leaf saved."""
    engine, stack = Engine(), k.Stack()
    entries = {0: k.entry(layout, sp_offset=24, bp=bp, bp_offset=bp_offset), 0x100: k.entry(layout, sp=k.BP, sp_offset=16), 0x200: k.entry(layout, k.TYPE_END)}
    number = k.add_kernel(engine, layout, entries)
    stack.put(0x100, 0, k.STACK + 0x300, CALLER)
    stack.put(0x308, k.TEXT + 0x210)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x100, rbp=k.STACK + 0x100))
    assert out.address.tolist() == [CALLED, CALLER, k.TEXT + 0x210]
    assert out.kernel_end[0] == _native.END_THREAD_START


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("partial", [False, True])
def test_interrupted_kernel_code(layout: int, partial: bool) -> None:
    """From the interrupt's stack to the task's: an exact address, found by registers of which the entry code saved all or what iret takes."""
    engine, irq, task = Engine(), k.Stack(k.IRQ_STACK), k.Stack()
    exact = k.TEXT + 0x100  # the first byte of its entry: the one before would be another's
    kind = k.TYPE_PARTIAL if partial else k.TYPE_REGS
    entries = {0: k.entry(layout, kind, sp_offset=0), 0x100: k.entry(layout, sp=k.BP, sp_offset=16), 0x200: k.entry(layout, k.TYPE_END)}
    number = k.add_kernel(engine, layout, entries)
    regs = k.pt_regs(rip=exact, cs=k.KERNEL_CS, flags=k.FLAGS, rsp=k.STACK + 0x80, rbp=k.STACK + 0x100)
    irq.put_bytes(0x40, regs[128:] if partial else regs)
    task.put(0x108, k.TEXT + 0x210)
    out = engine.walk(k.sample([irq, task], number, rip=CALLED, rsp=k.IRQ_STACK + 0x40, rbp=k.STACK + 0x100 if partial else 1))
    assert k.frames(out) == [(CALLED, 0), (exact, _native.HOW_REGISTER), (k.TEXT + 0x210, ORC_FRAME)]
    assert out.kernel_end[0] == _native.END_THREAD_START


@pytest.mark.parametrize("layout", [_native.ORC_V4, _native.ORC_V5, _native.ORC_V6])
def test_registers_without_signal(layout: int) -> None:
    """ftrace saves registers at a call: the address in them is one to which that call returns."""
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, layout, k.entry(layout, k.TYPE_REGS, sp_offset=0, signal=False))
    stack.put_bytes(0x40, k.pt_regs(rip=CALLER, cs=k.KERNEL_CS, rsp=k.STACK + 0x200))
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40))
    assert k.frames(out)[1] == (CALLER, _native.HOW_REGISTER | _native.FRAME_RETURN)


@pytest.mark.parametrize("cs", [k.USER_CS, k.USER_CS | 0x1234_0000, 0x23])
def test_entry_from_user_mode(cs: int) -> None:
    """The walk goes on with the user's registers; 32-bit code gives its address. FRED keeps more than CS in its word."""
    engine, stack, user = Engine(), k.Stack(), k.Stack(USER_SP)
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, k.TYPE_REGS, sp_offset=0))
    space = engine.add_space([USER_IP], [USER_IP + 0x1000], [0], [-1])
    stack.put_bytes(0x40, k.pt_regs(rip=USER_IP, cs=cs, flags=k.FLAGS, rsp=USER_SP + 0x40, ss=k.USER_DS, rbp=USER_SP + 0x80))
    user.put(0x80, USER_SP + 0x100, USER_IP + 5)
    out = engine.walk(k.sample([stack, user], number, space, rip=CALLED, rsp=k.STACK + 0x40))
    leaf = [(CALLED, 0), (USER_IP, _native.FRAME_USER)]
    if cs == 0x23:
        assert k.frames(out) == leaf and out.user_end[0] == _native.END_COMPAT
    else:
        assert k.frames(out)[:3] == [*leaf, (USER_IP + 5, _native.HOW_FP | _native.FRAME_USER | _native.FRAME_RETURN)]
    assert out.kernel_end[0] == _native.END_USER_ENTRY


@pytest.mark.parametrize("padding", [0, 16])
def test_user_registers_at_the_stacks_top(padding: int) -> None:
    """The kernel's part is cut, the user's is not lost."""
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, sp=k.BP))
    regs = k.pt_regs(rip=USER_IP, cs=k.USER_CS, flags=k.FLAGS, rsp=USER_SP, ss=k.USER_DS)
    stack.put_bytes(k.SIZE - padding - len(regs), regs)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK, rbp=1))
    assert k.frames(out) == [(CALLED, 0), (USER_IP, _native.FRAME_USER)]
    assert out.kernel_end[0] == _native.END_CUT and out.user_end[0] == _native.END_NO_MAPPING


@pytest.mark.parametrize(("name", "value"), [("cs", 0x10), ("ss", 0x18), ("flags", 0), ("rip", k.TEXT), ("rsp", k.STACK)])
def test_no_user_registers_at_the_stacks_top(name: str, value: int) -> None:
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, sp=k.BP))
    regs = k.pt_regs(**{"rip": USER_IP, "cs": k.USER_CS, "flags": k.FLAGS, "rsp": USER_SP, "ss": k.USER_DS, name: value})
    stack.put_bytes(k.SIZE - len(regs), regs)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK, rbp=1))
    assert k.frames(out) == [(CALLED, 0)] and out.user_end[0] == _native.END_NONE


def test_edge_of_a_syscall() -> None:
    """Before its first push the kernel has the user's stack, and RCX has the user's address."""
    engine = Engine()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, k.TYPE_END))
    out = engine.walk(k.sample([], number, rip=k.TEXT, rsp=USER_SP, rcx=USER_IP))
    assert k.frames(out) == [(k.TEXT, 0), (USER_IP, _native.FRAME_USER)]
    assert out.kernel_end[0] == _native.END_USER_ENTRY


USER = {"rip": USER_IP, "cs": k.USER_CS, "flags": k.FLAGS, "rsp": USER_SP, "ss": k.USER_DS, "rbx": 3, "rbp": 5, "r12": 12, "r15": 15, "rdi": 7, "rax": 9}


def at_an_edge(stacks: list[k.Stack], **registers: int) -> tuple[list[tuple[int, int]], int]:
    engine = Engine()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, k.TYPE_END))
    out = engine.walk(k.sample(stacks, number, rip=k.TEXT, **registers))
    return k.frames(out), int(out.kernel_end[0])


FROM_USER = [(k.TEXT, 0), (USER_IP, _native.FRAME_USER)], _native.END_USER_ENTRY
FROM_NOWHERE = [(k.TEXT, 0)], _native.END_THREAD_START


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("words", range(21))
def test_a_system_call_that_pushes_its_registers(words: int, padding: int) -> None:
    """Before the second word, the user's stack pointer, nothing can be told."""
    regs, size = k.pt_regs(**USER)[168 - 8 * words :], k.SIZE - padding
    stack = k.Stack(k.STACK + size - 8 * words, 8 * words + padding)
    stack.put_bytes(0, regs)
    found = at_an_edge([stack], rsp=stack.base, rcx=USER_IP, r11=k.FLAGS)
    assert found == (FROM_USER if words >= 2 else FROM_NOWHERE)


def on_the_way_out(words: list[str], **changed: int) -> tuple[list[tuple[int, int]], int]:
    """On the processor's stack, with these registers pushed."""
    task, little = k.Stack(), k.Stack(k.IRQ_STACK + 0x1000 - 8 * len(words), 0x1000)
    task.put_bytes(k.SIZE - 168, k.pt_regs(**USER))
    for number, name in enumerate(reversed(words)):
        little.put(8 * number, {**USER, **changed}[name])
    registers = {name: value for name, value in {**USER, **changed}.items() if name in ("rbx", "rbp", "r12", "r15")}
    return at_an_edge([little, task], rsp=little.base, **registers)


@pytest.mark.parametrize("order", [["ss", "rsp", "flags", "cs", "rip", "rdi", "rax"], ["rsp", "rdi", "rax"]])
def test_the_way_out_over_a_stack_of_the_processors(order: list[str]) -> None:
    for count in range(len(order) + 1):
        assert on_the_way_out(order[:count]) == FROM_USER
        for name in {"rbx", "rbp", "r12", "r15", "rsp", "rip", "rdi", "rax"} & {*order[:count], "rbx", "rbp", "r12", "r15"}:
            assert on_the_way_out(order[:count], **{name: 0x1234}) == FROM_NOWHERE, name
    assert on_the_way_out([*order, "rbx"]) == FROM_NOWHERE


CALL = b"\xe8\0\0\0\0"


def text_with_calls(*ends: int) -> bytes:
    text = bytearray(0x400)
    for end in ends:
        text[end - 5 : end] = CALL
    return bytes(text)


@pytest.mark.parametrize(
    ("offset", "rbp", "how"),
    [
        (0x40, 0, _native.HOW_RETURN),  # at the top
        (0x108, k.STACK + 0x100, _native.HOW_FP),
        (0x80, 0, _native.HOW_SCAN),
    ],
)
def test_one_step_without_a_rule(offset: int, rbp: int, how: int) -> None:
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, k.TYPE_UNDEFINED), text_with_calls(0x110))
    stack.put(0x48, CALLER + 1)  # in the text, and follows no call
    stack.put(offset, CALLER)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40, rbp=rbp))
    assert k.frames(out) == [(CALLED, 0), (CALLER, how | _native.FRAME_RETURN)]
    assert out.kernel_end[0] == _native.END_THREAD_START


_CALLED_BY = "*%rax *%r11 *(%rbx) *(%r13) *(%r12) *8(%rax) *0x1000(%rcx) *(%rax,%rbx,8) *0x10(,%rax,8) *0x20(%rsp) *0x1234(%rip)"


@pytest.mark.parametrize("operand", _CALLED_BY.split())
def test_all_forms_of_calls_prove_a_return_address(operand: str, tmp_path: Path) -> None:
    (tmp_path / "call.s").write_text(f"call {operand}\n")
    subprocess.run(["as", "-o", tmp_path / "call.o", tmp_path / "call.s"], check=True)
    with (tmp_path / "call.o").open("rb") as file:
        call = ELFFile(file).get_section_by_name(".text").data()
    engine, stack, text = Engine(), k.Stack(), bytearray(0x400)
    text[0x110 - len(call) : 0x110] = call
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, k.TYPE_UNDEFINED), bytes(text))
    stack.put(0x40, CALLER)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40))
    assert k.frames(out) == [(CALLED, 0), (CALLER, _native.HOW_RETURN | _native.FRAME_RETURN)]


def test_no_rule_and_nothing_proven() -> None:
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5, k.TYPE_UNDEFINED), text_with_calls())
    stack.put(0x40, CALLER, CALLER, CALLER)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40))
    assert k.frames(out) == [(CALLED, 0)] and out.kernel_end[0] == _native.END_NO_RULE


def test_ends() -> None:
    engine, stack = Engine(), k.Stack()
    number = k.add_kernel(engine, _native.ORC_V5, {0: k.entry(_native.ORC_V5, sp=k.BP, sp_offset=16, bp=k.PREV_SP, bp_offset=-16)})
    # A frame that is its own caller.
    stack.put(0x100, k.STACK + 0x100, CALLED)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40, rbp=k.STACK + 0x100))
    assert out.kernel_end[0] == _native.END_BAD and len(out.address) <= 3
    # A return address that is none of the kernel.
    stack.put(0x100, 0, USER_IP)
    out = engine.walk(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40, rbp=k.STACK + 0x100))
    assert out.kernel_end[0] == _native.END_BAD and len(out.address) == 1
    # One frame on each word.
    climbing = k.add_kernel(engine, _native.ORC_V5, {0: k.entry(_native.ORC_V5)})
    stack.put(0, *[CALLED] * (k.SIZE // 8))
    out = engine.walk(k.sample([stack], climbing, rip=CALLED, rsp=k.STACK), max_depth=100)
    assert out.kernel_end[0] == _native.END_DEPTH and len(out.address) == 100
    out = engine.walk(k.sample([stack], climbing, rip=CALLED, rsp=k.STACK + k.SIZE - 80))
    assert out.kernel_end[0] == _native.END_CUT and len(out.address) == 11
    # No kernel, no walk.
    assert engine.walk(k.sample([stack], -1, rip=CALLED, rsp=k.STACK)).kernel_end[0] == _native.END_NO_TABLE
    assert not len(engine.walk(k.sample([stack], number, mode=_native.MODE_SKIP, rip=CALLED)).address)


def test_stacks_that_lead_to_one_another() -> None:
    """Down to another stack is allowed, and not without end."""
    engine, low, high = Engine(), k.Stack(), k.Stack(k.IRQ_STACK)
    number = k.add_kernel(engine, _native.ORC_V5, {0: k.entry(_native.ORC_V5, sp=k.BP, sp_offset=16, bp=k.PREV_SP, bp_offset=-16)})
    low.put(0x100, k.IRQ_STACK + 0x100, CALLED)
    high.put(0x100, k.STACK + 0x100, CALLED)
    out = engine.walk(k.sample([low, high], number, rip=CALLED, rsp=k.STACK + 0x40, rbp=k.STACK + 0x100))
    assert out.kernel_end[0] == _native.END_BAD and len(out.address) < 32


def test_scan() -> None:
    engine, stack = Engine(), k.Stack()
    number = kernel(engine, _native.ORC_V5, k.entry(_native.ORC_V5), text_with_calls(0x110, 0x220))
    stack.put(0x20, CALLER)  # below SP
    stack.put(0x40, CALLER, CALLER + 1, 0, k.TEXT + 0x220)
    out = engine.scan(k.sample([stack], number, rip=CALLED, rsp=k.STACK + 0x40))
    how = _native.HOW_SCAN | _native.FRAME_RETURN
    assert k.frames(out) == [(CALLED, 0), (CALLER, how), (k.TEXT + 0x220, how)]


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_task_switch_that_fills_the_return_stack_buffer(calls: int) -> None:
    """call .+6; int3; call .+6; int3; add $16, %rsp: what the calls pushed is not in the tables."""
    engine, stack = Engine(), k.Stack()
    code = bytearray(text_with_calls(0x110))
    code[0x20:0x2C] = b"\xe8\x01\x00\x00\x00\xcc" * 2
    number = kernel(engine, _native.ORC_V3, k.entry(_native.ORC_V3, sp_offset=24), bytes(code))
    ip = k.TEXT + 0x20 + 6 * calls
    pushed = [k.TEXT + 0x25, k.TEXT + 0x2B][:calls][::-1]
    stack.put(0x100 - 8 * calls, *pushed, 0, 0, CALLER)
    out = engine.walk(k.sample([stack], number, rip=ip, rsp=k.STACK + 0x100 - 8 * calls))
    assert k.frames(out) == [(ip, 0), (CALLER, ORC_FRAME)]
    assert out.kernel_end[0] == _native.END_THREAD_START
