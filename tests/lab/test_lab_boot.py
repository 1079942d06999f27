# SPDX-License-Identifier: Apache-2.0
"""The lab for real: what a command finds in it. All tests share one boot."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from perfguest.capture.lab import payload
from perfguest.capture.lab.session import Lab

pytestmark = pytest.mark.lab


@pytest.fixture
def lab(host: Any) -> Lab:
    """The lab that all tests share."""
    running: Lab = host.lab
    return running


def text(lab: Lab, *argv: str) -> str:
    done = lab.run(argv)
    assert done.returncode == 0, done
    return done.stdout.decode()


def test_it_is_a_host_of_its_own_with_kvm(lab: Lab) -> None:
    assert text(lab, "id", "-un") == "root\n"
    assert text(lab, "uname", "-n") == "perfguest-lab\n"
    assert "kvm_amd" in text(lab, "lsmod")
    assert "kprobes" in text(lab, "ls", "/sys/kernel/debug")
    text(lab, "modprobe", "dummy")


def test_files_and_bytes_come_back_as_they_are(lab: Lab) -> None:
    data = os.urandom(10_000_000)
    cwd = lab.options.cwd
    (cwd / "in").write_bytes(data)
    assert lab.run(["cat", "in"]).stdout == data
    assert lab.run(["cat"], stdin=data).stdout == data
    text(lab, "cp", "in", "out")
    assert (cwd / "out").read_bytes() == data
    assert lab.run(["sh", "-c", "echo x >&2; exit 41"]).returncode == 41


def test_other_changes_are_forgotten(lab: Lab) -> None:
    assert text(lab, "sh", "-c", "echo here > /usr/perfguest-was-here; cat /usr/perfguest-was-here") == "here\n"
    assert not Path("/usr/perfguest-was-here").exists()


def test_nmis_arrive_from_outside_and_from_inside(lab: Lab) -> None:
    def count() -> int:
        found = re.search(r"NMI: +(\d+)", text(lab, "cat", "/proc/interrupts"))
        assert found
        return int(found[1])

    before = count()
    lab.inject_nmi(10, interval=0.1)
    assert count() > before
    before = count()
    text(lab, sys.executable, "-c", "from perfguest.capture.lab.control import ask; ask('inject-nmi', 10, 0.1)")
    assert count() > before


def test_perf_sees_the_guest_in_both_worlds(lab: Lab) -> None:
    text(lab, "perf", "record", "-q", "-e", "cpu-clock:GH", "-a", "-o", "perf.data", "sleep", "3")
    misc = text(lab, "perf", "script", "-i", "perf.data", "-F", "misc,ip", "-D")
    assert misc.count("PERF_RECORD_SAMPLE(IP, 0x4)") > 50  # PERF_RECORD_MISC_GUEST_KERNEL
    assert misc.count("PERF_RECORD_SAMPLE(IP, 0x5)") > 50  # PERF_RECORD_MISC_GUEST_USER


def test_the_guest_hands_out_its_symbols_and_files(lab: Lab) -> None:
    kallsyms = text(lab, "sh", "-c", "cat $PERFGUEST_GUEST_KALLSYMS").splitlines()
    (entry,) = [line for line in kallsyms if line.endswith(" T entry_SYSCALL_64")]
    assert int(entry.split()[0], 16) > 0xFFFF_FFFF_8000_0000
    assert any("[algif_hash]" in line for line in kallsyms)
    assert (lab.guest_root / "bin/workload").read_bytes() == payload.workload()
    (name,) = re.findall(r"-name\0guest=(\w+)", text(lab, "sh", "-c", "cat /proc/$PERFGUEST_GUEST_PID/cmdline"))
    assert name == "lab"


def test_the_kernel_log_comes_out(lab: Lab) -> None:
    assert "Nested Virtualization enabled" in lab.dmesg()
