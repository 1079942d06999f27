# SPDX-License-Identifier: Apache-2.0
"""Kernels in EFI programs (Microsoft PE/COFF, "COFF File Header", "Section Table").

A unified kernel image (the UAPI group's specification of that name) is a PE file whose section ``.linux`` holds a whole boot image. A zboot image
(drivers/firmware/efi/libstub/zboot-header.S) says in its first bytes where its packed kernel stands.
"""

from __future__ import annotations

import struct

_HEADER_AT = 0x3C
_SECTION = struct.Struct("<8sIIII")
_SECTION_SIZE = 40
_MAX_SECTIONS = 96


def is_zboot(data: bytes) -> bool:
    return data[:8] == b"MZ\0\0zimg"


def zboot_payload(data: bytes) -> tuple[int, int] | None:
    """(Offset, size) of the packed kernel of a zboot image, or None where it lies outside the file."""
    if len(data) < 24:
        return None
    offset, size = struct.unpack_from("<II", data, 8)
    return (offset, size) if size and offset + size <= len(data) else None


def pe_sections(data: bytes) -> dict[str, tuple[int, int]] | None:
    """(Offset, size in bytes) of each section in the file, by name; the first of several. None where ``data`` is no PE file; a section may end behind it."""
    if data[:2] != b"MZ" or len(data) < _HEADER_AT + 4:
        return None
    (header,) = struct.unpack_from("<I", data, _HEADER_AT)
    if header + 24 > len(data) or data[header : header + 4] != b"PE\0\0":
        return None
    (count,) = struct.unpack_from("<H", data, header + 6)
    (optional,) = struct.unpack_from("<H", data, header + 20)
    table = header + 24 + optional
    sections: dict[str, tuple[int, int]] = {}
    for at in range(table, table + _SECTION_SIZE * min(count, _MAX_SECTIONS), _SECTION_SIZE):
        if at + _SECTION_SIZE > len(data):
            return None
        name, virtual_size, _, raw_size, offset = _SECTION.unpack_from(data, at)
        # In the file a section is padded; in memory it has its own size.
        size = min(virtual_size, raw_size) if virtual_size else raw_size
        sections.setdefault(name.rstrip(b"\0").decode("latin-1"), (offset, size))
    return sections
