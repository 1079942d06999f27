# SPDX-License-Identifier: Apache-2.0
"""A kernel's file in the form of what is read out of a guest's memory (``proto/guest.proto``), so that one reader serves both."""

from __future__ import annotations

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats.kernel_image import KernelImage, Section
from perfguest.formats.orc import ENTRY_SIZE, MAX_ENTRIES, orc_addresses, sort_orc
from perfguest.proto import guest_pb2 as pb

FORMAT_VERSION = 1


def kernel_tables(image: KernelImage) -> pb.Kernel:
    """Symbols, text, ORC table and build id of the image, at the addresses that it was linked at. A kernel without an ORC table has none in it.

    Raises :class:`FormatError` for an ORC table that makes no sense.
    """
    columns = image.symbols
    symbols = pb.Symbols(
        addresses=columns.address.astype("<u8").tobytes(),
        types=columns.kind.tobytes(),
        names=b"".join(name.encode("utf-8", "backslashreplace").replace(b"\0", b"?") + b"\0" for name in columns.names),
    )
    return pb.Kernel(
        format_version=FORMAT_VERSION,
        release=image.release,
        build_id=bytes.fromhex(image.build_id),
        symbols=symbols,
        text=[pb.Bytes(address=section.address, data=image.content(section).tobytes()) for section in image.text],
        orc=image_orc(image),
        has_btf=image.section(".BTF") is not None,
    )


def image_orc(image: KernelImage) -> pb.Orc | None:
    """The image's ORC table; None where it has none (a kernel with frame pointers). Raises :class:`FormatError` for one that makes no sense."""
    places, entries = _in_file(image, ".orc_unwind_ip"), _in_file(image, ".orc_unwind")
    if places is None or entries is None:
        return None
    count = places.size // 4
    if places.size != 4 * count or entries.size != ENTRY_SIZE * count or not 0 < count <= MAX_ENTRIES:
        raise FormatError(f"{image.path}: its ORC table of {places.size} bytes of places and {entries.size} of entries does not fit together")
    addresses, rows = orc_addresses(image.content(places).tobytes(), places.address), image.content(entries).tobytes()
    # Sorted when the kernel is built since Linux commit 57fa18994285 ("scripts/sorttable: Implement build-time ORC unwind table sorting"), v5.6.
    if np.any(addresses[1:] < addresses[:-1]):
        addresses, rows = sort_orc(addresses, rows)
    text = [(section.address, section.address + section.size) for section in image.sections if section.executable and section.address >> 63]
    low, high = min(start for start, _ in text), max(end for _, end in text)
    if not low <= int(addresses[0]) <= int(addresses[-1]) <= high:
        raise FormatError(f"{image.path}: its ORC table is not of its code: it reaches from {int(addresses[0]):#x} to {int(addresses[-1]):#x}")
    return pb.Orc(addresses=addresses.astype("<u8").tobytes(), entries=rows)


def orc_header(image: KernelImage) -> bytes:
    """``.orc_header``: 20 bytes that are the same for kernels whose ORC entries have the same layout; empty in kernels without it.

    Since Linux commit b9f174c811e3 ("x86/unwind/orc: Add ELF section with ORC version identifier"), v6.4.
    """
    section = _in_file(image, ".orc_header")
    return image.content(section).tobytes() if section is not None and section.size == 20 else b""


def _in_file(image: KernelImage, name: str) -> Section | None:
    section = image.section(name)
    return section if section is not None and section.in_file else None
