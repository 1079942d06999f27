# SPDX-License-Identifier: Apache-2.0
"""A newer QEMU than Debian 12's, fetched once, for a lab whose kernel code is patched while it runs.

Before 8.1, a virtual CPU of QEMU's multi-threaded emulation may go on with code that another one has just rewritten: its translation was made while the
bytes changed (QEMU's commit deba78709a, "accel/tcg: Always lock pages before translation"). A kprobe that comes and goes under load hits that about once in
some hundred times, and the host crashes or hangs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.debian import Apt, cache_directory, locked, run

SUITE = "bookworm-backports"
_PACKAGES = ("qemu-system-common", "qemu-system-data", "qemu-system-x86")


def newer_emulator() -> Path:
    """A directory for :attr:`perfguest.capture.lab.options.LabOptions.emulator`. Raises EnvironmentProblem if it is neither here nor to be had."""
    with locked(cache_directory() / "test-emulator") as cache:
        found = cache / "qemu"
        if not found.exists():
            apt = Apt(SUITE, cache / "apt")
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                root = Path(directory) / "root"
                for package in apt.download(_PACKAGES, Path(directory)):
                    run(["dpkg-deb", "-x", str(package), str(root)], f"{package.name} cannot be unpacked")
                root.rename(found)
        return found
