# SPDX-License-Identifier: Apache-2.0
"""The kernel's ELF out of what it is booted from.

A bzImage (Documentation/arch/x86/boot.rst in the kernel tree) is a real-mode setup part, then the protected-mode code that unpacks
the kernel, and in that code the payload: the ELF file ``vmlinux``, stripped of symbols, with relocations appended, packed by one of
seven programs. Boot protocol 2.08 (2008) and later say where the payload stands; in older images it is looked for by its magic.
Behind the packed stream stand four bytes that hold the unpacked size, except with gzip, whose own trailer says the same.
With an EFI stub it is a PE file, too; a signature stands behind it all. A boot image may itself be a part of one
(:mod:`perfguest.formats.portable_executable`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perfguest.errors import FormatError
from perfguest.formats.packing import MAGICS, BrokenStreamError, packer_at, unpack
from perfguest.formats.portable_executable import is_zboot, pe_sections, zboot_payload

#: No file with a kernel is larger.
MAX_FILE = 1 << 30

_SETUP_SECTORS = 0x1F1
_BOOT_FLAG = 0x1FE
_HEADER_MAGIC = 0x202
_PROTOCOL = 0x206
_PAYLOAD_OFFSET = 0x248

_LINUX_SECTION = ".linux"
_COPY_AGAIN = "Copy the image from the guest again."
_HINT = "Give the guest's own /boot/vmlinuz-RELEASE, an ELF vmlinux, or its System.map."


@dataclass(frozen=True)
class KernelPayload:
    """``elf``: the kernel's ELF file. ``container``: what it was in, in words. ``packer``: what packed it, as in :data:`~perfguest.formats.packing.MAGICS`,
    or empty."""

    elf: bytes
    container: str
    packer: str


def unpack_kernel(data: bytes, path: str) -> bytes:
    """The ELF file in ``data``, as :func:`find_payload` finds it."""
    return find_payload(data, path).elf


def find_payload(data: bytes, path: str) -> KernelPayload:
    """The kernel in ``data``: a bzImage, a unified kernel image, an EFI zboot image, a packed ELF, or the ELF itself, which is then returned as it is.

    ``path`` is for messages only. Raises :class:`FormatError` where no kernel is found in it or it cannot be unpacked to its end, and
    :class:`EnvironmentProblem` where the program that unpacks it is missing.
    """
    if data[:4] == b"\x7fELF":
        return KernelPayload(data, "ELF file", "")
    if _is_boot_image(data):
        return _unpack_boot_image(data, path, "boot image (bzImage)")
    if is_zboot(data):
        return _unpack_zboot(data, path)
    sections = pe_sections(data)
    if sections is not None:
        return _unpack_unified(data, sections, path)
    packer = packer_at(data)
    if packer is None:
        raise FormatError(f"{path}: neither a Linux boot image nor an ELF file", _HINT)
    return KernelPayload(_elf_out_of(data, 0, len(data), packer, path), "packed ELF file", packer)


def _is_boot_image(data: bytes) -> bool:
    return data[_BOOT_FLAG : _BOOT_FLAG + 2] == b"\x55\xaa" and data[_HEADER_MAGIC : _HEADER_MAGIC + 4] == b"HdrS"


def _unpack_unified(data: bytes, sections: dict[str, tuple[int, int]], path: str) -> KernelPayload:
    place = sections.get(_LINUX_SECTION)
    if place is None:
        raise FormatError(f"{path}: an EFI program without a Linux kernel in it: no section {_LINUX_SECTION}", _HINT)
    offset, size = place
    if offset + size > len(data):
        raise FormatError(f"{path}: truncated: its section {_LINUX_SECTION} ends at byte {offset + size}, the file at {len(data)}", _COPY_AGAIN)
    inner = data[offset : offset + size]
    name = f"{path} (its section {_LINUX_SECTION})"
    if inner[:4] == b"\x7fELF":
        return KernelPayload(inner, "unified kernel image, ELF file", "")
    if not _is_boot_image(inner):
        raise FormatError(f"{name}: no Linux boot image of x86", _HINT)
    return _unpack_boot_image(inner, name, "unified kernel image, boot image (bzImage)")


def _unpack_zboot(data: bytes, path: str) -> KernelPayload:
    place = zboot_payload(data)
    if place is None:
        raise FormatError(f"{path}: truncated: the packed kernel of this EFI zboot image lies outside it", _COPY_AGAIN)
    packer = packer_at(data, place[0])
    if packer is None:
        raise FormatError(f"{path}: an EFI zboot image whose kernel, at offset {place[0]}, is packed in an unknown way", _HINT)
    return KernelPayload(_elf_out_of(data, place[0], place[0] + place[1], packer, path), "EFI zboot image", packer)


def _unpack_boot_image(data: bytes, path: str, container: str) -> KernelPayload:
    # Zero means four, for images older than anything that runs today.
    setup_sectors = data[_SETUP_SECTORS] or 4
    protected_mode = (setup_sectors + 1) * 512
    if len(data) >= _PAYLOAD_OFFSET + 8:
        (protocol,) = struct.unpack_from("<H", data, _PROTOCOL)
        offset, length = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
        if protocol >= 0x208 and length:
            start = protected_mode + offset
            if start + length > len(data):
                raise FormatError(f"{path}: truncated: its payload ends at byte {start + length}, the file at {len(data)}", _COPY_AGAIN)
            if data[start : start + 4] == b"\x7fELF":
                return KernelPayload(data[start : start + length], container, "")
            packer = packer_at(data, start)
            if packer is None:
                raise FormatError(f"{path}: payload at offset {start} is packed in an unknown way ({data[start : start + 6].hex()})", _HINT)
            return KernelPayload(_elf_out_of(data, start, start + length, packer, path), container, packer)
    return _unpack_by_search(data, protected_mode, path, container)


def _unpack_by_search(data: bytes, begin: int, path: str, container: str) -> KernelPayload:
    last: FormatError | None = None
    for start, packer in _found_magics(data, begin):
        try:
            return KernelPayload(_elf_out_of(data, start, len(data), packer, path), container, packer)
        except FormatError as error:
            last = error
    raise last or FormatError(f"{path}: a boot image without a packed kernel in it", _HINT)


def _found_magics(data: bytes, begin: int) -> Iterator[tuple[int, str]]:
    # Rare magics first: three bytes of gzip or bzip2 occur in machine code by chance. 16 tries of each are enough for any real image.
    for packer in ("xz", "zstd", "lzo", "lz4", "gzip", "bzip2", "lzma"):
        start = begin
        for _ in range(16):
            start = data.find(MAGICS[packer], start)
            if start < 0:
                break
            yield start, packer
            start += 1


def _elf_out_of(data: bytes, start: int, end: int, packer: str, path: str) -> bytes:
    packed = memoryview(data)[start:end]
    try:
        unpacked = unpack(packed, packer, "this kernel image")
    except BrokenStreamError as problem:
        raise FormatError(f"{path}: {packer} stream at offset {start} is broken: {problem}", _COPY_AGAIN) from problem
    if unpacked[:4] != b"\x7fELF":
        raise FormatError(f"{path}: {packer} stream at offset {start} holds no ELF file", _HINT)
    return unpacked


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
