# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import Lab

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
    """One lab for all tests: its guest's vCPU stays on CPU 0, where the NMIs that QEMU injects arrive."""
    # Built here: in the emulator the compiler would take minutes.
    subprocess.run(["make", "module"], cwd=REPOSITORY, check=True)
    work = tmp_path_factory.mktemp("lab")
    with Lab(LabOptions(cwd=work, pin_guest=0), report=print) as lab:
        yield Host(lab, work)


@contextmanager
def bare_host(work: Path, cpus: int) -> Iterator[Host]:
    """A lab without guests."""
    subprocess.run(["make", "module"], cwd=REPOSITORY, check=True)
    with Lab(LabOptions(cwd=work, guests=0, cpus=cpus), report=print) as lab:
        yield Host(lab, work)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A lab without guests. Modules that use it have names before those that use ``host``, whose guest would take the machine from theirs."""
    with bare_host(tmp_path_factory.mktemp("bare"), 2) as host:
        yield host


@pytest.fixture(scope="module")
def bare_one_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """As ``bare``, for several guests at once: with two CPUs the emulator soon loses one of them, or the host (docs/lab.md)."""
    with bare_host(tmp_path_factory.mktemp("bare"), 1) as host:
        yield host
