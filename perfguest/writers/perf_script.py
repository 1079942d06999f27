# SPDX-License-Identifier: Apache-2.0
"""Text as ``perf script -F comm,pid,tid,cpu,time,period,event,ip,sym,symoff,dso`` prints it (``tools/perf/builtin-script.c``, ``util/evsel_fprintf.c``).

A sample is a header line, its frames from the leaf on, and an empty line. Readers take it apart with regular expressions of their own, so names are
escaped where one of FlameGraph's stackcollapse-perf.pl, speedscope, Firefox Profiler and Perfetto would read something else than the name.
Addresses of user code in a mapped file are offsets in that file, as perf prints them, wherever the profile says where the file was mapped.
"""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from perfguest import _native
from perfguest.profile import I32, I64, U64, Mapping, Mode, Profile
from perfguest.rows import distinct_rows
from perfguest.writers.columns import blocks, has_symbol, pieces
from perfguest.writers.text import escape, escape_matches

_BLOCK = 1 << 16

# The thread's name ends where a number stands alone; ``#`` begins a comment; what is left of it must not look like a separator of folded stacks.
_COMM_HAZARDS = re.compile(r"^[#\s]|\s(?=\d+/*\d*(?:\s|$))|\s$|;")
# ``(`` at the start is a process's name for stackcollapse-perf.pl, and ``->`` its mark between inlined functions.
_SYMBOL_HAZARDS = re.compile(r"^[\s(]|(?<=-)>|\s$")
# Names of VMs and threads are no C++ functions: what stands in parentheses is part of them, though readers cut it off.
_LABEL_HAZARDS = re.compile(r"^\s|[(;]|(?<=-)>|\s$")


def write(profile: Profile, out: BinaryIO) -> None:
    """Writes all samples to ``out``, in their order."""
    samples, stacks = profile.samples, profile.stacks
    lines = pieces(_frame_lines(profile))
    threads, thread = _thread_texts(profile)
    width = max(map(len, profile.events), default=0)
    events = pieces(_event_text(event).rjust(width).encode() + b": \n" for event in profile.events)
    for block in blocks(len(samples), _BLOCK):
        columns = (thread[block], samples.cpu[block], samples.time[block], samples.period[block], samples.event[block], samples.stack[block])
        out.write(_native.script(columns, (stacks.start, stacks.frames), lines, threads, events))


def _thread_texts(profile: Profile) -> tuple[tuple[bytes, I64], I32]:
    """The beginnings of header lines, and for each sample which of them is its."""
    samples = profile.samples
    first, kind = distinct_rows(samples.comm, samples.pid, samples.tid)
    rows = zip(samples.comm[first].tolist(), samples.pid[first].tolist(), samples.tid[first].tolist(), strict=True)
    return pieces(f"{_comm_text(profile.strings[comm], tid)} {pid:5d}/{tid:<5d} ".encode() for comm, pid, tid in rows), kind


def _comm_text(comm: str, tid: int) -> str:
    # perf's own word for a thread whose name it does not know.
    text = escape_matches(_COMM_HAZARDS, escape(comm)) or f":{tid}"
    # stackcollapse-perf.pl wants two characters before the pid.
    return text if len(text) > 1 else text + " "


def _event_text(event: str) -> str:
    return escape(event, " ") or "[unknown]"


def _frame_lines(profile: Profile) -> list[bytes]:
    frames = profile.frames
    symbols = [escape_matches(_SYMBOL_HAZARDS, escape(string)) for string in profile.strings]
    labels = [escape_matches(_LABEL_HAZARDS, escape(string)) for string in profile.strings]
    # The empty one at the end is that of index -1.
    mappings = [escape(mapping.name, " ") or "[unknown]" for mapping in profile.mappings] + ["[unknown]"]
    rows = zip(
        _printed_addresses(profile).tolist(),
        frames.mode.tolist(),
        has_symbol(profile).tolist(),
        frames.symbol.tolist(),
        frames.offset.tolist(),
        frames.mapping.tolist(),
        strict=True,
    )
    lines = []
    for address, mode, named, symbol, offset, mapping in rows:
        name = "[unknown]" if not named else labels[symbol] if mode == Mode.NONE else f"{symbols[symbol]}+{offset:#x}"
        lines.append(f"\t{address:16x} {name} ({mappings[mapping]})\n".encode())
    return lines


def _printed_addresses(profile: Profile) -> U64:
    frames = profile.frames
    # One more for frames of no mapping: an empty range that holds no address.
    start = np.array([mapping.start for mapping in profile.mappings] + [0], np.uint64)[frames.mapping]
    limit = np.array([mapping.limit if _is_file(mapping) else 0 for mapping in profile.mappings] + [0], np.uint64)[frames.mapping]
    file_offset = np.array([mapping.file_offset for mapping in profile.mappings] + [0], np.uint64)[frames.mapping]
    user = (frames.mode == Mode.HOST_USER) | (frames.mode == Mode.GUEST_USER)
    inside = user & (start <= frames.address) & (frames.address < limit)
    return np.where(inside, frames.address - start + file_offset, frames.address)


def _is_file(mapping: Mapping) -> bool:
    return mapping.name == "[vdso]" or (mapping.name.startswith("/") and not mapping.name.startswith("//"))
