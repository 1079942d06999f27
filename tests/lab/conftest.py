# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import HostGone, Lab
from perfguest.errors import LabError

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Host:
    """The lab's KVM host, whose directory ``work`` is shared with us."""

    lab: Lab
    work: Path

    def run(self, *argv: str | Path, status: int | None = 0, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        """Runs a command as root in ``work``; fails, with all that it printed, if it ends with another status (None: any will do)."""
        done = self.lab.run([str(word) for word in argv], timeout=timeout)
        result = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        print(f"$ {' '.join(done.args)}\n{result.stdout}{result.stderr}[{result.returncode}]")
        assert status is None or result.returncode == status
        return result

    def perfguest(self, *argv: str | Path, status: int | None = 0, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "perfguest", *argv, status=status, timeout=timeout)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One lab for all tests: its guest's vCPU stays on CPU 0, where the NMIs that QEMU injects arrive. It has PERFGUEST_LAB_CPUS CPUs, one unless that is set:
    with two the emulator loses guests (docs/lab.md)."""
    # Built here: in the emulator the compiler would take minutes.
    subprocess.run(["make", "module"], cwd=REPOSITORY, check=True)
    work = tmp_path_factory.mktemp("lab")
    cpus = int(os.environ.get("PERFGUEST_LAB_CPUS", "1"))
    with Lab(LabOptions(cwd=work, pin_guest=0, cpus=cpus), report=print) as lab:
        yield Host(lab, work)


T = TypeVar("T")


@dataclass(frozen=True)
class BareHosts:
    """Labs without guests, each in a directory of its own."""

    make_directory: Callable[[str], Path]

    def run(self, cpus: int, what: Callable[[Host], T]) -> T:
        """Gives what ``what`` gives in such a lab. A host that the emulator loses (docs/lab.md) is booted once more."""
        subprocess.run(["make", "module"], cwd=REPOSITORY, check=True)
        return run_in_lab(self.make_directory, lambda work: LabOptions(cwd=work, guests=0, cpus=cpus), what)


def run_in_lab(make_directory: Callable[[str], Path], options: Callable[[Path], LabOptions], what: Callable[[Host], T]) -> T:
    """Gives what ``what`` gives in a lab with these options, which are told its directory. If the emulator loses the host, all of it is done once more."""
    for is_last in (False, True):
        work = make_directory("lab")
        with Lab(options(work), report=print) as lab:
            try:
                return what(Host(lab, work))
            except LabError as error:
                if is_last or not _is_emulators(error):
                    raise
                print(f"the emulator lost the host: once more\n{error}")
    raise AssertionError


def _is_emulators(error: LabError) -> bool:
    """Whether it panicked without our module in its last words, or hung before that was loaded."""
    text = str(error)
    return "[perfguest]" not in text if isinstance(error, HostGone) else "the host hangs" in text and "perfguest: loading" not in text


@pytest.fixture(scope="session")
def bare_hosts(tmp_path_factory: pytest.TempPathFactory) -> BareHosts:
    """Modules that use it have names before those that use ``host``, whose guest would take the machine from theirs."""
    return BareHosts(tmp_path_factory.mktemp)
