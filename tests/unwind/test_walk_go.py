# SPDX-License-Identifier: Apache-2.0
"""Stacks of Go programs, which have no tables but the runtime's own: by the code, and by frame pointers where that does not return."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from perfguest.symbols.elf import ElfFile, read_elf
from perfguest.unwind import _native
from perfguest.unwind.engine import Engine
from tests.unwind import traced

_SOURCE = """package main
import "syscall"
//go:noinline
func inner(depth int) int {
	if depth > 0 { var frame [20]int; frame[depth] = inner(depth - 1); return frame[3] + frame[depth] }
	syscall.RawSyscall(syscall.SYS_KILL, uintptr(syscall.Getpid()), uintptr(syscall.SIGSTOP), 0)
	return 1
}
//go:noinline
func outer(f func(int) int, done chan int) { done <- f(5) }
"""
_MAINS = {
    "main": "func main() { outer(inner, make(chan int, 1)) }",
    "goroutine": "func main() { done := make(chan int); go outer(inner, done); <-done }",
}
_INNER = ["main.inner"] * 6 + ["main.outer"]


@pytest.fixture(scope="module", params=_MAINS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(_SOURCE + _MAINS[request.param])
    environment = {**os.environ, "GOCACHE": str(directory / "cache"), "GOPATH": str(directory / "path"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", "program", "main.go"], cwd=directory, env=environment, check=True)
    return request.param, directory / "program"


def walk(pid: int, thread: int, elf: ElfFile) -> tuple[list[str], set[int], int]:
    """Names, ways and the end of a stopped thread's stack."""
    with traced.stopped(thread):
        registers = traced.registers(thread)
        stack = traced.stack_of(pid, int(registers[4]))
    engine = Engine()
    out = engine.walk(traced.user_samples(registers, [stack], traced.add_process(engine, pid)))
    returns = ((out.how & _native.FRAME_RETURN) != 0).astype(np.uint64)
    symbols = elf.symbols.lookup(out.address - returns).tolist()
    names = [elf.symbols.names[symbol].removesuffix(".abi0") if symbol >= 0 else "?" for symbol in symbols]
    return names, {how & 15 for how in out.how[1:].tolist()}, int(out.user_end[0])


def test_goroutines_are_whole_to_their_begin(program: tuple[str, Path]) -> None:
    kind, path = program
    elf = read_elf(path)
    with traced.running(path) as pid:
        threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
        found = [one for one in (walk(pid, thread, elf) for thread in threads) if "main.inner" in one[0]]
    ((names, ways, end),) = found
    begin = ["main.main", "runtime.main", "runtime.goexit"] if kind == "main" else ["runtime.goexit"]
    assert names[names.index("main.inner") :] in ([*_INNER, *begin], [*_INNER, "main.main.func1", *begin])
    assert end == _native.END_START
    assert ways <= {_native.HOW_CODE, _native.HOW_FP, _native.HOW_RETURN}
    assert _native.HOW_CODE in ways
