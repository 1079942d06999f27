# SPDX-License-Identifier: Apache-2.0
"""Kernel images: Debian's own, one linked here and read by nm, and ones made of symbol tables in every layout that kernels have had."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import struct
import subprocess
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfguest.errors import EnvironmentProblem, FormatError
from perfguest.formats import packing
from perfguest.formats.image_kallsyms import decode_kallsyms
from perfguest.formats.kernel_image import KernelImage, parse_kernel_image, read_kernel_image

TEXT = 0xFFFFFFFF81000000
RODATA = 0xFFFFFFFF82000000
Symbol = tuple[int, str, str]


def installed_kernel() -> str:
    kernels = sorted(Path("/boot").glob("vmlinuz-*"))
    assert kernels, "these tests read the kernel image of Debian's package linux-image-amd64"
    return str(kernels[-1])


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return read_kernel_image(installed_kernel())


class TestDebianKernel:
    def test_is_read_within_two_seconds_of_cpu(self) -> None:
        start = time.process_time()
        read_kernel_image(installed_kernel())
        assert time.process_time() - start < 2

    def test_release_is_that_of_its_name(self, image: KernelImage) -> None:
        assert Path(installed_kernel()).name == f"vmlinuz-{image.release}"

    def test_agrees_with_readelf(self, image: KernelImage, tmp_path: Path) -> None:
        (tmp_path / "vmlinux").write_bytes(image.elf)
        text = subprocess.run(["readelf", "-SnW", tmp_path / "vmlinux"], capture_output=True, text=True, check=True).stdout
        assert re.search(r"Build ID: (\w+)", text)[1] == image.build_id  # type: ignore[index]
        table = {name: (int(address, 16), int(size, 16)) for name, address, size in re.findall(r"\] (\.\S+) +\w+ +(\w{16}) \w+ (\w+) .* W?M?AX? ", text)}
        assert len(table) > 20
        for section in image.sections:
            if section.name in table:
                assert (section.address, section.size) == table[section.name]
        assert {".text", ".rodata", ".init.text"} <= table.keys() & {section.name for section in image.sections}

    def test_symbols_frame_the_text(self, image: KernelImage) -> None:
        text = image.text[0]
        assert image.address_of("_stext") == text.address
        etext = image.address_of("_etext")
        assert etext is not None
        assert abs(etext - (text.address + text.size)) < 0x200000
        assert image.address_of("no such symbol") is None

    def test_banner_stands_where_its_symbol_says(self, image: KernelImage) -> None:
        place = image.address_of("linux_banner")
        read_only = image.section(".rodata")
        assert place is not None
        assert read_only is not None
        banner = image.content(read_only)[place - read_only.address :][:200].tobytes()
        assert banner.startswith(f"Linux version {image.release} (".encode())

    def test_truncated_image_is_refused(self) -> None:
        data = Path(installed_kernel()).read_bytes()
        for size in (0, 1, 500, 600, 10_000, len(data) // 2, len(data) - 10_000_000 // 2):
            with pytest.raises(FormatError, match="image"):
                parse_kernel_image(data[:size], "image")

    def test_damaged_image_is_refused(self) -> None:
        data = bytearray(Path(installed_kernel()).read_bytes())
        data[len(data) // 2] ^= 0xFF
        with pytest.raises(FormatError, match="broken"):
            parse_kernel_image(bytes(data), "image")


def test_vmlinux_with_symbols_agrees_with_nm(tmp_path: Path) -> None:
    (tmp_path / "kernel.s").write_text(
        """
        .text
        .globl _stext, entry_SYSCALL_64, weak_one
        .weak weak_one
        _stext: nop
        .type entry_SYSCALL_64, @function
        entry_SYSCALL_64: call local_one
        weak_one: ret
        .type local_one, @function
        local_one: ret
        .section .rodata
        .asciz "Linux version 5.99.1-made (somebody@somewhere) #1"
        .data
        .globl variable
        variable: .quad 0
        """
    )
    obj, elf = tmp_path / "kernel.o", tmp_path / "vmlinux"
    subprocess.run(["as", "-o", obj, tmp_path / "kernel.s"], check=True)
    subprocess.run(["ld", "-e", "_stext", "--build-id", f"-Ttext={TEXT:#x}", "-Tdata=0xffffffff83000000", "-o", elf, obj], check=True)
    listed = subprocess.run(["nm", elf], capture_output=True, text=True, check=True).stdout.splitlines()
    image = read_kernel_image(str(elf))
    mine = set(zip(image.symbols.address.tolist(), map(chr, image.symbols.kind.tolist()), image.symbols.names, strict=True))
    code = {(int(address, 16), kind, name) for address, kind, name in map(str.split, listed) if kind in "tTwW"}
    assert {row for row in mine if row[1] in "tTwW"} == code
    assert len(code) == 4
    assert image.release == "5.99.1-made"
    assert len(image.build_id) == 40


# The layouts of the kernel's own table, written anew here as scripts/kallsyms.c of each time does.


def compressed(symbols: list[Symbol]) -> tuple[bytes, list[int], bytes, bytes]:
    """names, markers, token_table, token_index."""
    spelled = [(kind + name).encode() for _, kind, name in symbols]
    used = set(b"".join(spelled)) | set(b"0123456789")
    free = [code for code in range(1, 256) if code not in used]
    pairs = Counter(name[at : at + 2] for name in spelled for at in range(len(name) - 1))
    tokens = {code: bytes([code]) for code in used} | dict(zip(free, (pair for pair, _ in pairs.most_common(len(free))), strict=False))
    code_of = {token: code for code, token in tokens.items()}
    names, markers = bytearray(), []
    for number, name in enumerate(spelled):
        if not number & 0xFF:
            markers.append(len(names))
        codes, at = bytearray(), 0
        while at < len(name):
            step = 2 if name[at : at + 2] in code_of and at + 2 <= len(name) else 1
            codes.append(code_of[name[at : at + step]])
            at += step
        names += bytes([len(codes)]) if len(codes) < 0x80 else bytes([len(codes) & 0x7F | 0x80, len(codes) >> 7])
        names += codes
    # A place without a token holds an empty one.
    table, index = bytearray(), []
    for code in range(256):
        index.append(len(table))
        table += tokens.get(code, b"") + b"\0"
    return bytes(names), markers, bytes(table), struct.pack("<256H", *index)


class Layout:
    """Where the addresses stand (``late`` since v6.4), how they are written, and how the tables are aligned."""

    def __init__(self, way: str, late: bool, align: int, seqs: bool) -> None:
        self.way, self.late, self.align, self.seqs = way, late, align, seqs

    def write(self, symbols: list[Symbol], before: bytes = b"") -> bytes:
        out = bytearray(before)
        names, markers, tokens, index = compressed(symbols)

        def put(table: bytes) -> None:
            out.extend(b"\0" * (-len(out) % self.align))
            out.extend(table)

        def put_addresses() -> None:
            put(b"")
            base = min(address for address, _, _ in symbols if address >> 63)
            at = len(out)
            if self.way == "absolute":
                put(b"".join(struct.pack("<Q", address) for address, _, _ in symbols))
            elif self.way == "place-relative":
                put(b"".join(struct.pack("<i", address - (RODATA + at + 4 * place)) for place, (address, _, _) in enumerate(symbols)))
            elif self.way == "base-relative":
                put(b"".join(struct.pack("<I", address - base) for address, _, _ in symbols))
            else:
                put(b"".join(struct.pack("<i", base - address - 1 if address >> 63 else address) for address, _, _ in symbols))
            if "base" in self.way or self.way == "absolute-percpu":
                put(struct.pack("<Q", base))

        if not self.late:
            put_addresses()
        put(struct.pack("<I", len(symbols)))
        put(names)
        put(struct.pack(f"<{len(markers)}I", *markers))
        seqs = bytes(range(1, 256)) * (3 * len(symbols) // 255 + 1)
        if self.seqs and not self.late:
            put(seqs[: 3 * len(symbols)])
        put(tokens)
        put(index)
        if self.late:
            put_addresses()
            put(seqs[: 3 * len(symbols)])
        return bytes(out) + b"\0" * 64


LAYOUTS = {
    "5.10": Layout("absolute-percpu", False, 8, False),
    "6.1": Layout("absolute-percpu", False, 8, True),
    "6.12": Layout("absolute-percpu", True, 8, True),
    "6.18": Layout("base-relative", True, 8, True),
    "7.0": Layout("place-relative", True, 4, True),
    "early base-relative": Layout("base-relative", False, 8, False),
    "early absolute": Layout("absolute", False, 8, False),
    "late absolute": Layout("absolute", True, 8, True),
}


def some_symbols(image: KernelImage, layout: Layout) -> list[Symbol]:
    columns = zip(image.symbols.address.tolist(), map(chr, image.symbols.kind.tolist()), image.symbols.names, strict=True)
    # Per-CPU symbols were numbers from 0 on with one encoding only.
    symbols = [symbol for symbol in columns if layout.way == "absolute-percpu" or symbol[0] >> 63]
    names = {name for _, _, name in symbols[::5]} | {"_text", "_stext"}
    return [symbol for symbol in symbols if symbol[2] in names]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(image: KernelImage, name: str) -> None:
    symbols = some_symbols(image, LAYOUTS[name])
    long_name = ("".join(chr(97 + place * place % 26) for place in range(300)), "no_one_else")
    symbols.append((symbols[-1][0], "t", "".join(long_name)))
    assert len(symbols) > 10_000
    found = decode_kallsyms(LAYOUTS[name].write(symbols, b"something before it\0"), RODATA, TEXT, "made")
    assert list(zip(found.address.tolist(), map(chr, found.kind.tolist()), found.names, strict=True)) == symbols


def test_tables_at_the_begin_of_a_piece(image: KernelImage) -> None:
    """A piece that begins in the middle of eight bytes: the number of symbols is its first word that is at a multiple of 8."""
    layout = LAYOUTS["7.0"]
    symbols = some_symbols(image, layout)
    found = decode_kallsyms(layout.write(symbols, b"\0" * 8)[4:], RODATA + 4, TEXT, "made")
    assert list(zip(found.address.tolist(), map(chr, found.kind.tolist()), found.names, strict=True)) == symbols


def test_a_table_that_does_not_put_text_in_its_place_is_refused(image: KernelImage) -> None:
    symbols = some_symbols(image, LAYOUTS["6.1"])
    with pytest.raises(FormatError, match="form that is not known"):
        decode_kallsyms(LAYOUTS["6.1"].write(symbols), RODATA, TEXT + 0x1000, "made")


def made_elf() -> bytes:
    """A kernel in few bytes: .text, .rodata with a banner and a symbol table, .notes."""
    symbols = [(TEXT, "T", "_text"), (TEXT, "T", "_stext"), (TEXT + 0x80, "T", "entry_SYSCALL_64")]
    symbols += [(TEXT + 0x100 + 16 * place, "tTdDwWbB"[place % 8], f"function_{place}_of_{place * place}") for place in range(2500)]
    banner = b"Linux version 6.99.0-made (x@y) #1 SMP\n\0"
    text = bytes(range(256)) * 160
    read_only = LAYOUTS["6.1"].write(symbols, banner)
    notes = struct.pack("<III4s20s", 4, 20, 3, b"GNU\0", bytes(range(20)))
    names = b"\0.text\0.rodata\0.notes\0.shstrtab\0"
    parts = [(b".text", 1, 6, TEXT, text), (b".rodata", 1, 2, RODATA, read_only), (b".notes", 7, 2, RODATA + 0x100000, notes), (b".shstrtab", 3, 0, 0, names)]
    body, headers = bytearray(64), bytearray(64)
    for name, kind, flags, address, content in parts:
        headers += struct.pack("<IIQQQQIIQQ", names.index(name), kind, flags, address, len(body), len(content), 0, 0, 8, 0)
        body += content + b"\0" * (-len(content) % 8)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, TEXT, 0, len(body), 0, 64, 0, 0, 64, 5, 4)
    body[:64] = head
    return bytes(body + headers)


ELF = made_elf()


def boot_image(payload: bytes, protocol: int = 0x20F) -> bytes:
    setup = bytearray(512 * 4)
    setup[0x1F1] = 3
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    if protocol >= 0x208:
        struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + b"\x90" * 100 + payload + b"\0" * 50


def packed_by(packer: str) -> bytes:
    size = struct.pack("<I", len(ELF))
    if packer in {"gzip", "bzip2", "xz", "lzma"}:
        alone = lzma.compress(ELF, lzma.FORMAT_ALONE) if packer == "lzma" else b""
        return {"gzip": gzip.compress(ELF), "bzip2": bz2.compress(ELF) + size, "xz": lzma.compress(ELF) + size, "lzma": alone + size}[packer]
    command = {"zstd": ["zstd", "-c", "-q"], "lz4": ["lz4", "-l", "-c", "-q"], "lzo": ["lzop", "-c"]}[packer]
    return subprocess.run(command, input=ELF, capture_output=True, check=True).stdout + size


# lzop is not on every machine that builds this; without it the message that says so is tested below.
PACKERS = ["gzip", "bzip2", "xz", "lzma", "zstd", "lz4"] + (["lzo"] if shutil.which("lzop") else [])


@pytest.mark.parametrize("protocol", [0x20F, 0x207])
@pytest.mark.parametrize("packer", PACKERS)
def test_every_packer(packer: str, protocol: int) -> None:
    if packer in {"zstd", "lz4", "lzo"} and protocol < 0x208:
        protocol = 0x208  # They came to kernels after the header's fields did.
    image = parse_kernel_image(boot_image(packed_by(packer), protocol), "made")
    assert image.elf == ELF
    assert image.release == "6.99.0-made"
    assert image.build_id == bytes(range(20)).hex()
    assert image.address_of("entry_SYSCALL_64") == TEXT + 0x80
    assert len(image.symbols) == 2503


@pytest.mark.parametrize("packer", PACKERS)
def test_every_packer_cut_short(packer: str) -> None:
    stream = packed_by(packer)
    with pytest.raises(FormatError, match=f"{packer} stream at offset 2148"):
        parse_kernel_image(boot_image(stream[: len(stream) // 2]), "made")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentProblem, match="lzop is not installed\nInstall the Debian package lzop"):
        parse_kernel_image(boot_image(b"\x89LZO\x00\x0d\x0a\x1a\x0a" + bytes(100)), "made")


@pytest.mark.parametrize("packer", ["gzip", "xz", "bzip2", "zstd"])
def test_a_stream_that_unpacks_without_end_is_refused(packer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_UNPACKED", 10_000)
    with pytest.raises(FormatError, match="more than"):
        parse_kernel_image(boot_image(packed_by(packer)), "made")


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"text", Path("/bin/true").read_bytes(), gzip.compress(b"hello"), ELF.replace(b".rodata", b".rabata"), bytes(4096)):
        with pytest.raises(FormatError, match="file"):
            parse_kernel_image(data, "file")
    with pytest.raises(FormatError, match="cannot be read"):
        read_kernel_image(str(tmp_path))
    with pytest.raises(FormatError, match="cannot be read"):
        read_kernel_image(str(tmp_path / "missing"))


def parsed_or_refused(data: bytes) -> None:
    try:
        image = parse_kernel_image(data, "garbage")
    except FormatError as error:
        assert error.hint
        return
    assert len(image.symbols.address) == len(image.symbols.kind) == len(image.symbols.names) <= len(data)
    assert image.text
    for section in image.sections:
        assert len(image.content(section)) in {0, section.size}


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(ELF) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6), st.integers(0, len(ELF)))
def test_damaged_elf_is_read_or_refused(changes: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(ELF)
    for at, change in changes:
        data[at : at + len(change)] = change
    parsed_or_refused(bytes(data))
    parsed_or_refused(bytes(data[:cut]))


HEADERS = [*range(64), *range(len(ELF) - 5 * 64, len(ELF))]


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from([0, 1, 2, 8, 0x40, 0x7F, 0x80, 0xFE, 0xFF])), min_size=1, max_size=4))
def test_damaged_headers_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(ELF)
    for at, byte in changes:
        data[at] = byte
    parsed_or_refused(bytes(data))


@FUZZ
@given(
    st.sampled_from([b"", b"\x7fELF", b"BZh9", b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x5d\x00\x00", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"]),
    st.binary(max_size=3000),
)
def test_garbage_is_refused(magic: bytes, data: bytes) -> None:
    for whole in (magic + data, boot_image(magic + data), boot_image(magic + data, 0x205)):
        with pytest.raises(FormatError):
            parse_kernel_image(whole, "garbage")


@cache
def small_table(name: str) -> bytes:
    return LAYOUTS[name].write([(TEXT, "T", "_text")] + [(TEXT + 16 * place, "t", f"f{place}") for place in range(2100)])


@FUZZ
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(sorted(LAYOUTS)))
def test_tables_of_garbage_are_refused(seed: int, count: int, name: str) -> None:
    """A good table with many bytes changed: decoded as far as the changes allow, or refused."""
    random = np.random.default_rng(seed)
    data = np.frombuffer(small_table(name), np.uint8).copy()
    data[random.integers(0, len(data), count)] = random.integers(0, 256, count)
    try:
        found = decode_kallsyms(data.tobytes(), RODATA, TEXT, "garbage")
    except FormatError:
        return
    assert len(found.address) == len(found.kind) == len(found.names)
    assert np.all(np.diff(found.address.astype(np.float64)) >= 0)
