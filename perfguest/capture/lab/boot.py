# SPDX-License-Identifier: Apache-2.0
"""Prepares one boot: which kernels, what the agent runs, what COMMAND finds in its environment."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import perfguest
from perfguest.capture.lab import payload
from perfguest.capture.lab.kernels import Kernel, find_kernel
from perfguest.capture.lab.machine import find_qemu
from perfguest.capture.lab.options import LabOptions, guest_name
from perfguest.capture.lab.payload import GuestPayload

INSIDE = "/run/perfguest-lab"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# These name things of the caller's session that do not exist inside.
_NOT_PASSED = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "OLDPWD")
# The emulator gives wrong flags after cmpxchg16b now and then.
_GUEST_CPU = "host,cx16=off"
# noxsave: the emulator seems not to show XSETBV to KVM, which tells the guest a wrong size of XSAVE's area. Older kernels do without it at that, newer ones
# do not survive it.
_GUEST_OPTIONS = "console=ttyS0 panic=-1 pci=noearly rdinit=/init noxsave"


@dataclass(frozen=True)
class Boot:
    """Everything that a machine needs to start, all in the lab's scratch directory."""

    kernel: Kernel
    guest_kernel: Kernel
    initrd: Path
    guest: GuestPayload


def prepare(options: LabOptions, directory: Path) -> Boot:
    """Writes both initramfs into ``directory``. Raises EnvironmentProblem for whatever this machine lacks."""
    find_qemu()
    kernel = find_kernel(options.kernel, options.modules, (*payload.HOST_MODULES, *payload.KVM_MODULES))
    guest_kernel = kernel if options.guest_kernel is None else find_kernel(options.guest_kernel, options.guest_modules, ())
    guest = payload.guest_payload(guest_kernel, directory / "guest")
    settings = {"release": kernel.release, "kernel_modules": str(kernel.modules)}
    guests = [
        {
            "argv": guest_argv(options, guest_name(number), guest_directory(number), guest_kernel.image, guest.initrd),
            "directory": guest_directory(number),
            "stall": options.stall,
        }
        for number in range(options.guests)
    ]
    initrd = directory / "initrd.gz"
    payload.host_initrd(kernel, settings, options.shared, payload.Agent(_agent_script(), guests), initrd)
    return Boot(kernel, guest_kernel, initrd, guest)


def guest_directory(number: int) -> str:
    """Where a guest's console and kallsyms lie inside."""
    return f"{INSIDE}/guest{guest_name(number).removeprefix('lab')}"


def guest_argv(options: LabOptions, name: str, directory: str, kernel: Path, initrd: Path) -> list[str]:
    """The command line of a guest's VMM, as it runs inside the lab's host. ``directory``: gets the guest's kallsyms."""
    pin = [] if options.pin_guest is None else ["taskset", "-c", str(options.pin_guest)]
    argv = [*pin, find_qemu(), "-name", f"guest={name},debug-threads=on", "-machine", "microvm,accel=kvm,rtc=on", "-cpu", _GUEST_CPU, "-smp", "1"]
    argv += ["-m", f"{options.guest_memory}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", _GUEST_OPTIONS]
    argv += ["-serial", "stdio", "-device", "virtio-serial-device"]
    argv += ["-chardev", f"file,id=kallsyms,path={directory}/kallsyms.raw"]
    return [*argv, "-device", "virtserialport,chardev=kallsyms,name=perfguest.kallsyms"]


def _agent_script() -> str:
    """The host's first process: the agent, by the interpreter that runs this, without site packages; then the power goes off."""
    package = Path(perfguest.__file__).resolve().parents[1]
    python = shlex.join([sys.executable, "-S", "-m", "perfguest.capture.lab.agent"])
    return f"""export PATH={_PATH} PYTHONPATH={shlex.quote(str(package))} PYTHONDONTWRITEBYTECODE=1
cd /
{python} </dev/null >/dev/console 2>&1
sync
{INSIDE}/busybox poweroff -f
"""


def environment(options: LabOptions, boot: Boot, pids: Mapping[int, int], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of COMMAND: the caller's (or ``base``), as root's, with what the lab offers."""
    env = {name: value for name, value in (os.environ if base is None else base).items() if name not in _NOT_PASSED}
    # A user's PATH has no sbin, where root's programs are.
    path = env.get("PATH", "").split(":") if env.get("PATH") else []
    env["PATH"] = ":".join([*path, *(part for part in _PATH.split(":") if part not in path)])
    env.setdefault("TERM", "dumb")
    env.update(USER="root", LOGNAME="root", PWD=str(options.cwd), PERFGUEST_LAB="1", PERFGUEST_LAB_DIR=INSIDE)
    env["PERFGUEST_LAB_CONTROL"] = "/dev/virtio-ports/perfguest.control"
    if options.guests:
        env["PERFGUEST_GUEST_PID"] = " ".join(str(pids[number]) for number in sorted(pids))
        env["PERFGUEST_GUEST_KALLSYMS"] = f"{guest_directory(0)}/kallsyms"
        env["PERFGUEST_GUEST_ROOT"] = str(boot.guest.root)
        env["PERFGUEST_GUEST_TRUTH"] = str(boot.guest.truth)
        env["PERFGUEST_GUEST_VMLINUZ"] = str(boot.guest_kernel.image)
    return env


def shell() -> list[str]:
    """The caller's shell, as an interactive one."""
    name = os.environ.get("SHELL", "")
    return [name if name and shutil.which(name) else "/bin/sh", "-i"]
