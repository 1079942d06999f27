# SPDX-License-Identifier: Apache-2.0
"""VMs of several kernels in one recording, that start, end, and boot other kernels within it; and a guest whose tasks live for milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from perfguest.capture.lab.kernels import Kernel, find_kernel
from perfguest.convert import load_profile
from perfguest.formats.guest_stream import VmRecord, read_guest_stream
from perfguest.formats.recording import RecordingPaths
from perfguest.profile import Mode, Profile
from tests.guest_kernels import guest_kernel
from tests.lab.conftest import BareHosts, Host
from tests.lab.names import address_of, entry_code, frames_of, init_functions, kernel_functions
from tests.lab.vms import Ran, compiled, make_initrd, run_scenario, vm_spec

pytestmark = pytest.mark.lab

#: Nanoseconds within which the module's record of a new syscall entry follows perf's sample that met it.
_LATE = 20_000_000


@dataclass(frozen=True)
class Recorded:
    ran: dict[str, Ran]
    profile: Profile
    records: list[VmRecord]
    init_functions: set[str]

    def place(self, name: str) -> int:
        """A VM's place in the profile's."""
        (place,) = [place for place, vm in enumerate(self.profile.vms) if vm.pid == self.ran[name].pid]
        return place

    def times(self, name: str) -> npt.NDArray[np.int64]:
        """Of a VM's samples in guest mode or out of it, in ns."""
        samples = self.profile.samples
        times: npt.NDArray[np.int64] = samples.time[samples.vm == self.place(name)]
        return times

    def lstars(self, name: str) -> list[tuple[int, int]]:
        """(time, syscall entry) from when on a VM had which, of the module's records."""
        told = [(record.time, record.lstar) for record in self.records if record.pid == self.ran[name].pid and record.lstar]
        return [entry for number, entry in enumerate(told) if not number or told[number - 1][1] != entry[1]]


def kernel_of(series: str) -> Kernel:
    return find_kernel(guest_kernel(series), None, ())


@pytest.fixture(scope="module")
def changing(bare_hosts: BareHosts, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two VMs at once, one of 6.1 and one of 7.3; then one of 5.10, started within the recording, that boots 6.1."""
    own, oldest, newest = kernel_of("6.1"), kernel_of("5.10"), kernel_of("7.3")
    made = tmp_path_factory.mktemp("initrds")
    initrds = {kernel.release: make_initrd(made / kernel.release, kernel) for kernel in (own, newest)}
    files = {"/bin/reboot_into": compiled("reboot_into.c", made), "/next/kernel": own.image.read_bytes(), "/next/initrd": initrds[own.release].read_bytes()}
    third = make_initrd(made / "third", oldest, files, "/bin/reboot_into /next/kernel /next/initrd </dev/ttyS0 &\nexec /bin/workload")
    vms = (("first", own, initrds[own.release]), ("second", newest, initrds[newest.release]), ("third", oldest, third))

    def run(host: Host) -> tuple[dict[str, Ran], Path]:
        return run_scenario(host, "kernels", [vm_spec(host.lab.options, *vm, ("nice",)) for vm in vms]), host.work / "kernels"

    # With two CPUs the emulator soon loses one of several VMs, or the host (docs/lab.md).
    ran, recording = bare_hosts.run(1, run)
    modules = [init_functions(module) for module in made.rglob("modules/*.ko")]
    return Recorded(ran, load_profile(recording), read_guest_stream(RecordingPaths(recording).guest_stream).vms, set().union(*modules))


@pytest.mark.parametrize(("name", "boots"), [("first", 1), ("second", 1), ("third", 2)])
def test_each_kernel_names_its_own_samples(changing: Recorded, name: str, boots: int) -> None:
    """Of frames in the kernel's image, until the next one's syscall entry comes into force. Elsewhere are firmware, decompressors, what kexec runs in between,
    the next kernel before it has set its entry, and modules that were loaded after the kernel had been read: they may have no name, but no wrong one. While a
    module is loaded it has functions that are gone when the guest writes its kallsyms."""
    profile = changing.profile
    vm = changing.place(name)
    assert profile.vms[vm].name == name
    lstars, symbols = changing.lstars(name), changing.ran[name].kallsyms()
    assert [address_of(kallsyms, "entry_SYSCALL_64") for kallsyms in symbols] == [lstar for _, lstar in lstars]
    assert len(symbols) == boots
    bounds = [0, *(time for time, _ in lstars[1:]), np.iinfo(np.int64).max]
    for begin, end, kallsyms in zip(bounds, bounds[1:], symbols, strict=False):
        rows = np.flatnonzero((profile.samples.vm == vm) & (profile.samples.time >= begin) & (profile.samples.time < end - _LATE))
        frames, returns = frames_of(profile, rows, Mode.GUEST_KERNEL, entry_code(kallsyms))
        address = profile.frames.address[frames]
        image = (address >= address_of(kallsyms, "_stext")) & (address < address_of(kallsyms, "_end"))
        functions = kernel_functions(kallsyms)
        right, wrong = functions.compare(profile, frames[image], returns[image])
        right_elsewhere, wrong_elsewhere = functions.compare(profile, frames[~image], returns[~image])
        print(f"{name}: {image.sum()} frames in the kernel's image, {right} named as its kallsyms has them; {(~image).sum()} elsewhere, {right_elsewhere} so")
        assert image.sum() > 200
        assert not wrong
        assert not {name for name, _ in wrong_elsewhere} - changing.init_functions
        assert right >= 0.999 * image.sum()


def test_two_vms_were_sampled_at_once(changing: Recorded) -> None:
    first, second = changing.times("first"), changing.times("second")
    begin, end = max(first.min(), second.min()), min(first.max(), second.max())
    both = [int(((times >= begin) & (times <= end)).sum()) for times in (first, second)]
    print(f"{both} samples of the two in {(end - begin) / 1e9:.1f} s")
    assert min(both) > 100
    assert changing.times("third").min() > begin


def test_one_vm_had_two_kernels(changing: Recorded) -> None:
    """The reboot is the VMM's own: one process, one name, two kernels."""
    console = changing.ran["third"].console()
    releases = [line.split()[1] for line in console.splitlines() if line.startswith("PERFGUEST-GUEST-INIT")]
    assert releases == [kernel_of("5.10").release, kernel_of("6.1").release]
    assert "PERFGUEST-GUEST-REBOOTS" in console


def test_functions_of_programs_are_named_in_all_of_them(changing: Recorded) -> None:
    profile = changing.profile
    for name in changing.ran:
        rows = np.flatnonzero(profile.samples.vm == changing.place(name))
        frames = np.unique(np.concatenate([profile.stacks.of(stack) for stack in np.unique(profile.samples.stack[rows]).tolist()]))
        mine = frames[[mapping >= 0 and profile.mappings[mapping].name == "/bin/workload" for mapping in profile.frames.mapping[frames].tolist()]]
        names = {profile.strings[symbol] for symbol in profile.frames.symbol[mine].tolist() if symbol >= 0}
        assert {"leaf_a", "leaf_b", "leaf_c", "files_round"} <= names, (name, names)
