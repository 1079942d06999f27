# SPDX-License-Identifier: Apache-2.0
"""Where a guest's kernel keeps its running task, for the module to read at a sample's moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfguest.guest.kallsyms import Symbols

if TYPE_CHECKING:
    from drgn import Program, Type

#: No task_struct is larger, in bytes.
MAX_TASK = 1 << 16


@dataclass(frozen=True)
class TaskLayout:
    """``current``, added to the GS base modulo 2^64, is the address of the pointer to the running task. The others are byte offsets in
    ``struct task_struct``: ``start`` of the start time (ns of the boot clock), ``stack`` of the pointer to the kernel stack."""

    current: int
    pid: int
    tgid: int
    comm: int
    start: int
    stack: int


def read_task_layout(prog: Program, symbols: Symbols) -> TaskLayout | None:
    """The layout by the kernel's types and symbols, or None if it has them not, or not as they should be.

    The GS base in the kernel is the CPU's ``__per_cpu_offset``, and what is added to it is the symbol as ``/proc/kallsyms`` has it: up to v6.14 a
    small number, as per-CPU variables were linked from 0 on; since Linux commit 9d7de2aa8b41 ("x86/percpu/64: Use relative percpu offsets"), v6.15,
    an address in the image, moved by KASLR with it. ``current_task`` was in ``pcpu_hot`` from Linux commit e57ef2ed97c1 ("x86: Put hot per CPU
    variables into a struct"), v6.2, to v6.14.
    """
    try:
        current = _current(prog, symbols)
        task = prog.type("struct task_struct")
        size = task.size
        places = {"pid": (_place(task, "pid"), 4), "tgid": (_place(task, "tgid"), 4), "comm": (_place(task, "comm"), 16), "stack": (_place(task, "stack"), 8)}
        # Since Linux commit cf25e24db61c ("time: Rename tsk->real_start_time to ->start_boottime"), v5.5.
        names = [name for name in ("start_boottime", "real_start_time") if task.has_member(name)]
        places["start"] = (_place(task, names[0] if names else "start_time"), 8)
    except (LookupError, TypeError, ValueError):
        # drgn's for a type or member that is not there, or is no struct's.
        return None
    if current is None or size is None or any(place < 0 or place + width > min(size, MAX_TASK) for place, width in places.values()):
        return None
    return TaskLayout(current, **{name: place for name, (place, _) in places.items()})


def _current(prog: Program, symbols: Symbols) -> int | None:
    hot = symbols.address_of("pcpu_hot")
    if hot is not None:
        return hot + _place(prog.type("struct pcpu_hot"), "current_task") & (1 << 64) - 1
    return symbols.address_of("current_task")


def _place(struct: Type, member: str) -> int:
    return int(struct.member(member).bit_offset) // 8
