# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels for guests, fetched once: ``python -m tests.guest_kernels [SERIES...]`` prints their images as PERFGUEST_GUEST_KERNELS takes them.

They come from the mirror that this machine's apt uses, through an apt state of their own and with signatures that Debian's keyring checks; the system's apt
stays as it is. They are kept unpacked in ``$XDG_CACHE_HOME/perfguest/test-kernels/SERIES``.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perfguest.capture.lab.kernels import find_kernel
from perfguest.errors import EnvironmentProblem, PerfguestError

#: The suites that have each series, those that keep it longest first.
SERIES = {
    "5.10": ("bullseye",),
    "6.1": ("bookworm",),
    "6.12": ("trixie", "bookworm-backports"),
    "6.18": ("trixie-backports",),
    "7.3": ("sid", "trixie-backports"),
}
_NEWEST = "7.3"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_NEXT = "Look at the network, or name kernels that you have: PERFGUEST_GUEST_KERNELS=VMLINUZ:VMLINUZ..."


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/perfguest/test-kernels``, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "perfguest/test-kernels"


def guest_kernel(series: str) -> Path:
    """The image of a kernel of ``series``, with its modules beside it: the installed one, or Debian's newest, fetched at first use.

    Raises EnvironmentProblem if it is neither here nor to be had.
    """
    if installed := _installed(series):
        return installed
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / series).exists():
            _fetch(series, cache)
    return _image(cache / series)


def _installed(series: str) -> Path | None:
    try:
        newest = find_kernel(None, None, ())
    except EnvironmentProblem:
        return None
    return newest.image if newest.release.startswith(f"{series}.") else None


def _image(root: Path) -> Path:
    (image,) = (root / "boot").glob("vmlinuz-*")
    return image


def _fetch(series: str, cache: Path) -> None:
    """Downloads and unpacks a kernel; ``cache/series`` is there only when all of it is."""
    apt, release = _find(series, cache)
    print(f"fetching Linux {release} of Debian {apt.suite}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        root = Path(directory) / "root"
        for package in apt.download(_packages(release, apt.names()), Path(directory)):
            _run(["dpkg-deb", "-x", str(package), str(root)], f"{package.name} cannot be unpacked")
        _arrange(root, release)
        root.rename(cache / series)


def _find(series: str, cache: Path) -> tuple[_Apt, str]:
    """A suite that has a kernel of the series, and the kernel's release."""
    reasons, suites = [], []
    for suite in SERIES[series]:
        try:
            apt = _Apt(suite, cache / "apt" / suite)
            releases = _releases(apt.names())
        except EnvironmentProblem as error:
            reasons.append(error.message)
            continue
        if mine := [release for release in releases if release.startswith(f"{series}.")]:
            return apt, mine[-1]
        suites.append((apt, releases))
        reasons.append(f"{suite} has no kernel {series}")
    # Debian keeps the newest for some months only. What comes after it will do as well, or show what it breaks.
    later = [(apt, releases[-1]) for apt, releases in suites if series == _NEWEST and releases and _numbers(releases[-1]) > _numbers(series)]
    if not later:
        raise EnvironmentProblem(f"no guest kernel {series}: {'; '.join(reasons)}", _NEXT)
    return later[0]


def _releases(names: Sequence[str]) -> list[str]:
    """The kernels in these names of packages, without special flavours, the newest last."""
    found = [match[1] for name in names if (match := re.fullmatch(r"linux-image-(\d[\w.+~]*(?:-\d+)?-amd64)", name))]
    return sorted(found, key=_numbers)


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _packages(release: str, names: Sequence[str]) -> list[str]:
    # Newer ones have image, modules and the lists of modules in packages of their own, and linux-image only depends on them.
    wanted = {f"linux-{part}-{release}" for part in ("image", "binary", "modules", "base")}
    return sorted(wanted & set(names))


def _arrange(root: Path, release: str) -> None:
    """Makes of newer packages what older ones are: the image in boot, modules in lib/modules, with modules.dep."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    image = root / f"boot/vmlinuz-{release}"
    if not image.exists():
        image.parent.mkdir(exist_ok=True)
        (root / "lib/modules" / release / "vmlinuz").rename(image)
    if not (root / "lib/modules" / release / "modules.dep").exists():
        _run(["depmod", "-b", str(root), release], f"no modules.dep of {release}")


class _Apt:
    """apt for one suite. Its lists are fetched anew with each kernel that is not here yet: a suite's old ones name files that are gone."""

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

    def names(self) -> list[str]:
        """All packages of kernels."""
        return self._run("apt-cache", "pkgnames", "linux-").split()

    def download(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """The packages' files, in ``directory``."""
        self._get("download", *packages, cwd=directory)
        return sorted(directory.glob("*.deb"))

    def _get(self, *arguments: str, cwd: Path | None = None) -> None:
        self._run("apt-get", "-qq", *arguments, cwd=cwd)

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return _run([program, *self._options, *arguments], f"Debian's suite {self.suite} does not answer", cwd)


def _mirror() -> str:
    """The mirror by which this machine's apt gets its own suite."""
    codename = dict(re.findall(r"^(\w+)=\"?(.*?)\"?$", Path("/etc/os-release").read_text(), re.MULTILINE)).get("VERSION_CODENAME", "")
    found = re.search(rf"'(\S+)/dists/{re.escape(codename)}/InRelease'", _run(["apt-get", "--print-uris", "update"], "apt does not say what it uses"))
    if not codename or not found:
        raise EnvironmentProblem("apt's configuration names no mirror of Debian", _NEXT)
    return found[1]


def _run(command: list[str], failure: str, cwd: Path | None = None) -> str:
    program = shutil.which(command[0], path=_PATH)
    if not program:
        raise EnvironmentProblem(f"{failure}: there is no {command[0]}", "This is for Debian; apt install kmod, if that is what is missing.")
    done = subprocess.run([program, *command[1:]], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(f"{failure}: {' '.join(done.stderr.split()) or done.returncode}", _NEXT)
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Prints the images of the series that are named, of all by default."""
    wanted = list(arguments) or list(SERIES)
    if unknown := [series for series in wanted if series not in SERIES]:
        print(f"no such series: {', '.join(unknown)}; there are {', '.join(SERIES)}", file=sys.stderr)
        return 2
    try:
        print(":".join(str(guest_kernel(series)) for series in wanted))
    except PerfguestError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
