# SPDX-License-Identifier: Apache-2.0
"""A real program, instruction by instruction: its walks against its calls and returns, counted along."""

from __future__ import annotations

import itertools

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine
from tests.unwind import traced

#: Instructions that are followed at most.
MOST_STEPS = 6000
_STACK = 16384


def follow(pid: int, thread: int, tables: bool) -> tuple[int, int]:
    """Walks the stack of a stopped thread at each of its next instructions, and asserts that it is that of the calls which were made since the first.

    Gives how many there were, and how many of the walks ended early; those may not be whole, but must be right as far as they go. ``tables``: the walk has
    the files' .eh_frame.
    """
    engine = Engine()
    with traced.stopped(thread):
        space = traced.add_process(engine, pid, tables)
        registers = traced.registers(thread)
        first = engine.walk(traced.user_samples(registers, [traced.stack_of(pid, int(registers[4]))], space))
        assert first.user_end[0] == _native.END_START
        chain = first.address.tolist()
        top = next(m for m in traced.mappings(pid) if m.start <= int(registers[4]) < m.end).end
        # Where the callers' return addresses stand: each one's first place above the one before.
        shadow, at = [], int(registers[4])
        for address in chain[1:]:
            data = traced.read(pid, at, top - at)
            at += data.index(int(address).to_bytes(8, "little"))
            shadow.append((at, address))
            at += 8
        shadow.reverse()
        early = 0
        for steps in itertools.count():
            sp, ip = int(registers[4]), int(registers[16])
            copy = traced.read(pid, sp - traced.RED_ZONE, min(_STACK, top - sp + traced.RED_ZONE))
            out = engine.walk(traced.user_samples(registers, [(sp - traced.RED_ZONE, copy)], space))
            found, expected = out.address.tolist(), [ip, *(address for _, address in reversed(shadow))]
            if out.user_end[0] != _native.END_START:
                early += 1
                expected = expected[: len(found)]
            assert found == expected, f"step {steps}, ip {ip:#x}: {out.user_end[0]}"
            if steps == MOST_STEPS or not traced.step(thread):
                return steps, early
            after = traced.registers(thread)
            new_sp = int(after[4])
            while shadow and shadow[-1][0] < new_sp:
                shadow.pop()
            if new_sp == sp - 8 and _is_call(traced.read(pid, ip, 8)):
                shadow.append((new_sp, int.from_bytes(traced.read(pid, new_sp, 8), "little")))
            registers = after


def _is_call(code: bytes) -> bool:
    while code[0] in (0x2E, 0x3E, 0xF2, *range(0x40, 0x50)):
        code = code[1:]
    return code[0] == 0xE8 or (code[0] == 0xFF and code[1] >> 3 & 7 == 2)
