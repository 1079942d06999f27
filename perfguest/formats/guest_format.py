# SPDX-License-Identifier: Apache-2.0
"""Reads the module's ``format`` file: the layout of its records (``kmod/format.c``), in the way of tracefs' ``events/*/format``."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from perfguest.errors import FormatError

ABI_VERSION = 1

_KINDS = {"u16": "<u2", "u32": "<u4", "u64": "<u8", "char": "S"}
#: What a reader of streams cannot do without.
_NEEDED = {
    "sample": {"time", "cpu", "vm_id", "vm_pid", "tid", "vcpu_id", "nr_sections", "flags", "ip", "cr3"},
    "section": {"kind", "end", "size", "address"},
    "vm": {"time", "vm_id", "vm_pid", "nr_memslots", "lstar"},
    "memslot": {"gpa", "size", "hva"},
    "lost": {"cpu", "lost"},
}


@dataclass(frozen=True)
class Layout:
    """Of one struct of the format text. ``type``: the record's, 0 for parts of records. ``dtype``: a numpy structured type with its fields."""

    type: int
    dtype: np.dtype[np.void]


def parse_format(text: str) -> dict[str, Layout]:
    """The structs that the module's ``format`` text describes, by name. Raises :class:`FormatError` if one that is needed is not there or makes no sense."""
    abi = re.match(r"abi: (\d+)\n", text)
    if not abi:
        raise FormatError("the guest stream's description of its records does not begin with 'abi:'", "The file is damaged: record again.")
    if int(abi[1]) != ABI_VERSION:
        raise FormatError(
            f"the guest stream has records of version {abi[1]}, this perfguest reads version {ABI_VERSION}",
            "Convert with the perfguest that recorded it, or a newer one.",
        )
    layouts = dict(_parse_struct(block) for block in text.split("\n\n")[1:])
    missing = {"sample", "section", "vm", "memslot", "lost"} - layouts.keys()
    if missing:
        raise FormatError(f"the guest stream does not describe {', '.join(sorted(missing))}", "The file is damaged: record again.")
    for name, needed in _NEEDED.items():
        absent = needed - set(layouts[name].dtype.names or ())
        if absent:
            raise FormatError(f"the guest stream's {name} lacks {', '.join(sorted(absent))}", "The file is damaged: record again.")
    return layouts


def _parse_struct(block: str) -> tuple[str, Layout]:
    head = re.match(r"name: (\w+)\nID: (\d+)\nsize: (\d+)\n", block)
    if not head:
        raise FormatError(f"the guest stream's format has a struct that cannot be read: {block[:40]!r}", "The file is damaged: record again.")
    size = int(head[3])
    names, formats, offsets = [], [], []
    for kind, name, count, offset, length in re.findall(r"\tfield:(\w+) (\w+)(?:\[(\d+)\])?;\toffset:(\d+);\tsize:(\d+);", block):
        base = _KINDS.get(kind)
        if base is None or int(offset) + int(length) > size:
            raise FormatError(f"the guest stream's field {head[1]}.{name} cannot be read", "The file is damaged, or of a newer perfguest.")
        if base == "S":
            formats.append(f"S{length}")
        else:
            formats.append(f"({count},){base}" if count else base)
        names.append(name)
        offsets.append(int(offset))
    try:
        dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})
    except (TypeError, ValueError) as error:
        raise FormatError(f"the guest stream's {head[1]} cannot be read: {error}", "The file is damaged: record again.") from error
    return head[1], Layout(int(head[2]), dtype)
