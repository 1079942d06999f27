# SPDX-License-Identifier: Apache-2.0
"""Walks the stacks that ``perf record --call-graph dwarf`` copied, as perf's own unwinder does: registers and stack of each sample, files and mappings."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.unwind import _native as native
from perfguest.unwind.engine import Engine, Samples, Stacks

U64 = npt.NDArray[np.uint64]

# enum perf_event_x86_regs (arch/x86/include/uapi/asm/perf_regs.h) in the order of Samples.registers.
_REGISTERS = (0, 2, 3, 1, 7, 6, 4, 5, *range(16, 24), 8)
# struct perf_event_attr: sample_regs_user; where a file says its attrs are.
_REGS_USER, _ATTRS = 80, 24
_PROT_EXEC = 4
# _start, in programs and in ld.so, is no longer.
_START_BYTES = 64


@dataclass(frozen=True)
class Mapping:
    start: int
    end: int
    offset: int
    path: str


class Programs:
    """What each process has mapped executable, since its last exec; and the files."""

    def __init__(self, perf: PerfData) -> None:
        self.files: dict[str, bytes] = {}
        self._spaces: dict[int, list[Mapping]] = {}
        maps, comms = perf.mmaps, perf.comms
        for pid in np.unique(maps.pid[maps.pid >= 0]).tolist():
            exec_times = comms.time[(comms.pid == pid) & comms.exec]
            mine = np.flatnonzero((maps.pid == pid) & ((maps.prot & _PROT_EXEC) != 0) & (maps.time >= exec_times.max(initial=0)))
            space: list[Mapping] = []
            for row in mine.tolist():
                start = int(maps.start[row])
                new = Mapping(start, start + int(maps.length[row]), int(maps.pgoff[row]), maps.filename[row])
                space = [*(piece for old in space for piece in _without(old, new)), new]
            self._spaces[pid] = sorted(space, key=lambda mapping: mapping.start)

    def space(self, pid: int) -> list[Mapping]:
        return self._spaces.get(pid, [])

    def content(self, path: str) -> bytes:
        """Of the file; empty for one that is none."""
        if path not in self.files:
            self.files[path] = own_vdso() if path == "[vdso]" else Path(path).read_bytes() if path.startswith("/") and Path(path).is_file() else b""
        return self.files[path]

    def is_start(self, pid: int, address: int) -> bool:
        """Whether it is in the code at the entry point of a program, or of ld.so: nothing called that."""
        return any(one.start <= address < one.end and self.is_start_of(one.path, address - one.start + one.offset) for one in self.space(pid))

    def is_start_of(self, path: str, offset: int) -> bool:
        """The same for an offset in a file."""
        content = self.content(path)
        return content[:4] == b"\x7fELF" and 0 <= _vaddr(content, offset) - struct.unpack_from("<Q", content, 24)[0] < _START_BYTES


def own_vdso() -> bytes:
    """That of the running kernel, which all of its programs have."""
    line = next(line for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines() if line.endswith("[vdso]"))
    start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        memory.seek(start)
        return memory.read(end - start)


def _without(old: Mapping, new: Mapping) -> Iterator[Mapping]:
    if old.start < min(old.end, new.start):
        yield Mapping(old.start, min(old.end, new.start), old.offset, old.path)
    first = max(old.start, new.end)
    if first < old.end:
        yield Mapping(first, old.end, old.offset + first - old.start, old.path)


def _vaddr(elf: bytes, offset: int) -> int:
    table, size, count = *struct.unpack_from("<Q", elf, 32), *struct.unpack_from("<HH", elf, 54)
    for place in range(count):
        kind, _, start, vaddr, _, length = struct.unpack_from("<IIQQQQ", elf, table + size * place)
        if kind == 1 and start <= offset < start + length:
            return vaddr + offset - start
    return -1


def samples(perf: PerfData, data: bytes, engine: Engine, programs: Programs) -> Samples:
    """Of all samples, in the order of ``perf.samples``."""
    mask = struct.unpack_from("<Q", data, struct.unpack_from("<Q", data, _ATTRS)[0] + _REGS_USER)[0]
    column = {register: place for place, register in enumerate(place for place in range(64) if mask >> place & 1)}
    chain_words = np.diff(perf.samples.chain_start)
    at = perf.samples.offset + 8 * (1 + len(perf.events[0].sample_words()) + 1 + chain_words)
    words = np.frombuffer(data, "<u8", len(data) // 8)
    # PERF_SAMPLE_REGS_USER: the ABI, 0 for none; PERF_SAMPLE_STACK_USER: size, bytes, and how many of them were copied.
    known = words[at // 8] == 2
    at = at[known]
    registers = np.zeros((len(known), 17), np.uint64)
    registers[known] = words[at[:, None] // 8 + 1 + np.array([column[register] for register in _REGISTERS])]
    size_at = at + 8 * (1 + len(column))
    size = words[size_at // 8].astype(np.int64)
    copied = words[(size_at + 8 + size) // 8].astype(np.int64)
    spaces = {pid: _add_space(engine, programs, pid) for pid in np.unique(perf.samples.pid).tolist()}
    return Samples(
        memory=data,
        registers=registers,
        mode=np.where(known, native.MODE_USER, native.MODE_SKIP).astype(np.uint8),
        kernel=np.full(len(known), -1, np.int32),
        space=np.array([spaces[pid] for pid in perf.samples.pid.tolist()], np.int32),
        copy_start=np.concatenate([[0], np.cumsum(known)]).astype(np.int64),
        copy_address=registers[known, 4],
        copy_offset=size_at + 8,
        copy_size=np.minimum(copied, size),
    )


def _add_space(engine: Engine, programs: Programs, pid: int) -> int:
    space = programs.space(pid)
    numbers = {path: engine.add_binary(len(content), [(0, content)]) for path in {one.path for one in space} if (content := programs.content(path))}
    columns = np.array([(one.start, one.end, one.offset) for one in space], np.uint64).reshape(-1, 3)
    return engine.add_space(columns[:, 0], columns[:, 1], columns[:, 2], np.array([numbers.get(one.path, -1) for one in space], np.int32))


def _whole(perf: PerfData, stacks: Stacks, programs: Programs) -> int:
    outermost = stacks.address[np.maximum(stacks.start[1:], 1) - 1].tolist()
    pids, depth = perf.samples.pid.tolist(), np.diff(stacks.start).tolist()
    return sum(frames > 0 and programs.is_start(pid, address) for pid, frames, address in zip(pids, depth, outermost, strict=True))


def main(path: str) -> None:
    """Prints what became of the recording's stacks to stderr as JSON, and all frames to stdout, as ``perf script -F ip`` does."""
    perf, data, engine = read_perf_data(path), Path(path).read_bytes(), Engine()
    programs = Programs(perf)
    inputs = samples(perf, data, engine, programs)
    before = time.process_time()
    stacks = engine.walk(inputs)
    walked = time.process_time() - before
    texts = [f"\t{address:16x}\n" for address in stacks.address.tolist()]
    bounds = stacks.start.tolist()
    sys.stdout.write("\n".join("".join(texts[first:last]) for first, last in pairwise(bounds)))
    sys.stdout.flush()
    used = time.process_time()
    ends = {str(end): int(count) for end, count in enumerate(np.bincount(stacks.user_end, minlength=16)) if count}
    result = {"samples": len(perf.samples), "frames": len(stacks.address), "walk": walked, "all": used}
    sys.stderr.write(json.dumps(result | {"ends": ends, "whole": _whole(perf, stacks, programs)}))


if __name__ == "__main__":
    main(sys.argv[1])
