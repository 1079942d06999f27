# SPDX-License-Identifier: Apache-2.0
"""What ``perf script -s`` loads: finds perfguest and what it needs for the Python inside perf, and hands over to :mod:`perfguest.perf_plugin.session`.

perf runs this file as ``__main__`` in its own Python, which knows of no virtual environment. Only the standard library may be used here.
"""

import os
import re
import sys
from pathlib import Path

#: Directories to import from, and the version of Python that they are for. ``perfguest plugin install`` fills them in.
INSTALLED_PATHS: list[str] = []
INSTALLED_PYTHON: tuple[int, int] | None = None

# perf calls trace_begin when __file__ is gone.
_OWN_PATH = Path(__file__).resolve()


def _import_paths() -> list[str]:
    if INSTALLED_PATHS:
        return INSTALLED_PATHS
    checkout = _OWN_PATH.parents[2]
    environments = [Path(os.environ["VIRTUAL_ENV"])] if os.environ.get("VIRTUAL_ENV") else []
    found = [directory for environment in (checkout / ".venv", *environments) for directory in sorted(environment.glob("lib/python3.*/site-packages"))]
    return [str(directory) for directory in (checkout, *found)]


def _python_of(path: str) -> tuple[int, int] | None:
    version = re.search(r"/python(3)\.(\d+)/(?:site|dist)-packages", path)
    return (int(version[1]), int(version[2])) if version else None


def _stop(message: str, hint: str) -> None:
    # The exit code of errors.EnvironmentProblem, which cannot be imported yet.
    sys.stderr.write(f"perfguest: {message}\n{hint}\n")
    sys.exit(3)


def _prepare() -> None:
    paths = _import_paths()
    here = sys.version_info[:2]
    versions = {INSTALLED_PYTHON} if INSTALLED_PYTHON else {version for version in map(_python_of, paths) if version}
    if versions and here not in versions:
        there = ", ".join(f"{major}.{minor}" for major, minor in sorted(filter(None, versions)))
        _stop(
            f"this perf runs scripts in Python {here[0]}.{here[1]}, but perfguest is installed for Python {there}",
            f"install perfguest with python{here[0]}.{here[1]}, or use 'perfguest convert --script', which prints the same",
        )
    # The script's own directory may hold files that are named like modules.
    own = str(_OWN_PATH.parent)
    wanted = [path for path in paths if _python_of(path) in (None, here)]
    sys.path[:] = [*wanted, *(path for path in sys.path if str(Path(path or ".").resolve()) != own)]


def trace_begin() -> None:
    """perf calls this when it has opened the file, before the first event. All is done here, and perf ends with it: it need not read a file that we read."""
    _prepare()
    try:
        from perfguest.perf_plugin.session import run
    except ImportError as error:
        _stop(f"cannot be imported by the Python inside perf: {error}", "run 'perfguest plugin install' once more from where perfguest works")
    sys.exit(run(sys.argv[1:]))
