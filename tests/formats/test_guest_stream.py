# SPDX-License-Identifier: Apache-2.0
"""On a stream that the module wrote for a guest in the lab, with stack copies. The oracle is the C header that the module was built from."""

from __future__ import annotations

import lzma
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cffi import FFI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats import guest_format, guest_stream
from perfguest.formats.guest_stream import read_guest_stream
from perfguest.formats.recording import STREAM_MAGIC

DATA = lzma.decompress((Path(__file__).parent / "data" / "lab.stream.xz").read_bytes())
ABI = Path(__file__).parents[2] / "kmod" / "perfguest_abi.h"
HEAD = -(-(24 + struct.unpack_from("<I", DATA, 20)[0]) // 8) * 8


@pytest.fixture(scope="module")
def ffi() -> FFI:
    source = subprocess.run(["gcc", "-E", "-P", "-I", ABI.parent, ABI], capture_output=True, text=True, check=True).stdout
    ours = source[source.index("enum pg_record_type") :]
    ffi = FFI()
    ffi.cdef("typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;" + ours)
    return ffi


def walk(ffi: FFI, data: bytes) -> Iterator[tuple[int, Any]]:
    """(offset, header) of each record, in the plain way."""
    at = HEAD
    while at < len(data):
        header = ffi.from_buffer("struct pg_record_header *", data[at : at + 24])
        yield at, header
        at += header.size


def sections(ffi: FFI, data: bytes, at: int, number: int) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, end, address, payload)"""
    at += ffi.sizeof("struct pg_sample")
    for _ in range(number):
        section = ffi.from_buffer("struct pg_section *", data[at : at + 16])
        yield section.kind, section.end, section.address, data[at + 16 : at + 16 + section.size]
        at += 16 + (section.size + 7) // 8 * 8


def read(tmp_path: Path, data: bytes) -> guest_stream.GuestStream:
    path = tmp_path / "guest.stream"
    path.write_bytes(data)
    return read_guest_stream(path)


def test_samples_are_those_of_the_header(ffi: FFI, tmp_path: Path) -> None:
    stream = read(tmp_path, DATA)
    samples = [at for at, header in walk(ffi, DATA) if header.type == ffi.typeof("enum pg_record_type").relements["PG_RECORD_SAMPLE"]]
    assert len(stream.samples) == len(samples) == 60 and not stream.notes and not stream.lost
    for row, at in enumerate(samples):
        sample = ffi.from_buffer("struct pg_sample *", DATA[at : at + ffi.sizeof("struct pg_sample")])
        mine = stream.samples.fields[row]
        for name in ("time", "cpu", "vm_id"):
            assert mine[name] == getattr(sample.header, name)
        for name in ("vm_pid", "tid", "vcpu_id", "nr_sections", "flags", "ip", "rflags", "cr0", "cr3", "cr4", "efer", "gs_base", "kernel_gs_base"):
            assert mine[name] == getattr(sample, name)
        assert mine["regs"].tolist() == list(sample.regs)
        chains: dict[int, tuple[int, list[int]]] = {}
        for kind, end, _, payload in sections(ffi, DATA, at, sample.nr_sections):
            chains[kind] = end, list(struct.unpack(f"<{len(payload) // 8}Q", payload[: len(payload) // 8 * 8]))
        for kind, read_chains in ((guest_stream.CHAIN_KERNEL, stream.samples.kernel), (guest_stream.CHAIN_USER, stream.samples.user)):
            end, addresses = chains.get(kind, (0, []))
            assert read_chains.address[read_chains.start[row] : read_chains.start[row + 1]].tolist() == addresses
            assert read_chains.end[row] == end


def test_copies_and_registers_are_those_of_the_header(ffi: FFI, tmp_path: Path) -> None:
    stream = read(tmp_path, DATA)
    copies, registers = stream.samples.copies, stream.samples.registers()
    assert registers.shape == (60, 17) and registers.dtype == np.uint64
    kinds = {guest_stream.STACK_KERNEL, guest_stream.STACK_TASK, guest_stream.STACK_USER}
    samples = [at for at, header in walk(ffi, DATA) if header.type == 1]
    for row, at in enumerate(samples):
        sample = ffi.from_buffer("struct pg_sample *", DATA[at : at + ffi.sizeof("struct pg_sample")])
        assert registers[row].tolist() == [*sample.regs, sample.ip]
        theirs = [section for section in sections(ffi, DATA, at, sample.nr_sections) if section[0] in kinds]
        mine = [
            (kind, end, address, stream.memory[offset : offset + size].tobytes())
            for kind, end, address, offset, size in zip(
                *(
                    column[copies.start[row] : copies.start[row + 1]].tolist()
                    for column in (copies.kind, copies.end, copies.address, copies.offset, copies.size)
                ),
                strict=True,
            )
        ]
        assert mine == theirs
    assert copies.start[-1] == len(copies) and kinds <= set(copies.kind.tolist()) and not (copies.offset % 8).any()


def columns(stream: guest_stream.GuestStream) -> list[bytes]:
    samples = stream.samples
    tables = (samples.kernel, samples.user, samples.copies, samples.user_registers)
    parts = [samples.fields, *(column for table in tables for column in vars(table).values())]
    return [part.tobytes() for part in parts]


#: What the module's format says of it, which the stream here is older than.
USER_REGS_FORMAT = b"name: user_regs\nID: 0\nsize: 152\n\tfield:u64 regs[16];\toffset:0;\tsize:128;\n\tfield:u64 ip;\toffset:128;\tsize:8;\n"
USER_REGS_FORMAT += b"\tfield:u64 flags;\toffset:136;\tsize:8;\n\tfield:u64 cs;\toffset:144;\tsize:8;\n\n"


def with_user_registers(ffi: FFI, users: list[tuple[int, int] | None]) -> bytes:
    """A stream of samples that each have a copy, then user registers (RIP, CS) or none, in a format that describes them."""
    text = DATA[24:HEAD].rstrip(b"\0").replace(b"name: lost\n", USER_REGS_FORMAT + b"name: lost\n")
    out = struct.pack("<16sII", STREAM_MAGIC, 1, len(text)) + text
    out += bytes(-len(out) % 8)
    for user in users:
        copy = bytes(ffi.buffer(ffi.new("struct pg_section *", {"kind": guest_stream.STACK_USER, "size": 13}))) + bytes(16)
        section = b""
        if user:
            regs = {"regs": list(range(100, 116)), "ip": user[0], "cs": user[1], "flags": 0x246}
            section = bytes(ffi.buffer(ffi.new("struct pg_section *", {"kind": guest_stream.USER_REGS, "size": 152})))
            section += bytes(ffi.buffer(ffi.new("struct pg_user_regs *", regs)))
        size = ffi.sizeof("struct pg_sample") + len(section) + len(copy)
        sample = ffi.new("struct pg_sample *", {"header": {"type": 1, "size": size}, "nr_sections": 1 + bool(user)})
        out += bytes(ffi.buffer(sample)) + copy + section
    return out


@pytest.mark.parametrize("window", [64, 1 << 26])
def test_user_registers_of_kernel_samples(ffi: FFI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(guest_stream, "_WINDOW", window)
    stream = read(tmp_path, with_user_registers(ffi, [None, (0x401000, 0x33), None, (0x8048000, 0x23), None]))
    users = stream.samples.user_registers
    assert users.row.tolist() == [1, 3] and users.code64.tolist() == [True, False]
    assert users.registers.tolist() == [[*range(100, 116), 0x401000], [*range(100, 116), 0x8048000]]
    assert ffi.sizeof("struct pg_user_regs") == 152 and stream.samples.copies.size.tolist() == [13] * 5


def test_a_format_without_user_registers(tmp_path: Path) -> None:
    users = read(tmp_path, DATA).samples.user_registers
    assert len(users.row) == 0 and users.registers.shape == (0, 17)


@pytest.mark.parametrize("window", [64, 4096, 50_000])
def test_a_file_of_many_windows_reads_as_one_of_one(ffi: FFI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    lost = bytes(ffi.buffer(ffi.new("struct pg_lost *", {"header": {"type": 3, "size": ffi.sizeof("struct pg_lost"), "cpu": 1}, "lost": [1, 2, 3, 4]})))
    data = DATA + lost + DATA[HEAD:] + lost + b"torn"
    whole = read(tmp_path, data)
    monkeypatch.setattr(guest_stream, "_WINDOW", window)
    parts = read(tmp_path, data)
    assert len(whole.samples) == 120 and columns(parts) == columns(whole)
    assert (parts.vms, parts.lost, parts.notes) == (whole.vms, whole.lost, whole.notes) and parts.lost == {1: [2, 4, 6, 8]}


def test_copies_take_no_memory(ffi: FFI, tmp_path: Path) -> None:
    """Of a stream that is nearly all copies, as the file systems keep it: with holes."""
    record, section, size, number = ffi.sizeof("struct pg_sample"), ffi.sizeof("struct pg_section"), 1 << 16, 8192
    sample = ffi.new("struct pg_sample *", {"header": {"type": 1, "size": record + section + size}, "nr_sections": 1})
    copy = ffi.new("struct pg_section *", {"kind": guest_stream.STACK_USER, "size": size})
    path = tmp_path / "guest.stream"
    with path.open("wb") as file:
        file.write(DATA[:HEAD])
        for _ in range(number):
            file.write(bytes(ffi.buffer(sample)) + bytes(ffi.buffer(copy)))
            file.seek(size, os.SEEK_CUR)
        file.truncate()
    program = """if True:
        import resource, sys
        from pathlib import Path
        from perfguest.formats.guest_stream import read_guest_stream
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stream = read_guest_stream(Path(sys.argv[1]))
        print(len(stream.samples.copies), int(stream.samples.copies.size.sum()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    copies, bytes_, grown_kb = map(int, done.stdout.split())
    assert (copies, bytes_) == (number, number * size)
    assert grown_kb << 10 < bytes_ // 4


def test_vm_records_have_memslots_and_the_syscall_entry(ffi: FFI, tmp_path: Path) -> None:
    (vm,) = read(tmp_path, DATA).vms
    assert vm.vm_id == 1 and vm.lstar >> 40 == 0xFFFFFF
    assert sum(slot.size for slot in vm.memslots) >= 512 << 20
    assert all(slot.hva % 4096 == slot.gpa % 4096 == 0 and slot.hva for slot in vm.memslots)


def test_constants_are_those_of_the_header(ffi: FFI) -> None:
    reasons = ffi.typeof("enum pg_lost_reason").relements
    assert [reasons[f"PG_LOST_{name.upper()}"] for name in guest_stream.LOST_REASONS] == list(range(reasons["PG_LOST_NR"]))
    kinds = ffi.typeof("enum pg_section_kind").relements
    assert {name: getattr(guest_stream, name.removeprefix("PG_SECTION_")) for name in kinds} == kinds
    ends = ffi.typeof("enum pg_end").relements
    ours = [name for name in vars(guest_stream) if name.startswith("END_")]
    assert len(ours) == 7 and all(getattr(guest_stream, name) == ends[f"PG_{name}"] for name in ours)
    flags = dict(re.findall(r"#define PG_SAMPLE_(\w+)\s+\(1ULL << (\d+)\)", ABI.read_text()))
    ours = [name for name in vars(guest_stream) if name.startswith("FLAG_")]
    assert len(ours) == 5 and all(getattr(guest_stream, name) == 1 << int(flags[name.removeprefix("FLAG_")]) for name in ours)
    assert f"#define PG_ABI_VERSION {guest_format.ABI_VERSION}\n" in ABI.read_text()


def test_losses_add_up(ffi: FFI, tmp_path: Path) -> None:
    def lost(cpu: int, *counts: int) -> bytes:
        record = ffi.new("struct pg_lost *", {"header": {"type": 3, "size": ffi.sizeof("struct pg_lost"), "cpu": cpu}, "lost": counts})
        return bytes(ffi.buffer(record))

    assert read(tmp_path, DATA + lost(1, 5, 0, 0, 1) + lost(0, 1, 2, 3, 4) + lost(1, 6, 0, 0, 0)).lost == {0: [1, 2, 3, 4], 1: [11, 0, 0, 1]}


def test_records_and_fields_of_a_later_module_are_stepped_over(tmp_path: Path) -> None:
    unknown = struct.pack("<IIQIIQ", 77, 32, 1, 0, 0, 0)
    assert len(read(tmp_path, DATA[:HEAD] + unknown + DATA[HEAD:]).samples) == 60
    text = DATA[24:HEAD].rstrip(b"\0").replace(b"\nname: lost\n", b"\nname: news\nID: 77\nsize: 32\n\tfield:u64 x;\toffset:24;\tsize:8;\n\nname: lost\n")
    head = struct.pack("<16sII", STREAM_MAGIC, 1, len(text)) + text
    assert len(read(tmp_path, head + bytes(-len(head) % 8) + unknown + DATA[HEAD:]).samples) == 60


@given(st.integers(HEAD, len(DATA) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_torn_tail_is_read_up_to_the_tear(ffi: FFI, tmp_path: Path, length: int) -> None:
    stream = read(tmp_path, DATA[:length])
    whole = [at for at, header in walk(ffi, DATA) if at + header.size <= length and header.type == 1]
    assert len(stream.samples) == len(whole)
    ends = {at for at, _ in walk(ffi, DATA)}
    assert bool(stream.notes) == (length not in ends)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_garbage_gives_our_errors_or_what_is_left(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(DATA[: data.draw(st.integers(0, 20_000))])
    for _ in range(data.draw(st.integers(0, 8))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        stream = read(tmp_path, bytes(damaged))
    except FormatError as error:
        assert error.hint
    else:
        assert len(stream.samples.kernel.start) == len(stream.samples) + 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a guest stream"),
        (b"PERFILE2" + bytes(100), "not a guest stream"),
        (DATA[:16] + struct.pack("<I", 2) + DATA[20:], "file format 2"),
        (DATA.replace(b"abi: 1\n", b"abi: 2\n"), "records of version 2"),
        (DATA[: HEAD - 100], "cut off in its head"),
        (re.sub(rb"field:u64 ip;", rb"field:u64 pi;", DATA), "lacks ip"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as error:
        read(tmp_path, data)
    assert error.value.hint
