# SPDX-License-Identifier: Apache-2.0
"""What is done for each record, sample, frame and stack, in C: arguments are buffers of columns (numpy arrays), results are bytes of columns.

All raise ValueError for columns that do not fit one another, and for numbers and offsets beyond what they point to. ``int64`` offsets and lengths are in bytes
unless said otherwise.
"""

from typing import Any

import numpy.typing as npt
from typing_extensions import Buffer as Bytes

Buffer = Bytes | npt.NDArray[Any]

def reuse_memory() -> None:
    """From now on memory that this process lets go is used again, not given back: the kernel would clear each page anew."""

def walk_records(data: Buffer, start: int, end: int, /) -> tuple[bytearray, bytearray, int, bool, bool]:
    """The chain of perf.data's records in ``data[start:end]``.

    Gives uint64 headers and int64 offsets; where the chain ends; whether the record there has a size that cannot be; whether there are compressed records.
    """

def gather(data: Buffer, offsets: Buffer, distances: Buffer, /) -> bytearray:
    """uint64[columns, rows]: the words at each of the ``offsets`` (int64) plus each of the ``distances`` (int64)."""

def distinct(count: int, columns: tuple[Buffer, ...], data: Buffer | None, at: Buffer | None, length: Buffer | None, /) -> tuple[bytearray, bytearray]:
    """Which of ``count`` rows are equal: in all columns (of 1, 2, 4 or 8 bytes a row), and in their ``length`` bytes of ``data`` from ``at`` on (int64).

    Gives int64, the first row of each kind, and int32, the number of each row's kind. Kinds are numbered as they first occur.
    """

def callchain_frames(
    data: Buffer, at: Buffer, length: Buffer, ip: Buffer, mode: Buffer, space: Buffer, /
) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]:
    """Frames of perf's callchains: see :func:`perfguest.stacks.from_callchains`. ``length`` (int64) is in words.

    Gives ``start`` (int64, one more than samples), ``mode`` (uint8), ``space`` (int64), ``address`` (uint64), ``returns`` (bool).
    """

def find_mappings(
    start: Buffer,
    end: Buffer,
    time: Buffer,
    name: Buffer,
    mapping_starts: Buffer,
    address: Buffer,
    address_time: Buffer,
    address_starts: Buffer,
    /,
) -> bytearray:
    """int64 for each address: the name of the last of its part's mappings that covers it and was there at its time; -1 for none.

    Part *i* has the mappings from ``mapping_starts[i]`` to ``mapping_starts[i + 1]``, in the order in which they were made, and the addresses from
    ``address_starts[i]`` to ``address_starts[i + 1]``, ascending. ``start``, ``end``, ``address``: uint64; all others int64.
    """

def latest(keys: Buffer, times: Buffer, query_keys: Buffer, query_times: Buffer, /) -> bytearray:
    """int64 for each query: the last of the entries with its key and a time that is not later, -1 for none. Entries are sorted by key and time. All int64."""

def read_kallsyms(text: Buffer, width: int, /) -> tuple[int, bytearray, bytearray, bytearray, bytearray, bytearray]:
    """How many lines the text has, and columns of those before one that is not ADDRESS TYPE NAME, with addresses of ``width`` digits.

    The columns: address (uint64), type (uint8), where the name begins and ends and where the line ends (int64). Behind the name stands a tab and the module.
    """

def fold(stack: Buffer, root: Buffer, total: Buffer, start: Buffer, items: Buffer, text: Buffer, ends: Buffer, /) -> bytes:
    """Folded stacks, a line for each different path in ascending order, with the sum of its ``total`` (int64).

    A path is the piece ``root`` (int32), if that is not negative, and then the pieces of the list ``stack`` (int32) from its last to its first.
    Lists: ``items[start[i]:start[i + 1]]`` (int32, int64). Pieces: ``text[ends[i - 1]:ends[i]]`` (int64), without ``;``.
    """

def hexadecimal(values: Buffer, /) -> tuple[bytes, bytearray]:
    """uint64 values as pieces of text (see :func:`fold`), ``0x12ab`` for one: the text, and the ends as int64."""

def pprof_locations(first_id: int, address: Buffer, mapping: Buffer, function: Buffer, /) -> bytes:
    """Messages ``location`` of a Profile of pprof, with ids from ``first_id`` on. ``address``: uint64. ``mapping``, ``function``: int64, ids; 0 for none."""

def pprof_samples(stack: Buffer, label: Buffer, values: Buffer, start: Buffer, frames: Buffer, text: Buffer, ends: Buffer, /) -> bytes:
    """Messages ``sample`` of a Profile of pprof.

    ``stack``, ``label``: int32, numbers of a list of ``frames`` (see :func:`fold`; their locations are one higher) and of a piece of ``text``, which are
    messages Sample with labels alone. ``values``: int64[samples, values].
    """

def script(
    samples: tuple[Buffer, Buffer, Buffer, Buffer, Buffer, Buffer],
    stacks: tuple[Buffer, Buffer],
    frames: tuple[Buffer, Buffer],
    threads: tuple[Buffer, Buffer],
    events: tuple[Buffer, Buffer],
    /,
) -> bytes:
    """Text as ``perf script`` prints it. ``samples``: thread, cpu (int32), time, period (int64), event, stack (int32). The others: lists and pieces as in
    :func:`fold`, of the lines of frames, of what stands before the CPU, and of what stands behind the period."""
