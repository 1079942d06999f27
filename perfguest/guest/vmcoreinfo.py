# SPDX-License-Identifier: Apache-2.0
"""vmcoreinfo: the page in which a Linux kernel tells a crash dump's reader where its things are.

Documentation/admin-guide/kdump/vmcoreinfo.rst describes it. ``vmcoreinfo_data`` in the image points to it, by its address in the direct
map: it is the one of the image's page-aligned pointers whose page begins with ``OSRELEASE=``. A guest writes it as it likes, so a value is
taken only if it is of the form that it should have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfguest.guest.image import START_KERNEL_MAP, KernelImage
from perfguest.guest.memory import ADDRESS, PAGE, GuestFault, GuestMemory

#: Debian's images have about 2,000 pointers that might be it.
MAX_CANDIDATES = 1 << 16

_LINE = re.compile(rb"([A-Za-z][\w-]{0,31}(?:\([\w.]{1,96}\))?)=([\w.+~:-]{1,128})")
_WORDS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class VmcoreInfo:
    """The lines of form ``KEY=VALUE``; ``direct_map``: where the kernel has guest-physical address 0, or None if that is not known."""

    lines: Mapping[str, str]
    direct_map: int | None

    @property
    def release(self) -> str:
        """As ``uname -r`` gives it."""
        return self.lines.get("OSRELEASE", "")

    @property
    def build_id(self) -> bytes:
        """Of the kernel; empty if it does not tell."""
        text = self.lines.get("BUILD-ID", "")
        return bytes.fromhex(text) if re.fullmatch(r"(?:[0-9a-f]{2}){8,32}", text) else b""

    def symbol(self, name: str) -> int | None:
        """Address of a symbol in the guest's memory."""
        return self.hexadecimal(f"SYMBOL({name})")

    def hexadecimal(self, key: str) -> int | None:
        """The value, if it is 64 bits in hexadecimal."""
        text = self.lines.get(key, "")
        return int(text, 16) if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,16}", text) else None

    def text(self) -> bytes:
        """The lines again, for drgn."""
        return "".join(f"{key}={value}\n" for key, value in self.lines.items()).encode()


def parse_vmcoreinfo(page: bytes, direct_map: int | None = None) -> VmcoreInfo:
    """Of the page's text what has the form of a line; the first of each key."""
    lines: dict[str, str] = {}
    for line in page.split(b"\0", 1)[0].split(b"\n"):
        match = _LINE.fullmatch(line)
        if match:
            lines.setdefault(match[1].decode(), match[2].decode())
    return VmcoreInfo(lines, direct_map)


def find_vmcoreinfo(memory: GuestMemory, cr3: int, image: KernelImage) -> VmcoreInfo | None:
    """The vmcoreinfo of the kernel with this image, if it has one."""
    for gva in _pointers(image, memory.la57):
        info = read_vmcoreinfo(memory, cr3, gva)
        if info and image.base <= (info.symbol("swapper_pg_dir") or 0) < image.end:
            return info
    return None


def read_vmcoreinfo(memory: GuestMemory, cr3: int, gva: int) -> VmcoreInfo | None:
    """The vmcoreinfo at ``gva``, or None if that is something else."""
    try:
        gpa = memory.translate(cr3, gva)
        if memory.read(gpa, 10) != b"OSRELEASE=":
            return None
        return parse_vmcoreinfo(memory.read(gpa, PAGE), gva - gpa)
    except GuestFault:
        return None


def kernel_page_tables(memory: GuestMemory, cr3: int, swapper: int, image: KernelImage) -> int | None:
    """Guest-physical address of the kernel's own page tables, which are at ``swapper``: if they map the image as the ones of CR3 do."""
    try:
        own = memory.translate(cr3, swapper) & ADDRESS
        same = memory.translate(own, image.base) == memory.translate(cr3, image.base)
    except GuestFault:
        return None
    return own if same else None


def release_of(image: KernelImage, info: VmcoreInfo | None, banner: int | None) -> str:
    """As ``uname -r`` gives it; ``banner``: where the image has ``linux_banner``. Empty if neither tells."""
    if info and info.release:
        return info.release
    return release_in((image.read(banner, 160) or b"") if banner else b"")


def release_in(banner: bytes) -> str:
    """The release that ``linux_banner`` begins with, or nothing."""
    match = re.match(rb"Linux version ([\w.+~-]{1,128}) ", banner)
    return match[1].decode() if match else ""


def _pointers(image: KernelImage, la57: bool) -> list[int]:
    # Addresses of the kernel's half are canonical: so many leading bits are set.
    shift, top = (np.uint64(56), np.uint64(0xFF)) if la57 else (np.uint64(47), np.uint64(0x1FFFF))
    low = np.uint64(PAGE - 1)
    found, count = [], len(image.data) // 8
    words = np.frombuffer(image.data, "<u8", count)
    for start in range(0, count, _WORDS_AT_ONCE):
        part = words[start : start + _WORDS_AT_ONCE]
        found.append(part[(part & low == 0) & (part >> shift == top) & (part < np.uint64(START_KERNEL_MAP))])
    return [int(pointer) for pointer in np.unique(np.concatenate(found))[:MAX_CANDIDATES]] if found else []
