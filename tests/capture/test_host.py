# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.capture.host import HostPaths, build_id, describe, parse_cpu_list
from perfguest.capture.preflight import check_debugfs, check_kvm, check_root, find_perf, hidden_kallsyms, mediated_pmu
from perfguest.errors import EnvironmentProblem
from tests.capture.fake_host import FakeHost


def test_build_id_is_readelfs(tmp_path: Path) -> None:
    program = Path(sys.executable).resolve()
    notes = tmp_path / "notes"
    sections = ["--only-section=.note*", "--set-section-flags", ".note.gnu.build-id=alloc"]
    subprocess.run(["objcopy", "-O", "binary", *sections, str(program), str(notes)], check=True)
    printed = subprocess.run(["readelf", "-n", str(program)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Build ID: ([0-9a-f]+)", printed)
    assert found
    assert build_id(notes.read_bytes()).hex() == found[1]


@given(st.binary())
def test_build_id_of_anything_ends(notes: bytes) -> None:
    assert len(build_id(notes)) <= len(notes)


@pytest.mark.parametrize(("text", "cpus"), [("0\n", [0]), ("0-3,8\n", [0, 1, 2, 3, 8]), ("", []), ("x,2", [2]), ("3-1", [])])
def test_cpu_list(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus


@given(st.text(alphabet="0123456789-,\n"))
def test_cpu_list_of_anything_is_short(text: str) -> None:
    assert len(parse_cpu_list(text)) <= 10_000


def test_this_host_is_described() -> None:
    host = describe(HostPaths())
    assert host.release == subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
    assert host.online_cpus == int(subprocess.run(["getconf", "_NPROCESSORS_ONLN"], capture_output=True, text=True, check=True).stdout)
    assert host.cpu_vendor


def test_root_is_needed() -> None:
    check_root(0)
    with pytest.raises(EnvironmentProblem, match="root"):
        check_root(1000)


def test_perf_is_needed() -> None:
    assert find_perf("perf").endswith("/perf")
    with pytest.raises(EnvironmentProblem) as raised:
        find_perf("perf-that-is-not-there")
    assert "apt install linux-perf" in raised.value.hint


def test_kvm_is_needed(fake_host: FakeHost) -> None:
    modules = fake_host.paths.sys / "module"
    check_kvm(fake_host.paths)
    (modules / "kvm_amd").rmdir()
    with pytest.raises(EnvironmentProblem) as raised:
        check_kvm(fake_host.paths)
    assert "modprobe kvm_amd" in raised.value.hint
    (fake_host.paths.proc / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu\n")
    with pytest.raises(EnvironmentProblem, match="has no KVM"):
        check_kvm(fake_host.paths)


def test_debugfs_is_needed(fake_host: FakeHost) -> None:
    check_debugfs(fake_host.paths)
    (fake_host.paths.proc / "mounts").write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(EnvironmentProblem) as raised:
        check_debugfs(fake_host.paths)
    assert f"mount -t debugfs debugfs {fake_host.paths.debugfs}" in raised.value.hint


def test_kernel_settings_are_noticed(fake_host: FakeHost) -> None:
    assert not mediated_pmu(fake_host.paths)
    assert not hidden_kallsyms(fake_host.paths)
    parameter = fake_host.paths.sys / "module/kvm_amd/parameters/enable_mediated_pmu"
    parameter.parent.mkdir()
    parameter.write_text("Y\n")
    (fake_host.paths.proc / "sys/kernel/kptr_restrict").write_text("2\n")
    assert mediated_pmu(fake_host.paths)
    assert hidden_kallsyms(fake_host.paths)
