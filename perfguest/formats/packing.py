# SPDX-License-Identifier: Apache-2.0
"""Streams of the seven programs that kernels and their modules are packed with, unpacked within bounds.

What stands behind a stream does not matter: a boot image has four bytes of size there, a file of a module may have a signature.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from perfguest.errors import EnvironmentProblem

#: No kernel is larger unpacked; what claims to be is refused.
MAX_UNPACKED = 1 << 30

#: Each program's first bytes.
MAGICS: dict[str, bytes] = {
    "gzip": b"\x1f\x8b\x08",
    "xz": b"\xfd7zXZ\x00",
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x02\x21\x4c\x18",
    "lzo": b"\x89LZO\x00\x0d\x0a\x1a\x0a",
    "bzip2": b"BZh",
    "lzma": b"\x5d\x00\x00",
}
_CHUNK = 1 << 20
# xz asks for this much memory at most; kernels are packed with up to 128 MiB.
_MAX_DICTIONARY = 1 << 30
_PROGRAMS: dict[str, tuple[list[str], str]] = {
    "zstd": (["zstd", "-d", "-c", "-q"], "the Debian package zstd, or the Python package zstandard"),
    "lz4": (["lz4", "-d", "-c", "-q"], "the Debian package lz4"),
    "lzo": (["lzop", "-d", "-c", "-q"], "the Debian package lzop"),
}


class BrokenStreamError(Exception):
    """The packed stream is not what its magic says; the text says why."""


def packer_at(data: bytes, offset: int = 0) -> str | None:
    """The program that packed what begins at ``offset``, a key of :data:`MAGICS`, or None."""
    return next((name for name, magic in MAGICS.items() if data.startswith(magic, offset)), None)


def unpack(packed: memoryview, packer: str, purpose: str) -> bytes:
    """What was packed by ``packer``, a key of :data:`MAGICS`. ``purpose`` stands in messages: what this is.

    Raises :class:`BrokenStreamError`, and :class:`EnvironmentProblem` where the program that unpacks it is missing.
    """
    try:
        return _UNPACKERS[packer](packed)
    except _MissingProgramError as error:
        command, package = _PROGRAMS[packer][0][0], _PROGRAMS[packer][1]
        raise EnvironmentProblem(f"{purpose} is packed with {packer}, and the program {command} is not installed", f"Install {package}.") from error


class _MissingProgramError(Exception):
    pass


def _unpack_sized(packed: memoryview, packer: str) -> bytes:
    # These programs take bytes behind their stream for a mistake; in a boot image four bytes of size stand there. A packed ELF has none.
    (size,) = struct.unpack("<I", packed[-4:]) if len(packed) > 8 else (0,)
    try:
        unpacked = _unpack_external(packed[:-4], packer)
        if len(unpacked) == size:
            return unpacked
        problem = f"{len(unpacked)} bytes came out of it, not {size}"
    except BrokenStreamError as error:
        problem = str(error)
    try:
        return _unpack_external(packed, packer)
    except BrokenStreamError as error:
        raise BrokenStreamError(problem) from error


def _unpack_external(packed: memoryview, packer: str) -> bytes:
    command, _ = _PROGRAMS[packer]
    if shutil.which(command[0]) is None:
        raise _MissingProgramError
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as words:
        source.write(packed)
        source.seek(0)
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=words) as process:
            try:
                unpacked = _joined(iter(partial(_read_chunk, process), b""))
            except BrokenStreamError:
                process.kill()
                raise
        words.seek(0)
        if process.returncode:
            raise BrokenStreamError(words.read(200).decode(errors="replace").strip() or f"{command[0]} ended with status {process.returncode}")
    return unpacked


def _read_chunk(process: subprocess.Popen[bytes]) -> bytes:
    return process.stdout.read(_CHUNK) if process.stdout else b""


def _unpack_zstd(packed: memoryview) -> bytes:
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        return _unpack_sized(packed, "zstd")
    machine = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    # A few bytes of zstd can stand for 128 KiB, so small steps keep what comes out of one within reason.
    steps = (machine.decompress(packed[at : at + 4096]) for at in range(0, len(packed), 4096) if not machine.eof)
    try:
        return _whole(_joined(steps), machine.eof)
    except zstandard.ZstdError as error:
        raise BrokenStreamError(str(error)) from error


def _joined(chunks: Iterator[bytes]) -> bytes:
    parts = []
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_UNPACKED:
            raise BrokenStreamError(f"more than {MAX_UNPACKED >> 20} MiB come out of it")
        parts.append(chunk)
    return b"".join(parts)


def _unpack_gzip(packed: memoryview) -> bytes:
    machine = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        unpacked = machine.decompress(packed, MAX_UNPACKED + 1)
    except zlib.error as error:
        raise BrokenStreamError(str(error)) from error
    return _whole(unpacked, machine.eof)


def _unpack_lzma(packed: memoryview) -> bytes:
    machine = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MAX_DICTIONARY)
    try:
        unpacked = machine.decompress(packed, MAX_UNPACKED + 1)
    except lzma.LZMAError as error:
        raise BrokenStreamError(str(error)) from error
    return _whole(unpacked, machine.eof)


def _unpack_bzip2(packed: memoryview) -> bytes:
    machine = bz2.BZ2Decompressor()
    try:
        unpacked = machine.decompress(packed, MAX_UNPACKED + 1)
    except OSError as error:
        raise BrokenStreamError(str(error)) from error
    return _whole(unpacked, machine.eof)


def _whole(unpacked: bytes, ended: bool) -> bytes:
    if len(unpacked) > MAX_UNPACKED:
        raise BrokenStreamError(f"more than {MAX_UNPACKED >> 20} MiB come out of it")
    if not ended:
        raise BrokenStreamError(f"it stops after {len(unpacked)} unpacked bytes")
    return unpacked


_UNPACKERS: dict[str, Callable[[memoryview], bytes]] = {
    "gzip": _unpack_gzip,
    "xz": _unpack_lzma,
    "lzma": _unpack_lzma,
    "bzip2": _unpack_bzip2,
    "zstd": _unpack_zstd,
    "lz4": partial(_unpack_sized, packer="lz4"),
    "lzo": partial(_unpack_sized, packer="lzo"),
}
