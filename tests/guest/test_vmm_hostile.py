# SPDX-License-Identifier: Apache-2.0
"""Recorders and their readers, on memory that a guest or its VMM takes away, changes under each read, or has made to hold readers up."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from perfguest.capture.debugfs import TaskLayout
from perfguest.capture.guest_reader import ReaderLimits
from perfguest.capture.guest_vm import GuestVm
from perfguest.capture.guests import Guests, GuestSettings
from perfguest.formats.guest_snapshot import GuestSnapshot, read_snapshot
from perfguest.guest import processes
from perfguest.guest.kernel import LiveKernel, open_kernel
from perfguest.guest.memory import PAGE, GuestMemory
from tests.capture.fake_host import FakeHost
from tests.capture.made_stream import FORMAT, sample, vm_record
from tests.guest.emulated import KERNELS, EmulatedGuest
from tests.guest.patched import close, copy_of
from tests.guest.vmm import HeldMemory

pytestmark = pytest.mark.lab

_DEADLINE = 240.0
_VMM = 500


@dataclass(frozen=True)
class Original:
    """A guest as it was at a moment. ``hint``: (CR3, LSTAR); ``task``: (pid, tgid, start, name) of a process of its."""

    memory: GuestMemory
    kernel: LiveKernel
    hint: tuple[int, int]
    task: tuple[int, int, int, bytes]
    kallsyms: dict[bytes, int]


@pytest.fixture(scope="module")
def original() -> Iterator[Original]:
    with EmulatedGuest(KERNELS[0], modules=("overlay",), memory=256) as guest:
        listing = [line.split() for line in guest.run("cat /proc/kallsyms").splitlines()]
        kallsyms = {words[2]: int(words[0], 16) for words in listing[::-1] if len(words) == 3}
        lstar = guest.lstar()
        with guest.stopped():
            memory, hint = copy_of(guest.memory()), (guest.registers().cr3, lstar)
    kernel = open_kernel(memory, [hint])
    process = processes.read_process(kernel, 1)
    assert process
    yield Original(memory, kernel, (kernel.kernel_cr3, lstar), (1, 1, process.start_time, process.comm), kallsyms)
    close([memory])


@dataclass
class Run:
    """A recorder beside a VMM. ``ended``: what it said in the end."""

    guests: Guests
    directory: Path
    held: HeldMemory
    original: Original
    told: list[TaskLayout | None] = field(default_factory=list)

    def begin(self, vm_id: int = 1, cr3: int | None = None) -> None:
        record = vm_record(vm_id, _VMM, self.original.hint[1], self.held.slots)
        self.guests.observe(record + sample(vm_id, self.original.hint[0] if cr3 is None else cr3))

    def task(self, vm_id: int = 1) -> None:
        self.guests.observe(sample(vm_id, self.original.hint[0], user=True, ip=0x401000, task=self.original.task))

    def vm(self, vm_id: int = 1) -> GuestVm:
        self.wait(lambda: vm_id in self.guests._vms)
        return self.guests._vms[vm_id]

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + _DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.guests.summary({})
            time.sleep(0.003)

    def wait_opening(self) -> None:
        """Until the reader is in the middle of opening the kernel."""
        vm = self.vm()
        self.wait(lambda: vm.opening and vm.reader and vm.reader.cpu_seconds() > 0.15)

    def peak(self) -> int:
        """Bytes of memory that the reader has ever had at once."""
        reader = self.vm().reader
        assert reader
        text = Path(f"/proc/{reader.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM"))

    def end(self) -> str:
        """The line on the VM."""
        self.guests.finish()
        (line,) = self.guests.summary({_VMM: "web"})
        self.guests.close()
        assert line.isprintable()
        return line

    @property
    def snapshot(self) -> GuestSnapshot:
        snapshot = read_snapshot(self.directory)
        assert snapshot
        assert not snapshot.notes
        return snapshot


@pytest.fixture
def run(original: Original, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs: list[Run] = []
    with HeldMemory(original.memory) as held:
        host = FakeHost(tmp_path / "host")
        (host.add_vm(_VMM, "web") / "mem").symlink_to(f"/proc/{held.pid}/mem")

        def begin(**limits: float) -> Run:
            told: list[TaskLayout | None] = []
            settings = GuestSettings(wait=_DEADLINE, limits=ReaderLimits(**limits))  # type: ignore[arg-type]
            guests = Guests(settings, host.paths.proc, tmp_path / "guests", FORMAT, lambda _, layout: told.append(layout))
            guests.start()
            runs.append(Run(guests, tmp_path / "guests", held, original, told))
            return runs[-1]

        yield begin
        for one in runs:
            one.guests.close()
    # The recorder itself holds a kernel (some 30 MB) once or twice at most, whatever its readers are told.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def check_names(found: Run) -> None:
    """What was stored of the kernel is what the guest says of itself, or nothing."""
    for vm_kernel in found.snapshot.kernels:
        stored = found.snapshot.kernel(vm_kernel.kernel) if vm_kernel.kernel else None
        if stored is not None and len(stored.symbols.types):
            addresses = np.frombuffer(stored.symbols.addresses, "<u8").tolist()
            named = dict(zip(stored.symbols.names.split(b"\0")[:-1][::-1], addresses[::-1], strict=True))
            moved = {name: (at + vm_kernel.kaslr_offset) % (1 << 64) if at >> 63 else at for name, at in named.items()}
            assert moved == found.original.kallsyms


def test_undisturbed(run: Callable[..., Run]) -> None:
    found = run()
    found.begin()
    found.wait(lambda: found.told)
    found.task()
    found.wait(lambda: len(found.snapshot.processes) == 1)
    peak = found.peak()
    line = found.end()
    print(f"{peak >> 20} MiB, {line}")
    assert line.startswith(f"web: Linux {found.original.kernel.release}, 1 process")
    assert line.endswith("from its memory")
    assert peak < 400 << 20
    check_names(found)


@pytest.mark.parametrize("what", ["a slot goes", "all slots go", "the VMM ends"])
@pytest.mark.parametrize("when", ["while it is opened", "once it is open"])
def test_memory_that_goes_away(run: Callable[..., Run], what: str, when: str) -> None:
    found = run()
    found.begin()
    if when == "while it is opened":
        found.wait_opening()
    else:
        found.wait(lambda: found.told)
    if what == "the VMM ends":
        found.held.end()
    else:
        # The large one is the last.
        for slot in found.held.slots[-1:] if what == "a slot goes" else found.held.slots:
            found.held.unmap(slot)
    found.task()
    begun = time.monotonic()
    line = found.end()
    print(f"{what} {when}: {time.monotonic() - begun:.1f} s, {line}")
    assert time.monotonic() - begun < 60
    # Said is what was missed first: which page that was is a matter of the moment.
    assert re.search("memory is gone|cannot be read|cannot be found|not in guest memory|neither symbols|has no VM any more", line)
    if when == "once it is open":
        assert line.startswith(f"web: Linux {found.original.kernel.release}, 0 processes")
    assert not found.snapshot.processes
    check_names(found)


def test_memory_that_changes_under_each_read(run: Callable[..., Run]) -> None:
    """Somebody writes all over the guest's memory as long as it is read: names of processes are those of the guest, or none."""
    found = run(request_cpu=20.0)
    stop, written = threading.Event(), [0]
    large = found.held.slots[-1]

    def scribble() -> None:
        pages = np.random.default_rng(7).integers(0, large.size // PAGE, 1 << 20)
        while not stop.is_set():
            for page in pages[written[0] % len(pages) :][:256].tolist():
                found.held.write(large.gpa + page * PAGE + 8 * (page % 512), os.urandom(8))
            written[0] += 256

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        found.begin()
        found.task()
        found.wait(lambda: written[0] > 1 << 16 and not found.vm().opening)
        line = found.end()
    finally:
        stop.set()
        writer.join()
    print(f"{written[0]} words, {line}")
    assert line.startswith("web: ")
    for process in found.snapshot.processes:
        assert (process.tgid, process.start_time) == (1, found.original.task[2])


@pytest.mark.parametrize("kind", ["each entry", "the top"])
def test_page_tables_that_map_themselves(run: Callable[..., Run], kind: str) -> None:
    """One page is all levels of the tables: everything is mapped, to it. It takes readers no longer than they may take, and no more memory."""
    found = run(request_cpu=10.0)
    table = 0x100000
    entries = [table | 0x63] * 512
    if kind == "the top":
        # The last entries alone, as kernels have them, and what they lead to.
        entries[:256] = [0] * 256
    found.held.write(table, struct.pack("<512Q", *entries))
    found.begin(cr3=table)
    found.wait(lambda: found.vm().opening)
    begun, vm, peak = time.monotonic(), found.vm(), 0
    while vm.opening:
        with contextlib.suppress(FileNotFoundError, StopIteration, AssertionError):
            peak = max(peak, found.peak())
        assert time.monotonic() - begun < _DEADLINE
        time.sleep(0.01)
    line = found.end()
    print(f"{kind}: {time.monotonic() - begun:.1f} s, {peak >> 20} MiB, {line}")
    assert line.startswith("web: kernel not known, nothing from its memory: ")
    assert 0 < peak < 1200 << 20
    assert {kernel.level for kernel in found.snapshot.kernels} == {"addresses"}


@pytest.mark.parametrize("what", ["kallsyms of endless number", "kallsyms of endless names", "BTF of garbage", "BTF of endless length"])
def test_tables_of_garbage_and_endless_length(run: Callable[..., Run], what: str) -> None:
    found = run()
    kernel, held = found.original.kernel, found.held
    info = kernel.info
    assert info

    def put(address: int, data: bytes) -> None:
        for at in range(0, len(data), 2048):
            held.write(kernel.memory.translate(kernel.kernel_cr3, address + at), data[at : at + 2048])

    tokens, btf = info.symbol("kallsyms_token_table") or 0, kernel.address_of("__start_BTF") or 0
    if what == "kallsyms of endless number":
        put(info.symbol("kallsyms_num_syms") or 0, b"\xff\xff\xff\xff")
    elif what == "kallsyms of endless names":
        put(tokens, b"a" * 2048)
    elif what == "BTF of garbage":
        put(btf + 24, np.random.default_rng(1).bytes(1 << 16))
    else:
        # The header's length of types, and of strings.
        put(btf + 12, struct.pack("<III", 0xFFFF_FFFC, 0xFFFF_FFF0, 0xFFFF_FFFF))
    found.begin()
    found.task()
    peak, vm = 0, found.vm()
    found.wait(lambda: vm.opening or vm.state.level)
    begun = time.monotonic()
    while vm.opening or not vm.state.level:
        with contextlib.suppress(FileNotFoundError, StopIteration, AssertionError):
            peak = max(peak, found.peak())
        assert time.monotonic() - begun < _DEADLINE
        time.sleep(0.01)
    line = found.end()
    print(f"{what}: {peak >> 20} MiB, {line}")
    assert 0 < peak < 1200 << 20
    assert "0 processes" in line or "no processes" in line or "nothing from its memory" in line
    assert ("no BTF" in line or "BTF" in line) if what.startswith("BTF") else "symbol" in line
    check_names(found)
