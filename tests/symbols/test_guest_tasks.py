# SPDX-License-Identifier: Apache-2.0
"""Which thread a record belongs to, and which reading of its process: made-up times, where each case is one that a guest can make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats.guest_snapshot import GuestSnapshot
from perfguest.formats.guest_stream import Chains, Copies, GuestSamples, UserRegisters
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest_tasks import FLAG_CR3, FLAG_TASK, GuestTasks, guest_tasks

FIELDS = [
    ("time", "<u8"),
    ("flags", "<u8"),
    ("ip", "<u8"),
    ("cr3", "<u8"),
    ("task_pid", "<u4"),
    ("task_tgid", "<u4"),
    ("task_start", "<u8"),
    ("task_comm", "S16"),
    ("regs", "<u8", 16),
]
USER, SP = 1, 0x7FFD_1234_0000
PIDS = [42, 43]
A, B = 0x10000, 0x20000


def tasks(
    rows: list[tuple[int, int, int, int, int, int, int, bytes]],
    processes: list[pb.Process],
    vm: int = 0,
    below: dict[int, int] | None = None,
    sp: int = SP,
) -> GuestTasks:
    """``rows``: (time, flags, ip, cr3, tid, tgid, start, comm); ``below``: of rows in the kernel, where the user program stood; ``sp``: of all."""
    none = Chains(np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.uint64), np.zeros(len(rows), np.int32))
    copies = Copies(none.start, np.zeros(0, np.uint8), none.address, none.start[:0], none.start[:0], none.end[:0])
    registers = np.zeros((len(below or {}), 17), np.uint64)
    registers[:, 16], registers[:, 4] = list((below or {}).values()), sp
    users = UserRegisters(np.array(list(below or {}), np.int64), registers, np.ones(len(registers), bool))
    fields = np.array([(*row, (sp,) * 16) for row in rows], np.dtype(FIELDS))
    samples = GuestSamples(fields, none, none, copies, users)
    return guest_tasks(samples, np.full(len(rows), vm, np.int32), PIDS, GuestSnapshot(Path("/nowhere"), processes=processes))


def known(
    time: int, cr3: int, tgid: int = 5, start: int = 100, *, tid: int | None = None, comm: bytes = b"worker"
) -> tuple[int, int, int, int, int, int, int, bytes]:
    return time, FLAG_TASK | FLAG_CR3 | USER, 0, cr3, tgid if tid is None else tid, tgid, start, comm


def unknown(time: int, cr3: int, flags: int = USER, ip: int = 0) -> tuple[int, int, int, int, int, int, int, bytes]:
    return time, FLAG_CR3 | flags, ip, cr3, 0, 0, 0, b""


def process(time: int, cr3: int, tgid: int = 5, start: int = 100, *, cgroup: bytes = b"") -> pb.Process:
    return pb.Process(vm_pid=42, time=time, cr3=cr3, tgid=tgid, pid=tgid, start_time=start, comm=b"main", cgroup=cgroup)


def test_the_record_says_who_ran() -> None:
    found = tasks([known(1000, A, tid=6, comm=b"a\0junk"), unknown(1000, A, 0)], [])
    assert found.pid.tolist() == [5, -1] and found.tid.tolist() == [6, -1] and found.process.tolist() == [-1, -1]
    assert [found.comms[one] for one in found.comm.tolist() if one >= 0] == ["a"] and found.comm[1] == -1


def test_the_last_reading_before_counts_else_the_first_after() -> None:
    found = tasks([known(time, A) for time in (500, 1000, 1500, 2500)], [process(2000, A), process(1000, A)])
    assert found.process.tolist() == [1, 1, 1, 0]
    assert found.space[0] == found.space[2] != found.space[3]


def test_an_exec_changes_the_page_table_and_with_it_the_mappings() -> None:
    found = tasks([known(500, A), known(1500, B), known(3000, A + 0x100000)], [process(1000, A), process(2000, B)])
    assert found.process.tolist() == [0, 1, -1]


def test_page_table_isolation_has_a_second_table() -> None:
    assert tasks([known(1500, A | 0x1000)], [process(1000, A)]).process.tolist() == [0]


def test_a_number_used_again_is_another_process() -> None:
    found = tasks([known(1500, A, start=100), known(1500, A, start=900)], [process(1000, A, start=100)])
    assert found.process.tolist() == [0, -1] and found.pid.tolist() == [5, 5]
    assert found.space[0] != found.space[1]


def test_a_thread_is_of_the_last_process_that_started_before_it() -> None:
    """Each thread has a start of its own; the page table says whether the process is the one that was read."""
    rows = [known(1500, A, start=start, tid=6) for start in (99, 100, 101, 900, 1_000_000)]
    found = tasks([*rows, known(1500, B, start=500, tid=6), known(1500, A, 4, 500, tid=6)], [process(1000, A, cgroup=b"/own"), process(1000, A, start=900)])
    assert found.process.tolist() == [-1, 0, 0, 1, 1, -1, -1]
    assert found.cgroup.tolist() == [-1, 0, 0, -1, -1, -1, -1]


def test_another_vm_is_another_guest() -> None:
    assert tasks([known(1500, A)], [process(1000, A)], vm=1).process.tolist() == [-1]


def test_cgroups_are_those_of_the_process() -> None:
    found = tasks([known(1500, A), known(1500, A, tgid=9)], [process(1000, A, cgroup=b"/old"), process(2000, A, cgroup=b"/new"), process(1, B, 9)])
    assert [found.cgroups[one] if one >= 0 else None for one in found.cgroup.tolist()] == ["/new", None]


def test_records_from_before_the_module_knew_are_given_who_lived_all_the_time() -> None:
    """The guest's clock is at most 10 behind, as a second process says: so the first one was there at 110."""
    early = [unknown(1500, A), unknown(1500, B), unknown(1500, A, 0), unknown(105, A), unknown(9000, A)]
    found = tasks([*early, known(3000, A), known(2000, B, 7, 1990)], [process(1000, A)])
    # Not of the kernel's mode, where another thread may borrow the table; not before it lived; not after it was last seen.
    assert found.process.tolist() == [0, -1, -1, -1, -1, 0, -1]
    assert found.pid.tolist() == [5, -1, -1, -1, -1, 5, 7] and found.tid[0] == -1
    assert found.comms[found.comm[0]] == "main"


def test_two_that_fit_are_none() -> None:
    found = tasks([unknown(1500, A), known(3000, A), known(3000, A, 9, 50), known(2000, B, 7, 1990)], [process(1000, A), process(1000, A, 9, 50)])
    assert found.process[0] == -1 and found.pid[0] == -1


def test_the_kernel_for_a_program_is_of_its_process() -> None:
    found = tasks([unknown(1500, A, 0), unknown(1500, A, 0), known(3000, A), known(2000, B, 7, 1990)], [process(1000, A)], below={1: 0x400010})
    assert found.process.tolist() == [-1, 0, 0, -1] and found.pid.tolist() == [-1, 5, 5, 7]


def with_code(one: pb.Process, *ranges: tuple[int, int], executable: bool = True) -> pb.Process:
    for start, end in ranges:
        one.mappings.add(start=start, end=end, executable=executable)
    one.mappings.add(start=SP & -0x100000, end=(SP & -0x100000) + 0x200000, path=b"[stack]")
    return one


def test_code_tells_the_mappings_of_who_may_not_have_lived() -> None:
    """Nobody has been seen to start: the process may be a minute old, or as old as its reading. A child of its, before an exec, would look the same."""
    code, other = (0x400000, 0x500000), (0x7F0000000000, 0x7F0000100000)
    rows = [unknown(1500, A, ip=0x400010), unknown(1500, A, 0), unknown(1500, A | 0x1000, ip=0x500000), unknown(1500, B, ip=0x400010), unknown(1500, A)]
    found = tasks(rows, [with_code(process(5000, A, start=10), code, other)], below={1: other[0] + 5})
    assert found.process.tolist() == [0, 0, -1, -1, -1]
    assert found.pid.tolist() == [-1] * 5 and found.cgroup.tolist() == [-1] * 5
    assert [found.comms[one] for one in found.comm[:2].tolist()] == ["main", "main"] and set(found.comm[2:].tolist()) == {-1}
    data = with_code(process(5000, A, start=10), code, executable=False)
    assert tasks(rows, [data]).process.tolist() == [-1] * 5


def test_code_at_a_fixed_address_is_anybodys_without_the_stack() -> None:
    fixed, random = (0x400000, 0x500000), (0x5555_1234_5000, 0x5555_1234_6000)
    reading = with_code(process(5000, A, start=10), fixed, random)
    rows = [unknown(1500, A, ip=fixed[0]), unknown(1500, A, ip=random[0])]
    assert tasks(rows, [reading]).process.tolist() == [0, 0]
    assert tasks(rows, [reading], sp=0xC000123000).process.tolist() == [-1, 0]
    reading.mappings[-1].end = 0x7FFF_FFFF_F000
    assert tasks(rows, [reading]).process.tolist() == [-1, -1]


def test_of_readings_with_the_code_the_next_one_counts_else_the_last() -> None:
    readings = [with_code(process(time, A, tgid, time - 10), (0x400000, 0x500000)) for time, tgid in ((9000, 7), (5000, 5), (7000, 6))]
    found = tasks([unknown(time, A, ip=0x400010) for time in (1500, 6000, 9500)], readings)
    assert found.process.tolist() == [1, 2, 0] and found.pid.tolist() == [-1] * 3


U64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, A, 100])
MAPPINGS = st.lists(st.builds(pb.Mapping, start=U64, end=U64, executable=st.just(True)), max_size=3)
U32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 5])
PROCESSES = st.builds(pb.Process, mappings=MAPPINGS, vm_pid=st.just(42) | U32, time=U64, cr3=U64, tgid=U32, start_time=U64, comm=st.binary(max_size=20))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**63 - 1), U64, U64, U64, U32, U32, U64, st.binary(max_size=16)), max_size=6),
    st.lists(
        st.builds(pb.Process, mappings=MAPPINGS, vm_pid=st.just(42) | U32, time=U64, cr3=U64, tgid=U32, start_time=U64, comm=st.binary(max_size=20)), max_size=5
    ),
)
def test_hostile_tasks_break_nothing(rows: list[tuple[int, int, int, int, int, int, int, bytes]], processes: list[pb.Process]) -> None:
    found = tasks(rows, processes)
    assert found.process.max(initial=-1) < len(processes) and found.comm.max(initial=-1) < max(len(found.comms), 1)
    assert len(found.space_vm) == len(found.space_process) == len(found.space_id)
