# SPDX-License-Identifier: Apache-2.0
"""What becomes of a recording beside readers of all kinds. The guests' memory is this process's own."""

from __future__ import annotations

import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perfguest.capture import guests
from perfguest.capture.debugfs import TaskLayout
from perfguest.capture.guest_modules import keep_known
from perfguest.capture.guest_reader import ReaderLimits
from perfguest.capture.guests import Guests, GuestSettings
from perfguest.errors import EnvironmentProblem
from perfguest.formats.guest_snapshot import GuestSnapshot, read_snapshot
from perfguest.formats.guest_stream import Memslot
from perfguest.proto import guest_pb2 as pb
from tests.capture.fake_host import FakeHost
from tests.capture.fake_reader import LAYOUT, kernel
from tests.capture.made_stream import FORMAT, sample, vm_record
from tests.polling import wait_until

_LSTAR = 0xFFFF_FFFF_8100_0000
_VM = vm_record(1, 500, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(1, 0x1000)
_HELPER = Path(__file__).with_name("fake_reader.py")
_DEADLINE = 30.0


class Reading:
    """Guests that are read by a fake reader."""

    def __init__(self, host: FakeHost, directory: Path, settings: GuestSettings) -> None:
        self.told: list[tuple[int, TaskLayout | None]] = []
        self.directory = directory
        self.refuses = False
        self.guests = Guests(settings, host.paths.proc, directory, FORMAT, self.tell)
        self.guests.start()

    def tell(self, vm_id: int, layout: TaskLayout | None) -> None:
        self.told.append((vm_id, layout))
        if self.refuses:
            raise EnvironmentProblem("the module does not want it")

    def wait(self, condition: Callable[[], object]) -> None:
        wait_until(condition, _DEADLINE, lambda: self.guests.summary({}))

    def end(self) -> list[str]:
        self.guests.finish()
        lines = self.guests.summary({500: "web", 600: "db"})
        self.guests.close()
        return lines

    @property
    def snapshot(self) -> GuestSnapshot:
        snapshot = read_snapshot(self.directory)
        assert snapshot
        assert not snapshot.notes
        return snapshot


@pytest.fixture
def reading(fake_host: FakeHost, tmp_path: Path) -> Iterator[Callable[..., Reading]]:
    """Begins to read, in the mode of tests/capture/fake_reader.py."""
    for pid, name in ((500, "web"), (600, "db")):
        (fake_host.add_vm(pid, name) / "mem").symlink_to("/proc/self/mem")
    begun: list[Reading] = []
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def begin(mode: str, **settings: object) -> Reading:
        limits = ReaderLimits(request_cpu=1.0, request_wall=2.0, answer=4 << 20)
        chosen = GuestSettings(wait=_DEADLINE, limits=limits, reader=(sys.executable, str(_HELPER), mode))
        begun.append(Reading(fake_host, tmp_path / f"guests{len(begun)}", replace(chosen, **settings)))  # type: ignore[arg-type]
        return begun[-1]

    yield begin
    for each in begun:
        each.guests.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def _task(tgid: int, comm: bytes = b"", start: int = 100, ip: int = 0x400000, pid: int = 0) -> bytes:
    return sample(1, 0x1000, user=True, ip=ip, task=(pid or tgid, tgid, start, comm or b"c%d" % tgid))


def test_kernel_processes_and_their_files_the_most_hit_first(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(_task(7) + _task(7, ip=0x500000) + _task(7, ip=0x501000) + _task(8))
    assert run.end() == ["web: Linux 6.1.0, 2 processes, 2 binaries (16.4 kB) from its memory"]
    assert run.told == [(1, TaskLayout(**LAYOUT))]
    (vm_kernel,) = run.snapshot.kernels
    assert (vm_kernel.vm_pid, vm_kernel.vm_id, vm_kernel.lstar, vm_kernel.time) == (500, 1, _LSTAR, 1000)
    stored = run.snapshot.kernel(vm_kernel.kernel)
    assert stored
    assert stored.symbols == kernel().symbols
    assert {(process.tgid, process.comm, process.vm_id, process.time) for process in run.snapshot.processes} == {(7, b"c7", 1, 2000), (8, b"c8", 1, 2000)}
    ages = [(run.directory / f"binaries/{key}.pb.gz").stat().st_mtime_ns for key in ("bb", "aa")]
    assert ages == sorted(ages)


def test_process_is_read_again_at_a_new_name_and_at_unknown_code(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(_VM)
    run.guests.observe(_task(7))
    run.wait(lambda: (run.directory / "events").exists() and len(run.snapshot.processes) == 1)
    run.guests.observe(_task(7, b"other"))
    run.wait(lambda: (run.directory / "events").exists() and len(run.snapshot.processes) == 2)
    # Known code asks nothing. Unknown code does, once the pause is over.

    def is_read_again() -> bool:
        run.guests.observe(_task(7, b"other", ip=0x400000) + _task(7, b"other", ip=0x900000))
        return len(run.snapshot.processes) >= 3

    run.wait(is_read_again)
    run.end()


def test_new_process_of_an_old_pid(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(_VM + _task(7))
    run.wait(lambda: (run.directory / "events").exists() and len(run.snapshot.processes) == 1)
    run.guests.observe(_task(7, start=900))
    run.end()
    assert [process.start_time for process in run.snapshot.processes] == [100, 900]


def test_kernel_that_changes_is_read_again_and_its_tasks_forgotten(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(vm_record(1, 500, _LSTAR + 0x2000000, [Memslot(0, 1 << 30, 1 << 40)], time=5000) + sample(1, 0x2000))
    run.wait(lambda: len(run.told) == 3)
    run.end()
    assert [layout is None for _, layout in run.told] == [False, True, False]
    assert [(each.lstar, each.time) for each in run.snapshot.kernels] == [(_LSTAR, 1000), (_LSTAR + 0x2000000, 5000)]


def test_processes_of_samples_without_a_task_are_found_by_their_page_tables(reading: Callable[..., Reading]) -> None:
    """As of a recording that has ended before its kernel was open."""
    run = reading("knows owners")
    run.guests.observe(_VM)
    assert run.end() == ["web: Linux 6.1.0, 1 process, 2 binaries (16.4 kB) from its memory"]
    assert [(one.tgid, one.start_time, one.comm) for one in run.snapshot.processes] == [(7, 100, b"c7")]


def test_owners_that_cannot_be_found_are_told(reading: Callable[..., Reading]) -> None:
    run = reading("finds no owners")
    run.guests.observe(_VM)
    (line,) = run.end()
    assert line.endswith("the processes of the first samples could not be found: its tasks make no sense")


@pytest.mark.parametrize(("mode", "words"), [("too many owners", "impossible processes"), ("owners of a kind", "a process that is none")])
def test_owners_are_checked(reading: Callable[..., Reading], mode: str, words: str) -> None:
    run = reading(mode)
    run.guests.observe(_VM)
    (line,) = run.end()
    assert words in line
    assert not run.snapshot.processes


def test_module_that_is_hit_is_read(reading: Callable[..., Reading]) -> None:
    """A reading for each page that nothing explains, and none for what is known; what the reader says of the kernel itself does not count."""
    run = reading("loads a module")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(sample(1, 0x1000, ip=0xFFFFFFFFC0101000, time=7000))
    run.wait(lambda: len(run.snapshot.kernels) == 2)
    run.guests.observe(sample(1, 0x1000, ip=0xFFFFFFFFC0102000, time=8000) + sample(1, 0x1000, ip=0xFFFFFFFFC0900000, time=9000))
    run.end()
    first, second = run.snapshot.kernels
    assert (second.time, second.kernel, second.kaslr_offset, second.lstar) == (7000, first.kernel, first.kaslr_offset, _LSTAR)
    assert [module.name for module in second.modules] == [b"late"]


def test_code_of_modules_is_read_once(reading: Callable[..., Reading]) -> None:
    run = reading("loads a module")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    for number, page in enumerate((0xFFFFFFFFC0101000, 0xFFFFFFFFC0900000, 0xFFFFFFFFC0A00000)):
        run.guests.observe(sample(1, 0x1000, ip=page, time=7000 + number))
    run.end()
    (text,) = run.snapshot.module_texts
    assert (text.vm_pid, text.vm_id, text.lstar, text.address, zlib.decompress(text.packed)) == (500, 1, _LSTAR, 0xFFFFFFFFC0100000, bytes(0x3000))


def test_code_that_was_not_asked_for_is_not_taken(reading: Callable[..., Reading]) -> None:
    run = reading("another module's code")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(sample(1, 0x1000, ip=0xFFFFFFFFC0101000, time=7000))
    (line,) = run.end()
    assert "another module's code than was asked for" in line
    assert run.snapshot.module_texts == []


def test_module_list_that_kills_the_reader_leaves_the_rest(reading: Callable[..., Reading]) -> None:
    run = reading("dies at modules")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(sample(1, 0x1000, ip=0xFFFFFFFFC0101000, time=7000) + _task(7))
    (line,) = run.end()
    assert "signal 11" in line
    assert run.snapshot.kernels[0].level == "processes"


def test_second_vm_with_the_same_kernel(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(vm_record(2, 600, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(2, 0x1000))
    assert run.end() == [f"{name}: Linux 6.1.0, 0 processes, 0 binaries (0 B) from its memory" for name in ("web", "db")]
    assert len({each.kernel for each in run.snapshot.kernels}) == 1


def test_kernel_from_the_cache(reading: Callable[..., Reading], tmp_path: Path) -> None:
    for _ in range(2):
        run = reading("works", cache=tmp_path / "cache")
        run.guests.observe(_VM)
        run.end()
        stored = run.snapshot.kernel(run.snapshot.kernels[0].kernel)
        assert stored
        assert stored.symbols == kernel().symbols
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("mode", ["gives garbage for tables", "lies about tables"])
def test_tables_that_are_none_help_nobody_and_harm_nothing(reading: Callable[..., Reading], tmp_path: Path, mode: str) -> None:
    run = reading(mode, cache=tmp_path / "cache")
    run.guests.observe(_VM)
    assert run.end() == ["web: Linux 6.1.0, 0 processes, 0 binaries (0 B) from its memory"]
    assert not run.guests.cached_tables()
    assert not list((tmp_path / "cache").glob("*.tables"))
    assert len(list((tmp_path / "cache").glob("*.pb.gz"))) == 1


def test_cache_that_others_may_write_to_is_not_used(reading: Callable[..., Reading], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    run = reading("works", cache=tmp_path / "cache")
    run.guests.observe(_VM)
    run.end()
    assert run.snapshot.kernels
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("silent from the start", "took too long"),
        ("silent", "took too long"),
        ("busy", "took too long"),
        ("exit", "ended with status 3"),
        ("crash", "was ended by signal 11"),
        ("garbage", "sent garbage"),
        ("huge", "sent garbage"),
        ("endless", "what was not asked for"),
        ("endless kernels", "what was not asked for"),
        ("no message", "a message that is none"),
        ("not json", "sent garbage"),
        ("wants without end", "what was not asked for"),
        ("deep json", "sent garbage"),
        ("a list", "sent garbage"),
        ("not asked for", "what was not asked for"),
        ("symbols that do not fit", "symbols that do not fit"),
        ("a path for a key", "an impossible key"),
        ("a layout of nonsense", "a layout of tasks"),
        ("unusable", "no such thing"),
        ("fails", r"nothing there\x1b[31m"),
    ],
)
def test_readers_that_fail_leave_addresses_and_say_why(reading: Callable[..., Reading], mode: str, said: str) -> None:
    run = reading(mode)
    run.guests.observe(_VM)
    begun = time.monotonic()
    (line,) = run.end()
    assert time.monotonic() - begun < 20
    assert line.startswith("web: kernel not known, nothing from its memory: ")
    assert said in line
    (vm_kernel,) = run.snapshot.kernels
    assert (vm_kernel.level, vm_kernel.lstar) == ("addresses", _LSTAR)
    assert vm_kernel.reason
    assert not run.told


@pytest.mark.parametrize("mode", ["another process", "more than its budget"])
def test_lies_about_processes_are_told_and_the_kernel_stays(reading: Callable[..., Reading], mode: str) -> None:
    run = reading(mode)
    run.guests.observe(_VM)
    run.guests.observe(_task(7))
    (line,) = run.end()
    assert "asked for" in line
    assert run.snapshot.kernels[0].level == "processes"
    assert run.snapshot.problems
    assert not list((run.directory / "binaries").iterdir())


def test_reader_that_a_process_kills_is_followed_by_another(reading: Callable[..., Reading]) -> None:
    run = reading("dies at 666")
    run.guests.observe(_VM)
    run.guests.observe(b"".join(map(_task, (5, 666, 7))))
    (line,) = run.end()
    assert line.startswith("web: Linux 6.1.0, 2 processes, 2 binaries")
    assert "signal 11" in line
    assert {process.tgid for process in run.snapshot.processes} == {5, 7}


def test_waiting_ends_by_itself_or_by_a_signal(reading: Callable[..., Reading]) -> None:
    patient = ReaderLimits(request_wall=1000.0)
    run = reading("silent", limits=patient, wait=0.3)
    run.guests.observe(_VM)
    begun = time.monotonic()
    assert "the recording ended before" in run.end()[0]
    assert 0.3 <= time.monotonic() - begun < 5
    run = reading("silent", limits=patient)
    run.guests.observe(_VM)
    signal, interrupt = os.pipe()
    os.write(interrupt, b"!")
    begun = time.monotonic()
    run.guests.finish(signal)
    assert time.monotonic() - begun < 5
    os.close(signal)
    os.close(interrupt)
    run.guests.close()


def test_memory_that_cannot_be_opened(reading: Callable[..., Reading], fake_host: FakeHost) -> None:
    (fake_host.paths.proc / "500/mem").unlink()
    run = reading("works")
    run.guests.observe(_VM)
    assert "cannot be opened: No such file" in run.end()[0]


@pytest.mark.parametrize("gone", ["its VM", "all of it"])
def test_process_that_has_no_vm_is_not_read(reading: Callable[..., Reading], fake_host: FakeHost, gone: str) -> None:
    (fake_host.paths.proc / "500/fd/9").unlink()
    if gone == "all of it":
        shutil.rmtree(fake_host.paths.proc / "500")
    run = reading("works")
    run.guests.observe(_VM)
    assert run.end() == ["web: kernel not known, nothing from its memory: the VM ended while it was read"]


def test_vm_that_ends_while_its_kernel_is_opened(reading: Callable[..., Reading]) -> None:
    run = reading("ends")
    run.guests.observe(_VM)
    assert run.end() == ["web: kernel not known, nothing from its memory: the VM ended while it was read"]
    assert [problem.text for problem in run.snapshot.problems] == ["the VM ended while it was read"]


def test_vm_that_ends_between_two_processes(reading: Callable[..., Reading]) -> None:
    """What was read stays, and nothing more is asked for."""
    run = reading("ends at 666")
    run.guests.observe(_VM)
    for tgid in (5, 666, 7):
        run.guests.observe(_task(tgid))
    (line,) = run.end()
    assert line == "web: Linux 6.1.0, 1 process, 0 binaries (0 B) from its memory, 2 not read in time: the VM ended while it was read"
    assert [process.tgid for process in run.snapshot.processes] == [5]


def test_module_list_of_a_vm_that_has_ended_takes_no_place(reading: Callable[..., Reading]) -> None:
    run = reading("ends at modules")
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    run.guests.observe(sample(1, 0x1000, ip=0xFFFFFFFFC0101000, time=7000))
    assert run.end() == ["web: Linux 6.1.0, 0 processes, 0 binaries (0 B) from its memory: the VM ended while it was read"]
    assert [each.time for each in run.snapshot.kernels] == [1000]


def test_modules_keep_what_was_known_of_them() -> None:
    known = pb.Module(name=b"a", address=0x1000, symbols=pb.Symbols(types=b"t"), orc=pb.Orc(addresses=bytes(8)))
    same, moved, better = pb.Module(name=b"a", address=0x1000), pb.Module(name=b"a", address=0x2000), pb.Module(name=b"a", address=0x1000)
    better.symbols.types = b"T"
    keep_known([known], [same, moved, better])
    assert (same.symbols.types, same.orc) == (b"t", known.orc)
    assert not moved.symbols.types
    assert (better.symbols.types, better.orc) == (b"T", known.orc)


def test_parts_that_are_missing_are_told_once(reading: Callable[..., Reading]) -> None:
    run = reading("parts")
    run.guests.observe(_VM + b"".join(map(_task, (5, 6, 7))))
    (line,) = run.end()
    assert line.endswith(r" from its memory: parts of a process could not be read: its cgroup: none\x1b[31m")
    assert line.startswith("web: Linux 6.1.0, 3 processes")


def _vms(number: int) -> bytes:
    return b"".join(vm_record(vm, 500, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(vm, 0x1000) for vm in range(1, number + 1))


def test_opening_that_spins_holds_up_no_other_vm(reading: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six VMs whose openings would take for ever, and a good one: it is read while they spin, no more than four at once."""
    monkeypatch.setattr(guests, "_OPENING_SECONDS", 0.1)
    monkeypatch.setattr(guests, "_OPENING_LOADS", 0.0)
    run = reading("busy up to VM 6", limits=ReaderLimits(request_cpu=1.0, request_wall=60.0))
    most = 0

    def is_told() -> bool:
        nonlocal most
        most = max(most, sum(vm.opening for vm in list(run.guests._vms.values())))
        return bool(run.told)

    run.guests.observe(_vms(7))
    run.wait(is_told)
    assert run.told == [(7, TaskLayout(**LAYOUT))]
    assert 1 < most <= guests._MOST_OPENING == 4
    lines = run.end()
    assert sum("took too long" in line for line in lines) == 6


def test_tables_that_are_never_made_hold_up_no_other_vm(reading: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_OPENING_SECONDS", 0.1)
    monkeypatch.setattr(guests, "_OPENING_LOADS", 0.0)
    run = reading("spins over tables", limits=ReaderLimits(request_cpu=1000.0, request_wall=1000.0), wait=0.1)
    run.guests.observe(_VM)
    run.wait(lambda: run.guests._tables and run.guests._tables.reader)
    run.guests.observe(vm_record(7, 600, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(7, 0x1000))
    run.wait(lambda: len(run.told) == 2)
    assert run.guests._tables and run.guests._tables.busy
    assert run.end() == [f"{name}: Linux 6.1.0, 0 processes, 0 binaries (0 B) from its memory" for name in ("web", "db")]


def test_patience_grows_with_what_loading_took(reading: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is an opening beside what is slow on this machine."""
    monkeypatch.setattr(guests, "_OPENING_SECONDS", 0.0)
    monkeypatch.setattr(guests, "_OPENING_LOADS", 1e9)
    run = reading("busy up to VM 6", limits=ReaderLimits(request_cpu=0.5, request_wall=60.0))
    most = 0

    def is_told() -> bool:
        nonlocal most
        most = max(most, sum(vm.opening for vm in list(run.guests._vms.values())))
        return bool(run.told)

    run.guests.observe(vm_record(1, 500, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(1, 0x1000))
    run.guests.observe(vm_record(7, 600, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(7, 0x1000))
    run.wait(is_told)
    assert most == 1
    assert "took too long" in run.end()[0]


def test_good_vm_is_read_before_one_that_spins_is_given_up(reading: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_OPENING_SECONDS", 0.1)
    monkeypatch.setattr(guests, "_OPENING_LOADS", 0.0)
    run = reading("busy up to VM 6", limits=ReaderLimits(request_cpu=1000.0, request_wall=1000.0), wait=0.1)
    spinning = vm_record(1, 500, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(1, 0x1000)
    run.guests.observe(spinning)
    run.wait(lambda: 1 in run.guests._vms and run.guests._vms[1].opening)
    run.guests.observe(vm_record(7, 600, _LSTAR, [Memslot(0, 1 << 30, 1 << 40)]) + sample(7, 0x1000))
    run.wait(lambda: run.told)
    assert run.guests._vms[1].opening
    assert run.end()[1] == "db: Linux 6.1.0, 0 processes, 0 binaries (0 B) from its memory"


def test_module_that_refuses_is_told(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.refuses = True
    run.guests.observe(_VM)
    run.wait(lambda: run.told)
    assert "the module does not want it" in run.end()[0]


def test_nothing_seen_is_nothing_made(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(b"garbage" * 100)
    assert run.end() == []
    assert not run.directory.exists()


def test_vm_without_page_tables_or_syscall_entry(reading: Callable[..., Reading]) -> None:
    run = reading("works")
    run.guests.observe(vm_record(1, 500, _LSTAR, []) + vm_record(2, 600, 0, []) + sample(2, 0x1000))
    lines = run.end()
    assert [line.split(":")[0] for line in lines] == ["web", "db"]
    assert all("nothing from its memory: " in line for line in lines)


def test_place_that_is_full_or_gone_is_told(reading: Callable[..., Reading], tmp_path: Path) -> None:
    (tmp_path / "guests0").write_text("in the way")
    run = reading("works")
    run.guests.observe(_VM)
    assert any("could not be written" in line for line in run.end())
