# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def stackcollapse() -> list[str]:
    """The command that runs FlameGraph's stackcollapse-perf.pl: from where PERFGUEST_FLAMEGRAPH says, or from the PATH."""
    path = os.pathsep.join([os.environ.get("PERFGUEST_FLAMEGRAPH", ""), os.environ["PATH"]])
    found = shutil.which("stackcollapse-perf.pl", path=path)
    if not found:
        pytest.skip("FlameGraph's stackcollapse-perf.pl is neither in the directory that PERFGUEST_FLAMEGRAPH names nor on the PATH")
    return ["perl", found]
