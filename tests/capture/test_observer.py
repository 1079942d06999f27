# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.capture.observer import Observer, TaskSeen
from perfguest.formats.guest_stream import Memslot, read_guest_stream
from perfguest.formats.recording import stream_head
from tests.capture.made_stream import FORMAT, RECORDS, sample, vm_record

_INIT = (1, 1, 5, b"init")


def test_a_stream_of_the_module(tmp_path: Path) -> None:
    path = tmp_path / "guest.stream"
    path.write_bytes(stream_head(FORMAT) + RECORDS)
    expected = read_guest_stream(path)
    seen = Observer(FORMAT).look(RECORDS)
    assert seen.vms == expected.vms
    assert seen.vms
    fields = expected.samples.fields
    long_mode = fields[(fields["flags"] & 0x202) == 0x202]
    tables = set(zip(long_mode["vm_id"].tolist(), (long_mode["cr3"] & 0x000F_FFFF_FFFF_F000).tolist(), strict=True))
    hints = {(vm_id, cr3) for vm_id, found in seen.hints.items() for cr3 in found}
    assert hints
    assert hints <= tables
    kernel = set(long_mode["cr3"][(long_mode["flags"] & 1) == 0].tolist())
    assert all(cr3 in kernel for found in seen.hints.values() for cr3, of_kernel in found.items() if of_kernel)


def test_vm_with_its_slots() -> None:
    slots = [Memslot(0, 0xA0000, 0x7F00_0000_0000), Memslot(1 << 32, 1 << 30, 0x7F10_0000_0000)]
    (vm,) = Observer(FORMAT).look(vm_record(3, 500, 0xFFFF_FFFF_8100_0000, slots)).vms
    assert (vm.vm_id, vm.pid, vm.lstar, vm.memslots) == (3, 500, 0xFFFF_FFFF_8100_0000, slots)


def test_a_process_is_reported_once_with_its_first_time() -> None:
    observer = Observer(FORMAT)
    seen = observer.look(sample(1, 0x1000, task=_INIT, time=7) + sample(1, 0x1000, task=_INIT, time=9))
    assert seen.new == [TaskSeen(1, 1, 5, b"init", 7)]
    assert observer.look(sample(1, 0x1000, task=_INIT)).new == []
    assert observer.look(sample(2, 0x1000, task=_INIT, time=11)).new == [TaskSeen(2, 1, 5, b"init", 11)]


def test_a_new_name_is_reported_and_other_threads_names_are_not() -> None:
    observer = Observer(FORMAT)
    observer.look(sample(1, 0x1000, task=_INIT))
    assert observer.look(sample(1, 0x1000, task=(2, 1, 5, b"worker"))).new == []
    assert observer.look(sample(1, 0x1000, task=(2, 1, 6, b"worker"), time=3)).new == [TaskSeen(1, 1, 6, b"", 3)]
    assert observer.look(sample(1, 0x1000, task=(1, 1, 5, b"systemd"), time=4)).new == [TaskSeen(1, 1, 5, b"systemd", 4)]


def test_hits_are_of_user_code_with_a_task() -> None:
    task = (1, 1, 5, b"init")
    records = [sample(1, 0x1000, user=True, ip=ip, task=task) for ip in (0x401000, 0x401FFF, 0x402000)]
    seen = Observer(FORMAT).look(b"".join([*records, sample(1, 0x1000, ip=0xFFFF_FFFF_8100_0000, task=task), sample(1, 0x1000, user=True, ip=0x403000)]))
    assert dict(seen.hits) == {(1, 1, 5, 0x401): 2, (1, 1, 5, 0x402): 1}


def test_page_tables_of_the_kernel_and_their_levels() -> None:
    seen = Observer(FORMAT).look(sample(1, 0x1003, user=True) + sample(1, 0x1000) + sample(2, 0x5000, user=True, la57=True))
    assert seen.hints == {1: {0x1000: True}, 2: {0x5000: False}}
    assert seen.la57 == {2}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 3), st.binary(max_size=8), st.integers(0, 2000))
def test_garbage_ends_it_quietly(garbage: bytes, whole: int, patch: bytes, at: int) -> None:
    observer = Observer(FORMAT)
    data = bytearray((vm_record(1, 1, 1, [Memslot(0, 1, 2)]) + sample(1, 0x1000, task=_INIT)) * whole + garbage)
    data[at : at + len(patch)] = patch
    observer.look(bytes(data))
