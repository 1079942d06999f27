# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def stackcollapse() -> list[str]:
    """The command that runs FlameGraph's stackcollapse-perf.pl, from the PATH or from ``shared/peers`` beside the checkout."""
    beside = Path(__file__).parents[3] / "shared/peers/stackcollapse-perf.pl"
    script = shutil.which("stackcollapse-perf.pl") or (str(beside) if beside.exists() else None)
    if script is None:
        pytest.skip("no stackcollapse-perf.pl on the PATH or in shared/peers")
    return ["perl", script]
