# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels for guests, fetched once: ``python -m tests.guest_kernels [SERIES...]`` prints their images as PERFGUEST_GUEST_KERNELS takes them.

They come from the mirror that this machine's apt uses, through an apt state of their own and with signatures that Debian's keyring checks; the system's apt
stays as it is. They are kept unpacked in ``$XDG_CACHE_HOME/perfguest/test-kernels/SERIES``.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perfguest.capture.lab.kernels import find_kernel
from perfguest.errors import EnvironmentProblem
from tests.debian import Apt, cache_directory, locked, print_places, run

#: The suites that have each series, those that keep it longest first.
SERIES = {
    "5.10": ("bullseye",),
    "6.1": ("bookworm",),
    "6.12": ("trixie", "bookworm-backports"),
    "6.18": ("trixie-backports",),
    "7.3": ("sid", "trixie-backports"),
}
_NEWEST = "7.3"
_NEXT = "Look at the network, or name kernels that you have: PERFGUEST_GUEST_KERNELS=VMLINUZ:VMLINUZ..."


def guest_kernel(series: str) -> Path:
    """The image of a kernel of ``series``, with its modules beside it: the installed one, or Debian's newest, fetched at first use.

    Raises EnvironmentProblem if it is neither here nor to be had.
    """
    if installed := _installed(series):
        return installed
    with locked(cache_directory() / "test-kernels") as cache:
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
        for package in apt.download(_packages(release, apt.names("linux-")), Path(directory)):
            run(["dpkg-deb", "-x", str(package), str(root)], f"{package.name} cannot be unpacked")
        _arrange(root, release)
        root.rename(cache / series)


def _find(series: str, cache: Path) -> tuple[Apt, str]:
    """A suite that has a kernel of the series, and the kernel's release."""
    reasons, suites = [], []
    for suite in SERIES[series]:
        try:
            apt = Apt(suite, cache / "apt" / suite)
            releases = _releases(apt.names("linux-"))
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
        run(["depmod", "-b", str(root), release], f"no modules.dep of {release}")


def main(arguments: Sequence[str]) -> int:
    """Prints the images of the series that are named, of all by default."""
    return print_places(arguments, SERIES, guest_kernel)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
