# SPDX-License-Identifier: Apache-2.0
"""Threads in their first instructions: behind the system call that made them no table says anything, and the stack is empty."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine
from tests.unwind import traced
from tests.unwind.code_snippets import assemble

_SOURCE = """
#include <pthread.h>
#include <signal.h>
static void *thread(void *argument) { return argument; }
int main(void)
{
	pthread_t id;
	raise(SIGSTOP);
	pthread_create(&id, NULL, thread, NULL);
	pthread_join(id, NULL);
	return 0;
}
"""
_STEPS = 20
_BASE = 0x400000
_CODE = {
    "glibc": "mov $435, %eax; syscall; i0: test %rax, %rax; i1: jl 2f; i2: je 1f; ret; 1: i3: xor %ebp, %ebp; i4: and $-16, %rsp;"
    " i5: mov %r8, %rdi; i6: call *%rdx; mov %rax, %rdi; mov $60, %eax; syscall; 2: neg %eax; ret",
    "musl": "mov $56, %al; syscall; i0: test %eax, %eax; i1: jnz 1f; i2: xor %ebp, %ebp; i3: pop %rdi; i4: call *%r9;"
    " mov %eax, %edi; xor %eax, %eax; mov $60, %al; syscall; hlt; 1: ret",
}
_NO_CODE = {
    "no system call": "mov $435, %eax; .byte 0x0f, 0x0b; i0: test %rax, %rax; i1: je 1f; ret; 1: i2: call *%rdx; mov $60, %eax; syscall",
    "not the way": "syscall; test %rax, %rax; jne 1f; call *%rdx; mov $60, %eax; syscall; 1: i0: nop; i1: nop; i2: ret",
    "another end": "syscall; i0: test %rax, %rax; i1: je 1f; ret; 1: i2: call *%rdx; mov %rax, %rdi; ret",
    "another call": "syscall; i0: test %rax, %rax; i1: jne 1f; mov $39, %eax; syscall; call *%rdx; mov $60, %eax; syscall; 1: i2: ret",
}


@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc"])
@pytest.mark.parametrize("tables", [True, False], ids=["tables", "code"])
def test_first_instructions(compiler: str, tables: bool, tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text(_SOURCE)
    subprocess.run([compiler, "-O2", "-pthread", "-o", tmp_path / "program", tmp_path / "program.c"], check=True)
    with traced.running(tmp_path / "program") as pid, traced.new_thread(pid) as thread:
        engine, chain, sp = Engine(), [], 0
        space = traced.add_process(engine, pid, tables)
        for _ in range(_STEPS):
            registers = traced.registers(thread)
            out = engine.walk(traced.user_samples(registers, [traced.stack_of(pid, int(registers[4]))], space))
            found = out.address.tolist()
            if chain and len(found) == 2:
                break
            chain, sp = [int(registers[16])], int(registers[4])
            assert (found, out.user_end[0]) == (chain, _native.END_START)
            assert traced.step(thread)
    # In what the thread's first call has called: that returns to behind the last instruction.
    assert int(registers[4]) <= sp and 0 < found[1] - chain[0] <= 3 and out.user_end[0] == _native.END_START


def walked(code: str, label: str, rax: int, directory: Path) -> int:
    """How the walk from there ends; the words on the stack are no return addresses."""
    engine, snippet = Engine(), assemble(directory, code.replace(";", "\n"))
    binary = engine.add_binary(len(snippet.file), [(0, snippet.file)])
    space = engine.add_space([_BASE], [_BASE + len(snippet.file)], [0], [binary])
    registers = np.zeros(17, np.uint64)
    registers[[0, 4, 16]] = rax, 0x7FFF0000, _BASE + snippet.labels[label]
    return int(engine.walk(traced.user_samples(registers, [(0x7FFF0000, bytes(64))], space)).user_end[0])


@pytest.mark.parametrize("library", _CODE)
def test_it_is_the_thread_that_was_made(library: str, tmp_path: Path) -> None:
    for label in (word.rstrip(":") for word in _CODE[library].split() if word.startswith("i") and word.endswith(":")):
        assert walked(_CODE[library], label, 0, tmp_path) == _native.END_START, label
        assert walked(_CODE[library], label, 4711, tmp_path) != _native.END_START, label


@pytest.mark.parametrize("what", _NO_CODE)
def test_other_code(what: str, tmp_path: Path) -> None:
    for label in ("i0", "i1", "i2"):
        assert walked(_NO_CODE[what], label, 0, tmp_path) != _native.END_START, label
