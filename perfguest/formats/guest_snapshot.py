# SPDX-License-Identifier: Apache-2.0
"""A recording's directory ``guests/``: what was read out of guests' memory (``proto/guest.proto`` says what lies where).

Its contents came out of guests, so nothing in it is believed: sizes, counts and keys are bounded before a message is unpacked, and what is damaged is left
out with a note. Events are appended, each behind its length; a file whose recorder was cut off in the middle of one is read up to there.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import DecodeError

from perfguest.errors import FormatError
from perfguest.proto import guest_pb2 as pb

#: The directory's name in a recording.
DIRECTORY = "guests"
#: The newest ``format_version`` of kernels and binaries that is understood, and the one that is written.
FORMAT_VERSION = 1

#: Bytes of one event, of all events, and of a kernel or binary when unpacked.
MAX_EVENT = 1 << 26
MAX_EVENTS = 1 << 30
MAX_UNPACKED = 1 << 29
# Fields of a message, and of all events together: a message of empty ones would take a hundred times its size in memory.
_MAX_FIELDS = 1 << 18
_MAX_ALL_FIELDS = 1 << 22
# So many of a process are looked at for what an earlier one does not have.
_LATER_READINGS = 8

_KEY = re.compile(r"[0-9a-f]{1,128}")
_LENGTH = struct.Struct("<I")
_GZIP = 31
_LEVEL = 4

_Stored = TypeVar("_Stored", pb.Kernel, pb.Binary)


def is_key(key: str) -> bool:
    """Whether this can be the name of a kernel or binary: lower-case hexadecimal digits, so that it never leads to another directory."""
    return _KEY.fullmatch(key) is not None


class SnapshotWriter:
    """Writes ``guests/``. A kernel or binary appears whole or not at all; an event that cannot be written whole is taken back.

    All methods raise OSError where the file system refuses (no space, for one) and leave everything readable that was written before; later calls may
    succeed. Raise ValueError for a key that is none (:func:`is_key`) and for messages beyond :data:`MAX_EVENT` or :data:`MAX_UNPACKED` bytes.
    """

    def __init__(self, directory: Path) -> None:
        """``directory``: ``guests/`` itself, which is made; an ``events`` that is there is continued."""
        self.directory = Path(directory)
        for part in ("kernels", "binaries"):
            (self.directory / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._events = os.open(self.directory / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def has_kernel(self, key: str) -> bool:
        return _stored_path(self.directory, "kernels", key).exists()

    def has_binary(self, key: str) -> bool:
        return _stored_path(self.directory, "binaries", key).exists()

    def kernel(self, key: str, kernel: pb.Kernel) -> int:
        """Stores it, in the place of an older one; gives the bytes that it takes."""
        return self._store("kernels", key, kernel)

    def binary(self, key: str, binary: pb.Binary) -> int:
        """Stores it, in the place of an older one (of which more pages may be there now); gives the bytes that it takes."""
        return self._store("binaries", key, binary)

    def event(self, event: pb.GuestEvent) -> int:
        """Appends it; gives the bytes that it takes."""
        data = event.SerializeToString()
        if len(data) > MAX_EVENT:
            raise ValueError(f"an event of {len(data)} bytes is longer than {MAX_EVENT}")
        end = os.fstat(self._events).st_size
        record = memoryview(_LENGTH.pack(len(data)) + data)
        done = 0
        try:
            while done < len(record):
                done += os.write(self._events, record[done:])
        except OSError:
            os.ftruncate(self._events, end)
            raise
        return len(record)

    def _store(self, part: str, key: str, message: pb.Kernel | pb.Binary) -> int:
        path = _stored_path(self.directory, part, key)
        message.format_version = FORMAT_VERSION
        data = message.SerializeToString()
        if len(data) > MAX_UNPACKED:
            raise ValueError(f"{path.name} of {len(data)} bytes is longer than {MAX_UNPACKED}")
        packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
        packed = packer.compress(data) + packer.flush()
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(packed)
            Path(temporary).replace(path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
        return len(packed)


def _stored_path(directory: Path, part: str, key: str) -> Path:
    if not is_key(key):
        raise ValueError(f"{key!r} is no key of {part}")
    return directory / part / f"{key}.pb.gz"


@dataclass
class GuestSnapshot:
    """What ``guests/`` holds. Events stand in the order in which they were read out of the guests; kernels and binaries are read when they are asked for.

    ``notes``: lines for people on what is damaged; grows as things are read.
    """

    directory: Path
    kernels: list[pb.VmKernel] = field(default_factory=list)
    processes: list[pb.Process] = field(default_factory=list)
    problems: list[pb.Problem] = field(default_factory=list)
    module_texts: list[pb.ModuleText] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def kernel(self, key: str) -> pb.Kernel | None:
        """The kernel of this key; None, with a note, where it is damaged, and without where there is none."""
        return self._stored("kernels", key, pb.Kernel())

    def binary(self, key: str) -> pb.Binary | None:
        """The binary of this key, as :meth:`kernel`."""
        return self._stored("binaries", key, pb.Binary())

    def _stored(self, part: str, key: str, message: _Stored) -> _Stored | None:
        if not is_key(key):
            return None
        path = _stored_path(self.directory, part, key)
        try:
            _parse(message, _unpacked(path), str(path))
            if not 0 < message.format_version <= FORMAT_VERSION:
                raise FormatError(f"{path} is of format {message.format_version}, this perfguest knows formats up to {FORMAT_VERSION}")
        except FileNotFoundError:
            return None
        except FormatError as error:
            self.notes.append(f"{error.message}; it is not used")
            return None
        return message


def later_readings(processes: Sequence[pb.Process]) -> dict[int, list[int]]:
    """For each reading (its index) the next few of the same process and page table: what it maps later is there."""
    groups: dict[tuple[int, int, int, int], list[int]] = {}
    for number, one in sorted(enumerate(processes), key=lambda item: item[1].time):
        groups.setdefault((one.vm_pid, one.tgid, one.start_time, one.cr3), []).append(number)
    return {number: group[place + 1 : place + 1 + _LATER_READINGS] for group in groups.values() for place, number in enumerate(group)}


def read_snapshot(directory: Path) -> GuestSnapshot | None:
    """Reads ``guests/`` (``directory`` itself, not the recording's). None if it is not there, as in recordings made without reading guests' memory.

    Raises :class:`FormatError` where it cannot be read; what is damaged in it is left out and noted.
    """
    path = directory / "events"
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}", "Check its permissions.") from error
    snapshot = GuestSnapshot(directory)
    with file:
        at, fields = 0, 0
        while at < min(size, MAX_EVENTS):
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else MAX_EVENT + 1
            data = file.read(length) if length <= MAX_EVENT else b""
            if len(data) != length:
                break
            try:
                fields += _append(snapshot, data, f"{path}, offset {at}", _MAX_ALL_FIELDS - fields)
            except FormatError as error:
                snapshot.notes.append(f"{error.message}; it was left out")
            at += _LENGTH.size + length
    if at < size:
        snapshot.notes.append(f"{path}: {size - at} bytes at offset {at} are not whole events and were left out")
    return snapshot


def _append(snapshot: GuestSnapshot, data: bytes, name: str, room: int) -> int:
    """Adds the event; gives its number of fields."""
    fields = 0
    for start, end in _fields(data, 0, len(data), name):
        fields += 1 + sum(1 for _ in _fields(data, start, end, name)) if end > start else 1
        if fields > min(room, _MAX_FIELDS):
            raise FormatError(f"{name}: an event of too many fields")
    event = pb.GuestEvent()
    _parse(event, data, name)
    which = event.WhichOneof("event")
    if which == "kernel":
        snapshot.kernels.append(event.kernel)
    elif which == "process":
        snapshot.processes.append(event.process)
    elif which == "problem":
        snapshot.problems.append(event.problem)
    elif which == "module_text":
        snapshot.module_texts.append(event.module_text)
    return fields


def _parse(message: pb.Kernel | pb.Binary | pb.GuestEvent, data: bytes, name: str) -> None:
    for number, _ in enumerate(_fields(data, 0, len(data), name)):
        if number > _MAX_FIELDS:
            raise FormatError(f"{name} is damaged: too many fields")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(f"{name} is damaged: {error}") from error


def _unpacked(path: Path) -> bytes:
    """Raises FileNotFoundError, or :class:`FormatError` for every other reason."""
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        packed = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    stream = zlib.decompressobj(wbits=_GZIP)
    try:
        data = stream.decompress(packed, MAX_UNPACKED)
    except zlib.error as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if not stream.eof:
        raise FormatError(f"{path} is cut off, or too long")
    return data


def _fields(data: bytes, at: int, end: int, name: str) -> Iterator[tuple[int, int]]:
    """Where the contents of each field of a message lie, (start, end), equal for numbers (protobuf's encoding, "Message Structure")."""
    while at < end:
        tag, at = _varint(data, at, end, name)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at, end, name)
            yield at, at
            continue
        if kind == 2:
            size, at = _varint(data, at, end, name)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise FormatError(f"{name} is damaged: a field of no known kind")
        if size > end - at:
            raise FormatError(f"{name} is damaged: a field leaves its message")
        yield (at, at + size) if kind == 2 else (at, at)
        at += size


def _varint(data: bytes, at: int, end: int, name: str) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise FormatError(f"{name} is damaged: a number does not end")
