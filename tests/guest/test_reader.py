# SPDX-License-Identifier: Apache-2.0
"""The whole way on a running guest: a recorder on a fake host whose VMM is a real one, in software emulation, and whose module's stream is made here."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perfguest.capture.guest_cache import KernelCache
from perfguest.capture.guests import GuestSettings
from perfguest.capture.lab.kernels import find_kernel, load_order, module_bytes
from perfguest.capture.messages import Messages
from perfguest.capture.recorder import RecordSettings, record
from perfguest.formats.guest_snapshot import GuestSnapshot, read_snapshot
from tests.capture.fake_host import FakeHost
from tests.capture.made_stream import FORMAT, sample, vm_record
from tests.guest.emulated import KERNELS, EmulatedGuest
from tests.polling import wait_until

_DEADLINE = 60.0


@pytest.fixture(scope="module", params=KERNELS[:1], ids=lambda path: Path(path).name)
def guest(request: pytest.FixtureRequest) -> Iterator[EmulatedGuest]:
    (late,) = load_order(find_kernel(Path(request.param), None, ()), (), ("dummy",))
    with EmulatedGuest(request.param, files={"/late.ko": (0o644, module_bytes(late))}) as running:
        running.run("sleep 1000 & echo $! >/tmp/sleep")
        yield running


@pytest.fixture
def host(tmp_path: Path, guest: EmulatedGuest) -> Iterator[FakeHost]:
    made = FakeHost(tmp_path / "host")
    (made.paths.debugfs / "perfguest/format").write_bytes(FORMAT)
    (made.paths.debugfs / "perfguest/tasks").write_text("")
    process = made.add_vm(500, "web")
    (process / "mem").symlink_to(f"/proc/{guest.pid}/mem")
    yield made
    for fd in made.streams:
        os.close(fd)


def _settings(host: FakeHost, out: Path, **guests: object) -> RecordSettings:
    chosen = replace(GuestSettings(cache=out.parent / "cache/kernels"), **guests)  # type: ignore[arg-type]
    return RecordSettings(out, event="cpu-clock", perf=str(host.perf), kdir=host.root, guests=chosen, command=("sleep", "1000"), duration=_DEADLINE)


def _record(settings: RecordSettings, host: FakeHost, play: Callable[[], None]) -> list[str]:
    """Records while ``play`` runs, and gives what was said."""
    text = io.StringIO()
    ended: list[BaseException] = []
    done = settings.output.parent / "done"

    def run() -> None:
        try:
            play()
        except BaseException as error:
            ended.append(error)
        finally:
            done.touch()

    player = threading.Thread(target=run)
    player.start()
    command = ("sh", "-c", f"until [ -e {done} ]; do sleep 0.02; done")
    assert record(replace(settings, command=command), host.paths, messages=Messages(text)) == 0
    player.join()
    if ended:
        raise ended[0]
    return text.getvalue().splitlines()


def _wait(condition: Callable[[], object]) -> None:
    wait_until(condition, _DEADLINE)


def _snapshot(out: Path) -> GuestSnapshot:
    snapshot = read_snapshot(out / "guests")
    assert snapshot
    assert not snapshot.notes
    return snapshot


def _task(guest: EmulatedGuest, pid: int) -> tuple[int, int, int, bytes]:
    """(pid, tgid, start in ns as its /proc rounds it up, comm)."""
    fields = guest.run(f"cat /proc/{pid}/stat").split()
    return pid, pid, (int(fields[21]) + 1) * 10_000_000, fields[1][1:-1]


def test_kernel_tasks_process_and_its_files(guest: EmulatedGuest, host: FakeHost, tmp_path: Path) -> None:
    out = tmp_path / "perfguest.data"
    tasks = host.paths.debugfs / "perfguest/tasks"
    pid = int(guest.run("cat /tmp/sleep"))
    ip = int(guest.run(f"grep -m1 r-xp /proc/{pid}/maps").split(b"-")[0], 16)

    def play() -> None:
        _wait((out / "perf.data").exists)
        registers = guest.registers()
        os.write(host.streams[0], vm_record(1, 500, guest.lstar(), guest.slots()) + sample(1, registers.cr3, user=registers.cpl == 3))
        # The module is told where tasks are, so that samples carry them from then on.
        _wait(lambda: tasks.read_text().endswith("\n"))
        os.write(host.streams[1], sample(1, registers.cr3, user=True, ip=ip, task=_task(guest, pid), time=4321))

    lines = _record(_settings(host, out), host, play)
    assert re.fullmatch(r"1 \d+ \d+ \d+ \d+ \d+ \d+\n", tasks.read_text())
    snapshot = _snapshot(out)
    (kernel,) = snapshot.kernels
    assert (kernel.vm_pid, kernel.vm_id, kernel.lstar, kernel.level, kernel.time) == (500, 1, guest.lstar(), "processes", 1000)
    stored = snapshot.kernel(kernel.kernel)
    assert stored
    assert stored.release == guest.release
    # Whose page table the first sample had may have been read, too.
    (process,) = [one for one in snapshot.processes if one.tgid == pid]
    assert (process.vm_pid, process.vm_id, process.time, process.comm) == (500, 1, 4321, b"sleep")
    (key,) = {mapping.binary for mapping in process.mappings if mapping.path == b"/bin/busybox" and mapping.executable}
    binary = snapshot.binary(key)
    assert binary
    busybox = Path("/bin/busybox").read_bytes()
    assert binary.size == len(busybox)
    assert all(run.data == busybox[run.address : run.address + len(run.data)] for run in binary.pages)
    assert sum(len(run.data) for run in binary.pages) > len(busybox) // 2
    (line,) = [line for line in lines if line.startswith("web: ")]
    assert re.match(rf"web: Linux {re.escape(guest.release)}, [12] process(es)?, \d+ binar(y|ies) \(.*\) from its memory", line)


def test_module_that_is_loaded_during_the_recording(guest: EmulatedGuest, host: FakeHost, tmp_path: Path) -> None:
    out = tmp_path / "perfguest.data"
    tasks = host.paths.debugfs / "perfguest/tasks"

    def play() -> None:
        _wait((out / "perf.data").exists)
        registers = guest.registers()
        os.write(host.streams[0], vm_record(1, 500, guest.lstar(), guest.slots()) + sample(1, registers.cr3, user=registers.cpl == 3))
        _wait(lambda: tasks.read_text().endswith("\n"))
        guest.run("insmod /late.ko")
        address = int(guest.run("grep -w ^dummy /proc/modules").split()[-1], 16)
        os.write(host.streams[0], sample(1, registers.cr3, ip=address + 16, time=9000))
        _wait(lambda: (snapshot := read_snapshot(out / "guests")) and len(snapshot.kernels) == 2)

    _record(_settings(host, out), host, play)
    before, after = _snapshot(out).kernels
    assert "dummy" not in {module.name.decode() for module in before.modules}
    (late,) = [module for module in after.modules if module.name == b"dummy"]
    assert (before.time, after.time, after.kernel, after.kaslr_offset) == (1000, 9000, before.kernel, before.kaslr_offset)
    listed = {line.split()[2] for line in guest.run("grep -F '[dummy]' /proc/kallsyms").splitlines()}
    assert set(late.symbols.names.split(b"\0")[:-1]) == listed


def test_second_recording_takes_the_kernel_from_the_cache(guest: EmulatedGuest, host: FakeHost, tmp_path: Path) -> None:
    kernels = []
    for name in ("first", "second"):
        out = tmp_path / name / "perfguest.data"
        out.parent.mkdir()
        settings = replace(_settings(host, out), guests=GuestSettings("kernel", cache=tmp_path / "cache"))

        def play(out: Path = out) -> None:
            _wait((out / "perf.data").exists)
            os.write(host.streams[0], vm_record(1, 500, guest.lstar(), guest.slots()) + sample(1, guest.registers().cr3))

        _record(settings, host, play)
        snapshot = _snapshot(out)
        kernels.append(snapshot.kernel(snapshot.kernels[0].kernel))
        cached = list((tmp_path / "cache").iterdir())
        assert sorted(path.name.rpartition(".")[2] for path in cached) == ["gz", "tables"]
        if name == "first":
            # Marked, to see where the second one is from.
            inodes = {path.stat().st_ino for path in cached}
    assert kernels[0] == kernels[1]
    assert {path.stat().st_ino for path in cached} == inodes
    assert KernelCache(tmp_path / "cache").known()


def test_kernel_mode_asks_for_no_process(guest: EmulatedGuest, host: FakeHost, tmp_path: Path) -> None:
    out = tmp_path / "perfguest.data"

    def play() -> None:
        _wait((out / "perf.data").exists)
        registers = guest.registers()
        task = sample(1, registers.cr3, user=True, ip=0x401000, task=_task(guest, 1))
        os.write(host.streams[0], vm_record(1, 500, guest.lstar(), guest.slots()) + sample(1, registers.cr3) + task)

    _record(_settings(host, out, mode="kernel"), host, play)
    snapshot = _snapshot(out)
    assert len(snapshot.kernels) == 1
    assert not snapshot.processes
    assert not list((out / "guests/binaries").iterdir())
    assert not (host.paths.debugfs / "perfguest/tasks").read_text()


def test_page_table_that_is_none_leaves_addresses(guest: EmulatedGuest, host: FakeHost, tmp_path: Path) -> None:
    out = tmp_path / "perfguest.data"

    def play() -> None:
        _wait((out / "perf.data").exists)
        os.write(host.streams[0], vm_record(1, 500, guest.lstar(), guest.slots()) + sample(1, 0x0))

    lines = _record(_settings(host, out), host, play)
    (kernel,) = _snapshot(out).kernels
    assert (kernel.level, kernel.lstar, kernel.kernel) == ("addresses", guest.lstar(), "")
    assert any(line.startswith("web: kernel not known, nothing from its memory: no Linux kernel") for line in lines)


def test_without_drgn_there_are_symbols_and_it_is_said(guest: EmulatedGuest, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without/drgn.py").write_text("raise ModuleNotFoundError('No module named drgn', name='drgn')\n")
    monkeypatch.syspath_prepend(tmp_path / "without")
    out = tmp_path / "perfguest.data"

    def play() -> None:
        _wait((out / "perf.data").exists)
        os.write(host.streams[0], vm_record(1, 500, guest.lstar(), guest.slots()) + sample(1, guest.registers().cr3))

    lines = _record(_settings(host, out), host, play)
    (kernel,) = _snapshot(out).kernels
    stored = _snapshot(out).kernel(kernel.kernel)
    assert stored
    assert b"entry_SYSCALL_64\0" in stored.symbols.names
    assert kernel.level == "symbols"
    (line,) = [line for line in lines if line.startswith("web: ")]
    assert "no processes: drgn is not installed" in line
