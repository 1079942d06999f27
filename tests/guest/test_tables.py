# SPDX-License-Identifier: Apache-2.0
"""A kernel's tables: what the second VM with the same kernel costs, and that no guest is given what its own memory does not say."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.capture.guest_cache import KernelCache
from perfguest.capture.guests import Guests, GuestSettings
from perfguest.errors import FormatError
from perfguest.formats.guest_snapshot import read_snapshot
from perfguest.guest import tables, wire
from perfguest.guest.kernel import LiveKernel, find_known, open_kernel, open_known
from perfguest.guest.memory import GuestMemory
from perfguest.proto import tables_pb2
from tests.capture.fake_host import FakeHost
from tests.capture.made_stream import FORMAT, sample, vm_record
from tests.guest.emulated import KERNELS, EmulatedGuest
from tests.guest.matrix import Findings
from tests.guest.patched import close, copy_of, write
from tests.polling import wait_until

pytestmark = pytest.mark.lab

_DEADLINE = 120.0


@dataclass(frozen=True)
class Known:
    guest: EmulatedGuest
    kernel: LiveKernel
    #: The guest as it was then.
    memory: GuestMemory
    hint: tuple[int, int]
    raw: tables_pb2.KernelRaw
    made: tables_pb2.KernelTables


@pytest.fixture(scope="module", params=KERNELS, ids=lambda path: Path(path).name)
def known(request: pytest.FixtureRequest) -> Iterator[Known]:
    with EmulatedGuest(request.param, modules=("ext4", "overlay"), memory=256) as guest:
        guest.lstar()
        with guest.stopped():
            memory, hint = copy_of(guest.memory()), next(guest.hints())
        kernel = open_kernel(memory, [hint])
        raw = kernel.raw()
        assert raw
        yield Known(guest, kernel, memory, hint, raw, tables.decode(raw))
        close([memory])


def candidate(made: tables_pb2.KernelTables) -> tables.Candidate:
    return tables.Candidate(made.fingerprint, made.build_id, made.raw.entry, (made.raw.notes.address, made.raw.notes.size))


def reopen(known: Known, memory: GuestMemory, made: tables_pb2.KernelTables) -> LiveKernel:
    return open_known(memory, next(find_known(memory, [known.hint], la57=False, candidates=[candidate(made)])), made)


def test_kernel_opened_by_its_tables_is_the_same(known: Known) -> None:
    image = known.kernel.kernel_proto()
    assert known.made.fingerprint == wire.fingerprint(image)
    assert (known.made.release, known.made.build_id) == (image.release, image.build_id)
    second = reopen(known, known.memory, known.made)
    assert (second.level, second.reason, second.kaslr_offset, second.kernel_cr3) == ("processes", "", known.kernel.kaslr_offset, known.kernel.kernel_cr3)
    assert second.task_layout() == known.kernel.task_layout()
    assert second.kernel_proto() == image
    assert second.vm_kernel_proto(1, 2, 3) == known.kernel.vm_kernel_proto(1, 2, 3)


@pytest.mark.parametrize("name", ["notes", "banner", "symbols", "btf", "orc_places", "orc_entries"])
def test_another_guests_bytes_are_not_believed(known: Known, name: str) -> None:
    """One byte of the new guest's differs from those that the tables were made of: then they are not its."""
    piece = getattr(known.raw, name)
    copied = copy_of(known.memory)
    for at in (0, piece.size // 2, piece.size - 1):
        gpa = copied.translate(known.kernel.kernel_cr3, piece.address + known.kernel.kaslr_offset + at)
        before = copied.read(gpa, 1)
        write(copied, gpa, bytes([before[0] ^ 1]))
        found = list(find_known(copied, [known.hint], la57=False, candidates=[candidate(known.made)]))
        for one in found:
            with pytest.raises(FormatError, match=f"another kernel's {name}"):
                open_known(copied, one, known.made)
        assert found or name == "notes"
        write(copied, gpa, before)
    assert reopen(known, copied, known.made).level == "processes"
    close([copied])


def test_places_of_types_that_are_not_theirs_are_refused(known: Known) -> None:
    made = tables_pb2.KernelTables()
    made.CopyFrom(known.made)
    made.btf_places = made.btf_places[:400] + made.btf_places[404:]
    assert "not where they were said to be" in reopen(known, known.memory, made).reason


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_pieces_give_tables_or_words(known: Known, data: st.DataObject) -> None:
    """Whatever bytes a guest shows for its tables: they are decoded or refused, and quickly."""
    raw = tables_pb2.KernelRaw()
    raw.CopyFrom(known.raw)
    for name in data.draw(st.lists(st.sampled_from(list(tables.PIECES)), min_size=1, max_size=3)):
        piece = getattr(raw, name)
        content = bytearray(piece.data)
        for at, what in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=16)), max_size=8)):
            content[at : at + len(what)] = what[: len(content) - at]
        piece.data = bytes(content)
    begun = time.process_time()
    try:
        made = tables.decode(raw)
    except (FormatError, ValueError):
        return
    finally:
        assert time.process_time() - begun < 10
    assert len(made.types) * 8 == len(made.addresses)
    assert made.names.count(0) == len(made.types)


def peak_of_readers() -> int:
    """Bytes that the largest of the processes below us had at its peak, now that it is still there."""
    parents, peaks = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            parents[int(fields["Pid"])] = int(fields["PPid"])
            peaks[int(fields["Pid"])] = int(fields.get("VmHWM", "0 kB").split()[0]) << 10

    def is_below(pid: int) -> bool:
        while pid and pid != os.getpid():
            pid = parents.get(pid, 0)
        return bool(pid)

    return max(size for pid, size in peaks.items() if pid != os.getpid() and "qemu" not in Path(f"/proc/{pid}/comm").read_text() and is_below(pid))


def test_cost_of_the_second_vm(known: Known, findings: Findings, tmp_path: Path) -> None:
    """CPU seconds of reader and recorder, from the record of the second VM to its layout. The first one's are of a kernel that is not known yet."""
    host = FakeHost(tmp_path / "host")
    for pid, name in ((500, "web"), (600, "db"), (700, "mail"), (800, "proxy")):
        (host.add_vm(pid, name) / "mem").symlink_to(f"/proc/{known.guest.pid}/mem")
    told: list[int] = []
    guests = Guests(GuestSettings(cache=tmp_path / "cache"), host.paths.proc, tmp_path / "guests", FORMAT, lambda vm, layout: told.append(vm))
    guests.start()

    def wait(condition: Callable[[], bool]) -> None:
        wait_until(condition, _DEADLINE, lambda: guests.summary({}))

    ours, peaks = [], []
    for vm_id, pid in ((1, 500), (2, 600), (3, 700), (4, 800)):
        begun = time.process_time()
        guests.observe(vm_record(vm_id, pid, known.guest.lstar(), known.guest.slots()) + sample(vm_id, known.kernel.kernel_cr3))
        wait(lambda: len(told) == len(ours) + 1)
        ours.append(time.process_time() - begun)
        peaks.append(peak_of_readers())
        # Its tables are made after the first.
        wait(lambda: bool(guests.cached_tables()))
    guests.finish()
    guests.close()
    for fd in host.streams:
        os.close(fd)
    snapshot = read_snapshot(tmp_path / "guests")
    assert snapshot
    readers = [kernel.cpu_seconds for kernel in snapshot.kernels]
    lines = [f"{reader:.3f} s + {recorder:.3f} s" for reader, recorder in zip(readers, ours, strict=True)]
    first, *later = (reader + recorder for reader, recorder in zip(readers, ours, strict=True))
    findings.note(known.guest.release, **{"1st VM": f"{first:.2f} s {peaks[0] >> 20} MB", "2nd VM": f"{min(later):.3f} s"})
    assert max(peaks) < 300 << 20
    print(f"{known.guest.release}: readers and recorder took {', '.join(lines)}")
    assert {kernel.level for kernel in snapshot.kernels} == {"processes"}
    assert len({kernel.kernel for kernel in snapshot.kernels}) == 1
    # Half of it, or less, where nothing else wants the processor.
    assert first < 3
    # The best of three; a tenth of a second, and half more on a machine that has much else to do.
    assert min(later) < 0.15
    assert KernelCache(tmp_path / "cache").with_tables()
