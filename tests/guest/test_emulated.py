# SPDX-License-Identifier: Apache-2.0
"""The emulated guest of the tests themselves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfguest.capture.waiting import wait_readable
from tests.guest.emulated import KERNELS
from tests.polling import wait_until

pytestmark = pytest.mark.lab

_SECONDS = 60.0
_PROGRAM = "import sys\nfrom tests.guest.emulated import EmulatedGuest\nwith EmulatedGuest(sys.argv[1]):\n    sys.stdin.read()"


def emulator_of(pid: int) -> int:
    """The process's child that is QEMU already; 0 if there is none."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().startswith("qemu"):
                return child
    return 0


def test_guest_ends_with_a_test_that_is_killed() -> None:
    command = [sys.executable, "-c", _PROGRAM, KERNELS[0]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]) as test:
        pidfd = os.pidfd_open(wait_until(lambda: emulator_of(test.pid), _SECONDS))
        test.kill()
    assert wait_readable([pidfd], _SECONDS)
    os.close(pidfd)
