# SPDX-License-Identifier: Apache-2.0
"""A guest process's mappings, as ``/proc/PID/maps`` prints them (fs/proc/task_mmu.c)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from perfguest.guest.kernel import GuestUnreadable
from perfguest.guest.memory import PAGE, GuestFault
from perfguest.guest.paths import DELETED, MAX_PATH, TOO_LONG, path_of
from perfguest.guest.view import View, unless_unreadable

MAX_MAPPINGS = 10_000
#: Of all paths of a process together, in bytes.
MAX_PATHS = 4 << 20
UNREADABLE = b"<unreadable>"

_VM_EXEC = 4
_TOP = 1 << 64
# Of mm_context_t's flags.
_HAS_VSYSCALL = 2
# FMODE_BACKING: bit 25 since 6.5, bit 24 since 6.14. Either may be another flag, so what it promises is checked.
_BACKING = 3 << 24
_VSYSCALL = 0xFFFFFFFFFF600000


@dataclass(frozen=True)
class Area:
    """One mapping. ``offset`` in the file in bytes; ``vma`` and ``file`` are the addresses of the kernel's structures, 0 if there is none."""

    start: int
    end: int
    offset: int
    executable: bool
    path: bytes
    inode: int
    vma: int
    file: int


def read_mappings(view: View, mm: int, problems: list[str], paths: dict[int, tuple[bytes, int]]) -> list[Area]:
    """The mappings of a ``mm_struct``, ascending. What could not be read goes to ``problems`` in words. ``paths``: gets path and inode number of each file by
    the address of its structure."""
    areas: list[Area] = []
    end = length = 0
    for vma in areas_of(view, mm):
        if len(areas) == MAX_MAPPINGS or length > MAX_PATHS:
            problems.append(f"only the first {len(areas)} of the mappings")
            return areas
        area = _area(view, mm, vma, paths, problems)
        if not end <= area.start < area.end or area.end % PAGE or area.start % PAGE:
            raise GuestUnreadable("mappings that contradict each other")
        end = area.end
        length += len(area.path)
        areas.append(area)
    if end <= _VSYSCALL and _has_vsyscall(view, mm):
        areas.append(Area(_VSYSCALL, _VSYSCALL + PAGE, 0, True, b"[vsyscall]", 0, 0, 0))
    return areas


def areas_of(view: View, mm: int) -> Iterator[int]:
    """The ``vm_area_struct`` of a ``mm_struct``, ascending. Ends, whatever the guest holds."""
    # Linux kernel commit 763ecb035029 ("mm: remove the vma linked list") (in v6.1)
    if view.layout.find("mm_struct", "mm_mt"):
        root = view.get(view.at(mm, "mm_struct", "mm_mt"), "maple_tree", "ma_root")
        if root & 3 == 2 and root > 4096:
            yield from _maple(view, root, 0, _TOP - 1, 0)
        return
    vma = view.get(mm, "mm_struct", "mmap")
    for _ in range(MAX_MAPPINGS + 1):
        if not vma:
            return
        yield vma
        vma = view.get(vma, "vm_area_struct", "vm_next")


def is_still(view: View, paths: Mapping[int, tuple[bytes, int]]) -> bool:
    """Whether the files have the paths that were read of them, so that no name is made of one before and one after they were renamed."""
    return all(_read_file(view, file) == known for file, known in paths.items() if known[0] != UNREADABLE)


def read_area(view: View, mm: int, vma: int) -> Area:
    """One ``vm_area_struct`` of a ``mm_struct``."""
    return _area(view, mm, vma, {}, [])


def _maple(view: View, entry: int, low: int, high: int, depth: int) -> Iterator[int]:
    # Nodes as include/linux/maple_tree.h has them: the kind in bits 3 to 6 of the pointer, 1 a leaf, 2 a range, 3 a range with gaps.
    kind = entry >> 3 & 15
    if kind not in {1, 2, 3} or depth > 16:
        raise GuestUnreadable("a node of a maple tree of the guest's is none")
    view.spend()
    name = "maple_arange_64" if kind == 3 else "maple_range_64"
    node = entry & ~255
    (pivots_at, pivots_size), (slots_at, slots_size) = view.layout.field(name, "pivot"), view.layout.field(name, "slot")
    if slots_size != pivots_size + 8 or slots_size > 256:
        raise GuestUnreadable(f"the guest's struct {name} has {slots_size} bytes of slots")
    raw = view.read(node, 256)
    pivots = struct.unpack_from(f"<{pivots_size // 8}Q", raw, pivots_at)
    slots = struct.unpack_from(f"<{slots_size // 8}Q", raw, slots_at)
    for number, slot in enumerate(slots):
        last = pivots[number] if number < len(pivots) else high
        # A pivot of 0 behind the first ends the node, and so does one at its upper bound.
        if last >= high or (number and not last):
            last = high
        if kind == 1:
            if slot & 3 == 0 and slot:
                yield slot
        elif slot > 4096:
            yield from _maple(view, slot, low, last, depth + 1)
        if last == high:
            return
        low = last + 1


def _area(view: View, mm: int, vma: int, paths: dict[int, tuple[bytes, int]], problems: list[str]) -> Area:
    start, end = view.get(vma, "vm_area_struct", "vm_start"), view.get(vma, "vm_area_struct", "vm_end")
    if view.get(vma, "vm_area_struct", "vm_mm") != mm:
        raise GuestUnreadable("a mapping of another process")
    file = view.get(vma, "vm_area_struct", "vm_file")
    offset = 0
    if file:
        offset = view.get(vma, "vm_area_struct", "vm_pgoff") * PAGE % _TOP
        if file not in paths:
            paths[file] = _file(view, file, problems)
        path, inode = paths[file]
    else:
        path, inode = unless_unreadable(problems, "a mapping's name", lambda: _name(view, mm, vma, start, end), UNREADABLE), 0
    return Area(start, end, offset, bool(view.get(vma, "vm_area_struct", "vm_flags") & _VM_EXEC), path, inode, vma, file)


def _file(view: View, file: int, problems: list[str]) -> tuple[bytes, int]:
    """Path and inode number as the user sees them."""
    return unless_unreadable(problems, "a mapped file's path", lambda: _read_file(view, file), (UNREADABLE, 0))


def _read_file(view: View, file: int) -> tuple[bytes, int]:
    path, inode = view.at(file, "file", "f_path"), view.get(file, "file", "f_inode")
    if user := _user_path(view, file):
        path = user
        inode = view.get(view.get(path, "path", "dentry"), "dentry", "d_inode")
    name = path_of(view, view.get(path, "path", "mnt"), view.get(path, "path", "dentry")).replace(b"\n", b"\\012")
    return name if len(name) <= MAX_PATH + len(DELETED) else TOO_LONG, view.get(inode, "inode", "i_ino")


def _user_path(view: View, file: int) -> int | None:
    # Linux kernel commit def3ae83da02 ("fs: store real path instead of fake path in backing file f_path") (in v6.8)
    field = view.layout.find("backing_file", "user_path")
    if not field or not view.get(file, "file", "f_mode") & _BACKING:
        return None
    path = file + field[0]
    try:
        block = view.get(view.get(path, "path", "dentry"), "dentry", "d_sb")
        return path if block and block == view.get(view.get(path, "path", "mnt"), "vfsmount", "mnt_sb") else None
    except GuestFault:
        return None


def _name(view: View, mm: int, vma: int, start: int, end: int) -> bytes:
    operations = view.get(vma, "vm_area_struct", "vm_ops")
    function = view.get(operations, "vm_operations_struct", "name") if operations else 0
    if function and function == view.kernel.address_of("special_mapping_name"):
        special = view.get(vma, "vm_area_struct", "vm_private_data")
        return view.string(view.get(special, "vm_special_mapping", "name"), 64)
    if start < view.get(mm, "mm_struct", "brk") and end > view.get(mm, "mm_struct", "start_brk"):
        return b"[heap]"
    if start <= view.get(mm, "mm_struct", "start_stack") <= end:
        return b"[stack]"
    if view.layout.find("vm_area_struct", "anon_name") and (anonymous := view.get(vma, "vm_area_struct", "anon_name")):
        # Members of struct anon_vma_name: the count of its users, and the name.
        return b"[anon:" + view.string(view.at(anonymous, "anon_vma_name", "name"), 80) + b"]"
    return b""


def _has_vsyscall(view: View, mm: int) -> bool:
    mode = view.kernel.address_of("vsyscall_mode")
    flags = view.layout.find("mm_struct", "context.flags")
    if not mode or not flags:
        return False
    # The last of enum {EMULATE, XONLY, NONE} in arch/x86/entry/vsyscall/vsyscall_64.c
    return int.from_bytes(view.read(mode, 4), "little") < 2 and bool(view.get(mm, "mm_struct", "context.flags") & _HAS_VSYSCALL)
