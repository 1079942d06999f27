# SPDX-License-Identifier: Apache-2.0
"""A guest's tasks: found by pid, and what they tell of themselves apart from their memory."""

from __future__ import annotations

from collections.abc import Iterator

from perfguest.guest import xarrays
from perfguest.guest.kernel import GuestUnreadable
from perfguest.guest.paths import MAX_PATH
from perfguest.guest.view import View

_MAX_THREADS = 4096
_MAX_TASKS = 1 << 17
_MAX_CGROUPS = 256
# NAME_MAX
_MAX_NAME = 255
_MAX_COMMAND = 4096
_PIDS = 1 << 22


def find_process(view: View, tgid: int) -> int | None:
    """The ``task_struct`` of the thread group's leader; None if there is none of this pid."""
    pid = xarrays.load(view, _pids(view), tgid)
    if not pid:
        return None
    return _leader(view, pid, tgid)


def all_processes(view: View) -> Iterator[tuple[int, int]]:
    """(tgid, ``task_struct`` of the leader) of all processes, by ascending tgid."""
    for number, (index, _, pid) in enumerate(xarrays.entries(view, _pids(view), _PIDS)):
        if number > _MAX_TASKS:
            raise GuestUnreadable(f"the guest has more than {_MAX_TASKS} tasks")
        if task := _leader(view, pid, index):
            yield index, task


def start_time(view: View, task: int) -> int:
    """Nanoseconds of the guest's boot clock, as the records of samples have it."""
    if layout := view.kernel.task_layout():
        return view.word(task + layout.start)
    # Linux kernel commit cf25e24db61c ("time: Rename tsk->real_start_time to ->start_boottime") (in v5.5)
    return view.get(task, "task_struct", "start_boottime", "real_start_time")


def comm(view: View, task: int) -> bytes:
    """The task's name."""
    offset, size = view.layout.field("task_struct", "comm")
    return view.string(task + offset, min(size, 64))


def memory_of(view: View, task: int) -> int:
    """The process's ``mm_struct``, also where the leader has ended before other threads; 0 for kernel threads and zombies."""
    if mm := view.get(task, "task_struct", "mm"):
        return mm
    head = view.at(view.get(task, "task_struct", "signal"), "signal_struct", "thread_head")
    link = view.layout.offset("task_struct", "thread_node")
    tgid = view.get(task, "task_struct", "tgid")
    node = view.word(head)
    for _ in range(_MAX_THREADS):
        if node in {0, head} or view.get(node - link, "task_struct", "tgid") != tgid:
            return 0
        if mm := view.get(node - link, "task_struct", "mm"):
            return mm
        node = view.word(node)
    return 0


def namespace_pid(view: View, task: int) -> int:
    """The pid as the process itself sees it."""
    pid = view.get(task, "task_struct", "thread_pid")
    level = view.get(pid, "pid", "level")
    # MAX_PID_NS_LEVEL
    if level > 32:
        raise GuestUnreadable(f"a pid namespace of level {level}")
    return view.get(view.at(pid, "pid", "numbers") + level * view.layout.size("upid"), "upid", "nr")


def cgroup(view: View, task: int) -> bytes:
    """The path in the default hierarchy (cgroup v2), as ``/proc/PID/cgroup`` of the root namespace has it."""
    group = view.get(view.get(task, "task_struct", "cgroups"), "css_set", "dfl_cgrp")
    node = view.get(group, "cgroup", "kn")
    parts: list[bytes] = []
    for _ in range(_MAX_CGROUPS):
        # Linux kernel commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent.") (in v6.15)
        parent = view.get(node, "kernfs_node", "parent", "__parent")
        if not parent:
            path = b"/" + b"/".join(reversed(parts))
            if len(path) > MAX_PATH:
                raise GuestUnreadable(f"a cgroup's path of {len(path)} bytes")
            return path
        name = view.string(view.get(node, "kernfs_node", "name"), _MAX_NAME + 1)
        if len(name) > _MAX_NAME:
            raise GuestUnreadable("a cgroup's name without an end")
        parts.append(name)
        node = parent
    raise GuestUnreadable(f"a cgroup with more than {_MAX_CGROUPS} parents")


def command(view: View, mm: int, cr3: int) -> bytes:
    """The first word of the command line; empty if its page is not there."""
    start, end = view.get(mm, "mm_struct", "arg_start"), view.get(mm, "mm_struct", "arg_end")
    return view.user(cr3, start, min(max(end - start, 0), _MAX_COMMAND)).partition(b"\0")[0]


def _pids(view: View) -> int:
    address = view.kernel.address_of("init_pid_ns")
    if address is None:
        raise GuestUnreadable("the guest's kernel has no init_pid_ns")
    return view.at(view.at(address, "pid_namespace", "idr"), "idr", "idr_rt")


def _leader(view: View, pid: int, tgid: int) -> int | None:
    # The first list of struct pid is of PIDTYPE_PID, and so is the first link of task_struct.
    node = view.word(view.at(pid, "pid", "tasks"))
    task = node - view.layout.offset("task_struct", "pid_links")
    if not node or view.get(task, "task_struct", "pid") != tgid or view.get(task, "task_struct", "tgid") != tgid:
        return None
    return task
