# SPDX-License-Identifier: Apache-2.0
"""The module as `make -C kmod` builds it, with the kernel's extra warnings on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from perfguest.capture.lab.kernels import find_kernel

KMOD = Path(__file__).parents[2] / "kmod"


def test_the_module_builds_without_warnings(tmp_path: Path) -> None:
    sources = tmp_path / "kmod"
    shutil.copytree(KMOD, sources, ignore=shutil.ignore_patterns("*.o", "*.ko", "*.cmd", "*.mod*"))
    headers = Path("/lib/modules") / find_kernel(None, None, []).release / "build"
    built = subprocess.run(["make", "-C", sources, f"KDIR={headers}"], capture_output=True, text=True, check=False)
    output = built.stdout + built.stderr
    assert built.returncode == 0, output
    assert not re.search(r"warning:|WARNING:", output), output
    assert (sources / "perfguest.ko").exists()
