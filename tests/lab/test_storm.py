# SPDX-License-Identifier: Apache-2.0
"""The module loaded, sampling and unloaded again and again while perf samples, in a lab of its own. PERFGUEST_ROUNDS: how often."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import Lab
from tests.emulator import newer_emulator
from tests.lab.conftest import REPOSITORY, Host

pytestmark = pytest.mark.lab

ROUNDS = os.environ.get("PERFGUEST_ROUNDS", "50")


@pytest.fixture
def rewritable(tmp_path: Path) -> Iterator[Host]:
    """A lab in an emulator that bears code being rewritten while it runs."""
    subprocess.run(["make", "module"], cwd=REPOSITORY, check=True)
    with Lab(LabOptions(cwd=tmp_path, cpus=2, pin_guest=0, emulator=newer_emulator()), report=print) as lab:
        yield Host(lab, tmp_path)


def test_rounds_of_load_and_unload(rewritable: Host) -> None:
    inside = rewritable.run(sys.executable, Path(__file__).parent / "rounds.py", ROUNDS, timeout=3600)
    assert f"rounds {ROUNDS}" in inside.stdout
    log = rewritable.lab.dmesg()
    assert not re.search(r"\bBUG\b|WARNING:|\bOops\b|lockup|general protection fault|detected stall", log), log
