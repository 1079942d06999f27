# SPDX-License-Identifier: Apache-2.0
"""The module loaded, sampling and unloaded again and again, in a lab of its own: `make storm`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import Host

pytestmark = pytest.mark.storm


def test_fifty_rounds_of_load_and_unload(host: Host) -> None:
    assert "rounds 50" in host.run(sys.executable, Path(__file__).parent / "rounds.py", "50", timeout=2400).stdout
    log = host.lab.dmesg()
    assert not re.search(r"\bBUG\b|WARNING:|\bOops\b|lockup|general protection fault|detected stall", log), log
