# SPDX-License-Identifier: Apache-2.0
"""A plain walk over a sample's stacks: ORC as arch/x86/kernel/unwind_orc.c follows it, ``.eh_frame`` as pyelftools decodes it. It believes what it reads, is
slow, and knows no way out where tables end: an oracle for the walk that is none of these."""

from __future__ import annotations

import io
import re
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from perfguest.proto import guest_pb2
from tests.unwind.stacks import Evidence, Sample

U64 = (1 << 64) - 1
_DEPTH = 512
_PT_REGS = ("R15", "R14", "R13", "R12", "RBP", "RBX", "R11", "R10", "R9", "R8", "RAX", "RCX", "RDX", "RSI", "RDI", "", "RIP", "CS", "", "RSP")
_DWARF = ("RAX", "RDX", "RCX", "RBX", "RSI", "RDI", "RBP", "RSP", *(f"R{number}" for number in range(8, 16)))
_RA = 16
_LAST = "R10", "R13", "RDI", "RDX", "RAX"
# arch/x86/include/asm/orc_types.h: ORC_REG_*, by their numbers; of v7.1 and later, and before.
_NEW_REGISTERS = ("UNDEFINED", "RAX", "RDX", "RSP", "RBP", "RDI", "R10", "R13", "PREV_SP", "SP_INDIRECT", "BP_INDIRECT")
_OLD_REGISTERS = ("UNDEFINED", "PREV_SP", "RDX", "RDI", "RBP", "RSP", "R10", "R13", "BP_INDIRECT", "SP_INDIRECT")

#: How a part of a walk ends, by the names of the unwinder's constants without END_.
COMPLETE = {"USER_ENTRY", "THREAD_START", "START"}


class Cut(Exception):
    """A word is not in the copies."""


class _Missing(Exception):
    """A page of a binary is not in the snapshot."""


@dataclass
class Walked:
    """Frames leaf first, (address, whether it is a return address). The ends are names of the unwinder's: "NONE" if there was nothing to walk."""

    kernel: list[tuple[int, bool]] = field(default_factory=list)
    user: list[tuple[int, bool]] = field(default_factory=list)
    kernel_end: str = "NONE"
    user_end: str = "NONE"


@dataclass(frozen=True)
class OrcLayout:
    """``merged``: the type says what "end" and an undefined register did before v6.4; ``offset_first``: the offset of SP_INDIRECT belongs to what is read, as
    before v5.12, not to what it holds; ``registers``: names by number."""

    merged: bool
    offset_first: bool
    registers: tuple[str, ...]

    @classmethod
    def of(cls, release: str) -> OrcLayout:
        version = tuple(map(int, re.findall(r"\d+", release)[:2]))
        return cls(version >= (6, 4), version < (5, 12), _NEW_REGISTERS if version >= (7, 1) else _OLD_REGISTERS)


class KernelWalk:
    """``evidence``'s kernel and modules."""

    def __init__(self, evidence: Evidence) -> None:
        kernel, vm = evidence.kernel(), evidence.vm_kernel
        self.layout = OrcLayout.of(kernel.release)
        self._kernel = _orc(kernel.orc, vm.kaslr_offset)
        # By where the modules' code is: their tables also cover code that ran once and is gone, wherever it was.
        self._modules = [(module.address, module.address + module.size, _orc(module.orc, 0)) for module in vm.modules if module.orc.addresses]

    def rule(self, address: int) -> tuple[int, int, str, str, str] | None:
        """(SP's offset, BP's offset, SP's register, BP's register, type by its name)."""
        addresses, entries = next((table for start, end, table in self._modules if start <= address < end), self._kernel)
        if not int(addresses[0]) <= address <= int(addresses[-1]):
            return None
        sp_offset, bp_offset, flags = entries[int(np.searchsorted(addresses, np.uint64(address), "right")) - 1].tolist()
        if self.layout.merged:
            kind = ("UNDEFINED", "END", "CALL", "REGS", "PARTIAL")[flags >> 8 & 7]
        elif flags & 15 == 0:
            kind = "END" if flags >> 10 & 7 else "UNDEFINED"
        else:
            kind = ("CALL", "REGS", "PARTIAL", "UNDEFINED")[flags >> 8 & 3]
        return sp_offset, bp_offset, self.layout.registers[flags & 15], self.layout.registers[flags >> 4 & 15], kind

    def walk(self, sample: Sample, word: Words, walked: Walked) -> dict[str, int] | None:
        """Adds the kernel's part; gives the user program's registers at the entry from it."""
        registers, exact = dict(sample.registers), True
        while len(walked.kernel) < _DEPTH:
            walked.kernel.append((registers["RIP"], not exact))
            rule = self.rule(registers["RIP"] - (not exact))
            if rule is None or rule[4] == "UNDEFINED":
                walked.kernel_end = "NO_RULE"
                return None
            if rule[4] == "END":
                walked.kernel_end = "THREAD_START"
                return None
            try:
                registers, exact = self._step(registers, rule, word)
            except (Cut, KeyError):
                walked.kernel_end = "CUT"
                return None
            if registers.get("CS", 0) & 3 == 3:
                walked.kernel_end = "USER_ENTRY"
                return registers
        walked.kernel_end = "DEPTH"
        return None

    def _step(self, before: dict[str, int], rule: tuple[int, int, str, str, str], word: Words) -> tuple[dict[str, int], bool]:
        sp_offset, bp_offset, sp_register, bp_register, kind = rule
        if sp_register == "SP_INDIRECT":
            first, last = (sp_offset, 0) if self.layout.offset_first else (0, sp_offset)
            cfa = word(before["RSP"] + first) + last
        elif sp_register == "BP_INDIRECT":
            cfa = word(before["RBP"] + sp_offset)
        else:
            # The kernel takes no offset with the registers that hold a stack pointer for a moment.
            cfa = before[sp_register] + (0 if sp_register in _LAST else sp_offset)
        cfa &= U64
        if kind == "CALL":
            after = {"RIP": word(cfa - 8), "RSP": cfa, "RBP": before["RBP"]}
        elif kind == "REGS":
            # On the way back to user mode registers are popped one by one: those below SP are in the CPU again.
            below = [name for index, name in enumerate(_PT_REGS) if name and cfa + 8 * index < before["RSP"]]
            after = {name: before[name] if name in below else word(cfa + 8 * index) for index, name in enumerate(_PT_REGS) if name}
        else:
            after = {**before, "RIP": word(cfa), "CS": word(cfa + 8), "RSP": word(cfa + 24)}
        if bp_register == "PREV_SP":
            after["RBP"] = word(cfa + bp_offset)
        elif bp_register == "RBP":
            after["RBP"] = word(before["RBP"] + bp_offset)
        after["CS"] = after.get("CS", 0) & 0xFFFF if kind != "CALL" else 0
        return after, kind != "CALL"


def _orc(orc: guest_pb2.Orc, moved: int) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.void]]]:
    entry = np.dtype([("sp", "<i2"), ("bp", "<i2"), ("flags", "<u2")])
    return np.frombuffer(orc.addresses, "<u8") + np.uint64(moved), np.frombuffer(orc.entries, entry)


class Words:
    """Words of a sample's copies."""

    def __init__(self, sample: Sample) -> None:
        self._parts = [(copy.address, copy.data) for copy in sample.copies]

    def __call__(self, address: int) -> int:
        for start, data in self._parts:
            if 0 <= address - start <= len(data) - 8:
                return int(struct.unpack_from("<Q", data, address - start)[0])
        raise Cut


class Binary:
    """An ELF file of which some pages are there: the CFI that its ``.eh_frame_hdr`` leads to."""

    def __init__(self, binary: guest_pb2.Binary) -> None:
        data = bytearray(binary.size + 4096)
        for run in binary.pages:
            data[run.address : run.address + len(run.data)] = run.data
        self.data = bytes(data)
        self.entry, table = struct.unpack_from("<QQ", data, 24)
        size, count = struct.unpack_from("<HH", data, 54)
        self.segments: list[tuple[int, int, int]] = []
        header = None
        for number in range(count):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
            if kind == 1:
                self.segments.append((offset, length, address))
            elif kind == 0x6474E550:
                header = offset, address
        self._table: list[tuple[int, int]] = []
        if header:
            self._read_table(*header)

    def _read_table(self, offset: int, address: int) -> None:
        """LSB Core, 10.6.2: Debian's binaries have 4-byte numbers, relative to the field for .eh_frame and to the table for the rest."""
        version, frame, count, table = struct.unpack_from("<4B", self.data, offset)
        assert (version, frame, count, table) == (1, 0x1B, 0x03, 0x3B)
        start = address + 4 + struct.unpack_from("<i", self.data, offset + 4)[0]
        (number,) = struct.unpack_from("<I", self.data, offset + 8)
        rows = np.frombuffer(self.data, "<i4", 2 * number, offset + 12).reshape(-1, 2).astype(np.int64) + address
        self._table = [(int(row[0]), int(row[1])) for row in rows]
        self._first = [row[0] for row in self._table]
        self._frame = start
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        at = self._offset(start)
        self._cfi = CallFrameInfo(io.BytesIO(self.data[at:]), len(self.data) - at, start, structs, for_eh_frame=True)
        self._rows: dict[int, tuple[FDE, list[Any]]] = {}

    def address(self, offset: int) -> int | None:
        return next((offset - start + address for start, size, address in self.segments if start <= offset < start + size), None)

    def _offset(self, address: int) -> int:
        return next(address - first + start for start, size, first in self.segments if first <= address < first + size)

    def rule(self, address: int) -> tuple[FDE, Any] | None:
        """The description of the function, and its row for the address."""
        at = bisect_right(self._first, address) - 1 if self._table else -1
        if at < 0:
            return None
        where = self._table[at][1] - self._frame
        if where < 0:
            raise _Missing
        if where not in self._rows:
            self._cfi.stream.seek(where)
            entry = self._cfi._parse_entry_at(where)
            if not isinstance(entry, FDE):
                raise _Missing
            self._rows[where] = entry, entry.get_decoded().table
        entry, rows = self._rows[where]
        if not 0 <= address - entry["initial_location"] < entry["address_range"]:
            return None
        return entry, next(row for row in reversed(rows) if row["pc"] <= address)


class UserWalk:
    """The programs of ``evidence``."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._binaries: dict[str, Binary | None] = {}

    def binary(self, key: str) -> Binary | None:
        if key not in self._binaries:
            stored = self._evidence.snapshot.binary(key)
            self._binaries[key] = Binary(stored) if stored is not None else None
        return self._binaries[key]

    def walk(self, process: guest_pb2.Process | None, registers: dict[str, int], word: Words, walked: Walked) -> None:
        exact = True
        mappings = list(process.mappings) if process else []
        starts = [mapping.start for mapping in mappings]
        while len(walked.user) < _DEPTH:
            rip = registers["RIP"]
            walked.user.append((rip, not exact))
            at = bisect_right(starts, rip) - 1
            if at < 0 or rip >= mappings[at].end:
                walked.user_end = "NO_MAPPING"
                return
            mapping = mappings[at]
            binary = self.binary(mapping.binary) if mapping.binary else None
            address = binary.address(rip - mapping.start + mapping.offset) if binary else None
            try:
                found = binary.rule(address - (not exact)) if binary and address is not None else None
            except _Missing:
                walked.user_end = "PAGES"
                return
            if found is None or binary is None:
                begins = binary and address is not None and b"/ld-linux" in mapping.path and 0 <= address - binary.entry < 64
                walked.user_end = "START" if begins else "NO_TABLE"
                return
            try:
                after = self.step(found[1], registers, word, not exact)
            except Cut:
                walked.user_end = "CUT"
                return
            except KeyError:
                # In a register that the kernel's entry has not saved yet.
                walked.user_end = "NO_RULE"
                return
            if after is None:
                walked.user_end = "START"
                return
            registers = after
            description = found[0].cie
            assert description is not None
            exact = b"S" in description.header["augmentation"]
        walked.user_end = "DEPTH"

    def step(self, row: Any, registers: dict[str, int], word: Words, returned: bool) -> dict[str, int] | None:
        """The caller's registers, None if there is no caller. ``returned``: whether RIP is a return address."""
        return _user_step(row, registers, word)


def _user_step(row: Any, registers: dict[str, int], word: Words) -> dict[str, int] | None:
    """The caller's registers, None if there is no caller."""
    rule = row["cfa"]
    cfa = _expression(bytes(rule.expr), registers, word, []) if rule.expr is not None else registers[_DWARF[rule.reg]] + rule.offset & U64
    if _RA not in row or row[_RA].type == "UNDEFINED":
        return None
    after = {**registers, "RSP": cfa}
    for number, rule in row.items():
        if number in {"pc", "cfa"} or number > _RA:
            continue
        name = "RIP" if number == _RA else _DWARF[number]
        if rule.type == "OFFSET":
            after[name] = word(cfa + rule.arg & U64)
        elif rule.type == "EXPRESSION":
            after[name] = word(_expression(bytes(rule.arg), registers, word, [cfa]))
        elif rule.type == "REGISTER":
            after[name] = registers[_DWARF[rule.arg]]
        elif rule.type == "VAL_EXPRESSION":
            after[name] = _expression(bytes(rule.arg), registers, word, [cfa])
        elif rule.type not in {"SAME_VALUE", "UNDEFINED"}:
            raise AssertionError(f"a rule of type {rule.type}")
    return after


def _expression(code: bytes, registers: dict[str, int], word: Words, stack: list[int]) -> int:
    """DWARF 5, 2.5.1: the operations that C programs' CFI has."""
    at = 0

    def leb(signed: bool) -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = code[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if not byte & 128:
                return value - (1 << shift) if signed and byte & 64 else value

    while at < len(code):
        operation, at = code[at], at + 1
        if 0x70 <= operation <= 0x80:
            name = "RIP" if operation == 0x80 else _DWARF[operation - 0x70]
            stack.append(registers[name] + leb(True) & U64)
        elif 0x30 <= operation <= 0x4F:
            stack.append(operation - 0x30)
        elif operation == 0x06:
            stack.append(word(stack.pop()))
        elif operation == 0x08:
            stack.append(code[at])
            at += 1
        elif operation == 0x23:
            stack.append(stack.pop() + leb(False) & U64)
        elif operation in {0x1A, 0x22, 0x24, 0x2A}:
            right, left = stack.pop(), stack.pop()
            stack.append({0x1A: left & right, 0x22: left + right & U64, 0x24: left << right & U64, 0x2A: int(left >= right)}[operation])
        else:
            raise AssertionError(f"operation {operation:#x} of a DWARF expression")
    return stack[-1]


class Oracle:
    """Both walks over a recording's samples."""

    def __init__(self, evidence: Evidence, user: UserWalk | None = None) -> None:
        self._evidence = evidence
        self._kernel, self._user = KernelWalk(evidence), user or UserWalk(evidence)

    def walk(self, sample: Sample) -> Walked:
        walked, word = Walked(), Words(sample)
        registers: dict[str, int] | None = sample.registers
        if not sample.user:
            registers = self._kernel.walk(sample, word, walked)
        if registers is not None:
            self._user.walk(self._evidence.process_of(sample), registers, word, walked)
        return walked
