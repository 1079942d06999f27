# SPDX-License-Identifier: Apache-2.0
"""The unwinder over a recording's samples, fed with what its snapshot holds and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from perfguest.formats.guest_stream import FLAG_USER, GuestSamples, read_guest_stream
from perfguest.formats.recording import RecordingPaths
from perfguest.symbols.kernel_tables import read_tables
from perfguest.symbols.module_texts import ModuleTexts
from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples
from perfguest.unwind.orc import orc_layout
from tests.unwind.oracle import Walked
from tests.unwind.stacks import Evidence

_ENDS = {getattr(_native, name): name.removeprefix("END_") for name in dir(_native) if name.startswith("END_")}
_HOWS = {getattr(_native, name): name.removeprefix("HOW_") for name in dir(_native) if name.startswith("HOW_")}


@dataclass
class NativeWalked(Walked):
    """``how``: of each frame, kernel's and then user's, how it was found from the one before."""

    how: list[str] = field(default_factory=list)


def walk(evidence: Evidence) -> list[NativeWalked]:
    """All samples of the recording."""
    engine = Engine()
    stream = read_guest_stream(RecordingPaths(evidence.directory).guest_stream)
    copies, records = stream.samples.copies, stream.samples
    stacks = engine.walk(
        Samples(
            memory=stream.memory,
            registers=records.registers(),
            mode=_modes(records),
            kernel=np.full(len(records), _add_kernel(engine, evidence), np.int32),
            space=_add_spaces(engine, evidence),
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


def _add_spaces(engine: Engine, evidence: Evidence) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
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
                    binaries[mapping.binary] = engine.add_binary(stored.size, runs) if stored else -1
            columns = ([m.start for m in code], [m.end for m in code], [m.offset for m in code], [binaries.get(m.binary, -1) for m in code])
            spaces[id(process)] = engine.add_space(*columns)
        result[index] = spaces[id(process)]
    return result
