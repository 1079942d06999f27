# SPDX-License-Identifier: Apache-2.0
"""The module on hosts of other kernels: built, loaded, sampling a guest, unloaded. ``make hosts``; PERFGUEST_HOST_KERNELS says which.

They are series as :mod:`tests.kernel_headers` fetches them, or IMAGE=BUILD for a kernel and the directory to build modules for it in, with colons between.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from perfguest.capture.debugfs import Stats, parse_stats
from perfguest.capture.lab.kernels import find_kernel
from perfguest.capture.lab.options import LabOptions
from perfguest.convert import load_profile
from tests.emulator import newer_emulator
from tests.kernel_headers import BuildTree, build_tree
from tests.lab.conftest import REPOSITORY, Host, run_in_lab
from tests.lab.recordings import Pairing, Truth, chains_of_truth, known_from, pairing_of, stream_of, troubles

pytestmark = pytest.mark.lab

# Debian keeps no headers of 6.18 while 7.3 is there.
KERNELS = os.environ.get("PERFGUEST_HOST_KERNELS", "").split(":") if os.environ.get("PERFGUEST_HOST_KERNELS") else ["5.10", "6.1", "6.12", "7.3"]
ROUNDS = 10
NMIS = 300

_STATS = "/sys/kernel/debug/perfguest/stats"
# The headers' wish for the very pahole that has built the kernel; without BTF none is run.
_NOT_OURS = "pahole version differs"


@dataclass(frozen=True)
class Measured:
    """What became of one host: compiler's warnings, counts of the module, its locators as it names them when it is loaded, and the kernel's log."""

    release: str
    warnings: list[str]
    stats: Stats
    locators: list[str]
    pairing: Pairing
    kernel_stacks: tuple[int, int]
    chains: Counter[tuple[str, ...]]
    truth: Truth
    nmi_flags: list[int]
    rounds: str
    log: str = field(repr=False)

    @property
    def row(self) -> str:
        whole, kernel_stacks = self.kernel_stacks
        chains = sum(self.chains.values())
        return (
            f"| {self.release} | {self.stats.values['function']} | {', '.join(self.locators)} | {self.pairing.samples:,} "
            f"| {self.pairing.paired / self.pairing.samples:.2%} | {whole / kernel_stacks:.2%} of {kernel_stacks:,} "
            f"| {self.truth.possible(self.chains) / chains:.2%} of {chains:,} | {len(self.nmi_flags)} |"
        )


_HEADER = """
| host | function probed | locators | guest samples | paired | kernel stacks whole | chains possible | records of 300 NMIs |
|---|---|---|---|---|---|---|---|"""


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows for people, printed in the end."""
    rows: list[str] = []
    yield rows
    print("\n".join([_HEADER, *rows]))


@pytest.fixture(scope="module", params=KERNELS)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, table: list[str]) -> Measured:
    tree = _tree(request.param)
    warnings = _build(tree, tmp_path_factory.mktemp("build"))

    def options(work: Path) -> LabOptions:
        guest = find_kernel(None, None, ()).image
        return LabOptions(cwd=work, kernel=tree.kernel.image, modules=tree.kernel.modules, guest_kernel=guest, cpus=2, pin_guest=0, emulator=newer_emulator())

    result = run_in_lab(tmp_path_factory.mktemp, options, lambda host: _measure(host, tree, warnings))
    table.append(result.row)
    return result


def _tree(kernel: str) -> BuildTree:
    image, _, build = kernel.partition("=")
    return BuildTree(find_kernel(Path(image), None, ()), Path(build)) if build else build_tree(image)


def _build(tree: BuildTree, directory: Path) -> list[str]:
    """The warnings of a build with all that the kernel's build has; then builds it as ``perfguest record`` does, outside: the emulator would take minutes."""
    sources = directory / "kmod"
    shutil.copytree(REPOSITORY / "kmod", sources, ignore=shutil.ignore_patterns("*.o", "*.ko", "*.cmd", "*.mod*"))
    built = subprocess.run(["make", "-C", sources, f"KDIR={tree.directory}"], capture_output=True, text=True, check=False)
    output = built.stdout + built.stderr
    assert built.returncode == 0, output
    subprocess.run([sys.executable, "-m", "perfguest", "module", "build", "--kdir", tree.directory], check=True)
    return [line for line in output.splitlines() if re.search("warning:", line, re.IGNORECASE) and _NOT_OURS not in line]


def _measure(host: Host, tree: BuildTree, warnings: list[str]) -> Measured:
    # Where the headers are installed, they are found without being named.
    kdir = [] if (tree.kernel.modules / "build").exists() else ["--kdir", str(tree.directory)]
    host.perfguest("module", "load", *kdir)
    # In the emulator the recorder may come late by seconds.
    settings = ["--guest-wait", "300", "--buffer", "64M", "-F", "200"]
    read = "until ls recording/guests/binaries/*.pb.gz >/dev/null 2>&1; do sleep 0.2; done; sleep 15"
    host.perfguest("record", *kdir, *settings, "-o", "recording", "--", "timeout", "900", "sh", "-c", read, timeout=1800)
    stats = parse_stats(host.run("cat", _STATS).stdout)
    host.perfguest("module", "unload")
    inject = [sys.executable, "-m", "perfguest", "lab-control", "inject-nmi", "--count", str(NMIS)]
    host.perfguest("record", *kdir, "--guest-memory", "off", "-o", "by-nmi", "--trigger", "nmi", "--", *inject)
    rounds = host.run(sys.executable, Path(__file__).parent / "rounds.py", str(ROUNDS), *kdir[1:], timeout=3600).stdout
    log = host.lab.dmesg()
    profile = load_profile(host.work / "recording")
    whole = next(found for note in profile.notes if (found := re.search(r": kernel stacks: (\d+) of (\d+) ", note)))
    truth = Truth(host.lab.truth)
    return Measured(
        release=tree.kernel.release,
        warnings=warnings,
        stats=stats,
        locators=sorted(set(re.findall(r"perfguest: locator available: (\w+)", log))),
        pairing=pairing_of(host.work / "recording"),
        kernel_stacks=(int(whole[1]), int(whole[2])),
        chains=chains_of_truth(profile, known_from(profile), truth.root),
        truth=truth,
        nmi_flags=stream_of(host.work / "by-nmi").samples.column("flags", np.int64).tolist(),
        rounds=rounds,
        log=log,
    )


def test_it_builds_without_warnings(measured: Measured) -> None:
    assert not measured.warnings


def test_every_guest_sample_has_its_record(measured: Measured) -> None:
    """By number, all; by time too but for those between whose two looks at the clock the emulator stood still."""
    pairing = measured.pairing
    print(pairing)
    assert pairing.samples == measured.stats.written > 500
    assert measured.stats.lost == pairing.lost == 0
    assert pairing.paired >= 0.999 * pairing.samples


def test_all_locators_name_the_same_vcpu(measured: Measured) -> None:
    values = measured.stats.values
    assert {"preempt", "scan"} <= set(measured.locators)
    assert {name: int(values[f"found_{name}"]) for name in measured.locators} == dict.fromkeys(measured.locators, measured.stats.written)
    assert values["disagreements"] == values["vmcb_mismatches"] == "0"


def test_chains_of_the_truth_program(measured: Measured) -> None:
    number = sum(measured.chains.values())
    print(measured.chains.most_common(8))
    assert number > 100
    assert measured.truth.possible(measured.chains) >= 0.99 * number
    measured.truth.check_shares(measured.chains)


def test_kernel_stacks_are_whole(measured: Measured) -> None:
    whole, number = measured.kernel_stacks
    assert number > 100
    assert whole >= 0.99 * number


def test_nmis_take_records_in_the_guest(measured: Measured) -> None:
    deferred, stale = 1 << 13, 1 << 14
    assert len(measured.nmi_flags) >= 20
    assert all(flags & deferred for flags in measured.nmi_flags)
    assert sum(bool(flags & stale) for flags in measured.nmi_flags) <= 0.01 * len(measured.nmi_flags)


def test_rounds_leave_the_log_clean(measured: Measured) -> None:
    assert f"rounds {ROUNDS}" in measured.rounds
    assert not troubles(measured.log), measured.log
