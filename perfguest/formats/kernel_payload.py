# SPDX-License-Identifier: Apache-2.0
"""The kernel's ELF out of a boot image.

A bzImage (Documentation/arch/x86/boot.rst in the kernel tree) is a real-mode setup part, then the protected-mode code that unpacks
the kernel, and in that code the payload: the ELF file ``vmlinux``, stripped of symbols, with relocations appended, packed by one of
seven programs. Boot protocol 2.08 (2008) and later say where the payload stands; in older images it is looked for by its magic.
Behind the packed stream stand four bytes that hold the unpacked size, except with gzip, whose own trailer says the same.
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
from pathlib import Path
from typing import Any

from perfguest.errors import EnvironmentProblem, FormatError

#: No kernel is larger unpacked; what claims to be is refused.
MAX_UNPACKED = 1 << 30
#: The same for the file itself.
MAX_FILE = 1 << 30

_CHUNK = 1 << 20
# xz asks for this much memory at most; kernels are packed with up to 128 MiB.
_MAX_DICTIONARY = 1 << 30
_SETUP_SECTORS = 0x1F1
_BOOT_FLAG = 0x1FE
_HEADER_MAGIC = 0x202
_PROTOCOL = 0x206
_PAYLOAD_OFFSET = 0x248

_MAGICS: dict[str, bytes] = {
    "gzip": b"\x1f\x8b\x08",
    "xz": b"\xfd7zXZ\x00",
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x02\x21\x4c\x18",
    "lzo": b"\x89LZO\x00\x0d\x0a\x1a\x0a",
    "bzip2": b"BZh",
    "lzma": b"\x5d\x00\x00",
}
_PROGRAMS: dict[str, tuple[list[str], str]] = {
    "zstd": (["zstd", "-d", "-c", "-q"], "the Debian package zstd, or the Python package zstandard"),
    "lz4": (["lz4", "-d", "-c", "-q"], "the Debian package lz4"),
    "lzo": (["lzop", "-d", "-c", "-q"], "the Debian package lzop"),
}
_HINT = "Give the guest's own /boot/vmlinuz-RELEASE, an ELF vmlinux, or its System.map."


class _Broken(Exception):
    """The packed stream is not what its magic says; the text says why."""


def unpack_kernel(data: bytes, path: str) -> bytes:
    """The ELF file in ``data``: a bzImage, a packed ELF, or the ELF itself, which is then returned as it is.

    ``path`` is for messages only. Raises :class:`FormatError` where no kernel is found in it or it cannot be unpacked to its end, and
    :class:`EnvironmentProblem` where the program that unpacks it is missing.
    """
    if data[:4] == b"\x7fELF":
        return data
    if data[_BOOT_FLAG : _BOOT_FLAG + 2] == b"\x55\xaa" and data[_HEADER_MAGIC : _HEADER_MAGIC + 4] == b"HdrS":
        return _unpack_boot_image(data, path)
    packer = _packer_at(data, 0)
    if packer is None:
        raise FormatError(f"{path}: neither a Linux boot image nor an ELF file", _HINT)
    return _elf_out_of(data, 0, len(data), packer, path)


def _unpack_boot_image(data: bytes, path: str) -> bytes:
    # Zero means four, for images older than anything that runs today.
    setup_sectors = data[_SETUP_SECTORS] or 4
    protected_mode = (setup_sectors + 1) * 512
    if len(data) >= _PAYLOAD_OFFSET + 8:
        (protocol,) = struct.unpack_from("<H", data, _PROTOCOL)
        offset, length = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
        if protocol >= 0x208 and length:
            start = protected_mode + offset
            if start + length > len(data):
                raise FormatError(
                    f"{path}: truncated: its payload ends at byte {start + length}, the file at {len(data)}", "Copy the image from the guest again."
                )
            if data[start : start + 4] == b"\x7fELF":
                return data[start : start + length]
            packer = _packer_at(data, start)
            if packer is None:
                raise FormatError(f"{path}: payload at offset {start} is packed in an unknown way ({data[start : start + 6].hex()})", _HINT)
            return _elf_out_of(data, start, start + length, packer, path)
    return _unpack_by_search(data, protected_mode, path)


def _unpack_by_search(data: bytes, begin: int, path: str) -> bytes:
    last: FormatError | None = None
    for start, packer in _found_magics(data, begin):
        try:
            return _elf_out_of(data, start, len(data), packer, path)
        except FormatError as error:
            last = error
    raise last or FormatError(f"{path}: a boot image without a packed kernel in it", _HINT)


def _found_magics(data: bytes, begin: int) -> Iterator[tuple[int, str]]:
    # Rare magics first: three bytes of gzip or bzip2 occur in machine code by chance. 16 tries of each are enough for any real image.
    for packer in ("xz", "zstd", "lzo", "lz4", "gzip", "bzip2", "lzma"):
        start = begin
        for _ in range(16):
            start = data.find(_MAGICS[packer], start)
            if start < 0:
                break
            yield start, packer
            start += 1


def _packer_at(data: bytes, offset: int) -> str | None:
    return next((name for name, magic in _MAGICS.items() if data.startswith(magic, offset)), None)


def _elf_out_of(data: bytes, start: int, end: int, packer: str, path: str) -> bytes:
    packed = memoryview(data)[start:end]
    try:
        unpacked = _UNPACKERS[packer](packed)
    except _Broken as problem:
        raise FormatError(f"{path}: {packer} stream at offset {start} is broken: {problem}", "Copy the image from the guest again.") from problem
    if unpacked[:4] != b"\x7fELF":
        raise FormatError(f"{path}: {packer} stream at offset {start} holds no ELF file", _HINT)
    return unpacked


def _unpack_sized(packed: memoryview, packer: str) -> bytes:
    # These programs take bytes behind their stream for a mistake; in a boot image four bytes of size stand there. A packed ELF has none.
    (size,) = struct.unpack("<I", packed[-4:]) if len(packed) > 8 else (0,)
    try:
        unpacked = _unpack_external(packed[:-4], packer)
        if len(unpacked) == size:
            return unpacked
        problem = f"{len(unpacked)} bytes came out of it, not {size}"
    except _Broken as error:
        problem = str(error)
    try:
        return _unpack_external(packed, packer)
    except _Broken as error:
        raise _Broken(problem) from error


def _unpack_external(packed: memoryview, packer: str) -> bytes:
    command, package = _PROGRAMS[packer]
    if shutil.which(command[0]) is None:
        raise EnvironmentProblem(f"this kernel image is packed with {packer}, and the program {command[0]} is not installed", f"Install {package}.")
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as words:
        source.write(packed)
        source.seek(0)
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=words) as process:
            try:
                unpacked = _joined(iter(partial(_read_chunk, process), b""))
            except _Broken:
                process.kill()
                raise
        words.seek(0)
        if process.returncode:
            raise _Broken(words.read(200).decode(errors="replace").strip() or f"{command[0]} ended with status {process.returncode}")
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
        raise _Broken(str(error)) from error


def _joined(chunks: Iterator[bytes]) -> bytes:
    parts = []
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_UNPACKED:
            raise _Broken(f"more than {MAX_UNPACKED >> 20} MiB come out of it")
        parts.append(chunk)
    return b"".join(parts)


def _unpack_gzip(packed: memoryview) -> bytes:
    machine = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        unpacked = machine.decompress(packed, MAX_UNPACKED + 1)
    except zlib.error as error:
        raise _Broken(str(error)) from error
    return _whole(unpacked, machine.eof)


def _unpack_lzma(packed: memoryview) -> bytes:
    machine = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MAX_DICTIONARY)
    try:
        unpacked = machine.decompress(packed, MAX_UNPACKED + 1)
    except lzma.LZMAError as error:
        raise _Broken(str(error)) from error
    return _whole(unpacked, machine.eof)


def _unpack_bzip2(packed: memoryview) -> bytes:
    machine = bz2.BZ2Decompressor()
    try:
        unpacked = machine.decompress(packed, MAX_UNPACKED + 1)
    except OSError as error:
        raise _Broken(str(error)) from error
    return _whole(unpacked, machine.eof)


def _whole(unpacked: bytes, ended: bool) -> bytes:
    if len(unpacked) > MAX_UNPACKED:
        raise _Broken(f"more than {MAX_UNPACKED >> 20} MiB come out of it")
    if not ended:
        raise _Broken(f"it stops after {len(unpacked)} unpacked bytes")
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


def read_file(path: str) -> bytes:
    """The bytes of the file, refused with :class:`FormatError` where it cannot be read or is larger than :data:`MAX_FILE`."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}", "Check the path and its permissions.") from error
    if len(data) > MAX_FILE:
        raise FormatError(f"{path}: larger than {MAX_FILE >> 20} MiB, no kernel image is", _HINT)
    return data
