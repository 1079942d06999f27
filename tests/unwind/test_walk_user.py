# SPDX-License-Identifier: Apache-2.0
"""Stacks of real programs, against glibc's backtrace() and against a shadow stack kept while stepping."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Stacks
from tests.unwind import traced
from tests.unwind.stepping import follow

SOURCE = Path(__file__).with_name("stops.c")
PYTHON = """
import os
class Sorted(int):
    def __lt__(self, other):
        os.getppid()
        return int(self) < int(other)
sorted([Sorted(2), Sorted(1)])
"""
PERL = "sub f { my $n = shift; $n ? f($n - 1) : getppid() } my @x = sort { f(3); $a <=> $b } (2, 1);"


def build(directory: Path, *options: str) -> Path:
    out = directory / "stops"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", out, SOURCE, "-pthread", *options], check=True)
    return out


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stops"), "-fomit-frame-pointer")


def walk_when_stopped(tmp_path: Path, *command: str | Path, tables: bool = True, code: bool = True) -> tuple[list[int], Stacks]:
    """What the program says of its callers, and what the walk does."""
    said = tmp_path / "said"
    with said.open("wb") as output:
        place = output.fileno()
        # The program writes to descriptor 3.
        shell = ["/bin/sh", "-c", 'exec 3>&1 "$@" </dev/null', "sh", *map(str, command)]
        with traced.running(*shell, stdout=place) as pid:
            thread = max(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
            with traced.stopped(thread):
                registers, engine = traced.registers(thread), Engine()
                space = traced.add_process(engine, thread, tables=tables, code=code)
                stacks = [traced.stack_of(thread, int(registers[4]))]
                main = next(m for m in traced.mappings(thread) if m.path == "[stack]")
                if not main.start <= int(registers[4]) < main.end:
                    stacks.append((main.start, traced.read(thread, main.start, main.end - main.start)))
                out = engine.walk(traced.user_samples(registers, stacks, space))
    return [int(word, 16) for word in said.read_text().split()], out


def from_the_program(out: Stacks, said: list[int]) -> list[int]:
    """The frames from the function on that called the one which stopped."""
    addresses = out.address.tolist()
    assert said[0] in addresses
    return addresses[addresses.index(said[0]) :]


def hows(out: Stacks) -> set[int]:
    """How all frames but the leaf were found."""
    return {how & 15 for how in out.how.tolist()[1:]}


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "code"])
@pytest.mark.parametrize("what", ["sort", "signal", "sigaltstack", "thread", "exit"])
def test_a_program_in_hard_places(stops: Path, tmp_path: Path, what: str, tables: bool) -> None:
    said, out = walk_when_stopped(tmp_path, stops, what, tables=tables)
    assert tables or hows(out) == {_native.HOW_CODE}
    assert len(said) >= 10
    assert from_the_program(out, said) == said
    assert out.user_end[0] == _native.END_START
    exact = [how for how in out.how.tolist() if not how & _native.FRAME_RETURN]
    assert len(exact) == (2 if what.startswith("sig") else 1)
    assert all(how & _native.FRAME_USER for how in out.how.tolist())


@pytest.mark.parametrize("command", [["/usr/bin/python3", "-c", PYTHON], ["/usr/bin/perl", "-e", PERL]], ids=["python", "perl"])
def test_interpreters(tmp_path: Path, command: list[str]) -> None:
    library = build(tmp_path, "-shared", "-fPIC", "-DPRELOAD")
    said, out = walk_when_stopped(tmp_path, "env", f"LD_PRELOAD={library}", *command)
    assert len(said) >= 10
    assert from_the_program(out, said) == said
    assert out.user_end[0] == _native.END_START


def test_a_static_program_without_tables(tmp_path: Path) -> None:
    """It has tables in a section only, of which the engine is not told."""
    said, out = walk_when_stopped(tmp_path, build(tmp_path, "-static"), "recurse", tables=False)
    assert from_the_program(out, said) == said
    assert out.user_end[0] == _native.END_START
    assert hows(out) == {_native.HOW_CODE}


def test_frame_pointers_in_code_that_is_not_there(tmp_path: Path) -> None:
    """As of what compilers make while a program runs. The C library has no frame pointers."""
    program = build(tmp_path, "-static", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls")
    said, out = walk_when_stopped(tmp_path, program, "recurse", code=False)
    addresses = from_the_program(out, said)
    assert len(addresses) >= 12 and addresses == said[: len(addresses)]
    assert out.user_end[0] == _native.END_NO_TABLE
    assert hows(out) == {_native.HOW_FP}


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "code"])
def test_every_instruction(stops: Path, tables: bool) -> None:
    """Through the loader's lazy binding, procedure linkage tables, the C library's assembler: at each instruction the whole chain is right. By the code it
    may end early."""
    with traced.running(stops, "step", stdout=subprocess.DEVNULL, env={"LD_BIND_NOW": ""}) as pid:
        steps, early = follow(pid, pid, tables)
    assert steps > 3000
    assert early <= (0 if tables else 0.005 * steps)


def test_cut_and_unknown(stops: Path) -> None:
    with traced.running(stops, "step") as pid, traced.stopped(pid):
        engine = Engine()
        space = traced.add_process(engine, pid)
        registers = traced.registers(pid)
        sp = int(registers[4])
        whole = engine.walk(traced.user_samples(registers, [traced.stack_of(pid, sp)], space))
        for size in range(0, 640, 8):
            out = engine.walk(traced.user_samples(registers, [(sp, traced.read(pid, sp, size))], space))
            count = len(out.address)
            assert np.array_equal(out.address, whole.address[:count])
            assert out.user_end[0] == (_native.END_CUT if count < len(whole.address) else _native.END_START)
        nowhere = engine.add_space([], [], [], [])
        assert engine.walk(traced.user_samples(registers, [], nowhere)).user_end[0] == _native.END_NO_MAPPING
        anonymous = engine.add_space([0], [1 << 47], [0], [-1])
        assert engine.walk(traced.user_samples(registers, [], anonymous)).user_end[0] == _native.END_NO_TABLE
