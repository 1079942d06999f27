# SPDX-License-Identifier: Apache-2.0
"""A guest's processes: who they are, what they have mapped. All of it is read while the guest runs on, and checked against a second look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from perfguest.guest import mappings, page_cache, paths, tasks
from perfguest.guest.binaries import VDSO, Source, files, source_of
from perfguest.guest.kernel import GuestUnreadable, LiveKernel
from perfguest.guest.mappings import Area
from perfguest.guest.memory import GuestFault
from perfguest.guest.view import Exhausted, View, unless_unreadable
from perfguest.proto import guest_pb2

__all__ = ["LiveProcess", "files", "inspect", "owners", "read_all_processes", "read_process", "signature"]

MAX_PERF_MAP = 16 << 20
_ATTEMPTS = 3
# With page-table isolation the page table of user mode is the second of two pages.
_USER_TABLE = 0x1000


@dataclass(frozen=True)
class LiveProcess:
    """What was read of a process. ``problems``: what could not be read, in words. ``signature`` is another one after exec and when the count of mappings has
    changed (see the function of that name)."""

    message: guest_pb2.Process
    problems: list[str]
    signature: tuple[int, int]


def read_process(kernel: LiveKernel, tgid: int, start_time: int | None = None) -> guest_pb2.Process | None:
    """As :func:`inspect`, the message alone."""
    process = inspect(kernel, tgid, start_time)
    return process.message if process else None


def inspect(kernel: LiveKernel, tgid: int, start_time: int | None = None) -> LiveProcess | None:
    """The process as it is now; None if it is gone, or another one has its pid. ``start_time``: of any of its threads, in ns of the guest's boot clock.
    The message's VM and time are for the caller to set. Raises GuestUnreadable if the guest's memory makes no sense of it."""
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            view = View(kernel)
            task = _task(view, tgid, start_time)
            if task is None:
                return None
            seen: dict[int, tuple[bytes, int]] = {}
            process = _read(view, task, tgid, seen)
            view.forget()
            if _task(view, tgid, start_time) == task and _is_still(view, task, process) and mappings.is_still(view, seen):
                return process
            reason = "it changed while it was read"
        except Exhausted as error:
            reason = error.message
            break
        except (GuestFault, GuestUnreadable) as error:
            reason = error.message
    raise GuestUnreadable(f"process {tgid}: {reason}")


def signature(kernel: LiveKernel, tgid: int, start_time: int | None = None) -> tuple[int, int] | None:
    """A quick look whether a process is still as it was read: compare with that of :class:`LiveProcess`. None if it is gone."""
    try:
        view = View(kernel)
        task = _task(view, tgid, start_time)
        return None if task is None else _signature(view, task)
    except GuestFault:
        return None


def owners(kernel: LiveKernel, tables: Iterable[int]) -> list[tuple[int, int]]:
    """(tgid, start in ns of the guest's boot clock) of the processes whose page tables these are (CR3, with the second one of page-table isolation too).
    Ends where reading takes too long. Raises GuestUnreadable if the guest's memory makes no sense of its processes."""
    wanted = {table & ~_USER_TABLE for table in tables} | set(tables)
    found: list[tuple[int, int]] = []
    view = View(kernel)
    try:
        for tgid, task in tasks.all_processes(view):
            if (mm := tasks.memory_of(view, task)) and view.physical(view.get(mm, "mm_struct", "pgd")) in wanted:
                found.append((tgid, tasks.start_time(view, task)))
    except Exhausted:
        return found
    except GuestFault as error:
        raise GuestUnreadable(error.message) from error
    return found


def read_all_processes(kernel: LiveKernel) -> list[guest_pb2.Process]:
    """All processes that there are, kernel threads too, by ascending tgid."""
    tgids = [tgid for tgid, _ in tasks.all_processes(View(kernel))]
    return [message for tgid in tgids if (message := read_process(kernel, tgid))]


def _task(view: View, tgid: int, start_time: int | None) -> int | None:
    task = tasks.find_process(view, tgid)
    # A thread starts after its process. One that started before the process now found belongs to an earlier one of the same pid.
    if task is None or (start_time is not None and tasks.start_time(view, task) > start_time):
        return None
    return task


def _signature(view: View, task: int) -> tuple[int, int]:
    mm = tasks.memory_of(view, task)
    return mm, view.get(mm, "mm_struct", "map_count") if mm else 0


def _is_still(view: View, task: int, process: LiveProcess) -> bool:
    """Whether a second look finds the same: else names and mappings may be of different moments, as before and after it executed another program."""
    message, (mm, _) = process.message, process.signature
    if _signature(view, task) != process.signature or tasks.comm(view, task) != message.comm:
        return False
    if message.cgroup and tasks.cgroup(view, task) != message.cgroup:
        return False
    return not mm or tasks.command(view, mm, message.cr3) == message.command


def _read(view: View, task: int, tgid: int, seen: dict[int, tuple[bytes, int]]) -> LiveProcess:
    problems: list[str] = []
    began = tasks.start_time(view, task)
    message = guest_pb2.Process(pid=tgid, tgid=tgid, start_time=began, comm=tasks.comm(view, task))
    message.namespace_pid = unless_unreadable(problems, "its own pid", lambda: tasks.namespace_pid(view, task), tgid)
    message.cgroup = unless_unreadable(problems, "its cgroup", lambda: tasks.cgroup(view, task), b"")
    mm, count = _signature(view, task)
    if mm:
        message.cr3 = view.physical(view.get(mm, "mm_struct", "pgd"))
        message.command = tasks.command(view, mm, message.cr3)
        areas = mappings.read_mappings(view, mm, problems, seen)
        _add_mappings(message, areas, _sources(view, areas, message.cr3, problems))
        message.perf_map = unless_unreadable(problems, "its perf map", lambda: _perf_map(view, task, message.namespace_pid), b"")
    return LiveProcess(message, problems, (mm, count))


def _sources(view: View, areas: list[Area], cr3: int, problems: list[str]) -> dict[int, Source]:
    """What is mapped executable, by the address of ``struct file``; the vDSO by 0."""
    found: dict[int, Source | None] = {}
    for area in areas:
        if area.executable and area.file not in found and (area.file or area.path == VDSO):
            found[area.file] = unless_unreadable(problems, "a mapped file", partial(source_of, view, area, cr3), None)
    return {file: source for file, source in found.items() if source}


def _add_mappings(message: guest_pb2.Process, areas: list[Area], sources: dict[int, Source]) -> None:
    for area in areas:
        source = sources.get(area.file) if area.file or area.path == VDSO else None
        key = source.key if source else ""
        message.mappings.add(start=area.start, end=area.end, offset=area.offset, path=area.path, inode=area.inode, executable=area.executable, binary=key)


def _perf_map(view: View, task: int, pid: int) -> bytes:
    """``/tmp/perf-PID.map`` as the process's own root has it, as far as it is in the page cache without a gap, to its last whole line."""
    fs = view.get(task, "task_struct", "fs")
    if not fs:
        return b""
    root = view.at(fs, "fs_struct", "root")
    name = b"perf-%d.map" % pid
    dentry = paths.look_up(view, view.get(root, "path", "mnt"), view.get(root, "path", "dentry"), [b"tmp", name])
    if dentry is None:
        return b""
    inode = view.get(dentry, "dentry", "d_inode")
    if (below := _overlaid(view, inode, name)) is not None:
        inode = below
    size = min(page_cache.file_size(view, inode), MAX_PERF_MAP)
    runs = page_cache.read_runs(view, view.get(inode, "inode", "i_mapping"), size, MAX_PERF_MAP)
    data = runs[0][1] if runs and runs[0][0] == 0 else b""
    return data[: data.rfind(b"\n") + 1]


def _overlaid(view: View, inode: int, name: bytes) -> int | None:
    """The inode below one of overlayfs, in its upper layer; None if it is none of overlayfs."""
    kind = view.get(view.get(inode, "inode", "i_sb"), "super_block", "s_type")
    if view.string(view.get(kind, "file_system_type", "name"), 16) != b"overlay":
        return None
    # struct ovl_inode (fs/overlayfs/ovl_entry.h) is a module's: behind its inode it has had the upper dentry since 4.14.
    dentry = view.word(inode + view.layout.size("inode"))
    if not dentry or paths.name_of(view, dentry) != name:
        raise GuestUnreadable("an overlay's upper layer is not where it was looked for")
    return view.get(dentry, "dentry", "d_inode")
