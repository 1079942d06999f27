# SPDX-License-Identifier: Apache-2.0
"""Makes a large recording out of a small one: all guest samples and their records again and again, each time later."""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from perfguest import merge
from perfguest.convert import ConvertOptions, guest_vms
from perfguest.formats import guest_snapshot, perf_attr
from perfguest.formats.guest_format import parse_format
from perfguest.formats.guest_stream import read_guest_stream
from perfguest.formats.perf_data import read_perf_data
from perfguest.formats.perf_header import read_head
from perfguest.formats.recording import RecordingPaths, stream_head
from perfguest.guest_stacks import KernelSpaces, Unwinding, guest_stacks
from perfguest.join import Joined, join
from perfguest.symbols.guest import GuestSymbols

# Where struct perf_file_header has the data section's size and the features' bits; each feature has a section of two words behind the data.
_DATA_SIZE, _FEATURES = 48, 72
_BETWEEN = 1_000_000


@dataclass(frozen=True)
class Made:
    """Of the recording that was made. ``frames``, ``stack_bytes``: of the guest's stacks, on average."""

    samples: int
    frames: float
    stack_bytes: float


@dataclass(frozen=True)
class Chosen:
    """What of a recording is multiplied: rows of its samples and of their records, and the frames and bytes of stack of each."""

    joined: Joined
    samples: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]
    stack_bytes: npt.NDArray[np.int64]


def choose(recording: Path, least_frames: int, most_bytes: int) -> Chosen:
    """The guest samples whose stacks have so many frames and whose copies no more than so many bytes."""
    joined = join(recording, merge.DEFAULT_WINDOW)
    guest = GuestSymbols.build(guest_vms(joined), ConvertOptions().guest, joined.snapshot)
    found = guest_stacks(joined, guest, KernelSpaces.of(joined, guest), Unwinding())
    depth = np.append(np.diff(found.stacks.start), 0)[found.of_record]
    copies = joined.stream.samples.copies
    owner = np.repeat(np.arange(len(depth)), np.diff(copies.start))
    size = np.bincount(owner, weights=copies.size, minlength=len(depth)).astype(np.int64)
    paired = np.flatnonzero(joined.in_guest & (joined.record >= 0))
    record = joined.record[paired]
    good = (depth[record] >= least_frames) & (size[record] <= most_bytes)
    return Chosen(joined, paired[good], record[good], depth[record[good]], size[record[good]])


def multiply(recording: Path, chosen: Chosen, target: Path, copies: int) -> Made:
    """Writes the recording ``target`` with the chosen samples ``copies`` times."""
    paths, made = RecordingPaths(recording), RecordingPaths(target)
    target.mkdir(parents=True)
    for path in (paths.meta, paths.kallsyms):
        shutil.copy(path, target)
    if (recording / guest_snapshot.DIRECTORY).exists():
        shutil.copytree(recording / guest_snapshot.DIRECTORY, target / guest_snapshot.DIRECTORY)
    times = chosen.joined.perf.samples.time[chosen.samples]
    distance = int(times.max() - times.min()) + _BETWEEN
    _multiply_perf_data(paths.perf_data, made.perf_data, chosen, copies, distance)
    _multiply_stream(paths.guest_stream, made.guest_stream, chosen, copies, distance)
    return Made(copies * len(chosen.samples), float(chosen.frames.mean()), float(chosen.stack_bytes.mean()))


def _multiply_perf_data(source: Path, target: Path, chosen: Chosen, copies: int, distance: int) -> None:
    """All records but samples stay as they are; the chosen samples follow them."""
    perf, data = read_perf_data(source), bytearray(source.read_bytes())
    head = read_head(str(source), bytes(data), [])
    place = {event.sample_words()[perf_attr.TIME] for event in perf.events}
    if head.pipe or len(place) != 1:
        raise SystemExit(f"{source}: only files of perf whose events have the time at the same place can be multiplied")
    sizes = np.frombuffer(bytes(data), "<u2")[perf.samples.offset // 2 + 3].astype(np.int64)
    order = np.argsort(perf.samples.offset)
    others, at = bytearray(), head.start
    for offset, size in zip(perf.samples.offset[order].tolist(), sizes[order].tolist(), strict=True):
        others += data[at:offset]
        at = offset + size
    others += data[at : head.end]
    rows = chosen.samples
    once, starts = _gather(np.frombuffer(bytes(data), np.uint8), perf.samples.offset[rows], sizes[rows])
    with target.open("wb") as out:
        out.write(data[: head.start])
        out.write(others)
        _write_copies(out, once, starts + place.pop(), copies, distance)
        end = out.tell()
        features = bin(int.from_bytes(data[_FEATURES : _FEATURES + 32], "little")).count("1")
        moved = end - head.end
        table = np.frombuffer(bytes(data[head.end : head.end + 16 * features]), "<u8").reshape(-1, 2) + np.array([moved % (1 << 64), 0], np.uint64)
        out.write(table.tobytes() + data[head.end + 16 * features :])
        out.seek(_DATA_SIZE)
        out.write(struct.pack("<Q", end - head.start))


def _multiply_stream(source: Path, target: Path, chosen: Chosen, copies: int, distance: int) -> None:
    """The records of VMs stand first; those that count losses are left out."""
    stream = read_guest_stream(source)
    layouts = parse_format(stream.format_text)
    words = stream.memory[: len(stream.memory) & ~7].view("<u4")
    kept: dict[str, list[int]] = {"sample": [], "vm": []}
    kinds = {layouts[name].type: name for name in kept}
    head = stream_head(stream.format_text.encode())
    at = len(head)
    while at + 8 <= len(stream.memory) and words[at // 4 + 1] >= 8:
        if (name := kinds.get(int(words[at // 4]))) is not None:
            kept[name].append(at)
        at += int(words[at // 4 + 1])
    offsets = {name: np.array(places, np.int64) for name, places in kept.items()}
    offsets["sample"] = offsets["sample"][chosen.records]
    fields = layouts["sample"].dtype.fields
    assert fields is not None
    with target.open("wb") as out:
        out.write(head)
        for name, count in (("vm", 1), ("sample", copies)):
            sizes = words[offsets[name] // 4 + 1].astype(np.int64)
            once, starts = _gather(stream.memory, offsets[name], sizes)
            _write_copies(out, once, starts + int(fields["time"][1]), count, distance)


def _gather(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The records one after the other, and where each begins."""
    pieces = [data[offset : offset + size].tobytes() for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True)]
    return b"".join(pieces), np.cumsum(sizes) - sizes


def _write_copies(out: BinaryIO, once: bytes, times_at: npt.NDArray[np.int64], copies: int, distance: int) -> None:
    piece = np.frombuffer(once, np.uint8).copy()
    words = piece[: len(piece) & ~7].view("<u8")
    for number in range(copies):
        if number:
            words[times_at // 8] += np.uint64(distance)
        out.write(piece.data)
