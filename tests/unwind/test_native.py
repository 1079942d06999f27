# SPDX-License-Identifier: Apache-2.0
"""The binding: what does not fit together is refused, whatever is in tables and stacks is survived."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples
from tests.unwind import kernel_stacks as k

USER = 0x555555554000
USER_STACK = 0x7FFD12340000


def good_samples() -> tuple[Engine, Samples]:
    engine = Engine()
    number = k.add_kernel(engine, _native.ORC_V5, {0: k.entry(_native.ORC_V5)})
    return engine, k.sample([k.Stack()], number, rip=k.TEXT + 1, rsp=k.STACK)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("registers", np.zeros((2, 17)), "registers"),
        ("registers", np.zeros(16), "rows of 17"),
        ("kernel", [7], "kernel"),
        ("space", [0], "space"),
        ("copy_start", [0, 2], "copy_start"),
        ("copy_start", [-1, 1], "copy_start"),
        ("copy_start", [0], "copy_start"),
        ("copy_start", [1, 0], "copy_start"),
        ("copy_offset", [1], "copy 0"),
        ("copy_offset", [-1], "copy 0"),
        ("copy_size", [-1], "copy 0"),
        ("copy_size", [1 << 62], "copy 0"),
        ("copy_size", [1, 2], "copy_size"),
        ("copy_address", [(1 << 64) - 8], "copy 0"),
        ("mode", [0, 0], "registers"),
    ],
)
def test_columns_that_do_not_fit(column: str, value: Any, message: str) -> None:
    engine, samples = good_samples()
    assert len(engine.walk(samples).address) > 0
    bad = dataclasses.replace(samples, **{column: np.array(value, dtype=getattr(samples, column).dtype)})
    for method in (engine.walk, engine.scan):
        with pytest.raises(ValueError, match=message):
            method(bad)


def test_depth() -> None:
    engine, samples = good_samples()
    for depth in (0, -1, 1 << 17):
        with pytest.raises(ValueError, match="max_depth"):
            engine.walk(samples, depth)
    assert len(engine.walk(samples, 1).address) == 1


@pytest.mark.parametrize(("start", "end"), [([0, 5], [10, 15]), ([10, 0], [20, 10]), ([5], [5]), ([5], [4])])
def test_mappings_that_overlap(start: list[int], end: list[int]) -> None:
    with pytest.raises(ValueError, match="mappings"):
        Engine().add_space(start, end, [0] * len(start), [-1] * len(start))


def test_bad_binaries() -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="runs"):
        engine.add_binary(100, [(0, b"abc"), (2, b"def")])
    with pytest.raises(ValueError, match="runs"):
        engine.add_binary(100, [(1 << 63, b"abc")])
    with pytest.raises(TypeError):
        engine.add_binary(100, [(0, "text")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no binary"):
        engine.add_space([0], [1], [0], [0])


def test_buffers_are_held() -> None:
    """What was given may be forgotten by who gave it, but not changed in size."""
    engine, data = Engine(), bytearray(4096)
    engine.add_binary(len(data), [(0, data)])
    with pytest.raises(BufferError):
        data.extend(b"more")
    del engine
    data.extend(b"more")


words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 511).map(lambda x: k.TEXT + x),
    st.integers(0, 66).map(lambda x: k.STACK + 8 * x),
    st.integers(0, 66).map(lambda x: USER_STACK + 8 * x),
    st.integers(0, 8191).map(lambda x: USER + x),
    st.sampled_from([0, 8, k.USER_CS, k.USER_DS, k.FLAGS, (1 << 64) - 8]),
)


@settings(max_examples=300, deadline=None)
@given(
    layout=st.integers(1, 5),
    entries=st.dictionaries(st.integers(0, 511), st.binary(min_size=6, max_size=6), max_size=20),
    code=st.binary(max_size=512),
    registers=st.lists(words, min_size=17, max_size=17),
    stacks=st.tuples(st.lists(words, max_size=64), st.lists(words, max_size=64)),
    program=st.binary(max_size=200),
    mode=st.integers(0, 2),
    depth=st.integers(1, 70),
)
def test_anything_is_survived(  # noqa: PLR0917 # hypothesis names them
    layout: int, entries: dict[int, bytes], code: bytes, registers: list[int], stacks: tuple[list[int], list[int]], program: bytes, mode: int, depth: int
) -> None:
    engine = Engine()
    kernel = k.add_kernel(engine, layout, entries, code)
    binary = engine.add_binary(8192, [(0, elf_with(program))])
    space = engine.add_space([USER], [USER + 8192], [0], [binary])
    made = [k.Stack(k.STACK, 8 * len(stacks[0])), k.Stack(USER_STACK, 8 * len(stacks[1]))]
    for stack, content in zip(made, stacks, strict=True):
        stack.put(0, *content)
    samples = k.sample(made, kernel, space, mode, **dict(zip(k.REGISTERS, registers, strict=True)))
    for out in (engine.walk(samples, depth), engine.scan(samples, depth)):
        assert len(out.address) == len(out.how) == out.start[1] <= depth
        assert (len(out.address) > 0) == (mode != _native.MODE_SKIP)
        assert out.kernel_end[0] <= _native.END_COMPAT and out.user_end[0] <= _native.END_COMPAT


def elf_with(program: bytes) -> bytes:
    """A file of one function, 4 KiB from 4096 on, with this program in its FDE; offsets are addresses."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0\x01\0\0\0" + (4096).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(12)
    header += (64).to_bytes(2, "little") + (56).to_bytes(2, "little") + (2).to_bytes(2, "little") + bytes(6)
    load = b"\x01\0\0\0\x05\0\0\0" + b"".join(x.to_bytes(8, "little") for x in (0, 0, 0, 8192, 8192, 4096))
    eh_frame = b"\x50\xe5\x74\x64\x04\0\0\0" + b"".join(x.to_bytes(8, "little") for x in (256, 256, 256, 20, 20, 4))
    cie = b"\0\0\0\0\x01zR\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01"
    cie = len(cie).to_bytes(4, "little") + cie
    fde_at = 512 + len(cie)
    fde = (fde_at + 4 - 512).to_bytes(4, "little") + (4096 - (fde_at + 8)).to_bytes(4, "little", signed=True) + (4096).to_bytes(4, "little") + b"\0" + program
    table = b"\x01\x1b\x03\x3b" + (512 - 260).to_bytes(4, "little") + (1).to_bytes(4, "little") + (4096 - 256).to_bytes(4, "little")
    table += (fde_at - 256).to_bytes(4, "little")
    data = bytearray(8192)
    for at, part in ((0, header), (64, load), (120, eh_frame), (256, table), (512, cie), (fde_at, len(fde).to_bytes(4, "little") + fde)):
        data[at : at + len(part)] = part
    return bytes(data)


def test_the_made_file_is_sound() -> None:
    """So that the property above is about programs: with none, the CIE's rule holds."""
    unwinder = _native.Unwinder()
    rule = unwinder.binary_rule(unwinder.add_binary(8192, [(0, elf_with(b""))]), 4096)
    assert (rule["cfa_register"], rule["cfa_offset"], rule["saved"]) == (4, 8, {16: (0, -8, 0)})


# DW_CFA_def_cfa_expression and what it computes; RSP is USER_STACK, RDI 7.
B7, B5, DEREF, AND, PLUS, LIT = b"\x77", b"\x75", b"\x06", b"\x1a", b"\x22", lambda n: bytes([0x30 + n])
EXPRESSIONS = {
    "breg": (B7 + b"\x10", 0x10),
    "deref": (B7 + b"\x20" + DEREF, 0x100),
    "plus_uconst": (B7 + b"\0\x23\x18", 0x18),
    "plt": (B7 + b"\x08" + b"\x80\0" + LIT(15) + AND + LIT(11) + b"\x2a" + LIT(3) + b"\x24" + PLUS, 0x08),
    "const1s minus": (B7 + b"\0\x09\xf0\x1c", 0x10),
    "const2u": (B7 + b"\0\x0a\x20\x00" + PLUS, 0x20),
    "mul div": (B7 + b"\0" + LIT(9) + LIT(8) + b"\x1e" + LIT(3) + b"\x1b" + PLUS, 0x18),
    "div negative": (B7 + b"\0" + b"\x09\xd0" + b"\x09\xfe" + b"\x1b" + PLUS, 0x18),
    "mod": (B7 + b"\0\x08\x7c\x08\x64\x1d" + PLUS, 0x18),
    "shra": (B7 + b"\0\x09\x80" + LIT(3) + b"\x26\x1f" + PLUS, 0x10),
    "shr": (B7 + b"\0\x08\x80" + LIT(3) + b"\x25" + PLUS, 0x10),
    "or xor not neg": (B7 + b"\0" + LIT(16) + LIT(8) + b"\x21" + LIT(8) + b"\x27\x20\x20" + PLUS, 0x10),
    "dup drop": (B7 + b"\x08\x12\x13", 0x08),
    "swap": (LIT(16) + B7 + b"\0\x16\x22", 0x10),
    "over": (LIT(8) + B7 + b"\0\x14" + PLUS + PLUS, 0x10),
    "pick": (LIT(8) + LIT(16) + B7 + b"\0\x15\x02" + PLUS + PLUS, 0x18),
    "rot": (B7 + b"\0" + LIT(24) + LIT(8) + b"\x17" + PLUS, 0x18),
    "skip": (B7 + b"\x10\x2f\x02\0" + LIT(1) + LIT(2), 0x10),
    "bra": (B7 + b"\x10" + LIT(1) + b"\x28\x01\0\x06", 0x10),
    "no bra": (B7 + b"\x20" + LIT(0) + b"\x28\x01\0\x06", 0x100),
    "compare": (B7 + b"\0" + LIT(2) + LIT(3) + b"\x2d" + LIT(4) + b"\x24" + PLUS, 0x10),
    "deref_size": (B7 + b"\0" + B7 + b"\x20\x94\x01" + PLUS, 0x00),
    "bregx": (b"\x92\x07\x10", 0x10),
    "nop": (b"\x96" + B7 + b"\x10", 0x10),
}
NOT_UNDERSTOOD = {
    "empty": b"",
    "reg": b"\x57",
    "underflow": PLUS,
    "division by zero": LIT(1) + LIT(0) + b"\x1b",
    "endless": b"\x2f\xfd\xff",
    "out of it": b"\x2f\x7f\x7f",
    "truncated": b"\x0c\x01",
    "overflow": LIT(1) + b"\x12\x2f\xfc\xff",
    "cfa in the cfa": b"\x9c",
}


def walk_with(expression: bytes) -> tuple[list[int], int]:
    engine = Engine()
    binary = engine.add_binary(8192, [(0, elf_with(b"\x0f" + bytes([len(expression)]) + expression))])
    space = engine.add_space([USER], [USER + 8192], [0], [binary])
    stack = k.Stack(USER_STACK, 0x200)
    stack.put(0x20, USER_STACK + 0x100)
    # Where each CFA's return address stands: one that tells which it was, in no mapping.
    for offset in range(0, 0x200, 8):
        if offset != 0x20:
            stack.put(offset, 0x1000 + offset)
    out = engine.walk(k.sample([stack], -1, space, _native.MODE_USER, rip=USER + 4096, rsp=USER_STACK, rdi=7))
    return out.address.tolist(), int(out.user_end[0])


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions(name: str) -> None:
    expression, offset = EXPRESSIONS[name]
    addresses, end = walk_with(expression)
    if offset <= 0:
        assert end in (_native.END_CUT, _native.END_BAD) and len(addresses) == 1
    else:
        assert addresses == [USER + 4096, 0x1000 + offset - 8] and end == _native.END_NO_MAPPING


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_expressions_that_are_not_understood(name: str) -> None:
    assert walk_with(NOT_UNDERSTOOD[name]) == ([USER + 4096], _native.END_EXPRESSION)


def test_walks_in_threads() -> None:
    engine, samples = good_samples()
    wanted = engine.walk(samples)
    failures = []

    def work() -> None:
        for _ in range(200):
            if not np.array_equal(engine.walk(samples).address, wanted.address):
                failures.append(1)
            engine.add_binary(8192, [(0, elf_with(b""))])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
