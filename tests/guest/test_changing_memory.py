# SPDX-License-Identifier: Apache-2.0
"""Memory that changes while it is read, between two moments of one guest: at one point of the reading, at many, and in a VMM that changes it as fast as it can.

What is shown must be of one of the moments, or nothing. Between the two, directories and a file were renamed, a process executed another program, a perf map
was written anew, a cgroup was changed, a module came and one went.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from perfguest.capture.lab.kernels import find_kernel, load_order, module_bytes
from perfguest.formats.guest_stream import Memslot
from perfguest.guest import processes
from perfguest.guest.kernel import GuestUnreadable, LiveKernel, open_kernel
from perfguest.guest.memory import PAGE, GuestMemory
from perfguest.proto import guest_pb2
from tests.guest.emulated import KERNELS, EmulatedGuest, with_libraries
from tests.guest.patched import close, copy_of, write
from tests.guest.recorded import Original, check_names, recording
from tests.guest.vmm import HeldMemory

pytestmark = pytest.mark.lab

#: CPU seconds of one question: three attempts of two.
_LIMIT = 8.0


class ChangingMemory(GuestMemory):
    """That of the first moment, or of the second where ``later()`` says so, which is asked at each read. ``pages``: guest-physical, those that were read."""

    def __init__(self, first: GuestMemory, second: GuestMemory) -> None:
        super().__init__(first.fd, first.slots)
        self._fds = first.fd, second.fd
        self.later: Callable[[], bool] = bool
        self.pages: set[int] = set()

    def _pread_into(self, slot: Memslot, gpa: int, view: memoryview) -> None:
        self.fd = self._fds[self.later()]
        self.pages |= set(range(gpa & -PAGE, gpa + len(view), PAGE)) if len(view) <= PAGE else set()
        super()._pread_into(slot, gpa, view)


@dataclass(frozen=True)
class Moments:
    """``states``: of the processes by their pids, at both moments. ``modules``: their names."""

    memory: ChangingMemory
    both: tuple[GuestMemory, GuestMemory]
    kernel: LiveKernel
    states: dict[int, tuple[guest_pb2.Process, guest_pb2.Process]]
    modules: tuple[set[bytes], set[bytes]]
    original: Original

    def at(self, moment: int) -> None:
        self.memory.later = lambda: bool(moment)


@pytest.fixture(scope="module")
def moments() -> Iterator[Moments]:
    (late,) = load_order(find_kernel(Path(KERNELS[0]), None, ()), (), ("dummy",))
    files = {**with_libraries({"/usr/bin/perl": Path("/usr/bin/perl")}), "/late.ko": (0o644, module_bytes(late))}
    with EmulatedGuest(KERNELS[0], files=files, modules=("overlay",), memory=256) as guest:
        # Directories between them, so that entries of the path are on pages of their own.
        between = "for i in $(seq 60); do mkdir /tmp/between$i.%d; done; "
        guest.run("mkdir /cgroups; mount -t cgroup2 cgroups /cgroups; mkdir /cgroups/first /cgroups/second")
        guest.run(f"mkdir /tmp/a1; {between % 1} mkdir /tmp/a1/b1; {between % 2} cp /bin/busybox /tmp/a1/b1/busybox1")
        guest.run("/tmp/a1/b1/busybox1 sleep 10000 & echo $! >/tmp/renamed; sleep 10000 & echo $! >/tmp/moves; echo $! >/cgroups/first/cgroup.procs")
        guest.run("i=$(cat /tmp/renamed); for n in $(seq 900); do echo $((n * 1000)) 10 first_$n; done >/tmp/perf-$i.map")
        guest.run(
            "sh -c 'until [ -e /tmp/go ]; do usleep 10000; done; exec /usr/bin/perl -e \"open my \\$f, q(>), q(/tmp/ready); close \\$f; sleep\" title' &"
            " echo $! >/tmp/executes"
        )
        pids = [int(guest.run(f"cat /tmp/{name}")) for name in ("renamed", "moves", "executes")]
        listing = [line.split() for line in guest.run("cat /proc/kallsyms").splitlines()]
        lstar = guest.lstar()
        with guest.stopped():
            first, cr3 = copy_of(guest.memory()), guest.registers().cr3
        guest.run("mv /tmp/a1/b1/busybox1 /tmp/a1/b1/busybox2; mv /tmp/a1/b1 /tmp/a1/b2; mv /tmp/a1 /tmp/a2; touch /tmp/go")
        guest.run("i=$(cat /tmp/renamed); for n in $(seq 900); do echo $((n * 1000)) 10 second_$n; done >/tmp/perf-$i.map")
        guest.run("cat /tmp/moves >/cgroups/second/cgroup.procs")
        guest.run("until [ -e /tmp/ready ]; do usleep 10000; done; rmmod overlay; insmod /late.ko")
        assert [guest.run(f"readlink /proc/{pid}/exe") for pid in pids] == [b"/tmp/a2/b2/busybox2\n", b"/bin/busybox\n", b"/usr/bin/perl\n"]
        with guest.stopped():
            second = copy_of(guest.memory())
    memory = ChangingMemory(first, second)
    kernel = open_kernel(memory, [(cr3, lstar)])
    made, modules = [], []
    for moment in (False, True):
        memory.later = lambda moment=moment: moment  # type: ignore[misc]
        made.append([processes.read_process(kernel, pid) for pid in pids])
        modules.append({module.name for module in kernel.vm_kernel_proto(1, 2, 3).modules})
    states = {}
    for pid, one, other in zip(pids, *made, strict=True):
        assert one and other
        states[pid] = one, other
    task = (pids[0], pids[0], states[pids[0]][0].start_time, states[pids[0]][0].comm)
    kallsyms = {words[2]: int(words[0], 16) for words in listing[::-1] if len(words) == 3}
    original = Original(first, kernel, (kernel.kernel_cr3, lstar), task, kallsyms)
    yield Moments(memory, (first, second), kernel, states, (modules[0], modules[1]), original)
    close([first, second])


def paths_of(process: guest_pb2.Process) -> list[bytes]:
    return [mapping.path for mapping in process.mappings]


def test_the_two_moments_are_different(moments: Moments) -> None:
    renamed, moves, executes = moments.states.values()
    assert [b"/tmp/a1/b1/busybox1" in paths_of(renamed[0]), b"/tmp/a2/b2/busybox2" in paths_of(renamed[1])] == [True, True]
    assert [state.cgroup for state in moves] == [b"/first", b"/second"]
    assert [re.findall(rb"(\w+_900)\n", state.perf_map) for state in renamed] == [[b"first_900"], [b"second_900"]]
    assert [(state.comm, state.command) for state in executes] == [(b"sh", b"sh"), (b"perl", b"/usr/bin/perl")]
    assert moments.modules == ({b"overlay"}, {b"dummy"})


def test_a_change_at_any_point_of_the_reading(moments: Moments) -> None:
    """However much of a process was read before, and how little after: it is shown as it was before or after."""
    memory = moments.memory
    seen: set[int] = set()
    for pid, states in moments.states.items():
        point = 0
        while True:
            count = 0

            def later(point: int = point) -> bool:
                nonlocal count
                count += 1
                return count > point

            memory.later = later
            process = processes.read_process(moments.kernel, pid)
            assert process
            (which,) = [moment for moment, state in enumerate(states) if _same(process, state)]
            seen.add(which)
            if count <= point:
                assert which == 0
                break
            # Its changes are few: most of what is read is the same at both.
            point += 1
        assert point > 50
    assert seen == {0, 1}


def _same(process: guest_pb2.Process, state: guest_pb2.Process) -> bool:
    """Of a perf map it may be a part, to whole lines, as its pages were exchanged."""
    whole = guest_pb2.Process()
    whole.CopyFrom(process)
    whole.perf_map = state.perf_map
    return whole == state and state.perf_map.startswith(process.perf_map)


def check_parts(moments: Moments, process: guest_pb2.Process) -> None:
    """Names are such that were there at one of the moments, each by itself."""
    states = moments.states[process.tgid]
    parts = {part for state in states for path in [*paths_of(state), state.cgroup] for part in path.split(b"/")}
    shown = {part for path in [*paths_of(process), process.cgroup] for part in path.split(b"/")}
    # At the second moment something else may be where a file's structures were at the first: then that has this name.
    for part in shown - parts - {b"<unreadable>", b"<too_long>"}:
        # In a struct dentry the name stands behind a pointer of the kernel's, or NULL.
        names = [before + part.removesuffix(b" (deleted)") + b"\0" for before in (b"\0", b"\xff")]
        assert any(name in memory.read(slot.gpa, slot.size) for name in names for memory in moments.both for slot in memory.slots), part
    assert process.comm in {state.comm for state in states}
    assert process.command in {state.command for state in states} | {b""}
    # Where a map's page was at the first moment, something else may be at the second: that has other lines.
    lines = {line for line in process.perf_map.splitlines() if re.fullmatch(rb"[0-9a-f]+ [0-9a-f]+ \w+", line)}
    assert lines <= {line for state in states for line in state.perf_map.splitlines()}


@pytest.mark.parametrize("often", [0.5, 0.1, 0.01])
def test_changes_to_and_fro_under_each_read(moments: Moments, often: float) -> None:
    answers = 0
    for seed in range(40):
        chance, state = random.Random(f"{seed} {often}"), False

        def later(chance: random.Random = chance) -> bool:
            nonlocal state
            state ^= chance.random() < often
            return state

        moments.memory.later = later
        begun = time.process_time()
        for pid in moments.states:
            try:
                process = processes.read_process(moments.kernel, pid)
            except GuestUnreadable:
                continue
            if process:
                check_parts(moments, process)
                answers += 1
        vm = moments.kernel.vm_kernel_proto(1, 2, 3)
        assert {module.name for module in vm.modules} <= moments.modules[0] | moments.modules[1]
        assert time.process_time() - begun < 3 * _LIMIT
    # The rarer the changes are, the more is read in between.
    assert answers > (0 if often > 0.1 else 20)


def differing(first: GuestMemory, second: GuestMemory) -> list[int]:
    """Guest-physical addresses of the pages that are not the same in both."""
    found: list[int] = []
    for slot in first.slots:
        one, other = (np.frombuffer(memory.read(slot.gpa, slot.size), "<u8").reshape(-1, PAGE // 8) for memory in (first, second))
        found += (slot.gpa + PAGE * np.flatnonzero((one != other).any(axis=1))).tolist()
    return found


def test_vmm_that_changes_its_memory_as_fast_as_it_can(moments: Moments, tmp_path: Path) -> None:
    """Each page that is read of the processes, and that is another one at the second moment, all the time."""
    moments.at(0)
    moments.memory.pages.clear()
    for moment in (0, 1):
        moments.at(moment)
        for pid in moments.states:
            processes.read_process(moments.kernel, pid)
        moments.kernel.vm_kernel_proto(1, 2, 3)
    pages = sorted(moments.memory.pages & set(differing(*moments.both)))
    assert len(pages) > 20
    with HeldMemory(*moments.both) as held, recording(moments.original, held, tmp_path) as begin:
        held.flip(pages)
        found = begin()
        found.begin()
        found.wait(lambda: found.vm().state.level)
        for turn in range(16):
            for pid, states in moments.states.items():
                # Under another name each time, it is read again.
                found.task(task=(pid, pid, states[0].start_time, b"turn %d" % turn))
            found.wait(lambda: found.vm().idle)
        line, rounds = found.end(), held.stop()
    print(f"{len(pages)} pages, {rounds} times, {len(found.snapshot.processes)} processes: {line}")
    assert rounds > 100
    for process in found.snapshot.processes:
        check_parts(moments, process)
    for kernel in found.snapshot.kernels:
        assert {module.name for module in kernel.modules} <= moments.modules[0] | moments.modules[1]
    check_names(found)


@pytest.mark.parametrize("what", ["kallsyms", "BTF", "ORC", "page tables", "lists of tasks and modules"])
def test_vmm_that_makes_garbage_of_the_kernel_and_puts_it_right_again(moments: Moments, tmp_path: Path, what: str) -> None:
    """As fast as it can: what is stored of the kernel is right, or it is not there and the summary says why."""
    pages = garbage_pages(moments, what)
    other, rng = copy_of(moments.both[0]), np.random.default_rng(11)
    for page in pages:
        write(other, page, rng.bytes(PAGE))
    with HeldMemory(moments.both[0], other) as held, recording(moments.original, held, tmp_path) as begin:
        held.flip(pages)
        found = begin(request_cpu=20.0)
        found.begin()
        found.task()
        vm = found.vm()
        peak = found.peak_until(lambda: vm.state.level or (vm._opening.tries > 1 and not vm.opening))
        line, rounds = found.end(), held.stop()
    close([other])
    print(f"{what}: {len(pages)} pages, {rounds} times, {peak >> 20} MiB: {line}")
    assert rounds > 10
    assert peak < 1200 << 20
    check_names(found)
    moments.at(0)
    whole = moments.kernel.kernel_proto()
    for kernel in found.snapshot.kernels:
        assert {module.name for module in kernel.modules} <= moments.modules[0]
        stored = found.snapshot.kernel(kernel.kernel) if kernel.kernel else None
        assert stored is None or stored.orc == whole.orc or (stored.orc == guest_pb2.Orc() and "ORC table" in line)
        assert kernel.level == "processes" or kernel.reason
    for process in found.snapshot.processes:
        check_parts(moments, process)


def garbage_pages(moments: Moments, what: str) -> list[int]:
    """Guest-physical addresses."""
    kernel, memory = moments.kernel, moments.both[0]
    spans = {"BTF": ("__start_BTF", "__stop_BTF"), "ORC": ("__start_orc_unwind_ip", "__stop_orc_unwind")}
    if what == "page tables":
        # The top one, and those that map the kernel.
        tables = [kernel.kernel_cr3]
        for shift in (39, 30):
            tables.append(memory.table(tables[-1])[kernel.lstar >> shift & 511] & 0x000F_FFFF_FFFF_F000)
        return tables
    if what in spans:
        start, stop = (kernel.address_of(name) or 0 for name in spans[what])
    elif what == "kallsyms":
        tables_of = kernel.symbols.tables
        assert tables_of
        start, stop = tables_of.start, tables_of.end
    else:
        addresses = [kernel.address_of(name) or 0 for name in ("modules", "init_pid_ns", "init_task", "bpf_kallsyms")]
        return sorted({memory.translate(kernel.kernel_cr3, address) & -PAGE for address in addresses})
    # Every fourth page, so that garbage and what is right mix.
    return [memory.translate(kernel.kernel_cr3, address) & -PAGE for address in range(start & -PAGE, stop, 4 * PAGE)]
