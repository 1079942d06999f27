# SPDX-License-Identifier: Apache-2.0
"""What perfguest finds in a kernel's image or a module's file, for people and programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats.btf import BtfTable
from perfguest.formats.kernel_image import KernelImage, parse_kernel_image
from perfguest.formats.kernel_message import image_orc, orc_header
from perfguest.formats.kernel_module import ModuleFile, is_module, parse_module
from perfguest.formats.orc import layout_of_header
from perfguest.proto import guest_pb2 as pb

_SYSCALL_ENTRY = "entry_SYSCALL_64"


def report(data: bytes, path: str) -> dict[str, Any]:
    """Of the file's bytes: a dict of numbers, strings, lists and dicts, None for what the file has not; ``problems`` are sentences.

    Raises :class:`FormatError` for what is neither a kernel nor a module of x86-64, and EnvironmentProblem where a program is missing that unpacks it.
    """
    return _module(parse_module(data, path)) if is_module(data) else _kernel(parse_kernel_image(data, path))


def _kernel(image: KernelImage) -> dict[str, Any]:
    problems: list[str] = []
    kinds = image.symbols.kind | np.uint8(32)
    text = image.text[0].address
    entry = image.address_of(_SYSCALL_ENTRY)
    if entry is None:
        problems.append(f"it has no {_SYSCALL_ENTRY}: nothing tells where a guest runs it")
    return {
        "file": image.path,
        "kind": "kernel",
        "container": image.payload.container,
        "packed_with": image.payload.packer or None,
        "unpacked_bytes": len(image.elf),
        "release": image.release or None,
        "build_id": image.build_id or None,
        "entry_point": image.entry,
        "link_address": text,
        "syscall_entry": entry,
        "text": [{"section": section.name, "address": section.address, "bytes": section.size} for section in image.text],
        "symbols": {
            "count": len(image.symbols),
            "functions": int(np.count_nonzero((kinds == ord("t")) | (kinds == ord("w")))),
            "source": image.symbols.source,
        },
        "orc": _image_orc(image, problems),
        "btf": _btf(image, problems),
        "problems": problems,
    }


def _image_orc(image: KernelImage, problems: list[str]) -> dict[str, Any] | None:
    try:
        orc = image_orc(image)
    except FormatError as error:
        problems.append(error.message)
        return None
    if orc is None:
        problems.append("it has no ORC table: its stacks are followed by frame pointers, if it has those")
        return None
    return _orc(orc, orc_header(image))


def _orc(orc: pb.Orc, header: bytes) -> dict[str, Any]:
    addresses = np.frombuffer(orc.addresses, "<u8")
    return {
        "entries": len(addresses),
        "first": int(addresses[0]),
        "last": int(addresses[-1]),
        "header": header.hex() or None,
        "layout": layout_of_header(header),
    }


def _btf(image: KernelImage, problems: list[str]) -> dict[str, Any] | None:
    section = image.section(".BTF")
    if section is None or not section.in_file:
        problems.append("it has no BTF: of a guest with this kernel no threads and processes can be read")
        return None
    try:
        # Type 0, void, is not written down.
        types = len(BtfTable(image.content(section).tobytes())) - 1
    except FormatError as error:
        problems.append(error.message)
        return None
    return {"bytes": section.size, "types": types}


def _module(module: ModuleFile) -> dict[str, Any]:
    sections = [{"section": one.name, "offset": one.offset, "bytes": one.size, "alignment": one.alignment} for one in module.sections]
    problems = [] if len(module.orc_offsets) else ["it has no ORC table"]
    orc = pb.Orc(addresses=module.orc_offsets.astype("<u8").tobytes(), entries=module.orc_entries)
    return {
        "file": module.path,
        "kind": "module",
        "packed_with": module.packer or None,
        "unpacked_bytes": len(module.elf),
        "name": module.name,
        "release": module.release or None,
        "build_id": module.build_id or None,
        "code_bytes": module.size,
        "text": sections,
        "symbols": {"count": len(module.names), "source": ".symtab"},
        "orc": _orc(orc, module.orc_header) if len(module.orc_offsets) else None,
        "problems": problems,
    }
