# SPDX-License-Identifier: Apache-2.0
"""Packages of other suites of Debian than this machine's, fetched and unpacked for tests.

They come from the mirror that this machine's apt uses, through an apt state of their own and with signatures that Debian's keyring checks; the system's apt
stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from perfguest.errors import EnvironmentProblem, PerfguestError

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NEXT = "Look at the network: these tests fetch packages of Debian's other suites once."


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/perfguest``, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "perfguest"


@contextmanager
def locked(cache: Path) -> Iterator[Path]:
    """The directory, made, and for nobody else meanwhile."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


class Apt:
    """apt for one suite, whose lists are fetched when this is made: a suite's old ones name files that are gone. ``directory`` holds its state."""

    def __init__(self, suite: str, directory: Path) -> None:
        self.suite = suite
        for name in ("state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        source = directory / "sources.list"
        source.write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
        places = {"Etc::SourceList": source, "Etc::SourceParts": "/dev/null", "Etc::Preferences": "/dev/null", "Etc::PreferencesParts": "/dev/null"}
        places |= {"State": directory / "state", "State::Status": "/dev/null", "Cache": directory / "cache"}
        options = {**{f"Dir::{name}": str(place) for name, place in places.items()}, "APT::Update::Error-Mode": "any", "Acquire::Retries": "3"}
        # The user _apt may not write below another's home.
        options["APT::Sandbox::User"] = "root"
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        self._get("update")

    def names(self, prefix: str) -> list[str]:
        """All packages whose names begin so."""
        return self._run("apt-cache", "pkgnames", prefix).split()

    def depends(self, package: str) -> list[str]:
        """What the package depends on, the first of alternatives."""
        told = self._run("apt-cache", "--important", "--no-pre-depends", "depends", package)
        return re.findall(r"^ [ |]Depends: (\S+)$", told, re.MULTILINE)

    def download(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """The packages' files, in ``directory``."""
        self._get("download", *packages, cwd=directory)
        return sorted(directory.glob("*.deb"))

    def _get(self, *arguments: str, cwd: Path | None = None) -> None:
        self._run("apt-get", "-qq", *arguments, cwd=cwd)

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return run([program, *self._options, *arguments], f"Debian's suite {self.suite} does not answer", cwd)


def _mirror() -> str:
    """The mirror by which this machine's apt gets its own suite."""
    codename = dict(re.findall(r"^(\w+)=\"?(.*?)\"?$", Path("/etc/os-release").read_text(), re.MULTILINE)).get("VERSION_CODENAME", "")
    found = re.search(rf"'(\S+)/dists/{re.escape(codename)}/InRelease'", run(["apt-get", "--print-uris", "update"], "apt does not say what it uses"))
    if not codename or not found:
        raise EnvironmentProblem("apt's configuration names no mirror of Debian", NEXT)
    return found[1]


def run(command: list[str], failure: str, cwd: Path | None = None) -> str:
    """What the command prints. Raises EnvironmentProblem that begins with ``failure``."""
    program = shutil.which(command[0], path=_PATH)
    if not program:
        raise EnvironmentProblem(f"{failure}: there is no {command[0]}", "This is for Debian; apt install kmod, if that is what is missing.")
    done = subprocess.run([program, *command[1:]], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(f"{failure}: {' '.join(done.stderr.split()) or done.returncode}", NEXT)
    return done.stdout


def print_places(arguments: Sequence[str], known: Collection[str], place: Callable[[str], Path]) -> int:
    """What such a program does: prints the places of the series that are named, of all ``known`` ones by default, between colons. Gives its exit status."""
    wanted = list(arguments) or list(known)
    if unknown := [series for series in wanted if series not in known]:
        print(f"no such series: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        print(":".join(str(place(series)) for series in wanted))
    except PerfguestError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
