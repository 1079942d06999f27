# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

from tests.kmod.pure_library import KMOD, SOURCES, WARNINGS

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def test_random_input_under_sanitizers(tmp_path: Path) -> None:
    program, seed = tmp_path / "fuzz_pure", str(secrets.randbits(63))
    sources = [str(KMOD / name) for name in SOURCES] + [str(Path(__file__).parent / "fuzz_pure.c")]
    subprocess.run(["gcc", *WARNINGS, *SANITIZERS, "-g", "-O1", f"-I{KMOD}", f"-I{Path(__file__).parents[1]}", "-o", program, *sources], check=True)
    done = subprocess.run([program, seed, "200000"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr}"
