# SPDX-License-Identifier: Apache-2.0
"""A recorder beside a VMM of the tests', and what it may store of a guest whose state they know."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perfguest.capture.debugfs import TaskLayout
from perfguest.capture.guest_reader import ReaderLimits
from perfguest.capture.guest_vm import GuestVm
from perfguest.capture.guests import Guests, GuestSettings
from perfguest.formats.guest_snapshot import GuestSnapshot, read_snapshot
from perfguest.guest.kernel import LiveKernel
from perfguest.guest.memory import GuestMemory
from tests.capture.fake_host import FakeHost
from tests.capture.made_stream import FORMAT, sample, vm_record
from tests.guest.vmm import HeldMemory
from tests.polling import wait_until

#: Of all waiting here.
DEADLINE = 240.0
_VMM = 500


@dataclass(frozen=True)
class Original:
    """A guest as it was at a moment. ``hint``: (CR3, LSTAR); ``task``: (pid, tgid, start, name) of a process of its."""

    memory: GuestMemory
    kernel: LiveKernel
    hint: tuple[int, int]
    task: tuple[int, int, int, bytes]
    kallsyms: dict[bytes, int]


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

    def task(self, vm_id: int = 1, task: tuple[int, int, int, bytes] | None = None) -> None:
        self.guests.observe(sample(vm_id, self.original.hint[0], user=True, ip=0x401000, task=task or self.original.task))

    def vm(self, vm_id: int = 1) -> GuestVm:
        self.wait(lambda: vm_id in self.guests._vms)
        return self.guests._vms[vm_id]

    def wait(self, condition: Callable[[], object]) -> None:
        wait_until(condition, DEADLINE, lambda: self.guests.summary({}))

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

    def peak_until(self, condition: Callable[[], object]) -> int:
        """The most of :meth:`peak` until then."""
        peak = 0

        def look() -> object:
            nonlocal peak
            # The reader may end, or not have begun.
            with contextlib.suppress(FileNotFoundError, StopIteration, AssertionError):
                peak = max(peak, self.peak())
            return condition()

        self.wait(look)
        look()
        return peak

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


@contextlib.contextmanager
def recording(original: Original, held: HeldMemory, directory: Path) -> Iterator[Callable[..., Run]]:
    """Begins recorders of a VMM's memory, with limits of their readers."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs: list[Run] = []
    host = FakeHost(directory / "host")
    (host.add_vm(_VMM, "web") / "mem").symlink_to(f"/proc/{held.pid}/mem")

    def begin(**limits: float) -> Run:
        told: list[TaskLayout | None] = []
        settings = GuestSettings(wait=DEADLINE, limits=ReaderLimits(**limits))  # type: ignore[arg-type]
        guests = Guests(settings, host.paths.proc, directory / "guests", FORMAT, lambda _, layout: told.append(layout))
        guests.start()
        runs.append(Run(guests, directory / "guests", held, original, told))
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
