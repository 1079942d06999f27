# SPDX-License-Identifier: Apache-2.0
"""Kernel stacks of unmodified guests: that they are whole, and that their frames can be callers of each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from tests.unwind.conftest import Guest
from tests.unwind.edges import Edges
from tests.unwind.measure import Row, calls, kernel_chain, share
from tests.unwind.oracle import COMPLETE

#: What must have been on some stacks: a function by its name, of any kernel.
_WORK = {
    "system calls": r"do_syscall_64",
    "page faults": r"asm_exc_page_fault",
    "timer interrupts": r"asm_sysvec_apic_timer_interrupt|asm_sysvec_\w+",
    "device interrupts": r"asm_common_interrupt",
    "softirqs": r"handle_softirqs|__do_softirq|__softirqentry_text_start",
    "kernel threads": r"kthread",
    "a module's file system": r"ext4_\w+",
    "a module's device": r"virtio_queue_rqs?|virtblk_\w+",
    "the network": r"tcp_\w+",
    "processes' ends": r"do_exit",
    "programs' starts": r"load_elf_binary",
    "idle": r"do_idle",
}
#: Where stacks begin: entries from user mode, threads, a CPU's boot.
_ROOTS = (
    r"entry_SYSCALL_64\w*|asm_exc_\w+|asm_sysvec_\w+|asm_common_interrupt|asm_\w+|entry_\w+|ret_from_fork\w*|paranoid_entry|error_entry|error_return"
    r"|common_interrupt_return|swapgs_restore_regs_and_return_to_usermode|syscall_return_via_sysret|secondary_startup_64\w*|common_startup_64|start_kernel|x86_64_start_\w+"
    r"|__switch_to_asm|exc_\w+|irq_entries_start|native_irq_return_iret|restore_regs_and_return_to_kernel|rest_init|arch_call_rest_init|early_xen_iret_patch"
)


def _kernel_rows(guest: Guest) -> list[Row]:
    return [row for row in guest.warm.rows if not row.sample.user]


def test_kernel_stacks_are_whole(guest: Guest, figure: Callable[[str], None]) -> None:
    found = share(_kernel_rows(guest), guest.warm.causes.kernel)
    figure(f"kernel stacks whole: {found}")
    assert found.total >= 3000
    assert found.reaches(99.5 if guest.is_of_debian_12 else 99.0)


@pytest.mark.parametrize("work", _WORK)
def test_kernel_stacks_are_of_all_kinds_of_work(guest: Guest, work: str) -> None:
    pattern = re.compile(_WORK[work])
    chains = [kernel_chain(row.walked, guest.warm.names) for row in _kernel_rows(guest) if row.walked.kernel_end in COMPLETE]
    assert any(pattern.fullmatch(name) for chain in chains for name in chain)


def test_kernel_stacks_begin_where_stacks_begin(guest: Guest, figure: Callable[[str], None]) -> None:
    pattern = re.compile(_ROOTS)
    names = [kernel_chain(row.walked, guest.warm.names)[-1] for row in _kernel_rows(guest) if row.walked.kernel_end in COMPLETE]
    strange = Counter(name for name in names if not pattern.fullmatch(name))
    figure(f"outermost functions that are none: {dict(strange)} of {len(names)}")
    assert sum(strange.values()) <= 0.002 * len(names)


def test_kernel_callers_call_what_they_are_said_to(guest: Guest, figure: Callable[[str], None]) -> None:
    names, edges = guest.warm.names, Edges(guest.warm.evidence, guest.warm.names)
    functions: Counter[tuple[int, int]] = Counter()
    for (caller, callee), count in calls(_kernel_rows(guest)).items():
        if edges.covers(caller) and edges.covers(callee):
            functions[caller, names.span(callee)[0]] += count
    how = {edge: edges.why(*edge) for edge in functions}
    wrong = [edge for edge in functions if how[edge] not in {"direct", "jump", "indirect"}]
    counts = Counter(how.values())
    told = "".join(f"\n    {functions[edge]:6d} {names.at(edge[1])} by {names.at(edge[0] - 1)}: {how[edge]}" for edge in wrong)
    good = 100 - 100 * len(wrong) / len(functions)
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in ("direct", "jump", "indirect"))
    figure(f"calls that are there: {good:.2f}% of {len(functions)} ({summary}){told}")
    assert len(functions) >= 1000
    assert counts["direct"] >= 0.5 * len(functions)
    assert good >= 99.5
