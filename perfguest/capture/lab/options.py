# SPDX-License-Identifier: Apache-2.0
"""What can be chosen about a lab."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from perfguest.errors import UsageError

# Not shared read-write: what is mounted there belongs to the lab's own kernel, or would be the whole system.
_NOT_SHARED = ("/proc", "/sys", "/dev", "/run/perfguest-lab")


@dataclass(frozen=True)
class LabOptions:
    """Settings of one lab. Sizes are in MiB, times in seconds.

    ``kernel`` and ``guest_kernel`` are images (default: the newest in /boot that fits; the guest's: the host's), ``modules`` and ``guest_modules``
    the directories of their modules where those are not to be found beside the image or in /lib/modules. ``pin_guest`` is the CPU that all of a
    guest's threads are bound to. ``boot_timeout`` bounds one boot of host and guests together, ``stall`` and
    ``host_stall`` how long a guest and the host may be silent, ``grace`` how long a command may go on when a guest was lost.
    ``emulator`` is a directory with another QEMU for the host than the installed one, as ``dpkg-deb -x`` makes it of Debian's packages.
    ``keep_logs`` is a directory that gets all consoles in the end, ``shares`` are directories that are shared read-write as ``cwd`` is.
    """

    kernel: Path | None = None
    modules: Path | None = None
    guest_kernel: Path | None = None
    guest_modules: Path | None = None
    cpus: int = 1
    guests: int = 1
    memory: int = 4096
    guest_memory: int = 512
    pin_guest: int | None = None
    boot_timeout: float = 900.0
    stall: float = 120.0
    host_stall: float = 360.0
    grace: float = 30.0
    boots: int = 2
    emulator: Path | None = None
    keep_logs: Path | None = None
    shares: tuple[Path, ...] = ()
    cwd: Path = field(default_factory=lambda: Path(os.getcwd()))  # noqa: PTH109

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.guests < 0 or self.boots < 1:
            raise UsageError("a lab has at least one CPU, and no less than no guests")
        if self.pin_guest is not None and not 0 <= self.pin_guest < self.cpus:
            raise UsageError(f"the lab's host has no CPU {self.pin_guest}", f"It has {self.cpus}; see --cpus.")
        for share in self.shares:
            if not share.is_dir() or not _can_be_shared(share.resolve()):
                raise UsageError(f"{share}: not a directory that can be shared")
        if self.memory < 1024 + self.guests * self.guest_memory:
            raise UsageError(f"{self.memory} MiB are not enough for a host with {self.guests} guests of {self.guest_memory} MiB", "See --memory.")

    @property
    def shared(self) -> tuple[Path, ...]:
        """All directories that are shared read-write, outer ones before those within them; without ``cwd`` where that cannot be."""
        wanted = {share.resolve() for share in self.shares} | ({self.cwd} if _can_be_shared(self.cwd) else set())
        return tuple(sorted(wanted))


def _can_be_shared(path: Path) -> bool:
    return path != Path("/") and "\n" not in str(path) and not any(path.is_relative_to(place) for place in _NOT_SHARED)


def guest_name(number: int) -> str:
    """``lab``, ``lab2``, ``lab3``…: the names of the VMs and, after "guest", of their directories."""
    return "lab" if number == 0 else f"lab{number + 1}"
