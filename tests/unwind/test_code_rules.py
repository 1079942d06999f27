# SPDX-License-Identifier: Apache-2.0
"""Rules made from code: of assembled functions, at the label ``here``."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples
from tests.unwind.code_snippets import TEXT, assemble

_BODY = "push %rbp; push %rbx; sub $24, %rsp; {} add $24, %rsp; pop %rbx; pop %rbp; ret"
_SWITCH = """
here: cmp $2, %edi; ja 9f; lea table(%rip), %rdx; movslq (%rdx, %rdi, 4), %rax; add %rdx, %rax; jmp *%rax
9: ud2
table: .long 1f - table, 2f - table, 2f - table
1: ud2
2: add $40, %rsp; ret
"""
RULES = {
    "at the first instruction": ("here: endbr64; push %rbx; pop %rbx; ret", "rsp+8"),
    "in the prologue": ("push %rbp; here: push %rbx; sub $24, %rsp; add $24, %rsp; pop %rbx; pop %rbp; ret", "rsp+16 rbp-16"),
    "in the body": (_BODY.format("here: nop;"), "rsp+48 rbx-24 rbp-16"),
    "in the epilogue": ("add $24, %rsp; pop %rbx; here: pop %rbp; ret", "rsp+16 rbp-16"),
    "at the end": ("here: ret", "rsp+8"),
    "what is popped by the end": ("here: pop %rbx; ret $16", "rsp+16 rbx-16"),
    "extended registers": ("here: pop %r12; pop %r13; pop %r14; pop %r15; ret", "rsp+40 r12-40 r13-32 r14-24 r15-16"),
    "large frames": ("here: add $0x123458, %rsp; ret", "rsp+1193056"),
    "moved back by lea": ("here: lea 0x80(%rsp), %rsp; pop %rbx; ret", "rsp+144 rbx-16"),
    "restored by mov": ("here: mov 8(%rsp), %rbx; mov 16(%rsp), %rbp; add $24, %rsp; ret", "rsp+32 rbx-24 rbp-16"),
    "saved after here": ("here: mov %rbx, -8(%rsp); mov %rdi, %rbx; call f; mov -8(%rsp), %rbx; ret; f: ret", "rsp+8"),
    "red zone": ("here: mov -8(%rsp), %rbx; ret", "rsp+8 rbx-16"),
    "leave": ("push %rbp; mov %rsp, %rbp; sub $32, %rsp; here: mov -8(%rbp), %rbx; leave; ret", "rbp+16 rbx-24 rbp-16"),
    "alloca": ("sub %rax, %rsp; here: and $-16, %rsp; lea -8(%rbp), %rsp; pop %rbx; pop %rbp; ret", "rbp+16 rbx-24 rbp-16"),
    "frame pointer not yet set": ("here: push %rbp; mov %rsp, %rbp; sub %rax, %rsp; leave; ret", "rsp+8"),
    "realigned stack": ("here: mov -8(%rbp), %r10; leave; lea -8(%r10), %rsp; ret", "*(rbp-8) rbp=bp+0"),
    "stack pointer kept on the stack": ("here: mov 88(%rsp), %rsi; mov -16(%rsi), %rbp; lea (%rsi), %rsp; ret", "*(rsp+88)+8 rbp-24"),
    "stack pointer kept in a register": ("here: mov -8(%r11), %rbp; lea (%r11), %rsp; ret", "r11+8 rbp-16"),
    "... through calls of its own": ("here: call f; mov -8(%r11), %rbp; lea (%r11), %rsp; ret; f: ret", "r11+8 rbp-16"),
    "early return": ("here: test %eax, %eax; je 1f; add $8, %rsp; ret; 1: call f; call f; add $8, %rsp; ret; f: ret", "rsp+16"),
    "the other branch": ("here: test %eax, %eax; jne 1f; ud2; 1: add $8, %rsp; ret", "rsp+16"),
    "loops": ("here: 1: dec %ecx; jne 1b; loop 1b; pop %rbx; ret", "rsp+16 rbx-16"),
    "loops that push": ("here: 1: push %rax; dec %ecx; jne 1b; leave; ret", "rbp+16 rbp-16"),
    "switch": (_SWITCH, "rsp+48"),
    "notrack": (_SWITCH.replace("jmp *", "notrack jmp *"), "rsp+48"),
    "switch at a fixed address": ("here: cmp $1, %edi; ja 9f; jmp *table(, %rdi, 8); 9: ud2; table: .quad 1f, 2f; 1: ud2; 2: add $40, %rsp; ret", "rsp+48"),
    "computed goto": ("here: mov table(, %rdi, 8), %rax; jmp *%rax; table: .quad 1f, 2f, 0x7fffffff; 1: ud2; 2: add $40, %rsp; ret", "rsp+48"),
    "tail call": ("here: pop %rbx; jmp f; nop; f: push %rbp; pop %rbp; ret", "rsp+16 rbx-16"),
    "tail call by the GOT": ("here: pop %rbx; jmp *8(%rip)", "rsp+16 rbx-16"),
    "tail call by a register": ("here: pop %rbx; jmp *%rax", "rsp+16 rbx-16"),
    "lazy PLT": ("head: push 8(%rip); jmp *16(%rip); here: push $3; jmp head", "rsp+8"),
    "lazy PLT's head": ("push 8(%rip); here: jmp *16(%rip)", "rsp+24"),
    "get the own address": ("here: call 1f; 1: pop %rax; pop %rbx; ret", "rsp+16 rbx-16"),
    "flags on the stack": ("here: pushf; popf; push %fs; pop %fs; push $0x12345678; pop %rax; pushq 8(%rip); popq 8(%rip); ret", "rsp+8"),
    "exchanged with the stack": ("here: push %rbx; mov %r12, (%rsp); pop %rbx; ret", "rsp+8 rbx=r12"),
    "vfork": ("pop %rdi; here: mov $58, %eax; syscall; push %rdi; ret", "rsp+0 rip=rdi"),
    "a register that is lost": ("here: mov $5, %ebx; ret", "rsp+8 rbx?"),
    "vectors": ("here: vmovd %xmm4, %eax; movq %xmm4, %xmm5; vaddps %ymm4, %ymm5, %ymm4; cvtsi2sd %rbp, %xmm4; kmovq %k4, %k5; pop %rbp; ret", "rsp+16 rbp-16"),
}
NO_RULES = {
    "endless": ("here: 1: pause; jmp 1b", "START"),
    "halt": ("here: call f; hlt; f: ret", "START"),
    "exit_group": ("here: mov $231, %eax; syscall; f: hlt", "START"),
    "exit by a register": ("here: mov $60, %edx; xor %edi, %edi; mov %edx, %eax; syscall; add $8, %rsp; ret", "START"),
    "no instruction": ("here: .byte 0x06; ret", "NO_RULE"),
    "through a call of any function": ("here: call *%rax; lea (%r11), %rsp; ret", "NO_RULE"),
    "stack from anywhere": ("here: mov (%rax, %rbx), %rsp; ret", "NO_RULE"),
    "below the stack": ("here: sub $8, %rsp; ret", "NO_RULE"),
    "a word that is no return address": ("here: push %rax; add $1, (%rsp); sub $8, %rsp; ret", "NO_RULE"),
    "out of the file": ("here: jmp .+0x1000000", "NO_RULE"),
    "the file's end": ("here: nop; .byte 0x48", "NO_RULE"),
    "far away": ("here: add $0x7ffffff0, %rsp; pop %rbx; ret", "NO_RULE"),
    "too long": ("here: .fill 5000, 1, 0x90; ret", "NO_RULE"),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str, tmp_path: Path) -> None:
    text, wanted = RULES[name]
    snippet = assemble(tmp_path, text.replace(";", "\n"))
    assert snippet.rule() == wanted


@pytest.mark.parametrize("name", NO_RULES)
def test_no_rules(name: str, tmp_path: Path) -> None:
    text, wanted = NO_RULES[name]
    assert assemble(tmp_path, text.replace(";", "\n")).rule() == wanted


def test_a_call_that_never_returns(tmp_path: Path) -> None:
    """Behind it another function begins, with the stack as it is here: it ends where it must not, 8 bytes off a call's stack."""
    text = "here: test %eax, %eax; jne 1f; call f; f: sub $8, %rsp; add $8, %rsp; ret; 1: call f; call f; call f; add $24, %rsp; pop %rbx; pop %rbp; ret"
    snippet = assemble(tmp_path, text.replace(";", "\n"))
    assert snippet.rule(returned=True) == "rsp+48 rbx-24 rbp-16"


def test_signal_handlers_return(tmp_path: Path) -> None:
    """struct rt_sigframe: 23 words from 40 on are the registers that the processor had."""
    snippet = assemble(tmp_path, "here: mov $15, %rax\nsyscall\nbehind: nop")
    wanted = "rsp+0 rax+144 rcx+152 rdx+136 rbx+128 rsp+160 rbp+120 rsi+112 rdi+104 r8+40 r9+48 r10+56 r11+64 r12+72 r13+80 r14+88 r15+96 rip+168"
    assert snippet.rule() == wanted
    # In the system call, too.
    assert snippet.rule("behind") == wanted


def test_since_a_function_was_called(tmp_path: Path) -> None:
    """What need not return: what has happened up to here tells as much."""
    text = (
        "f: push %rbp; push %rbx; sub $24, %rsp; mov %edi, %ebx; xor %ebp, %ebp; test %eax, %eax; je 1f; ud2; 1: call f; here: ud2;"
        " g: push %rbp; mov %rsp, %rbp; push %r12; sub %rax, %rsp; mov %rdi, %r12; there: hlt"
    )
    snippet = assemble(tmp_path, text.replace(";", "\n"))
    assert snippet.rule(since="f") == "rsp+48 rbx-24 rbp-16"
    assert snippet.rule("there", since="g") == "rbp+16 rbp-16 r12-24"
    assert snippet.rule(since="g") == "START"
    assert snippet.rule("f", since="f") == "rsp+8"


def test_pages_that_are_not_there(tmp_path: Path) -> None:
    snippet = assemble(tmp_path, "here: test %eax, %eax\nje 1f\nadd $8, %rsp\nret\n.balign 4096\n1: pop %rbx\npop %rbx\nret")
    assert snippet.rule() == "rsp+16"
    assert snippet.rule(missing=range(TEXT + 4096, TEXT + 4099)) == "rsp+16"
    only = assemble(tmp_path, "here: jmp 1f\n.balign 4096\n1: add $8, %rsp\nret")
    assert only.rule() == "rsp+16"
    assert only.rule(missing=range(TEXT + 4096, TEXT + 4101)) == "PAGES"
    # Without its headers, offsets are all there is.
    assert only.rule(missing=range(1, 4096)) == "rsp+16"


def test_a_guest_cannot_have_all_of_its_code_looked_at(tmp_path: Path) -> None:
    """Samples all over code that has no end: after some thousands code is looked at for some of them only, and what is known is known."""
    snippet = assemble(tmp_path, "f: push %rbx\nje here\nknown: pop %rbx\nret\nhere: pop %rbx\nret\ncall f\nbehind: .fill 50000, 1, 0x90")
    base, stack = 0x555555554000, 0x7FFD12340000

    def walk(engine: Engine, space: int, places: list[int]) -> list[int]:
        registers = np.zeros((len(places), 17), np.uint64)
        registers[:, 4], registers[:, 16] = stack, np.array(places, np.uint64) + np.uint64(base)
        number = np.arange(len(places))
        same = (np.full(len(places), value) for value in (_native.MODE_USER, -1, space, stack, 0, 16))
        mode, kernel, spaces, address, offset, size = same
        memory = bytes(8) + (base + snippet.labels["behind"]).to_bytes(8, "little")
        out = engine.walk(
            Samples(
                memory,
                registers,
                mode.astype(np.uint8),
                kernel.astype(np.int32),
                spaces.astype(np.int32),
                np.append(number, len(places)),
                address.astype(np.uint64),
                offset,
                size,
            )
        )
        return np.diff(out.start).tolist()

    def make() -> tuple[Engine, int]:
        engine = Engine()
        binary = engine.add_binary(len(snippet.file), [(0, snippet.file)])
        return engine, engine.add_space([base], [base + len(snippet.file)], [0], [binary])

    known, here = snippet.labels["known"], snippet.labels["here"]
    sled = list(range(snippet.labels["behind"] + 1, snippet.labels["behind"] + 9000))
    found = []
    for number in range(len(sled) - 8, len(sled)):
        engine, space = make()
        assert walk(engine, space, [known]) == [2]
        walk(engine, space, sled[:number])
        found += walk(engine, space, [here])
        assert walk(engine, space, [known]) == [2]
    assert 1 in found
    assert walk(*make(), [known, here]) == [2, 2]


@pytest.mark.parametrize(
    "text",
    [
        "here: .rept 20000; je here + 2; .endr; ret",
        "here: .rept 3000; push %rax; jne here; .endr; ret",
        ".rept 500; je here; .endr; here: .rept 500; call here; push %rsp; pop %rax; jmp *(%rax); .endr",
        "here: " + "; ".join(f"je to{(i * 7919) % 997}; to{i}: push %rax" for i in range(997)) + "; ret",
    ],
    ids=["branches", "pushes", "calls", "tangle"],
)
def test_there_is_an_end_to_it(text: str, tmp_path: Path) -> None:
    snippet = assemble(tmp_path, text.replace(";", "\n"))
    start = time.process_time()
    for _ in range(20):
        snippet.rule()
    assert time.process_time() - start < 2
