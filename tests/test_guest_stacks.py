# SPDX-License-Identifier: Apache-2.0
"""A kernel of three functions without frame pointers, and samples in it: which of a record's sources its stack is made of, and what is said of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from perfguest.formats.guest_format import parse_format
from perfguest.formats.guest_snapshot import GuestSnapshot, SnapshotWriter, read_snapshot
from perfguest.formats.guest_stream import CHAIN_KERNEL, CHAIN_USER, STACK_KERNEL, read_guest_stream
from perfguest.formats.recording import stream_head
from perfguest.guest_stacks import GuestStacks, KernelSpaces, Unwinding, guest_stacks
from perfguest.join import Joined
from perfguest.profile import Mode, Vm
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import recording_pb2
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.guest_tasks import guest_tasks
from tests.capture.made_stream import FORMAT, LONG_MODE, TASK, USER
from tests.snapshots import events, symbols_message

PID = 70
BASE = 0xFFFFFFFF81000000
LEAF, MIDDLE, START = BASE + 0x100, BASE + 0x200, BASE + 0x300
CODE64, REGS = 1 << 2, 1 << 8
STACK_TOP = 0xFFFFC90000014000
LAYOUTS = parse_format(FORMAT.decode())


def orc_entry(offset: int, kind: int) -> bytes:
    """Of Linux 6.4 and later: ``kind`` 1 ends the stack, 2 is a call; the frame ends ``offset`` bytes above SP."""
    return struct.pack("<hhH", offset, 0, 5 | kind << 8)


def code() -> bytes:
    """MIDDLE calls LEAF at its byte 0x10, START calls MIDDLE at its."""
    text = bytearray(b"\x90" * 0x400)
    for caller, callee in ((MIDDLE, LEAF), (START, MIDDLE)):
        site = caller + 0x10
        text[site - BASE : site - BASE + 5] = b"\xe8" + struct.pack("<i", callee - site - 5)
    return bytes(text)


def kernel(text: bytes) -> pb.Kernel:
    rows = [(LEAF, "T", "leaf"), (MIDDLE, "T", "middle"), (START, "T", "start"), (BASE + 0x400, "T", "_etext")]
    message = pb.Kernel(release="6.12.0", build_id=b"\xaa", symbols=symbols_message(rows))
    message.text.add(address=BASE, data=text)
    entries = [(LEAF, orc_entry(8, 2)), (MIDDLE, orc_entry(24, 2)), (START, orc_entry(8, 1)), (BASE + 0x380, orc_entry(8, 2)), (BASE + 0x400, orc_entry(0, 0))]
    message.orc.addresses = b"".join(struct.pack("<Q", address) for address, _ in entries)
    message.orc.entries = b"".join(entry for _, entry in entries)
    return message


@dataclass(frozen=True)
class Record:
    """``words``: the kernel stack from ``sp`` up, None for no copy."""

    ip: int
    flags: int = LONG_MODE | CODE64 | REGS
    sp: int = STACK_TOP - 0x40
    words: tuple[int, ...] | None = None
    kernel_chain: tuple[int, ...] = ()
    user_chain: tuple[int, ...] = ()

    def pack(self, time: int) -> bytes:
        sections = [(CHAIN_KERNEL, self.kernel_chain), (CHAIN_USER, self.user_chain), (STACK_KERNEL, self.words)]
        body = b"".join(struct.pack(f"<HHIQ{len(words)}Q", kind, 3, 8 * len(words), self.sp, *words) for kind, words in sections if words)
        record = np.zeros(1, LAYOUTS["sample"].dtype)
        regs = [0] * 16
        regs[4] = self.sp
        values = {"type": 1, "size": record.nbytes + len(body), "time": time, "vm_id": 1, "vm_pid": PID, "tid": PID + 1, "flags": self.flags, "ip": self.ip}
        for name, value in (values | {"nr_sections": sum(bool(words) for _, words in sections)}).items():
            record[name] = value
        record["regs"] = regs
        return record.tobytes() + body


WHOLE = Record(LEAF + 4, words=(MIDDLE + 0x15, 1, 2, START + 0x15, 0, 0, 0, 0))


def snapshot_of(directory: Path, message: pb.Kernel) -> GuestSnapshot | None:
    with SnapshotWriter(directory / "guests") as writer:
        writer.kernel("aa", message)
        for event in events(pb.VmKernel(vm_pid=PID, vm_id=1, time=1, kernel="aa", level="processes")):
            writer.event(event)
    return read_snapshot(directory / "guests")


def joined_of(directory: Path, snapshot: GuestSnapshot | None, records: list[Record]) -> Joined:
    path = directory / "guest.stream"
    path.write_bytes(stream_head(FORMAT) + b"".join(record.pack(1000 + number) for number, record in enumerate(records)))
    stream = read_guest_stream(path)
    number = len(records)
    vm = np.zeros(number, np.int32)
    nobody: Any = SimpleNamespace(samples=SimpleNamespace(time=np.arange(number, dtype=np.int64)))
    return Joined(
        meta=recording_pb2.Recording(),
        perf=nobody,
        stream=stream,
        vms=[Vm(PID, "vm")],
        mode=np.full(number, Mode.GUEST_KERNEL, np.uint8),
        record=np.arange(number),
        vm=vm,
        vcpu=vm,
        comm=vm,
        comms=["vcpu"],
        record_vm=vm,
        tasks=guest_tasks(stream.samples, vm, [PID], snapshot),
        snapshot=snapshot,
        notes=[],
    )


def stacks_of(directory: Path, records: list[Record], message: pb.Kernel | None, how: str = "auto") -> tuple[GuestStacks, list[list[tuple[str, bool]]]]:
    """The stacks, and each record's in words: names (or the address) and whether the frame is unproven."""
    snapshot = snapshot_of(directory, message) if message else None
    joined = joined_of(directory, snapshot, records)
    guest = GuestSymbols.build([GuestVm(PID, "vm")], GuestSymbolOptions(), snapshot)
    spaces = KernelSpaces.of(joined, guest)
    found = guest_stacks(joined, guest, spaces, Unwinding(how))
    frames = found.stacks.frames
    resolved = guest.resolve_kernel(spaces.vm[np.zeros(len(frames), int)], frames.address - frames.returns.astype(np.uint64), np.zeros(len(frames), np.int32))
    names = [resolved.names[name] if name >= 0 else hex(address) for name, address in zip(resolved.name.tolist(), frames.address.tolist(), strict=True)]
    rows = list(zip(names, frames.unproven.tolist(), strict=True))
    start = found.stacks.start.tolist()
    return found, [rows[start[number] : start[number + 1]] if number >= 0 else [] for number in found.of_record.tolist()]


def test_a_kernel_without_frame_pointers_is_unwound_by_its_tables(tmp_path: Path) -> None:
    found, stacks = stacks_of(tmp_path, [WHOLE] * 3, kernel(code()))
    assert stacks == [[("leaf", False), ("middle", False), ("start", False)]] * 3
    assert len(found.stacks) == 1
    assert any("3 of 3 (100.00%) whole" in note and "ORC 100.0%" in note for note in found.notes)


def test_a_copy_that_is_too_short_is_told_from_a_whole_one(tmp_path: Path) -> None:
    found, stacks = stacks_of(tmp_path, [WHOLE, replace(WHOLE, words=WHOLE.words[:2] if WHOLE.words else None)], kernel(code()))
    assert stacks[1] == [("leaf", False), ("middle", False)]
    assert any("1 of 2 (50.00%) whole, 1 cut by the copy's end" in note for note in found.notes)


def test_without_copies_the_modules_chain_counts_as_far_as_it_is_proven(tmp_path: Path) -> None:
    chain = (LEAF + 4, MIDDLE + 0x15, START + 0x20)
    found, stacks = stacks_of(tmp_path, [Record(LEAF + 4, kernel_chain=chain)], kernel(code()))
    assert stacks == [[("leaf", False), ("middle", False)]]
    assert any("1 kernel stacks by frame pointers alone" in note and "no copies" in note for note in found.notes)


def test_frame_pointers_alone_when_asked_for(tmp_path: Path) -> None:
    chain = (LEAF + 4, MIDDLE + 0x15)
    found, stacks = stacks_of(tmp_path, [replace(WHOLE, kernel_chain=chain)], kernel(code()), "fp")
    assert stacks == [[("leaf", False), ("middle", False)]]
    assert any("as asked for" in note for note in found.notes)


def test_without_tables_stacks_are_those_of_the_module_and_it_is_said(tmp_path: Path) -> None:
    chain = (LEAF + 4, MIDDLE + 0x15)
    found, stacks = stacks_of(tmp_path, [replace(WHOLE, kernel_chain=chain)], None)
    assert [[name for name, _ in stack] for stack in stacks] == [[hex(LEAF + 4), hex(MIDDLE + 0x15)]]
    assert any("no table of its kernel" in note for note in found.notes)


def test_a_scan_marks_all_but_the_leaf(tmp_path: Path) -> None:
    _, stacks = stacks_of(tmp_path, [WHOLE], kernel(code()), "scan")
    assert stacks == [[("leaf", False), ("middle", True), ("start", True)]]


def test_tables_of_another_kernel_are_not_used(tmp_path: Path) -> None:
    """Where no return address follows a call, what was read is not what ran; the module's chain is no better, and only the leaf stays."""
    records = [
        Record(LEAF + 4, words=(MIDDLE + 0x15 + number, 1, 2, START + 0x15 + number, 0, 0, 0, 0), kernel_chain=(LEAF + 4, MIDDLE + 0x15 + number))
        for number in range(20)
    ]
    found, stacks = stacks_of(tmp_path, records, kernel(b"\x90" * 0x400))
    assert all(len(stack) <= 2 for stack in stacks)
    assert found.of_record.min() >= 0


def test_user_chains_stay_beside_an_unwound_kernel(tmp_path: Path) -> None:
    """A process that was not read has no mappings: its part is as the module followed it. A kernel thread has none, whatever the record says."""
    short = replace(WHOLE, words=WHOLE.words[:2] if WHOLE.words else None, user_chain=(0x401000, 0x402000))
    _, stacks = stacks_of(tmp_path, [short, replace(WHOLE, user_chain=(0x401000,)), Record(0x401000, LONG_MODE | CODE64 | REGS | USER)], kernel(code()))
    assert [name for name, _ in stacks[0]] == ["leaf", "middle", hex(0x401000), hex(0x402000)]
    assert [name for name, _ in stacks[1]] == ["leaf", "middle", "start"]
    assert stacks[2] == []


@pytest.mark.parametrize("flags", [LONG_MODE | REGS, LONG_MODE | CODE64, TASK])
def test_what_is_no_64_bit_code_with_registers_is_not_unwound(tmp_path: Path, flags: int) -> None:
    _, stacks = stacks_of(tmp_path, [replace(WHOLE, flags=flags)], kernel(code()))
    assert stacks == [[]]
