# SPDX-License-Identifier: Apache-2.0
"""What guest processes execute: the pages of files that are mapped executable out of the page cache, and the vDSO. No other file is ever read for this."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from perfguest.guest import mappings, page_cache, tasks
from perfguest.guest.kernel import GuestUnreadable, LiveKernel
from perfguest.guest.mappings import Area
from perfguest.guest.memory import PAGE, GuestFault
from perfguest.guest.notes import build_id
from perfguest.guest.view import View
from perfguest.proto import guest_pb2

FORMAT_VERSION = 1
VDSO = b"[vdso]"
_MAX_VDSO = 64 << 10


@dataclass(frozen=True)
class FileHandle:
    """A file that a process has mapped executable, or its vDSO. ``key``: under which its Binary is stored, the same for the same file in all processes.
    ``tgid``, ``start_time`` and ``vma_start`` say where it was seen: when it is read, it must be there still."""

    key: str
    path: bytes
    tgid: int
    start_time: int
    vma_start: int


@dataclass(frozen=True)
class Source:
    """Where a mapped file's ``size`` bytes are: ``mapping`` is the address of its ``address_space``, or 0 for the vDSO, whose ``image`` is here already."""

    key: str
    build_id: bytes
    size: int
    mapping: int
    image: bytes = b""


def files(process: guest_pb2.Process) -> dict[str, FileHandle]:
    """Handles of what the process has mapped executable, by their keys."""
    found: dict[str, FileHandle] = {}
    for mapping in process.mappings:
        if mapping.executable and mapping.binary:
            found.setdefault(mapping.binary, FileHandle(mapping.binary, mapping.path, process.tgid, process.start_time, mapping.start))
    return found


def source_of(view: View, area: Area, cr3: int) -> Source | None:
    """What an executable mapping maps; None if that is no regular file or cannot be in the page cache. ``cr3``: of its process. Raises GuestFault."""
    if not area.executable:
        return None
    if area.path == VDSO and not area.file:
        image = _vdso(view, area, cr3)
        identity = build_id(lambda offset, count: image[offset : offset + count])
        return Source(identity.hex() or f"vdso-{_hash(image)}", identity, len(image), 0, image) if image else None
    if not area.file:
        return None
    mapping = view.get(area.file, "file", "f_mapping")
    inode = view.get(mapping, "address_space", "host")
    size = page_cache.file_size(view, inode)
    if not size:
        return None
    identity = build_id(lambda offset, count: page_cache.read_range(view, mapping, offset, count))
    # The inode's address is another one in each VM, so that equal numbers of different guests' files do not meet.
    numbers = (view.get(view.get(inode, "inode", "i_sb"), "super_block", "s_dev"), view.get(inode, "inode", "i_ino"), size, inode, view.kernel.lstar)
    return Source(identity.hex() or f"file-{_hash(repr(numbers).encode())}", identity, size, mapping)


def read_binary(kernel: LiveKernel, handle: FileHandle, budget: int) -> guest_pb2.Binary:
    """The file's pages in the guest's page cache, the first ``budget`` bytes of them. Raises GuestUnreadable if the process or its mapping is gone."""
    try:
        view = View(kernel, seconds=10.0, pages=200_000 + budget // PAGE)
        source = _mapped_still(view, handle)
        if source.mapping:
            runs = page_cache.read_runs(view, source.mapping, source.size, budget)
            view.forget()
            if _mapped_still(view, handle) != source:
                raise GuestUnreadable(f"a file of process {handle.tgid} changed while it was read")
        else:
            runs = [(0, source.image[:budget])]
    except GuestFault as fault:
        raise GuestUnreadable(f"the pages of a mapped file: {fault}") from fault
    binary = guest_pb2.Binary(format_version=FORMAT_VERSION, build_id=source.build_id, path=handle.path, size=source.size)
    for offset, data in runs:
        binary.pages.add(address=offset, data=data)
    return binary


def _mapped_still(view: View, handle: FileHandle) -> Source:
    task = tasks.find_process(view, handle.tgid)
    if task is None or tasks.start_time(view, task) != handle.start_time:
        raise GuestUnreadable(f"process {handle.tgid} is gone")
    mm = tasks.memory_of(view, task)
    for vma in mappings.areas_of(view, mm) if mm else ():
        if view.get(vma, "vm_area_struct", "vm_start") == handle.vma_start:
            source = source_of(view, mappings.read_area(view, mm, vma), view.physical(view.get(mm, "mm_struct", "pgd")))
            if source and source.key == handle.key:
                return source
            break
    raise GuestUnreadable(f"process {handle.tgid} has that file no more")


def _vdso(view: View, area: Area, cr3: int) -> bytes:
    size = min(area.end - area.start, _MAX_VDSO)
    # The process has only those of its pages that it has touched; the kernel has the image that is mapped.
    if view.layout.find("mm_struct", "context.vdso_image"):
        image = view.get(view.get(area.vma, "vm_area_struct", "vm_mm"), "mm_struct", "context.vdso_image")
        if image and view.get(image, "vdso_image", "size") == area.end - area.start:
            return view.read(view.get(image, "vdso_image", "data"), size)
    return view.user(cr3, area.start, size)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]
