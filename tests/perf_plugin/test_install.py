# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from perfguest.commands.plugin import plugin
from perfguest.errors import EnvironmentProblem
from perfguest.perf_plugin import install


def test_the_paths_are_enough_to_import_everything() -> None:
    """In a Python that knows nothing but its own library, as perf's."""
    code = f"import sys; sys.path[:0] = {install.import_paths()!r}; import perfguest.convert, perfguest.writers.perf_script, click"
    base = Path(sys.executable).resolve()
    subprocess.run([base, "-I", "-S", "-c", code], check=True)


def test_exec_path_is_where_perf_has_its_scripts() -> None:
    assert (install.exec_path() / "scripts/python/bin").is_dir()


def test_install_replaces_itself_and_leaves_nothing_half(tmp_path: Path) -> None:
    first = install.install(tmp_path)
    contents = [path.read_bytes() for path in first]
    assert install.install(tmp_path) == first
    assert [path.read_bytes() for path in first] == contents
    assert [os.access(path, os.X_OK) for path in first] == [False, True]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(first)


def test_other_peoples_scripts_are_left_alone(tmp_path: Path) -> None:
    script, _ = install.install(tmp_path)
    script.write_text("print('mine')\n")
    with pytest.raises(EnvironmentProblem, match="not written by perfguest"):
        install.uninstall(tmp_path)
    assert script.exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "scripts").write_text("a file where the directory should be")
    with pytest.raises(EnvironmentProblem, match="cannot install"):
        install.install(tmp_path)


def test_no_perf_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="perf"):
        install.exec_path()


def test_commands(tmp_path: Path) -> None:
    run = CliRunner()
    place = ["--dir", str(tmp_path)]
    script, report = install.files(tmp_path)
    done = run.invoke(plugin, ["install", *place], catch_exceptions=False)
    assert done.output.splitlines()[:2] == [str(script), str(report)] and f"perf --exec-path={tmp_path} script report perfguest" in done.output
    assert run.invoke(plugin, ["uninstall", *place]).output == f"removed {script}\nremoved {report}\n"
    assert run.invoke(plugin, ["uninstall", *place]).output == "nothing was installed\n"
    assert run.invoke(plugin, ["path"]).output == f"{install.SCRIPT}\n"
