# SPDX-License-Identifier: Apache-2.0
"""Processes and binaries of a guest whose memory lies: a running guest's, changed on its way to the reader."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfguest.capture.guest_check import check_process
from perfguest.guest import binaries, mappings, paths, processes, tasks, xarrays
from perfguest.guest.kernel import GuestUnreadable, LiveKernel, open_kernel
from perfguest.guest.memory import GuestMemory
from perfguest.guest.view import View
from perfguest.proto import guest_pb2
from tests.guest.emulated import KERNELS, EmulatedGuest, with_libraries

_CPU = "max,la57=off,cx16=off"
#: CPU seconds that a question may take in the worst case: three attempts of two.
_LIMIT = 8.0


class LyingMemory(GuestMemory):
    """``patches``: bytes that stand at guest-physical addresses. ``lie``: what becomes of each read."""

    patches: dict[int, bytes]
    lie: Callable[[bytes], bytes] | None

    def read(self, gpa: int, size: int) -> bytes:
        data = super().read(gpa, size)
        for at, patch in self.patches.items():
            if gpa <= at and at + len(patch) <= gpa + size:
                data = data[: at - gpa] + patch + data[at - gpa + len(patch) :]
        return self.lie(data) if self.lie else data


@dataclass
class Liar:
    kernel: LiveKernel
    memory: LyingMemory
    pid: int
    process: guest_pb2.Process

    def patch(self, address: int, value: int) -> None:
        """The kernel's 64 bits at the address."""
        self.memory.patches[View(self.kernel).physical(address)] = struct.pack("<Q", value)

    def addresses(self) -> tuple[View, int, int]:
        """A view, the task, its mm."""
        view = View(self.kernel)
        task = tasks.find_process(view, self.pid)
        assert task
        return view, task, tasks.memory_of(view, task)


@pytest.fixture(scope="module")
def guest() -> Iterator[EmulatedGuest]:
    with EmulatedGuest(KERNELS[0], cpu=_CPU, files=with_libraries({"/usr/bin/perl": Path("/usr/bin/perl")})) as guest:
        guest.run("mkdir /cgroups; mount -t cgroup2 cgroups /cgroups; mkdir -p /cgroups/a/b; echo 1 >/cgroups/a/b/cgroup.procs")
        guest.run('/usr/bin/perl -e \'open my $f, ">", "/tmp/ready"; close $f; sleep\' & echo $! >/tmp/perl')
        guest.run("until [ -e /tmp/ready ]; do usleep 10000; done; echo $(cat /tmp/perl) >/cgroups/a/b/cgroup.procs")
        guest.run("echo 401000 10 jitted >/tmp/perf-$(cat /tmp/perl).map")
        yield guest


@pytest.fixture
def liar(guest: EmulatedGuest) -> Iterator[Liar]:
    yield from lying(guest, 1)


@pytest.fixture
def perl(guest: EmulatedGuest) -> Iterator[Liar]:
    """A process with several files."""
    yield from lying(guest, int(guest.run("cat /tmp/perl")))


def lying(guest: EmulatedGuest, pid: int) -> Iterator[Liar]:
    kernel = guest_kernel(guest)
    with guest.stopped():
        memory = LyingMemory(guest.fd, guest.slots())
        memory.patches, memory.lie = {}, None
        kernel.memory = memory
        process = processes.read_process(kernel, pid)
        assert process is not None
        assert process.cgroup == b"/a/b"
        yield Liar(kernel, memory, pid, process)


_opened: dict[int, LiveKernel] = {}


def guest_kernel(guest: EmulatedGuest) -> LiveKernel:
    if guest.pid not in _opened:
        lstar = guest.lstar()
        _opened[guest.pid] = open_kernel(guest.memory(), iter([(guest.registers().cr3, lstar)]))
    return _opened[guest.pid]


def _ends(question: Callable[[], object]) -> object:
    begun = time.process_time()
    answer: object = None
    with suppress(GuestUnreadable):
        answer = question()
    assert time.process_time() - begun < _LIMIT
    return answer


def test_maple_tree_that_holds_itself(liar: Liar) -> None:
    view, _, mm = liar.addresses()
    if not view.layout.find("mm_struct", "mm_mt"):
        vma = view.get(mm, "mm_struct", "mmap")
        liar.patch(view.at(vma, "vm_area_struct", "vm_next"), vma)
    else:
        root = view.get(view.at(mm, "mm_struct", "mm_mt"), "maple_tree", "ma_root")
        slots = view.at(root & ~255, "maple_arange_64" if root >> 3 & 15 == 3 else "maple_range_64", "slot")
        # As a node with gaps, which holds itself in its first and second slot.
        liar.patch(view.at(view.at(mm, "mm_struct", "mm_mt"), "maple_tree", "ma_root"), root & ~0x78 | 3 << 3)
        slots = view.at(root & ~255, "maple_arange_64", "slot")
        for slot in range(2):
            liar.patch(slots + 8 * slot, root & ~0x78 | 3 << 3)
    with pytest.raises(GuestUnreadable):
        processes.read_process(liar.kernel, liar.pid)


def test_directory_that_is_its_own_grandparent(liar: Liar) -> None:
    view, _, mm = liar.addresses()
    vma = next(vma for vma in mappings.areas_of(view, mm) if view.get(vma, "vm_area_struct", "vm_file"))
    dentry = view.get(view.at(view.get(vma, "vm_area_struct", "vm_file"), "file", "f_path"), "path", "dentry")
    parent = view.get(dentry, "dentry", "d_parent")
    liar.patch(view.at(parent, "dentry", "d_parent"), dentry)
    process = processes.read_process(liar.kernel, liar.pid)
    assert process is not None
    assert b"<too_long>" in {mapping.path for mapping in process.mappings}


def dentry_of(liar: Liar, path: bytes) -> int:
    """Of a file that the process has mapped."""
    view, _, mm = liar.addresses()
    file = next(area.file for area in (mappings.read_area(view, mm, vma) for vma in mappings.areas_of(view, mm)) if area.path == path)
    return view.get(view.at(file, "file", "f_path"), "path", "dentry")


@pytest.mark.parametrize(
    ("length", "why"),
    [
        (4097, "a name of 4097 bytes"),
        (1 << 20, "a name of 1048576 bytes"),
        ((1 << 32) - 1, "a name of 4294967295 bytes"),
        (3, "that changes"),
        (5, "that changes"),
    ],
)
def test_name_of_impossible_length_costs_its_mapping_alone(perl: Liar, length: int, why: str) -> None:
    """Of /usr/bin/perl's directory entry; as it is, the name has four letters."""
    view, _, _ = perl.addresses()
    dentry = dentry_of(perl, b"/usr/bin/perl")
    at = view.at(dentry, "dentry", "d_name.len")
    # The name's hash is in the other half of the 64 bits.
    assert view.get(dentry, "dentry", "d_name.len") == 4
    perl.patch(at - 4, view.word(at - 4) & 0xFFFF_FFFF | length << 32)
    check_one_unreadable(perl, b"/usr/bin/perl", mappings.UNREADABLE, why)


@pytest.mark.parametrize("pointer", [0, 0xFFFF_FFFF_FFFF_F000, 0x0000_7FFF_0000_0000])
def test_name_at_no_address_costs_its_mapping_alone(perl: Liar, pointer: int) -> None:
    view, _, _ = perl.addresses()
    perl.patch(view.at(dentry_of(perl, b"/usr/bin/perl"), "dentry", "d_name.name"), pointer)
    check_one_unreadable(perl, b"/usr/bin/perl", mappings.UNREADABLE, "a mapped file's path: ")


@pytest.mark.parametrize("nameless", [False, True])
def test_paths_of_endless_depth_cost_their_mappings_alone(perl: Liar, nameless: bool) -> None:
    """Directories in each other without end; of names without a letter too, which make no path longer."""
    view, _, _ = perl.addresses()
    dentry = dentry_of(perl, b"/usr/bin/perl")
    parent = view.get(dentry, "dentry", "d_parent")
    perl.patch(view.at(parent, "dentry", "d_parent"), dentry)
    for each in (dentry, parent) if nameless else ():
        perl.patch(view.at(each, "dentry", "d_name.name"), nul_of(perl))
        at = view.at(each, "dentry", "d_name.len")
        perl.patch(at - 4, view.word(at - 4) & 0xFFFF_FFFF)
    check_one_unreadable(perl, b"/usr/bin/perl", b"<too_long>", "")


def nul_of(liar: Liar) -> int:
    """An address where there is a NUL."""
    address = (liar.kernel.address_of("linux_banner") or 0) & -4096
    return address + View(liar.kernel).read(address, 4096).index(b"\0")


def check_one_unreadable(liar: Liar, path: bytes, shown: bytes, why: str) -> None:
    process = _ends(lambda: processes.inspect(liar.kernel, liar.pid))
    assert isinstance(process, processes.LiveProcess)
    check_process(process.message)
    assert len({mapping.path for mapping in liar.process.mappings}) > 5
    expected = [shown if mapping.path == path else mapping.path for mapping in liar.process.mappings]
    assert [mapping.path for mapping in process.message.mappings] == expected
    assert any(why in problem for problem in process.problems) == bool(why)


def test_anonymous_names_without_sense(perl: Liar) -> None:
    """The vDSO's name is nowhere."""
    view, _, mm = perl.addresses()
    vma = next(vma for vma in mappings.areas_of(view, mm) if mappings.read_area(view, mm, vma).path == b"[vdso]")
    special = view.get(vma, "vm_area_struct", "vm_private_data")
    perl.patch(view.at(special, "vm_special_mapping", "name"), 0x1000)
    process = _ends(lambda: processes.inspect(perl.kernel, perl.pid))
    assert isinstance(process, processes.LiveProcess)
    assert mappings.UNREADABLE in {mapping.path for mapping in process.message.mappings}
    assert len(process.message.mappings) == len(perl.process.mappings)
    assert any("a mapping's name" in problem for problem in process.problems)


@pytest.mark.parametrize("what", ["loop", "name of a megabyte", "endless name", "to nowhere", "another's child", "unhashed"])
def test_directory_of_perf_maps_that_lies(perl: Liar, what: str) -> None:
    """Its list of entries in /tmp ends, whatever it holds, and costs the perf map alone."""
    assert perl.process.perf_map == b"401000 10 jitted\n"
    view, task, _ = perl.addresses()
    root = view.at(view.get(task, "task_struct", "fs"), "fs_struct", "root")
    start = view.get(root, "path", "mnt"), view.get(root, "path", "dentry")
    tmp, file = paths.look_up(view, *start, [b"tmp"]), paths.look_up(view, *start, [b"tmp", b"perf-%d.map" % perl.pid])
    assert tmp and file
    link, length = view.layout.field("dentry", "d_sib", "d_child")[0], view.at(file, "dentry", "d_name.len")
    if what == "loop":
        # The other entries come before it, or it is hidden behind the loop.
        first = view.word(view.at(tmp, "dentry", "d_children", "d_subdirs"))
        perl.patch(first, first)
        perl.patch(view.at(file, "dentry", "d_parent"), file)
    elif what == "name of a megabyte":
        perl.patch(length - 4, view.word(length - 4) & 0xFFFF_FFFF | 1 << 52)
    elif what == "endless name":
        perl.patch(length - 4, view.word(length - 4) & 0xFFFF_FFFF | 4096 << 32)
    elif what == "to nowhere":
        perl.patch(view.at(tmp, "dentry", "d_children", "d_subdirs"), 0x1000 + link)
    elif what == "another's child":
        perl.patch(view.at(file, "dentry", "d_parent"), start[1])
    else:
        perl.patch(view.at(file, "dentry", "d_hash.pprev"), 0)
    process = _ends(lambda: processes.inspect(perl.kernel, perl.pid))
    assert isinstance(process, processes.LiveProcess)
    assert process.message.perf_map == b""
    assert list(process.message.mappings) == list(perl.process.mappings)
    assert bool(process.problems) == (what in {"loop", "to nowhere"})


def test_cgroups_of_endless_names(perl: Liar) -> None:
    view, task, _ = perl.addresses()
    node = view.get(view.get(view.get(task, "task_struct", "cgroups"), "css_set", "dfl_cgrp"), "cgroup", "kn")
    banner = (perl.kernel.address_of("linux_banner") or 0) & -4096
    perl.memory.patches[view.physical(banner)] = b"a" * 300
    perl.patch(view.at(node, "kernfs_node", "name"), banner)
    process = _ends(lambda: processes.inspect(perl.kernel, perl.pid))
    assert isinstance(process, processes.LiveProcess)
    assert process.message.cgroup == b""
    assert process.problems == ["its cgroup: a cgroup's name without an end"]


def test_mount_loop_and_cgroup_loop(liar: Liar) -> None:
    view, task, mm = liar.addresses()
    vma = next(vma for vma in mappings.areas_of(view, mm) if view.get(vma, "vm_area_struct", "vm_file"))
    mount = view.get(view.at(view.get(vma, "vm_area_struct", "vm_file"), "file", "f_path"), "path", "mnt")
    liar.patch(view.at(mount - view.layout.offset("mount", "mnt"), "mount", "mnt_parent"), mount)
    group = view.get(view.get(view.get(task, "task_struct", "cgroups"), "css_set", "dfl_cgrp"), "cgroup", "kn")
    liar.patch(view.at(group, "kernfs_node", "parent", "__parent"), group)
    process = _ends(lambda: processes.inspect(liar.kernel, liar.pid))
    assert isinstance(process, processes.LiveProcess | None)
    if process:
        assert process.message.cgroup == b""
        assert any("cgroup" in problem for problem in process.problems)


def test_pids_and_page_cache_whose_nodes_hold_themselves(liar: Liar) -> None:
    view, _, mm = liar.addresses()
    vma = next(vma for vma in mappings.areas_of(view, mm) if view.get(vma, "vm_area_struct", "vm_file"))
    pages = view.at(view.get(view.get(vma, "vm_area_struct", "vm_file"), "file", "f_mapping"), "address_space", "i_pages")
    handle = next(handle for handle in binaries.files(liar.process).values() if handle.path != b"[vdso]")
    for xarray in (pages, tasks._pids(view)):
        head = view.get(xarray, "xarray", "xa_head")
        assert head & 3 == 2
        for slot in range(64):
            liar.patch(view.at(head - 2, "xa_node", "slots") + 8 * slot, head)
        with pytest.raises(GuestUnreadable):
            binaries.read_binary(liar.kernel, handle, 1 << 20)
    assert _ends(lambda: processes.read_process(liar.kernel, liar.pid)) is None


def test_page_of_another_file_is_left_out(liar: Liar) -> None:
    handle = next(handle for handle in binaries.files(liar.process).values() if handle.path != b"[vdso]")
    before = binaries.read_binary(liar.kernel, handle, 64 << 20)
    view, _, mm = liar.addresses()
    vma = next(vma for vma in mappings.areas_of(view, mm) if view.get(vma, "vm_area_struct", "vm_file"))
    mapping = view.get(view.get(vma, "vm_area_struct", "vm_file"), "file", "f_mapping")
    page = xarrays.load(view, view.at(mapping, "address_space", "i_pages"), 3)
    kind = "folio" if view.layout.find("folio", "mapping") else "page"
    liar.patch(view.at(page, kind, "mapping"), mapping + 64)
    after = binaries.read_binary(liar.kernel, handle, 64 << 20)
    data = before.pages[0].data
    assert [(run.address, run.data) for run in after.pages] == [(0, data[: 3 * 4096]), (4 * 4096, data[4 * 4096 :])]


def _mutated(data: bytes, chance: random.Random, seen: list[bytes]) -> bytes:
    if chance.random() > 0.02 or len(data) < 8:
        return data
    at = chance.randrange(len(data) // 8) * 8
    seen.append(data[at : at + 8])
    wrong = chance.choice([bytes(8), b"\xff" * 8, chance.randbytes(8), chance.choice(seen), struct.pack("<Q", chance.getrandbits(12))])
    return data[:at] + wrong + data[at + 8 :]


def test_memory_that_changes_under_each_read(liar: Liar) -> None:
    handles = list(binaries.files(liar.process).values())
    answers = 0
    for seed in range(50):
        chance, seen = random.Random(seed), [bytes(8)]
        liar.memory.lie = lambda data, chance=chance, seen=seen: _mutated(data, chance, seen)
        process = _ends(lambda: processes.read_process(liar.kernel, liar.pid))
        if isinstance(process, guest_pb2.Process):
            answers += 1
            assert process.ByteSize() < 48 << 20
            assert len(process.mappings) <= mappings.MAX_MAPPINGS + 1
        handle = handles[seed % len(handles)]
        binary = _ends(lambda handle=handle: binaries.read_binary(liar.kernel, handle, 1 << 20))  # type: ignore[misc]
        if isinstance(binary, guest_pb2.Binary):
            assert sum(len(run.data) for run in binary.pages) <= 1 << 20
    # Some of the lies are small ones.
    assert answers > 0
