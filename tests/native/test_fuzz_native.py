# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "perfguest" / "native"
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
PURE = sorted(path for path in NATIVE.glob("*.c") if not path.name.startswith("py"))


@pytest.fixture(scope="module")
def fuzz_native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program, here = tmp_path_factory.mktemp("fuzz") / "fuzz_native", Path(__file__).parent
    sources = [*PURE, here / "fuzz_native.c"]
    subprocess.run(["gcc", *WARNINGS, *SANITIZERS, "-g", "-O1", f"-I{NATIVE}", f"-I{here.parent}", "-o", program, *sources], check=True)
    return program


def test_random_input_under_sanitizers(fuzz_native: Path) -> None:
    seed = str(secrets.randbits(63))
    done = subprocess.run([fuzz_native, seed, "20000"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr}"


def test_no_warnings() -> None:
    include = subprocess.run(["python3-config", "--includes"], capture_output=True, text=True, check=True).stdout.split()
    for source in sorted(NATIVE.glob("*.c")):
        subprocess.run(["gcc", *WARNINGS, "-O2", "-fsyntax-only", f"-I{NATIVE}", *include, source], check=True)
