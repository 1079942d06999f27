# SPDX-License-Identifier: Apache-2.0
"""What recording needs of the host, checked before anything is started."""

from __future__ import annotations

import os
import shutil

from perfguest.capture.host import HostPaths, cpu_info
from perfguest.errors import EnvironmentProblem


def check_root(effective_uid: int | None = None) -> None:
    """Raises :class:`EnvironmentProblem` if this is not root."""
    if (os.geteuid() if effective_uid is None else effective_uid) != 0:
        raise EnvironmentProblem("recording guests needs root", "Run it with sudo.")


def find_perf(perf: str = "perf") -> str:
    """The path of perf. Raises :class:`EnvironmentProblem` if it is not installed."""
    found = shutil.which(perf)
    if not found:
        raise EnvironmentProblem(
            f"{perf} is not installed", "Install it (Debian: apt install linux-perf; Ubuntu: apt install linux-tools-generic; Fedora: dnf install perf)."
        )
    return found


def check_kvm(paths: HostPaths) -> None:
    """Raises :class:`EnvironmentProblem` if this kernel's KVM is not there."""
    modules = paths.sys / "module"
    if (modules / "kvm").is_dir() and ((modules / "kvm_amd").is_dir() or (modules / "kvm_intel").is_dir() or (paths.dev / "kvm").exists()):
        return
    flags = cpu_info(paths).get("flags", "").split()
    vendors = {"svm": "kvm_amd", "vmx": "kvm_intel"}
    wanted = [module for flag, module in vendors.items() if flag in flags]
    if wanted:
        raise EnvironmentProblem("KVM is not loaded", f"Load it: modprobe {wanted[0]}.")
    raise EnvironmentProblem(
        "this machine has no KVM",
        "Its CPU does not offer virtualization: turn it on in the firmware, or in the hypervisor if this is a guest itself. `perfguest lab` works without.",
    )


def check_debugfs(paths: HostPaths) -> None:
    """Raises :class:`EnvironmentProblem` if debugfs is not mounted where the module's files are expected."""
    try:
        mounts = (paths.proc / "mounts").read_text(errors="replace").splitlines()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {error.filename}: {error.strerror}", f"Mount proc: mount -t proc proc {paths.proc}.") from error
    fields = [line.split() for line in mounts]
    if not any(len(mount) > 2 and mount[1] == str(paths.debugfs) and mount[2] == "debugfs" for mount in fields):
        raise EnvironmentProblem(f"debugfs is not mounted on {paths.debugfs}", f"Mount it: mount -t debugfs debugfs {paths.debugfs}.")


def mediated_pmu(paths: HostPaths) -> bool:
    """Whether KVM gives the PMU to guests alone while they run (Linux 7.0 and later), so that hardware events do not see them."""
    for vendor in ("kvm_amd", "kvm_intel", "kvm"):
        try:
            if (paths.sys / "module" / vendor / "parameters/enable_mediated_pmu").read_text().strip() in ("Y", "1"):
                return True
        except OSError:
            continue
    return False


def hidden_kallsyms(paths: HostPaths) -> bool:
    """Whether the host's kernel hides its addresses even from root."""
    try:
        return (paths.proc / "sys/kernel/kptr_restrict").read_text().strip() == "2"
    except OSError:
        return False
