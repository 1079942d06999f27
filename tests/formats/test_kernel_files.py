# SPDX-License-Identifier: Apache-2.0
"""Kernels in everything that they are booted from, and modules, against pyelftools; and whatever can be wrong with such files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats.image_kallsyms import ImageSymbols
from perfguest.formats.kernel_image import KernelImage, parse_kernel_image, read_kernel_image
from perfguest.formats.kernel_message import kernel_tables, orc_header
from perfguest.formats.kernel_module import ModuleFile, parse_module, read_module
from perfguest.formats.orc import ENTRY_SIZE, decode_orc, layout_of_header, sort_orc
from perfguest.proto import guest_pb2 as pb

#: The newest kernel in /boot, and those that PERFGUEST_GUEST_KERNELS lists, separated by colons.
NEWEST = sorted(map(str, Path("/boot").glob("vmlinuz-*")))[-1]
KERNELS = [NEWEST, *filter(None, os.environ.get("PERFGUEST_GUEST_KERNELS", "").split(":"))]
MODULE = next(Path("/lib/modules", Path(NEWEST).name.removeprefix("vmlinuz-")).rglob("overlay.ko*"))


def by_program(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    "zstd": by_program("zstd", "-1", "-c", "-q"),
    "lz4": by_program("lz4", "-l", "-c", "-q"),
    "lzo": by_program("lzop", "-1", "-c"),
}


@cache
def image_of(path: str) -> KernelImage:
    return read_kernel_image(path)


@cache
def plain_module() -> bytes:
    return read_module(str(MODULE)).elf


def repacked(packer: str) -> bytes:
    """The newest kernel's boot image with its payload packed anew: the setup and all that stands before the payload are its own."""
    data, elf = bytearray(Path(NEWEST).read_bytes()), image_of(NEWEST).elf
    offset = struct.unpack_from("<I", data, 0x248)[0] + (data[0x1F1] + 1) * 512
    payload = PACKERS[packer](elf) + (b"" if packer == "gzip" else struct.pack("<I", len(elf)))
    struct.pack_into("<I", data, 0x24C, len(payload))
    return bytes(data[:offset]) + payload


def same(one: KernelImage, other: KernelImage) -> bool:
    def rows(symbols: ImageSymbols) -> tuple[list[int], list[int], list[str]]:
        return symbols.address.tolist(), symbols.kind.tolist(), symbols.names

    return one.elf == other.elf and one.build_id == other.build_id and rows(one.symbols) == rows(other.symbols)


@pytest.mark.parametrize("packer", PACKERS)
def test_a_real_kernel_packed_by_each_program(packer: str) -> None:
    image = parse_kernel_image(repacked(packer), "image")
    assert (image.payload.packer, image.payload.container) == (packer, "boot image (bzImage)")
    assert same(image, image_of(NEWEST))


def test_a_signature_behind_the_image_does_not_matter() -> None:
    data = Path(NEWEST).read_bytes()
    assert same(parse_kernel_image(data + struct.pack("<IHH", 1200, 0x200, 2) + bytes(range(256)) * 5, "image"), image_of(NEWEST))


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A unified kernel image, as objcopy puts one together from a stub; here any PE file of x86 will do for that."""
    directory = tmp_path_factory.mktemp("uki")
    (directory / "stub.s").write_text(".text\nret\n")
    (directory / "uname").write_text("not this one")
    subprocess.run(["as", "-o", directory / "stub.o", directory / "stub.s"], check=True)
    stub = ["objcopy", "--target=efi-app-x86_64", "-j", ".text", directory / "stub.o", directory / "stub.efi"]
    subprocess.run(stub, check=True)
    put = []
    for name, path, place in ((".uname", directory / "uname", 0x30000), (".linux", Path(NEWEST), 0x2000000)):
        put += ["--add-section", f"{name}={path}", "--change-section-vma", f"{name}={place:#x}"]
    subprocess.run(["objcopy", *put, directory / "stub.efi", directory / "uki.efi"], check=True)
    return (directory / "uki.efi").read_bytes()


def test_a_unified_kernel_image(unified: bytes) -> None:
    image = parse_kernel_image(unified, "uki")
    assert image.payload.container == "unified kernel image, boot image (bzImage)"
    assert same(image, image_of(NEWEST))
    with pytest.raises(FormatError, match=r"no section \.linux"):
        parse_kernel_image(unified.replace(b".linux\0\0", b".lynux\0\0", 1), "uki")
    with pytest.raises(FormatError, match="truncated"):
        parse_kernel_image(unified[: len(unified) // 2], "uki")


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_a_zboot_image(packer: str) -> None:
    payload = PACKERS[packer](image_of(NEWEST).elf)
    head = struct.pack("<4s4sIIII32s", b"MZ\0\0", b"zimg", 512, len(payload), 0, 0, packer.encode()).ljust(512, b"\0")
    image = parse_kernel_image(head + payload + bytes(64), "zboot")
    assert (image.payload.container, image.payload.packer) == ("EFI zboot image", packer)
    assert same(image, image_of(NEWEST))
    with pytest.raises(FormatError, match="lies outside it"):
        parse_kernel_image((head + payload)[:-9], "zboot")
    with pytest.raises(FormatError, match="in an unknown way"):
        parse_kernel_image(head + b"\1" * len(payload), "zboot")


def way_of(release: str) -> str:
    """In which way kernels of that release have their symbols: see perfguest.formats.image_kallsyms."""
    found = re.match(r"(\d+)\.(\d+)", release)
    assert found
    version = int(found[1]), int(found[2])
    place = "behind the names" if version >= (6, 4) else "before the names"
    if version >= (7, 0):
        return f"kallsyms, place-relative, {place}"
    return f"kallsyms, base-relative{'' if version >= (6, 15) else ' with absolute per-CPU symbols'}, {place}"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: Path(path).name)
class TestKernels:
    def test_symbols_are_written_as_their_release_does(self, path: str) -> None:
        image = image_of(path)
        assert image.symbols.source == way_of(image.release)
        assert len(image.symbols) > 50_000
        assert image.address_of("entry_SYSCALL_64")

    def test_tables_are_the_files(self, path: str) -> None:
        image = image_of(path)
        message, elf = kernel_tables(image), ELFFile(io.BytesIO(image.elf))
        section = elf.get_section_by_name(".orc_unwind_ip")
        distances = np.frombuffer(section.data(), "<i4").astype(np.int64)
        expected = section["sh_addr"] + np.arange(len(distances), dtype=np.uint64) * np.uint64(4) + distances.astype(np.uint64)
        addresses, entries = decode_orc(message.orc, "image")
        assert addresses.tolist() == expected.tolist()
        assert entries == elf.get_section_by_name(".orc_unwind").data()
        text = elf.get_section_by_name(".text")
        assert (message.text[0].address, message.text[0].data) == (text["sh_addr"], text.data())
        assert message.release == image.release
        assert message.build_id.hex() == image.build_id
        names = message.symbols.names.decode().split("\0")[:-1]
        assert names == image.symbols.names

    def test_the_header_tells_the_layout(self, path: str) -> None:
        image = image_of(path)
        header, version = orc_header(image), tuple(int(part) for part in re.findall(r"\d+", image.release)[:2])
        expected = "of Linux 6.3 or earlier" if version < (6, 4) else "of Linux 6.4 to 7.0" if version < (7, 1) else "of Linux 7.1 and later"
        assert layout_of_header(header) == expected

    def test_modules_are_laid_out_within_their_size(self, path: str) -> None:
        release = image_of(path).release
        root = Path(path).parent.parent
        found = next(file for base in (root, Path("/")) for place in ("lib/modules", "usr/lib/modules") for file in (base / place / release).rglob("ext4.ko*"))
        module = read_module(str(found))
        assert (module.name, module.release) == ("ext4", release)
        assert module.orc_header == orc_header(image_of(path))
        assert len(module.orc_offsets) > 10_000
        assert int(module.orc_offsets[-1]) <= module.size


class TestModules:
    def test_every_packing(self) -> None:
        expected = parse_module(plain_module(), "overlay.ko")
        assert expected.packer == ""
        for packer, pack in PACKERS.items():
            module = parse_module(pack(plain_module()), "overlay.ko")
            assert (module.packer, module.elf, module.names) == (packer, expected.elf, expected.names)

    def test_symbols_are_nms(self, tmp_path: Path) -> None:
        module = parse_module(plain_module(), "overlay.ko")
        (tmp_path / "overlay.ko").write_bytes(module.elf)
        listed = subprocess.run(["nm", "-f", "sysv", tmp_path / "overlay.ko"], capture_output=True, text=True, check=True).stdout
        places = {section.name: section.offset for section in module.sections}
        theirs = set()
        for line in listed.splitlines():
            columns = [column.strip() for column in line.split("|")]
            if len(columns) == 7 and columns[6] in places and columns[1]:
                theirs.add((places[columns[6]] + int(columns[1], 16), columns[0]))
        assert len(theirs) > 100
        assert set(zip(module.offsets.tolist(), module.names, strict=True)) == theirs

    def test_what_is_no_module_is_refused(self) -> None:
        for data in (b"", b"text", Path("/bin/true").read_bytes(), gzip.compress(b"hello"), plain_module()[:3000], lzma.compress(plain_module())[:-900]):
            with pytest.raises(FormatError, match=r"file\.ko"):
                parse_module(data, "file.ko")
        for old, new in ((b".gnu.linkonce.this_module", b".gnu.linkonce.that_module"), (b".rela.orc_unwind_ip\0", b".rele.orc_unwind_ip\0")):
            with pytest.raises(FormatError, match=r"file\.ko"):
                parse_module(plain_module().replace(old, new), "file.ko")

    def test_a_place_that_is_none_is_refused(self) -> None:
        module = parse_module(plain_module(), "overlay.ko")
        for address in (0, 0x7FFFFFFFF000, (1 << 64) - 4096):
            with pytest.raises(FormatError, match="cannot be at"):
                module.message(address)


FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sound(module: ModuleFile) -> None:
    assert len(module.offsets) == len(module.kinds) == len(module.names)
    assert len(module.orc_entries) == ENTRY_SIZE * len(module.orc_offsets)
    # Nothing that is told lies outside the code.
    assert all(offset <= module.size for offset in [*module.offsets.tolist(), *module.orc_offsets.tolist()])
    assert (np.diff(module.orc_offsets.astype(np.int64)) >= 0).all()
    decode_orc(module.message(0xFFFFFFFFC0000000).orc, "module")


@FUZZ
@given(st.data())
def test_damaged_modules_are_read_or_refused(data: st.DataObject) -> None:
    """Bytes changed where they matter: in the header, the section headers, relocations and symbols."""
    content = bytearray(plain_module())
    (table,) = struct.unpack_from("<Q", content, 40)
    elf = ELFFile(io.BytesIO(plain_module()))
    places = [range(64), range(table, len(content))]
    for name in (".rela.orc_unwind_ip", ".symtab", ".modinfo", ".strtab", ".orc_unwind"):
        section = elf.get_section_by_name(name)
        places.append(range(section["sh_offset"], section["sh_offset"] + section["sh_size"]))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.sampled_from(data.draw(st.sampled_from(places))))] = data.draw(st.sampled_from([0, 1, 2, 4, 0x7F, 0x80, 0xFF]))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        sound(parse_module(bytes(content[:cut]), "garbage.ko"))
    except FormatError as error:
        assert "garbage.ko" in error.message


# No section: the ELF header.
DAMAGED = [".rodata", ".orc_unwind_ip", ".orc_unwind", ".notes", ""]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from([".rodata", ".orc_unwind_ip", ".orc_unwind", ".notes", ""]), st.integers(0, 1 << 62), st.integers(0, 255)), max_size=6)
)
def test_a_damaged_real_kernel_is_read_or_refused(changes: list[tuple[str, int, int]]) -> None:
    image = image_of(NEWEST)
    content = bytearray(image.elf)
    for name, at, byte in changes:
        section = image.section(name)
        content[section.offset + at % section.size if section else at % 64] = byte
    try:
        damaged = parse_kernel_image(bytes(content), "garbage")
        message = kernel_tables(damaged)
    except FormatError as error:
        assert "garbage" in error.message
        return
    addresses, entries = decode_orc(message.orc, "garbage")
    assert len(entries) == ENTRY_SIZE * len(addresses)
    assert message.symbols.names.count(b"\0") == len(damaged.symbols)


def test_a_table_that_ends_a_section_stands_before_the_one_that_begins_there() -> None:
    addresses, entries = sort_orc(np.array([0x30, 0x10, 0x10, 0x20], np.uint64), b"AAAAAA" + b"BBBBBB" + bytes(6) + b"CCCCCC")
    assert addresses.tolist() == [0x10, 0x10, 0x20, 0x30]
    assert entries == bytes(6) + b"BBBBBB" + b"CCCCCC" + b"AAAAAA"


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_orc_columns_that_do_not_fit_are_refused(addresses: bytes, entries: bytes) -> None:
    try:
        found, rows = decode_orc(pb.Orc(addresses=addresses, entries=entries), "x")
    except FormatError:
        return
    assert len(rows) == ENTRY_SIZE * len(found)
    assert not len(found) or (int(found[0]) >> 63 and (np.diff(found.astype(np.int64)) >= 0).all())
