# SPDX-License-Identifier: Apache-2.0
"""Puts the plugin where ``perf script report perfguest`` finds it: ``scripts/python`` under perf's exec path (tools/perf/builtin-script.c, get_script_path)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import perfguest
from perfguest.errors import EnvironmentProblem

#: The script as it lies in the package: ``perf script -s`` takes it as it is.
SCRIPT = Path(__file__).with_name("perfguest_script.py")

# What runs in perf's Python imports these.
_NEEDED = ("click", "numpy", "google.protobuf")
_MARK = "# Written by perfguest plugin install.\n"
# perf reads the second line as the script's description, and runs the file with /bin/sh and the arguments behind the script's name.
_REPORT = f"""#!/bin/sh
# description: host and guest stacks of a perfguest recording
# args: [-i RECORDING/perf.data]
{_MARK}exec perf script -s "$PERF_EXEC_PATH"/scripts/python/perfguest.py "$@"
"""


def exec_path() -> Path:
    """Where perf looks for its scripts. Raises :class:`EnvironmentProblem` if there is no perf."""
    try:
        answer = subprocess.run(["perf", "--exec-path"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EnvironmentProblem(f"perf does not say where its scripts are: {error}", "install perf (Debian: linux-perf), or give the directory") from error
    return Path(answer.stdout.strip())


def files(directory: Path) -> tuple[Path, Path]:
    """The script and its wrapper under the exec path ``directory``."""
    scripts = directory / "scripts/python"
    return scripts / "perfguest.py", scripts / "bin/perfguest-report"


def install(directory: Path) -> list[Path]:
    """Writes both files under the exec path ``directory``, over older ones, and gives their paths. Raises :class:`EnvironmentProblem` if it cannot."""
    script, report = files(directory)
    try:
        _replace(script, _script_text(), 0o644)
        _replace(report, _REPORT, 0o755)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot install under {directory}: {error.strerror}",
            "do it as root, or choose another place with --dir, or install nothing and use: perf script -s $(perfguest plugin path)",
        ) from error
    return [script, report]


def uninstall(directory: Path) -> list[Path]:
    """Removes what :func:`install` wrote and gives the paths of what was there. Raises :class:`EnvironmentProblem` if that is not possible."""
    removed = []
    for path in files(directory):
        try:
            if _MARK not in path.read_text(errors="replace"):
                raise EnvironmentProblem(f"{path} was not written by perfguest", "look at it, and remove it yourself")
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise EnvironmentProblem(f"cannot remove {path}: {error.strerror}", "do it as root") from error
        removed.append(path)
    return removed


def import_paths() -> list[str]:
    """The directories that perfguest and all it needs come from in this Python, in the order of ``sys.path``."""
    origins = {Path(perfguest.__file__).parents[1]}
    for name in _NEEDED:
        file = importlib.import_module(name).__file__
        if file is None:
            raise EnvironmentProblem(f"cannot see where the Python package {name} comes from", "install perfguest and what it needs with pip")
        origins.add(Path(file).parents[name.count(".") + 1])
    order = [Path(path or ".").resolve() for path in sys.path]
    return [str(path) for path in sorted((path.resolve() for path in origins), key=lambda path: order.index(path) if path in order else len(order))]


def _script_text() -> str:
    text = SCRIPT.read_text()
    for name, value in (("INSTALLED_PATHS: list[str]", import_paths()), ("INSTALLED_PYTHON: tuple[int, int] | None", tuple(sys.version_info[:2]))):
        before, found, after = text.partition(f"\n{name} = ")
        if not found:
            raise EnvironmentProblem(f"{SCRIPT} has no line for {name}", "install perfguest once more: this is not the file that it came with")
        text = before + found + repr(value) + after[after.index("\n") :]
    return text.replace("\n", f"\n{_MARK}", 1)


def _replace(path: Path, text: str, mode: int) -> None:
    """Never leaves half a file, and makes the directories that are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
