# SPDX-License-Identifier: Apache-2.0
"""The package as `pip install` makes it, without the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perfguest.capture.lab.kernels import find_kernel

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, alone."""
    directory = tmp_path_factory.mktemp("installed")
    sources = directory / "sources"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, sources / name)
    place = directory / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, sources], check=True)
    return place


def perfguest(installed: Path, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    command = [sys.executable, "-c", "from perfguest.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=True)


def test_commands_are_there(installed: Path, tmp_path: Path) -> None:
    for command in ("record", "convert", "module", "plugin", "lab", "lab-control"):
        assert perfguest(installed, command, "--help", home=tmp_path).stdout.startswith("Usage:")


def test_the_module_is_built_from_the_package(installed: Path, tmp_path: Path) -> None:
    headers = Path("/lib/modules") / find_kernel(None, None, []).release / "build"
    built = perfguest(installed, "module", "build", "--force", "--kdir", str(headers), home=tmp_path).stdout.strip()
    assert Path(built).is_relative_to(tmp_path) and Path(built).name == "perfguest.ko"


def test_the_labs_files_travel_inside(installed: Path) -> None:
    assert {path.name for path in (installed / "perfguest" / "lab_guest").iterdir()} >= {"workload.c", "truth.json", "guest_init.sh", "host_init.sh"}


def test_the_flame_graphs_page_travels_inside(installed: Path) -> None:
    """All that the checkout has of it."""
    page = Path("perfguest", "writers", "flamegraph_page")
    names = {path.name for path in (installed / page).iterdir()}
    assert names == {path.name for path in (REPOSITORY / page).iterdir()} > {"page.html"}


def test_the_unwinder_is_built(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from perfguest.unwind import _native; print(_native.__file__, _native.Unwinder().add_binary(0, []))"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True)
    assert Path(done.stdout.split()[0]).is_relative_to(installed) and done.stdout.split()[1] == "0"


def test_a_perf_data_can_be_converted(installed: Path, tmp_path: Path) -> None:
    subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-g", "-o", tmp_path / "perf.data", "seq", "1000000"], capture_output=True, check=True)
    assert "seq;" in perfguest(installed, "convert", "-q", "--folded", "perf.data", home=tmp_path).stdout
