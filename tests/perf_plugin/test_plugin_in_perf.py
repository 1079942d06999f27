# SPDX-License-Identifier: Apache-2.0
"""The plugin in the real perf, on a real perf.data. What the conversion gives is made up here; that of a real recording is tested in the lab."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perfguest.perf_plugin import install
from perfguest.writers import perf_script
from tests import profiles

# Python runs a module of this name at its start, in perf too: it stands in for the conversion.
_CONVERSION = """
import sys, types

class ConvertOptions:
    def __init__(self, guest, unwinding):
        self.guest, self.unwinding = guest, unwinding

def load_profile(recording, options):
    from perfguest.errors import FormatError
    if (recording / "broken").exists():
        raise FormatError(f"{recording}: torn", "record once more")
    given = {name: value for name, value in vars(options.guest).items() if value}
    sys.stderr.write(f"converting {recording} with {given}\\n")
    sys.path.insert(0, TESTS)
    import profiles
    return profiles.big() if (recording / "big").exists() else profiles.example()

module = types.ModuleType("perfguest.convert")
module.load_profile, module.ConvertOptions = load_profile, ConvertOptions
sys.modules["perfguest.convert"] = module
"""
_NOTE = "perfguest: 9 of 9 guest samples paired\n"


@pytest.fixture
def recording(tmp_path: Path, perf_data: Path) -> Path:
    directory = tmp_path / "my recording"
    directory.mkdir()
    shutil.copy(perf_data, directory / "perf.data")
    (directory / "recording.pb").touch()
    return directory


@pytest.fixture(scope="module")
def perf_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perf") / "perf.data"
    subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-o", path, "--", "ls", "-R", "/etc"], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of perf, with the conversion replaced."""
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    tests = str(Path(profiles.__file__).parent)
    (stand_in / "sitecustomize.py").write_text(_CONVERSION.replace("TESTS", repr(tests)))
    return os.environ | {"PYTHONPATH": str(stand_in), "VIRTUAL_ENV": sys.prefix}


@pytest.fixture
def expected() -> bytes:
    out = io.BytesIO()
    perf_script.write(profiles.example(), out)
    return out.getvalue()


def _perf(environment: dict[str, str], cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["perf", *arguments], check=False, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)


def test_the_script_prints_what_the_writer_writes(recording: Path, environment: dict[str, str], expected: bytes, tmp_path: Path) -> None:
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", "-s", install.SCRIPT)
    assert (run.returncode, run.stdout) == (0, expected)
    assert run.stderr.decode() == f"converting {recording} with {{}}\n{_NOTE}"


@pytest.mark.parametrize("where", ["default", "relative", "joined", "link", "directory link"])
def test_the_recording_is_found_however_it_is_named(recording: Path, environment: dict[str, str], expected: bytes, tmp_path: Path, where: str) -> None:
    (tmp_path / "link.data").symlink_to(recording / "perf.data")
    (tmp_path / "other").symlink_to(recording)
    options = {
        "default": [],
        "relative": ["-i", "../my recording/perf.data"],
        "joined": [f"--input={recording}/perf.data"],
        "link": ["-i", "../link.data"],
        "directory link": ["-i../other/perf.data"],
    }[where]
    run = _perf(environment, recording, "script", *options, "-s", install.SCRIPT)
    assert (run.returncode, run.stdout) == (0, expected)
    assert f"converting {recording} " in run.stderr.decode()


@pytest.mark.parametrize("side", ["perf", "script"])
def test_files_for_naming_reach_the_conversion(recording: Path, environment: dict[str, str], tmp_path: Path, side: str) -> None:
    files = ["--guestkallsyms", "/k s", "--guestmount", "/m"]
    before, after = (files, []) if side == "perf" else ([], ["--", *files])
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", *before, "-s", install.SCRIPT, *after)
    assert run.returncode == 0
    assert "with {'kallsyms': ('/k s',), 'mounts': ('/m',)}" in run.stderr.decode()


def test_filters_of_perf_are_said_to_have_no_effect(recording: Path, environment: dict[str, str], expected: bytes, tmp_path: Path) -> None:
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", "--time", "1,2", "--pid=1", "-s", install.SCRIPT)
    assert (run.returncode, run.stdout) == (0, expected)
    assert "not taken into account: --time --pid=1\n" in run.stderr.decode()


def test_arguments_that_are_not_known_are_refused(recording: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", "-s", install.SCRIPT, "--", "--guestmonut", "/m")
    assert (run.returncode, run.stdout) == (2, b"")
    assert "--guestmonut" in run.stderr.decode() and "--guestmount" in run.stderr.decode()


def test_a_perf_data_of_no_recording_is_refused(perf_data: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run = _perf(environment, tmp_path, "script", "-i", perf_data, "-s", install.SCRIPT)
    assert (run.returncode, run.stdout) == (6, b"")
    assert run.stderr.decode().startswith(f"perfguest: {perf_data}: not the perf.data of a perfguest recording\n")


def test_an_older_perf_data_beside_it_is_not_taken_for_it(recording: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (recording / "perf.data").rename(recording / "perf.data.old")
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data.old", "-s", install.SCRIPT)
    assert (run.returncode, run.stdout) == (6, b"")


def test_errors_of_the_conversion_are_said_in_words(recording: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (recording / "broken").touch()
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", "-s", install.SCRIPT)
    assert (run.returncode, run.stdout) == (6, b"")
    assert run.stderr.decode() == f"perfguest: {recording}: torn\nrecord once more\n"


def test_a_reader_that_stops_early_is_no_error(recording: Path, environment: dict[str, str]) -> None:
    (recording / "big").touch()
    command = ["perf", "script", "-i", recording / "perf.data", "-s", install.SCRIPT]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as perf:
        assert perf.stdout and perf.stderr
        assert perf.stdout.readline().startswith(b"CPU ")
        perf.stdout.close()
        assert perf.stderr.read().decode() == f"converting {recording} with {{}}\n"
        assert perf.wait(timeout=60) == 141


def test_installed_it_is_a_report_of_perf(recording: Path, environment: dict[str, str], expected: bytes, tmp_path: Path) -> None:
    exec_path = tmp_path / "perf core"
    script, report = install.install(exec_path)
    del environment["VIRTUAL_ENV"]
    listed = _perf(environment, tmp_path, f"--exec-path={exec_path}", "script", "-l").stdout.decode()
    assert "perfguest [-i RECORDING/perf.data]" in listed and "host and guest stacks of a perfguest recording" in listed
    run = _perf(environment, tmp_path, f"--exec-path={exec_path}", "script", "report", "perfguest", "-i", recording / "perf.data")
    assert (run.returncode, run.stdout) == (0, expected), run.stderr
    assert install.uninstall(exec_path) == [script, report]
    assert _perf(environment, tmp_path, f"--exec-path={exec_path}", "script", "report", "perfguest").returncode != 0


def test_another_python_is_refused_in_words(recording: Path, environment: dict[str, str], tmp_path: Path) -> None:
    script, _ = install.install(tmp_path)
    text = script.read_text()
    here = f"= {tuple(sys.version_info[:2])!r}"
    assert here in text
    script.write_text(text.replace(here, "= (3, 99)"))
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", "-s", script)
    assert (run.returncode, run.stdout) == (3, b"")
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}, but perfguest is installed for Python 3.99\n" in run.stderr.decode()


def test_a_vanished_installation_is_said_in_words(recording: Path, environment: dict[str, str], tmp_path: Path) -> None:
    script, _ = install.install(tmp_path)
    for path in install.import_paths():
        script.write_text(script.read_text().replace(repr(path), repr(str(tmp_path / "gone"))))
    run = _perf(environment, tmp_path, "script", "-i", recording / "perf.data", "-s", script)
    assert (run.returncode, run.stdout) == (3, b"")
    assert "plugin install" in run.stderr.decode()
