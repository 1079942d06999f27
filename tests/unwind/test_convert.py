# SPDX-License-Identifier: Apache-2.0
"""What ``perfguest convert`` makes of such a recording: the known program's stacks, whole and by their names, the kernel's on top of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unwind.conftest import Guest
from tests.unwind.disk import SOURCES


@dataclass(frozen=True)
class Folded:
    """(frames, root first; how often) of all of a recording, and what convert said."""

    lines: list[tuple[str, int]]
    said: str

    def of(self, comm: str) -> list[tuple[str, int]]:
        return [(stack, count) for stack, count in self.lines if f";{comm};" in stack]


@pytest.fixture(scope="module")
def folded(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Folded:
    target = tmp_path_factory.mktemp("folded") / "guest.folded"
    command = [sys.executable, "-m", "perfguest", "convert", str(guest.recorded.directory), "--folded", "--no-keep-tables", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    rows = [line.rpartition(" ") for line in target.read_text().splitlines()]
    return Folded([(stack, int(count)) for stack, _, count in rows], done.stderr)


def test_every_sample_is_in_it(guest: Guest, folded: Folded, figure: Callable[[str], None]) -> None:
    figure("convert says\n    " + "\n    ".join(folded.said.splitlines()))
    assert sum(count for _, count in folded.lines) == len(guest.warm.rows)


def test_stacks_of_the_known_program_by_name(folded: Folded) -> None:
    told = json.loads((SOURCES / "truth.json").read_text())
    stacks = "\n".join(stack for stack, _ in folded.of("truth"))
    for chain in told["main"]["chains"]:
        named = [name.rstrip("+") for name in [*chain, *told["main"]["root"]]]
        if any(name.startswith("<") or name.endswith("@plt") for name in named):
            continue
        once = [name for name, before in zip(named, ["", *named], strict=False) if name != before]
        pattern = ";".join(f"(?:{name};)*{name}" for name in reversed(once))
        assert re.search(f";_start;.*;{pattern}(;|$)", stacks, re.MULTILINE), once


def test_most_of_the_known_program_hangs_together(folded: Folded, figure: Callable[[str], None]) -> None:
    stacks = folded.of("truth")
    whole = sum(count for stack, count in stacks if re.search(r";(_start;.*;main|thread_main|near_stack_main|on_far_stack)(;|$)", stack))
    total = sum(count for _, count in stacks)
    figure(f"samples of the known program below main or a thread's function: {whole} of {total} ({100 * whole / total:.2f}%)")
    # What is left are threads at their very beginning and end, in functions of libc that have no names.
    assert whole >= 0.7 * total


def test_the_kernel_stands_above_the_program(folded: Folded) -> None:
    stacks = [stack for stack, _ in folded.of("truth")]
    assert any(re.search(r";_start;.*;main;all_rounds;calls_round;.*do_syscall_64;", stack) for stack in stacks)
    assert any(re.search(r";spin;asm_sysvec_apic_timer_interrupt;", stack) for stack in stacks)
