# SPDX-License-Identifier: Apache-2.0
"""The recording: a directory with what perf wrote, what the module wrote, and ``recording.pb``, which says what they are (``proto/recording.proto``)."""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from perfguest.errors import EnvironmentProblem, FormatError
from perfguest.proto import recording_pb2 as pb

#: The newest ``Recording.format_version`` that is understood, and the one that is written.
FORMAT_VERSION = 1

STREAM_MAGIC = b"PERFGUEST-STREAM"
STREAM_VERSION = 1

_HEAD = struct.Struct("<16sII")


@dataclass(frozen=True)
class RecordingPaths:
    """Where things are in a recording's directory."""

    directory: Path

    @property
    def meta(self) -> Path:
        """``recording.pb``: written first, so that a directory with it is a recording, and again at the end."""
        return self.directory / "recording.pb"

    @property
    def perf_data(self) -> Path:
        return self.directory / "perf.data"

    @property
    def perf_log(self) -> Path:
        """What perf printed."""
        return self.directory / "perf.log"

    @property
    def guest_stream(self) -> Path:
        return self.directory / "guest.stream"

    @property
    def kallsyms(self) -> Path:
        """The host's ``/proc/kallsyms``, compressed."""
        return self.directory / "kallsyms.gz"


def stream_head(format_text: bytes) -> bytes:
    """How guest.stream begins: magic, version and length of the text (u32 each, little-endian), the module's ``format`` text, zeros up to a multiple of 8."""
    head = _HEAD.pack(STREAM_MAGIC, STREAM_VERSION, len(format_text)) + format_text
    return head + bytes(-len(head) % 8)


def read_recording(directory: Path) -> pb.Recording:
    """What ``recording.pb`` says. Raises :class:`FormatError` if it is not there, damaged, or of a newer format."""
    path = RecordingPaths(directory).meta
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{directory} is not a recording: {path} does not exist", "Give the directory that `perfguest record` wrote.") from None
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    recording = pb.Recording()
    try:
        recording.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(f"{path} is damaged: {error}", "Record again.") from error
    if recording.format_version > FORMAT_VERSION:
        raise FormatError(
            f"{path} is of format {recording.format_version}, this perfguest knows formats up to {FORMAT_VERSION}",
            f"Use perfguest {recording.perfguest_version!a} or later, which wrote it.",
        )
    if recording.format_version == 0:
        raise FormatError(f"{path} does not say its format: it is damaged or not a recording's", "Record again.")
    return recording


def write_recording(directory: Path, recording: pb.Recording) -> None:
    """Writes ``recording.pb``; a reader sees either the former or the whole new one. Raises OSError."""
    path = RecordingPaths(directory).meta
    temporary = path.with_suffix(".pb.new")
    try:
        with temporary.open("wb") as file:
            file.write(recording.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def is_recording(directory: Path) -> bool:
    return RecordingPaths(directory).meta.is_file()


def prepare_directory(directory: Path) -> RecordingPaths:
    """Makes an empty directory for a new recording.

    A recording that is there already moves to ``DIRECTORY.old``, in the place of an older one. Raises :class:`EnvironmentProblem` if something else is in
    the way, or the place cannot be written to.
    """
    old = directory.with_name(directory.name + ".old")
    try:
        if os.path.lexists(directory) and not _is_empty(directory):
            if not is_recording(directory):
                raise EnvironmentProblem(f"{directory} is there and is not a recording", "Choose another place with -o, or remove it.")
            if os.path.lexists(old):
                if not is_recording(old) or old.is_symlink():
                    raise EnvironmentProblem(f"{directory} cannot move to {old}, which is not a recording", "Choose another place with -o, or remove it.")
                shutil.rmtree(old)
            directory.rename(old)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(directory, os.W_OK):
            raise EnvironmentProblem(f"{directory} is not writable", "Choose another place with -o.")
    except OSError as error:
        raise EnvironmentProblem(f"cannot make the recording's directory {directory}: {error.strerror}", "Choose another place with -o.") from error
    return RecordingPaths(directory)


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())
