# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.capture.vms import VmList, find_vms, select_vms, vm_name
from perfguest.errors import UsageError
from perfguest.terminal import printable
from tests.capture.fake_host import FakeHost


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        (["qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-m", "4G"], "web"),
        (["qemu-system-x86_64", "-name", "web", "-m", "4G"], "web"),
        (["qemu-system-x86_64", "-name", "web,process=other"], "web"),
        (["/usr/bin/qemu-system-x86_64", "--name", "guest=a,,b"], "a,b"),
        (["qemu-system-x86_64", "-name", "debug-threads=on", "-m", "4G"], "vmm-7"),
        (["firecracker", "--id", "f00", "--api-sock", "/s"], "f00"),
        (["firecracker", "--id=f00"], "f00"),
        (["crosvm", "run", "--name", "penguin", "bzImage"], "penguin"),
        (["lkvm", "run", "--name", "guest1"], "guest1"),
        (["cloud-hypervisor", "--kernel", "vmlinux"], "vmm-7"),
        (["qemu-system-x86_64", "-name"], "vmm-7"),
        ([], "vmm-7"),
    ],
)
def test_name_is_what_the_vmm_was_given(command_line: list[str], name: str) -> None:
    assert vm_name("vmm", command_line, 7) == name


@given(st.lists(st.text() | st.sampled_from(["-name", "--name", "--id", "--id="])))
def test_any_command_line_gives_a_name(command_line: list[str]) -> None:
    assert vm_name("vmm", command_line, 7)


@given(st.text())
def test_what_is_printed_has_no_control_characters(text: str) -> None:
    assert printable(text).isprintable()


def test_vms_are_the_processes_that_hold_one_open(fake_host: FakeHost) -> None:
    fake_host.add_vm(500, "web")
    fake_host.add_process(501, "bash) x (", ["bash"])
    (vm,) = find_vms(fake_host.paths.proc)
    assert (vm.pid, vm.name, vm.comm, vm.start_time) == (500, "web", "qemu-system-x86", 100)
    assert vm.threads == {500: "qemu-system-x86", 501: "CPU 0/KVM"}
    proto = vm.to_proto()
    assert [(thread.tid, thread.comm) for thread in proto.threads] == [(500, "qemu-system-x86"), (501, "CPU 0/KVM")]


def test_bytes_that_are_no_text_still_make_a_vm(fake_host: FakeHost) -> None:
    process = fake_host.add_vm(500, "web")
    (process / "cmdline").write_bytes(b"qemu\0-name\0\xff\xfe\0")
    (process / "comm").write_bytes(b"\xff\n")
    (vm,) = find_vms(fake_host.paths.proc)
    assert vm.to_proto().SerializeToString()


def test_list_keeps_ended_vms_and_tells_reused_pids_apart(fake_host: FakeHost) -> None:
    process = fake_host.add_vm(500, "first")
    vms = VmList(fake_host.paths.proc)
    vms.refresh()
    shutil.rmtree(process)
    vms.refresh()
    fake_host.add_vm(500, "second", start_time=200)
    vms.refresh()
    assert [(vm.name, vm.start_time) for vm in vms.vms] == [("first", 100), ("second", 200)]


def test_list_sees_new_threads(fake_host: FakeHost) -> None:
    process = fake_host.add_vm(500, "web")
    vms = VmList(fake_host.paths.proc)
    vms.refresh()
    (process / "task/777").mkdir()
    (process / "task/777/comm").write_text("IO mon_iothread\n")
    vms.refresh()
    assert vms.vms[0].threads[777] == "IO mon_iothread"


def test_process_that_opens_a_vm_late_is_found_by_a_thorough_look(fake_host: FakeHost) -> None:
    process = fake_host.add_process(500, "vmm", ["vmm"])
    vms = VmList(fake_host.paths.proc)
    for _ in range(20):
        vms.refresh()
    (process / "fd/9").symlink_to("anon_inode:kvm-vm")
    vms.refresh(thorough=True)
    assert [vm.pid for vm in vms.vms] == [500]


def test_select_by_pid_and_name(fake_host: FakeHost) -> None:
    fake_host.add_vm(500, "web")
    fake_host.add_vm(600, "db\x1b[2J")
    vms = find_vms(fake_host.paths.proc)
    assert select_vms(vms, (), None) == vms
    assert [vm.pid for vm in select_vms(vms, (600,), None)] == [600]
    assert [vm.pid for vm in select_vms(vms, (), "web")] == [500]
    with pytest.raises(UsageError, match="process 1 runs no VM") as raised:
        select_vms(vms, (1,), None)
    assert "web (pid 500)" in raised.value.hint
    with pytest.raises(UsageError, match="no VM is named mail") as raised:
        select_vms(vms, (), "mail")
    assert "\x1b" not in str(raised.value)
    with pytest.raises(UsageError) as raised:
        select_vms([], (), "mail")
    assert "No VM runs" in raised.value.hint
