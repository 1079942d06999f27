# SPDX-License-Identifier: Apache-2.0
"""Processes and binaries of a guest whose memory lies: a running guest's, changed on its way to the reader."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from perfguest.guest import binaries, mappings, processes, tasks, xarrays
from perfguest.guest.kernel import GuestUnreadable, LiveKernel, open_kernel
from perfguest.guest.memory import GuestMemory
from perfguest.guest.view import View
from perfguest.proto import guest_pb2
from tests.guest.emulated import KERNELS, EmulatedGuest

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
    with EmulatedGuest(KERNELS[0], cpu=_CPU) as guest:
        guest.run("mkdir /cgroups; mount -t cgroup2 cgroups /cgroups; mkdir -p /cgroups/a/b; echo 1 >/cgroups/a/b/cgroup.procs")
        yield guest


@pytest.fixture
def liar(guest: EmulatedGuest) -> Iterator[Liar]:
    kernel = guest_kernel(guest)
    with guest.stopped():
        memory = LyingMemory(guest.fd, guest.slots())
        memory.patches, memory.lie = {}, None
        kernel.memory = memory
        process = processes.read_process(kernel, 1)
        assert process is not None
        assert process.cgroup == b"/a/b"
        yield Liar(kernel, memory, 1, process)


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
    for seed in range(150):
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
