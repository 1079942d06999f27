# SPDX-License-Identifier: Apache-2.0
"""Symbols and vmcoreinfo out of an image: a real one laid out as in memory, and garbage. Against running guests: test_kernel.py."""

from __future__ import annotations

import re
import struct
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats.kernel_image import KernelImage as FileImage
from perfguest.formats.kernel_image import read_kernel_image
from perfguest.guest.image import KernelImage, build_id_note
from perfguest.guest.kallsyms import Symbols, read_symbols
from perfguest.guest.vmcoreinfo import VmcoreInfo, find_vmcoreinfo, parse_vmcoreinfo
from tests.guest.patched import close, memory_of

DIGITS = b"".join(b"%d\0" % digit for digit in range(10))


@cache
def file_image() -> FileImage:
    return read_kernel_image(str(sorted(Path("/boot").glob("vmlinuz-*"))[-1]))


@cache
def loaded() -> bytes:
    """Text and read-only data as they are in memory without KASLR."""
    sections = [section for section in file_image().sections if section.in_file and section.address >> 63 and section.name in {".text", ".rodata"}]
    base = min(section.address for section in sections)
    data = bytearray(max(section.address + section.size for section in sections) - base)
    for section in sections:
        data[section.address - base : section.address - base + section.size] = file_image().elf[section.offset : section.offset + section.size]
    return bytes(data)


def base() -> int:
    return min(section.address for section in file_image().sections if section.name == ".text")


def lstar() -> int:
    return file_image().address_of("entry_SYSCALL_64") or 0


@pytest.mark.parametrize("told", [True, False])
def test_symbols_of_a_real_image(told: bool) -> None:
    places = {}
    if told:
        at = loaded().find(DIGITS) + base()
        places = {"SYMBOL(kallsyms_token_table)": f"{at:x}"}
    symbols = read_symbols(KernelImage(base(), bytearray(loaded())), VmcoreInfo(places, None), lstar())
    assert symbols.addresses.tolist() == file_image().symbols.address.tolist()
    assert [name.decode() for name in symbols.names] == file_image().symbols.names
    assert symbols.address_of("entry_SYSCALL_64") == lstar()
    assert b"entry_SYSCALL_64" in symbols.at(lstar())
    assert symbols.names[symbols.before(lstar() + 1) or 0] in symbols.at(lstar())


def test_a_wrong_address_of_the_tables_is_overcome() -> None:
    for wrong in (base(), base() + 12345, base() - 1, (1 << 64) - 1):
        info = VmcoreInfo({"SYMBOL(kallsyms_token_table)": f"{wrong:x}"}, None)
        assert len(read_symbols(KernelImage(base(), bytearray(loaded())), info, lstar())) > 50_000


def test_symbols_without_the_syscall_entry_are_refused() -> None:
    with pytest.raises(FormatError, match="nothing at the syscall entry"):
        read_symbols(KernelImage(base(), bytearray(loaded())), None, lstar() + 1)


def test_first_of_a_name() -> None:
    symbols = Symbols(np.array([1, 5, 5, 9], np.uint64), b"tTtt", b"a\0b\0c\0a\0")
    assert [symbols.address_of(name) for name in "abcd"] == [1, 5, 5, None]
    assert (symbols.at(5), symbols.at(6)) == ([b"b", b"c"], [])
    assert [symbols.before(address) for address in (0, 1, 8, 9, 1 << 63)] == [None, 0, 2, 3, 3]


def test_names_of_endless_length_are_refused() -> None:
    """Tables that fit together, of 2,560 names that spell half a million letters each."""
    digits = {ord("0") + digit: b"%d" % digit for digit in range(10)}
    tokens = [digits.get(place, b"x" * 1000 if place in range(58, 118) else b"") + b"\0" for place in range(256)]
    index = struct.pack("<256H", *np.cumsum([0, *map(len, tokens)])[:256].tolist())
    name = bytes([500 & 0x7F | 0x80, 500 >> 7]) + bytes(range(58, 108)) * 10
    tables = [struct.pack("<I", 2560), name * 2560, struct.pack("<10I", *range(0, 2560 * len(name), 256 * len(name))), b"".join(tokens), index]
    image = b"".join(table + bytes(-len(table) % 8) for table in tables)
    begun = time.process_time()
    with pytest.raises(FormatError, match="endless length"):
        read_symbols(KernelImage(0xFFFF_FFFF_8100_0000, bytearray(image)), None, 0xFFFF_FFFF_8100_0000)
    assert time.process_time() - begun < 5


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.binary(min_size=1, max_size=64)), min_size=1, max_size=20), st.booleans())
def test_damaged_images_end(damage: list[tuple[int, bytes]], near: bool) -> None:
    data = bytearray(loaded())
    tokens = data.find(DIGITS)
    for place, what in damage:
        at = tokens - 4096 + place % 8192 if near else tokens - (2 << 20) + place % (4 << 20)
        data[at : at + len(what)] = what
    try:
        symbols = read_symbols(KernelImage(base(), data), None, lstar())
    except FormatError:
        return
    assert len(symbols.addresses) == len(symbols.types) == len(symbols.names)
    assert symbols.at(lstar())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=3000) | st.just(DIGITS) | st.just(b"a\0" * 256) | st.just(struct.pack("<256H", *range(0, 512, 2))), max_size=20))
def test_garbage_has_no_symbols(parts: list[bytes]) -> None:
    with pytest.raises(FormatError):
        read_symbols(KernelImage(base(), bytearray(b"".join(parts))), None, base())


LINES = st.lists(
    st.binary(max_size=200)
    | st.sampled_from([b"OSRELEASE=6.1.0", b"BUILD-ID=00112233445566778899", b"SYMBOL(a)=ff", b"SYMBOL(a)=zz", b"NUMBER(b)=-1", b"X=\xff"]),
    max_size=30,
)


@given(LINES)
def test_any_vmcoreinfo_is_lines_of_its_form(lines: list[bytes]) -> None:
    info = parse_vmcoreinfo(b"\n".join(lines))
    for key, value in info.lines.items():
        assert re.fullmatch(r"[\w().-]{1,130}", key, re.ASCII)
        assert re.fullmatch(r"[\w.+~:-]{1,128}", value, re.ASCII)
    assert 0 <= (info.symbol("a") or 0) < 1 << 64
    assert len(info.build_id) <= 32
    assert parse_vmcoreinfo(info.text()).lines == info.lines


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0xFFFF_8000_0000_0000, (1 << 64) - 1) | st.integers(0, 63).map(lambda page: 0xFFFF_8880_0000_0000 + page * 4096), max_size=600),
    st.booleans(),
)
def test_pointers_to_anywhere_end(pointers: list[int], la57: bool) -> None:
    memory = memory_of({0: b"OSRELEASE=1\n" + bytes(4084) + struct.pack("<512Q", *[0x1000 | 0x63] * 512) * 16})
    memory.la57 = la57
    try:
        image = KernelImage(0xFFFF_FFFF_8100_0000, bytearray(struct.pack(f"<{len(pointers)}Q", *pointers)))
        assert find_vmcoreinfo(memory, 0x1000, image) is None
    finally:
        close([memory])


@given(st.binary(max_size=200))
def test_any_notes(notes: bytes) -> None:
    assert build_id_note(notes) == b""
    whole = notes + struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes(range(20))
    assert build_id_note(whole) == bytes(range(20))
