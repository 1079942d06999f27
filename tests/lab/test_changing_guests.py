# SPDX-License-Identifier: Apache-2.0
"""VMs of several kernels in one recording, that start, end, and boot other kernels within it; and a guest whose tasks live for milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from perfguest.capture.lab.kernels import Kernel, find_kernel
from perfguest.convert import load_profile
from perfguest.formats.guest_stream import VmRecord, read_guest_stream
from perfguest.formats.recording import RecordingPaths
from perfguest.profile import Mode, Profile
from tests.guest_kernels import guest_kernel
from tests.lab.conftest import Host
from tests.lab.names import address_of, entry_code, frames_of, kernel_functions
from tests.lab.vms import Ran, compiled, make_initrd, run_scenario, vm_spec

pytestmark = [pytest.mark.lab, pytest.mark.changing]


@dataclass(frozen=True)
class Recorded:
    ran: Ran
    profile: Profile
    records: list[VmRecord]

    def lstars(self, name: str) -> list[tuple[int, int]]:
        """(time, syscall entry) from when on a VM had which, of the module's records."""
        told = [(record.time, record.lstar) for record in self.records if record.pid == self.ran.pids[name] and record.lstar]
        return [entry for number, entry in enumerate(told) if not number or told[number - 1][1] != entry[1]]


def kernel_of(series: str) -> Kernel:
    return find_kernel(guest_kernel(series), None, ())


@pytest.fixture(scope="module")
def changing(bare: Host, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two VMs at once, one of 6.1 and one of 7.3; then one of 5.10, started within the recording, that boots 6.1."""
    own, oldest, newest = kernel_of("6.1"), kernel_of("5.10"), kernel_of("7.3")
    made = tmp_path_factory.mktemp("initrds")
    initrds = {kernel.release: make_initrd(made / kernel.release, kernel) for kernel in (own, newest)}
    files = {"/bin/reboot_into": compiled("reboot_into.c", made), "/next/kernel": own.image.read_bytes(), "/next/initrd": initrds[own.release].read_bytes()}
    third = make_initrd(made / "third", oldest, files, "/bin/reboot_into /next/kernel /next/initrd </dev/ttyS0 &\nexec /bin/workload")
    options = bare.lab.options
    specs = [
        vm_spec(options, "first", own, initrds[own.release]),
        vm_spec(options, "second", newest, initrds[newest.release]),
        vm_spec(options, "third", oldest, third),
    ]
    ran = run_scenario(bare, "kernels", specs)
    recording = bare.work / "kernels"
    return Recorded(ran, load_profile(recording), read_guest_stream(RecordingPaths(recording).guest_stream).vms)


@pytest.mark.parametrize(("name", "boots"), [("first", 1), ("second", 1), ("third", 2)])
def test_each_kernel_names_its_own_samples(changing: Recorded, name: str, boots: int) -> None:
    """Of frames in the kernel's image, until the next one's syscall entry comes into force. Elsewhere are firmware, decompressors, what kexec runs in between,
    the next kernel before it has set its entry, and modules that were loaded after the kernel had been read: they may have no name, but no wrong one."""
    profile = changing.profile
    (vm,) = [place for place, vm in enumerate(profile.vms) if vm.pid == changing.ran.pids[name]]
    assert profile.vms[vm].name == name
    lstars, symbols = changing.lstars(name), changing.ran.kallsyms(name)
    assert [address_of(kallsyms, "entry_SYSCALL_64") for kallsyms in symbols] == [lstar for _, lstar in lstars]
    assert len(symbols) == boots
    bounds = [0, *(time for time, _ in lstars[1:]), np.iinfo(np.int64).max]
    for begin, end, kallsyms in zip(bounds, bounds[1:], symbols, strict=False):
        rows = np.flatnonzero((profile.samples.vm == vm) & (profile.samples.time >= begin) & (profile.samples.time < end))
        frames, returns = frames_of(profile, rows, Mode.GUEST_KERNEL, entry_code(kallsyms))
        address = profile.frames.address[frames]
        image = (address >= address_of(kallsyms, "_stext")) & (address < address_of(kallsyms, "_end"))
        functions = kernel_functions(kallsyms)
        right, wrong = functions.compare(profile, frames[image], returns[image])
        right_elsewhere, wrong_elsewhere = functions.compare(profile, frames[~image], returns[~image])
        print(f"{name}: {image.sum()} frames in the kernel's image, {right} named as its kallsyms has them; {(~image).sum()} elsewhere, {right_elsewhere} so")
        assert image.sum() > 200
        assert not wrong + wrong_elsewhere
        assert right >= 0.999 * image.sum()


def test_one_vm_had_two_kernels(changing: Recorded) -> None:
    """The reboot is the VMM's own: one process, one name, two kernels."""
    assert len(set(changing.ran.pids.values())) == 3
    console = (changing.ran.directory / "third/console").read_text(errors="replace")
    releases = [line.split()[1] for line in console.splitlines() if line.startswith("PERFGUEST-GUEST-INIT")]
    assert releases == [kernel_of("5.10").release, kernel_of("6.1").release]
    assert "PERFGUEST-GUEST-REBOOTS" in console


def test_functions_of_programs_are_named_in_all_of_them(changing: Recorded) -> None:
    profile = changing.profile
    for name, pid in changing.ran.pids.items():
        (vm,) = [place for place, one in enumerate(profile.vms) if one.pid == pid]
        rows = np.flatnonzero(profile.samples.vm == vm)
        frames = np.unique(np.concatenate([profile.stacks.of(stack) for stack in np.unique(profile.samples.stack[rows]).tolist()]))
        mine = frames[[mapping >= 0 and profile.mappings[mapping].name == "/bin/workload" for mapping in profile.frames.mapping[frames].tolist()]]
        names = {profile.strings[symbol] for symbol in profile.frames.symbol[mine].tolist() if symbol >= 0}
        assert {"leaf_a", "leaf_b", "leaf_c", "files_round"} <= names, (name, names)
