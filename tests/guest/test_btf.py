# SPDX-License-Identifier: Apache-2.0
"""BTF for drgn: a real kernel's against pahole, and garbage."""

from __future__ import annotations

import re
import struct
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import drgn
import pytest
from drgn import Architecture, Platform, Program
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats.btf import BtfError, BtfTable
from perfguest.formats.kernel_image import read_kernel_image
from perfguest.guest.btf import BtfFinder

ERRORS = (BtfError, LookupError, ValueError, TypeError, OverflowError)


@cache
def real_btf() -> bytes:
    image = read_kernel_image(str(sorted(Path("/boot").glob("vmlinuz-*"))[-1]))
    section = next(section for section in image.sections if section.name == ".BTF")
    return image.elf[section.offset : section.offset + section.size]


def program(data: bytes, addresses: dict[str, int] | None = None) -> Program:
    prog = Program(Platform(Architecture.X86_64))
    BtfFinder(prog, BtfTable(data), (addresses or {}).get).register()
    return prog


def btf(types: bytes, strings: bytes = b"\0a\0b\0") -> bytes:
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def head(name: int, kind: int, count: int = 0, size: int = 0, flag: bool = False) -> bytes:
    return struct.pack("<III", name, kind << 24 | count | flag << 31, size)


@pytest.mark.parametrize("name", ["task_struct", "mm_struct", "vm_area_struct", "module", "inode", "page", "bpf_ksym", "sk_buff", "tcp_sock"])
def test_structures_are_as_pahole_has_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "btf").write_bytes(real_btf())
    told = subprocess.run(["pahole", "-F", "btf", "-C", name, tmp_path / "btf"], check=True, stdout=subprocess.PIPE, text=True).stdout
    type_ = program(real_btf()).type(f"struct {name}")
    assert f"/* size: {type_.size}," in told
    # At one tab: its own members; within are those of unions and structs without a name.
    own = re.findall(r"^\t[^\t}\n]*?\b(\w+)(?:\[\w*\])*(?::(\d+))?; */\* +(\d+)(?:: *(\d+))? +(\d+) \*/$", told, re.MULTILINE)
    assert own
    for member, bits, offset, bit, size in own:
        found = type_.member(member)
        if bits:
            assert (found.bit_field_size, found.bit_offset) == (int(bits), 8 * int(offset) + int(bit))
        else:
            assert (found.bit_offset, drgn.sizeof(found.type) if int(size) else 0) == (8 * int(offset), int(size)), member


def test_enumerators_and_variables() -> None:
    prog = program(real_btf(), {"init_task": 0x1000, "runqueues": 0x2000, "__per_cpu_offset": 0x3000, "jiffies": 0x4000})
    assert prog.constant("PIDTYPE_TGID").value_() == 1
    assert prog.constant("MODULE_STATE_UNFORMED").value_() == 3
    assert prog["init_task"].type_.type_name() == "struct task_struct"
    assert prog["runqueues"].type_.type_name() == "struct rq"
    assert drgn.sizeof(prog["__per_cpu_offset"][0]) == 8
    for missing in ("jiffies", "no_such_thing", "init_pid_ns"):
        with pytest.raises(KeyError):
            prog[missing]
    with pytest.raises(LookupError):
        prog.type("struct no_such_thing")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x9f\xeb\x01" + bytes(40),
        real_btf()[:-1],
        real_btf()[:5000],
        b"\0" + real_btf()[1:],
        btf(head(1, 0)),
        btf(head(1, 31)),
        btf(head(1, 4, count=2)),
        btf(head(1, 1)[:-4]),
        btf(head(1, 8)) + b"x" * (64 << 20),
    ],
    ids=["nothing", "head", "cut", "short", "magic", "kind 0", "kind 31", "parts", "half", "large"],
)
def test_what_is_no_btf_is_refused(data: bytes) -> None:
    with pytest.raises(BtfError):
        BtfTable(data)


ITSELF = head(1, 8, size=1)
WITHIN_ITSELF = head(1, 4, count=1, size=8) + struct.pack("<III", 0, 1, 0)
MIRRORS = head(1, 4, count=1, size=8) + struct.pack("<III", 0, 2, 0) + head(3, 5, count=1, size=8) + struct.pack("<III", 0, 1, 0)
TOWER = head(1, 8, size=2) + b"".join(head(0, 2, size=number) for number in range(3, 2000)) + head(3, 1, size=4) + bytes(4)


@pytest.mark.parametrize(
    ("types", "name"),
    [
        (ITSELF, "a"),
        (WITHIN_ITSELF, "struct a"),
        (MIRRORS, "struct a"),
        (TOWER, "a"),
        (head(1, 8, size=77), "a"),
        (head(77, 1, size=4) + bytes(4) + ITSELF, "a"),
    ],
    ids=["itself", "within itself", "mirrors", "tower", "no such type", "no such string"],
)
def test_types_that_make_no_sense_are_refused(types: bytes, name: str) -> None:
    prog = program(btf(types))
    with pytest.raises(ERRORS):
        prog.type(name).member("b")


NAMES = ["struct task_struct", "struct module", "struct list_head", "unsigned long", "pid_t", "enum pid_type", "struct a", "a", "b"]


def touch(data: bytes) -> None:
    """All that is done with types, of which each must end in one of the errors if not well."""
    with suppress(BtfError):
        prog = program(data, {"init_task": 1 << 20, "runqueues": 8, "a": 8})
        for name in NAMES:
            with suppress(*ERRORS):
                type_ = prog.type(name)
                drgn.sizeof(type_)
                for member in list(type_.members)[:200] if type_.kind == drgn.TypeKind.STRUCT else ():
                    with suppress(*ERRORS):
                        drgn.sizeof(member.type)
                type_.member("comm")
        for name in ("init_task", "runqueues", "PIDTYPE_TGID", "a"):
            with suppress(KeyError, *ERRORS):
                prog[name]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 23), st.binary(min_size=1, max_size=8)), min_size=1, max_size=30))
def test_damaged_btf_ends(damage: list[tuple[int, bytes]]) -> None:
    data = bytearray(real_btf())
    for place, what in damage:
        at = place % (len(data) - 8)
        data[at : at + len(what)] = what
    touch(bytes(data))


TYPE = st.builds(
    lambda kind, count, flag, name, size, words: head(name, kind, min(count, 6), size, flag) + struct.pack(f"<{len(words)}I", *words) * 3,
    st.integers(1, 19),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([0, 1, 3, 9]),
    st.integers(0, 12) | st.integers(0, (1 << 32) - 1),
    st.lists(st.integers(0, 12) | st.integers(0, (1 << 32) - 1), min_size=6, max_size=6),
)


def cut(data: bytes) -> bytes:
    """A type with the tail that its kind asks for."""
    info = struct.unpack_from("<I", data, 4)[0]
    once, each = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}.get(
        info >> 24 & 31, (0, 0)
    )
    return data[: 12 + once + each * (info & 0xFFFF)]


@settings(max_examples=300, deadline=None)
@given(st.lists(TYPE.map(cut), min_size=1, max_size=12))
def test_any_types_end(types: list[bytes]) -> None:
    touch(btf(b"".join(types)))
