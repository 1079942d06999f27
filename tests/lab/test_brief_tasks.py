# SPDX-License-Identifier: Apache-2.0
"""Samples of a guest whose tasks live for milliseconds and whose pids come again: each carries the task that the guest's own log says ran then."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from perfguest.capture.lab.kernels import find_kernel
from perfguest.formats.guest_stream import FLAG_USER, GuestSamples, read_guest_stream
from perfguest.formats.recording import RecordingPaths
from perfguest.symbols.guest_tasks import FLAG_TASK
from tests.guest_kernels import guest_kernel
from tests.lab.conftest import BareHosts, Host
from tests.lab.task_log import Task, TaskLog
from tests.lab.vms import Ran, compiled, make_initrd, run_scenario, vm_spec
from tests.lab.vms_inside import PACE

pytestmark = pytest.mark.lab

_WORKLOAD = """mkdir -p /dev/pts
mount -t devpts -o ptmxmode=666 devpts /dev/pts
until name=$(grep -lsx perfguest.log /sys/class/virtio-ports/*/name); do
	sleep 0.1
done
port=${name%/name}
exec /bin/threads "/dev/${port##*/}"
"""
_TABLE = np.uint64(0x000F_FFFF_FFFF_E000)
_KERNEL = ("kworker", "ksoftirqd", "rcu_", "khugepaged", "kcompactd", "kthreadd", "migration")


@dataclass(frozen=True)
class Recorded:
    """Records of the VM from the first one on that carries its task, as far as the guest's log goes. ``distance``: what the host's clock has more, in ns."""

    records: GuestSamples
    rows: npt.NDArray[np.int64]
    log: TaskLog
    distance: int

    def column(self, name: str) -> npt.NDArray[np.uint64]:
        return self.records.column(name, np.uint64)[self.rows]

    def tasks(self) -> list[Task]:
        return tasks_of(self.records, self.rows)


def tasks_of(records: GuestSamples, rows: npt.NDArray[np.int64]) -> list[Task]:
    names = [bytes(name).split(b"\0")[0].decode(errors="replace") for name in records.column("task_comm", "S16")[rows].tolist()]
    columns = (records.column(name, np.uint64)[rows].tolist() for name in ("task_pid", "task_tgid", "task_start"))
    return [Task(*task) for task in zip(*columns, names, records.column("time", np.uint64)[rows].tolist(), strict=True)]


@pytest.fixture(scope="module")
def recorded(bare_hosts: BareHosts, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    made = tmp_path_factory.mktemp("brief")
    kernel = find_kernel(guest_kernel("6.1"), None, ())
    brief = compiled("brief_guest.c", made, "-nostdlib", "-fno-stack-protector")
    initrd = make_initrd(made / "guest", kernel, {"/bin/threads": compiled("threads_guest.c", made), "/bin/brief": brief}, _WORKLOAD)

    def run(host: Host) -> tuple[Ran, GuestSamples]:
        ran = run_scenario(host, "threads", [vm_spec(host.lab.options, "threads", kernel, initrd)])["threads"]
        return ran, read_guest_stream(RecordingPaths(host.work / "threads").guest_stream).samples

    ran, records = bare_hosts.run(2, run)
    mine = np.flatnonzero(records.column("vm_pid") == ran.pid)
    mine = mine[np.argsort(records.column("time")[mine], kind="stable")]
    known = (records.column("flags", np.uint64)[mine] & np.uint64(FLAG_TASK)) != 0
    return logged(records, mine[int(np.argmax(known)) :], TaskLog(ran.log()))


def logged(records: GuestSamples, rows: npt.NDArray[np.int64], log: TaskLog) -> Recorded:
    distance = log.clock_distance(tasks_of(records, rows))
    time = records.column("time", np.int64)[rows] - distance
    return Recorded(records, rows[(time >= log.begin) & (time <= log.end)], log, distance)


def test_the_guest_does_what_it_should(recorded: Recorded) -> None:
    log = recorded.log
    pace = log.pace(30)
    print(f"{log.brief} processes in {log.seconds:.0f} s of the guest, {log.brief / log.seconds:.1f} a second, in 30 s {pace:.1f}, with {log.pids} pids")
    # It starts sixty a second. A machine that has other work may not let it do so all the time.
    assert pace >= PACE
    assert log.brief > 1000
    # Pids came again and again.
    assert log.brief > 3 * log.pids


def test_each_sample_has_the_task_that_ran_then(recorded: Recorded) -> None:
    known = (recorded.column("flags") & np.uint64(FLAG_TASK)) != 0
    tasks = recorded.tasks()
    why = Counter(recorded.log.ran_then(task, recorded.distance) for task in tasks)
    kinds = Counter(map(kind_of, tasks))
    print(f"{len(tasks)} samples, of them {dict(kinds)}; {known.sum()} with a task; {why[''] / len(tasks):.4%} are what the guest's log says, else {dict(why)}")
    print([task for task in tasks if recorded.log.ran_then(task, recorded.distance)][:10])
    assert len(tasks) > 2000
    assert min(kinds["forked process"], kinds["process after an exec"], kinds["kernel thread"]) > 100
    assert known.mean() >= 0.999
    assert why[""] >= 0.995 * len(tasks)
    print(by_page_table(recorded, tasks))


def kind_of(task: Task) -> str:
    """By what it is called. A brief process that has not called itself anything yet counts with its parent or, after an exec, as what it is."""
    if not task.pid:
        return "swapper"
    if task.comm.startswith(_KERNEL):
        return "kernel thread"
    if brief := re.fullmatch(r"s(\d+)", task.comm):
        return "process after an exec" if int(brief[1]) % 2 else "forked process"
    return "process after an exec" if task.comm == "brief" else "other process"


def by_page_table(recorded: Recorded, tasks: list[Task]) -> str:
    """For comparison: what it would be to give each sample the process that had its page table last, which is what reading the guest afterwards can tell."""
    table = (recorded.column("cr3") & _TABLE).tolist()
    user = ((recorded.column("flags") & np.uint64(FLAG_USER)) != 0).tolist()
    last = {one: (task.tgid, task.start) for one, task, is_user in zip(table, tasks, user, strict=True) if is_user}
    right = sum(last.get(one) == (task.tgid, task.start) for one, task in zip(table, tasks, strict=True))
    of_user = sum(last[one] == (task.tgid, task.start) for one, task, is_user in zip(table, tasks, user, strict=True) if is_user)
    return f"matching by CR3 afterwards would be right for {right} of {len(tasks)} samples ({right / len(tasks):.1%}), of user mode {of_user} of {sum(user)}"
