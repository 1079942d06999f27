# SPDX-License-Identifier: Apache-2.0
"""The unwinder over a recording's samples, fed with what its snapshot holds and nothing else."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from perfguest.formats.guest_stream import FLAG_USER, GuestSamples, read_guest_stream
from perfguest.formats.recording import RecordingPaths
from perfguest.symbols.kernel_tables import read_tables
from perfguest.symbols.module_texts import ModuleTexts
from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples
from perfguest.unwind.kept_tables import KeptTables
from perfguest.unwind.orc import orc_layout
from tests.unwind.oracle import Walked
from tests.unwind.stacks import Evidence

PT_LOAD, PT_GNU_EH_FRAME = 1, 0x6474E550
_ENDS = {getattr(_native, name): name.removeprefix("END_") for name in dir(_native) if name.startswith("END_")}
_HOWS = {getattr(_native, name): name.removeprefix("HOW_") for name in dir(_native) if name.startswith("HOW_")}


@dataclass
class NativeWalked(Walked):
    """``how``: of each frame, kernel's and then user's, how it was found from the one before."""

    how: list[str] = field(default_factory=list)


def walk(evidence: Evidence, tables: bool = True, kept: KeptTables | None = None) -> list[NativeWalked]:
    """All samples of the recording; on demand as if no page of the programs' tables had been there, or with those that are kept."""
    engine = Engine()
    stream = read_guest_stream(RecordingPaths(evidence.directory).guest_stream)
    copies, records = stream.samples.copies, stream.samples
    stacks = engine.walk(
        Samples(
            memory=stream.memory,
            registers=records.registers(),
            mode=_modes(records),
            kernel=np.full(len(records), _add_kernel(engine, evidence), np.int32),
            space=_add_spaces(engine, evidence, tables, kept or KeptTables(None)),
            copy_start=copies.start,
            copy_address=copies.address,
            copy_offset=copies.offset,
            copy_size=copies.size,
        )
    )
    result = []
    for index in range(len(records)):
        part = slice(int(stacks.start[index]), int(stacks.start[index + 1]))
        frames = list(zip(stacks.address[part].tolist(), stacks.how[part].tolist(), strict=True))
        kernel = [(address, bool(how & _native.FRAME_RETURN)) for address, how in frames if not how & _native.FRAME_USER]
        user = [(address, bool(how & _native.FRAME_RETURN)) for address, how in frames if how & _native.FRAME_USER]
        ends = (_ENDS[int(stacks.kernel_end[index])], _ENDS[int(stacks.user_end[index])])
        result.append(NativeWalked(kernel, user, *ends, [_HOWS[how & 15] for _, how in frames]))
    return result


def without_tables(runs: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """A file's pages without those from its .eh_frame_hdr to the segment's end, where .eh_frame is."""
    if not runs or runs[0][0] or runs[0][1][:4] != b"\x7fELF":
        return runs
    head = runs[0][1]
    table, size, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
    headers = [struct.unpack_from("<IIQQQQ", head, table + number * size) for number in range(count)]
    start = next((header[2] for header in headers if header[0] == PT_GNU_EH_FRAME), None)
    if start is None:
        return runs
    end, code = next((header[2] + header[5], header[1] & 1) for header in headers if header[0] == PT_LOAD and header[2] <= start < header[2] + header[5])
    if code:  # the vDSO, which is in memory at all times
        return runs
    parts = [(max(address, low), min(address + len(data), high), address, data) for address, data in runs for low, high in ((0, start), (end, 1 << 62))]
    return [(first, data[first - address : last - address]) for first, last, address, data in parts if first < last]


def _modes(records: GuestSamples) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    user = (records.column("flags") & FLAG_USER) != 0
    return np.where(user, _native.MODE_USER, _native.MODE_KERNEL).astype(np.uint8)


def _add_kernel(engine: Engine, evidence: Evidence) -> int:
    kernel = evidence.kernel()
    tables = read_tables(evidence.vm_kernel, kernel.release, kernel.orc, [(run.address, np.frombuffer(run.data, np.uint8)) for run in kernel.text])
    for address, code in ModuleTexts(evidence.snapshot.module_texts).of(evidence.vm_kernel):
        tables.add_text(address, code)
    assert not tables.notes
    return engine.add_kernel(
        [(table.addresses, table.entries) for table in tables.orc],
        orc_layout(kernel.release, kernel.orc.entries),
        [(address, code.data) for address, code in tables.text],
    )


def _add_spaces(engine: Engine, evidence: Evidence, tables: bool, kept: KeptTables) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Of each sample the number of its process's address space, or -1."""
    spaces: dict[int, int] = {}
    binaries: dict[str, int] = {}
    result = np.full(len(evidence.samples), -1, np.int32)
    for index, sample in enumerate(evidence.samples):
        process = evidence.process_of(sample)
        if process is None:
            continue
        if id(process) not in spaces:
            code = [mapping for mapping in process.mappings if mapping.executable]
            for mapping in code:
                if mapping.binary and mapping.binary not in binaries:
                    stored = evidence.snapshot.binary(mapping.binary)
                    runs = [(run.address, run.data) for run in stored.pages] if stored else []
                    runs = runs if tables else without_tables(runs)
                    more = kept.complete(stored.build_id, stored.size, runs) if stored else None
                    binaries[mapping.binary] = engine.add_binary(stored.size, runs, kept=more) if stored else -1
            columns = ([m.start for m in code], [m.end for m in code], [m.offset for m in code], [binaries.get(m.binary, -1) for m in code])
            spaces[id(process)] = engine.add_space(*columns)
        result[index] = spaces[id(process)]
    return result
