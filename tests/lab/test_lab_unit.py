# SPDX-License-Identifier: Apache-2.0
"""The lab's parts, without booting anything."""

from __future__ import annotations

import itertools
import json
import lzma
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.capture.lab import kernels, payload
from perfguest.capture.lab.cpio import initramfs, tree
from perfguest.capture.lab.kernels import Kernel, find_kernel, image_release, load_order, module_bytes, module_name
from perfguest.capture.lab.machine import Machine, ScratchDirectory, host_argv
from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import GuestNeverUp
from perfguest.capture.lab.wire import Kind, Unpacker, pack
from perfguest.commands.lab import _TROUBLE
from perfguest.commands.lab import lab as lab_command
from perfguest.errors import EnvironmentProblem, FormatError, LabError, PerfguestError, UsageError


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return find_kernel(None, None, (*payload.HOST_MODULES, *payload.KVM_MODULES))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# The wire


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300))), st.integers(1, 40))
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames: list[tuple[Kind, bytes]], size: int) -> None:
    stream = b"".join(pack(kind, data) for kind, data in frames)
    unpacker = Unpacker()
    assert [frame for at in range(0, len(stream), size) for frame in unpacker.feed(stream[at : at + size])] == frames


@given(st.binary(max_size=200))
def test_garbage_on_the_wire_is_a_value_error_or_waits_for_more(data: bytes) -> None:
    try:
        frames = list(Unpacker().feed(data))
    except ValueError:
        return
    assert sum(len(pack(*frame)) for frame in frames) <= len(data)


# Images, modules, initramfs


def test_release_is_what_file_says(kernel: Kernel) -> None:
    told = subprocess.run(["file", "-L", str(kernel.image)], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\S+)", told)
    assert match
    assert image_release(kernel.image) == match[1] == kernel.release


@given(st.binary(max_size=2000), st.binary(max_size=100))
@settings(max_examples=50)
def test_foreign_images_are_format_errors(tmp_path_factory: pytest.TempPathFactory, head: bytes, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("image") / "vmlinuz"
    for content in (head, head[:0x202].ljust(0x202, b"\0") + b"HdrS" + tail):
        path.write_bytes(content)
        try:
            assert re.fullmatch(r"[\w.+~-]+", image_release(path))
        except FormatError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", [*payload.HOST_MODULES, *payload.KVM_MODULES, *payload.GUEST_MODULES, "algif_hash"])
def test_modules_load_in_an_order_that_modprobe_accepts(kernel: Kernel, name: str) -> None:
    told = subprocess.run(["/sbin/modprobe", "--show-depends", "-S", kernel.release, name], capture_output=True, text=True, check=True).stdout
    wanted = [Path(line.split()[1]).name for line in told.splitlines() if line.startswith("insmod")]
    order = load_order(kernel, [name])
    assert sorted(path.name for path in order) == sorted(wanted)
    assert order[-1].name == wanted[-1]
    loaded: set[str] = set()
    for path in order:
        needs = subprocess.run(["/sbin/modinfo", "-F", "depends", str(path)], capture_output=True, text=True, check=True).stdout.strip()
        assert {need.replace("-", "_") for need in needs.split(",") if need} <= loaded
        loaded.add(path.name.removesuffix(".ko").replace("-", "_"))


def test_a_missing_module_is_named(kernel: Kernel) -> None:
    with pytest.raises(EnvironmentProblem, match="no_such_module"):
        load_order(kernel, ["no_such_module"])


def test_packed_modules_are_unpacked(kernel: Kernel, tmp_path: Path) -> None:
    plain = load_order(kernel, ["overlay"])[-1]
    packed = tmp_path / "overlay.ko.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert module_bytes(packed) == plain.read_bytes()
    assert module_name(packed) == module_name(plain) == "overlay.ko"


def test_an_image_elsewhere_finds_the_modules_beside_it(kernel: Kernel, tmp_path: Path) -> None:
    image = tmp_path / "boot/vmlinuz"
    image.parent.mkdir()
    image.symlink_to(kernel.image.resolve())
    copy = tmp_path / "boot/copy"
    copy.write_bytes(kernel.image.read_bytes())
    modules = tmp_path / "lib/modules" / kernel.release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("")
    assert find_kernel(copy, None, ()).modules == modules
    assert find_kernel(image, None, ()).modules == kernel.modules
    (modules / "modules.dep").unlink()
    (modules / "kernel").mkdir()
    with pytest.raises(EnvironmentProblem, match=f"depmod -b {tmp_path} {kernel.release}"):
        find_kernel(copy, tmp_path, ())


FILES = st.dictionaries(
    st.from_regex(r"/([a-z]{1,6}/){0,3}[a-z]{7,9}", fullmatch=True), st.tuples(st.sampled_from([0o644, 0o755]), st.binary(max_size=600)), max_size=6
)


@given(FILES)
@settings(max_examples=25, deadline=None)
def test_busybox_unpacks_the_initramfs(tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[int, bytes]]) -> None:
    directory = tmp_path_factory.mktemp("cpio")
    packed = subprocess.run(["busybox", "zcat"], input=initramfs(files), stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["busybox", "cpio", "-id"], input=packed, cwd=directory, stderr=subprocess.DEVNULL, check=True)
    assert tree(directory) == files


# The workload


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "workload"
    path.write_bytes(payload.workload())
    path.chmod(0o755)
    return path


def test_the_truth_is_the_call_tree_of_the_machine_code(workload: Path) -> None:
    truth = json.loads(payload.data("truth.json"))
    chains = [chain["frames"] for chain in truth["chains"]]
    below_main = {function for chain in chains for function in chain} - {"main"}
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(workload)], capture_output=True, text=True, check=True).stdout
    calls: set[tuple[str, str]] = set()
    for function in {*below_main, "main"}:
        (body,) = re.findall(rf"<{function}>:\n(.*?)\n\n", code, re.DOTALL)
        assert "push   %rbp" in body
        assert re.search(r"mov +%rsp,%rbp", body)
        called = re.findall(r"(?:call|jmp) +[0-9a-f]+ <(\w+)>", body)
        calls |= {(function, callee) for callee in called if function != "main" or callee in below_main}
    assert calls == {(caller, callee) for chain in chains for callee, caller in itertools.pairwise(chain)}
    assert sum(part / whole for part, whole in (chain["share"] for chain in truth["chains"])) == pytest.approx(1)


def test_the_workload_says_that_it_runs_and_beats(workload: Path) -> None:
    with subprocess.Popen([workload], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            lines = [process.stdout.readline().strip() for _ in range(3)]
            names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
        finally:
            process.kill()
    assert lines == ["PERFGUEST-GUEST-UP", "PERFGUEST-HEARTBEAT 1", "PERFGUEST-HEARTBEAT 2"]
    assert names == {"pg-truth", "pg-syscalls"}


def test_the_workload_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = payload.workload()
    (cached,) = (tmp_path / "perfguest/lab").iterdir()
    cached.write_bytes(b"from the cache")
    assert payload.workload() == b"from the cache" != first


# What stays behind, what is missing


def _child_that_is_killed(code: str) -> list[str]:
    """The words that ``code`` prints; its process is killed when it has printed them."""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        words = process.stdout.readline().split()
        process.kill()
    assert words
    return words


def test_a_killed_lab_leaves_no_directory() -> None:
    (path,) = _child_that_is_killed("from perfguest.capture.lab.machine import ScratchDirectory as S; s = S(); print(s.path, flush=True); input()")
    wait_until(lambda: not Path(path).exists(), path)


def test_no_directory_is_left_whatever_the_path_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with ScratchDirectory() as scratch:
        (scratch.path / "file").touch()
    assert not scratch.path.exists()


def test_a_killed_lab_leaves_no_qemu(kernel: Kernel, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(initramfs({}))
    words = _child_that_is_killed(
        f"""if True:
        from pathlib import Path
        from perfguest.capture.lab.machine import Machine, host_argv
        machine = Machine(kernel=Path({str(kernel.image)!r}), initrd=Path({str(initrd)!r}), directory=Path({str(tmp_path)!r}), shared=[], cpus=1, memory=256)
        print(machine.process.pid, machine.qmp.execute("query-status")["status"], flush=True)
        input()
        """
    )
    assert words[1] == "running"
    command = Path(f"/proc/{words[0]}/cmdline")
    wait_until(lambda: not command.exists() or b"perfguest-lab" not in command.read_bytes(), "QEMU is there")


def test_what_qemu_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"did not start: .*could not open kernel file"):
        Machine(kernel=tmp_path / "none", initrd=tmp_path / "none", directory=tmp_path, shared=[], cpus=1, memory=256)


@pytest.mark.parametrize(("program", "package"), [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static"), ("gcc", "gcc libc6-dev")])
def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, package: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(payload.shutil, "which", lambda name, *_: None if program in name else f"/usr/bin/{name}")
    if program == "gcc":
        monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(lab_command, ["--", "true"])
    assert isinstance(result.exception, EnvironmentProblem)
    assert package in result.exception.hint


def test_a_busybox_with_libraries_will_not_do() -> None:
    assert payload._is_static(payload.find_busybox())
    assert not payload._is_static(Path("/bin/sh"))
    assert not payload._is_static(Path("/etc/passwd"))


def test_no_kernel_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_missing", lambda *_: ["9p"])
    with pytest.raises(EnvironmentProblem, match="linux-image-amd64"):
        find_kernel(None, None, ["9p"])


@pytest.mark.parametrize(
    "bad", [{"cpus": 0}, {"pin_guest": 2}, {"pin_guest": -1}, {"memory": 1100}, {"guests": -1}, {"shares": (Path("/proc"),)}, {"shares": (Path("/nowhere"),)}]
)
def test_options_that_do_not_fit(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        LabOptions(**bad)  # type: ignore[arg-type]


def test_what_can_be_shared(tmp_path: Path) -> None:
    assert LabOptions(cwd=Path("/")).shared == ()
    assert LabOptions(cwd=Path("/proc/self")).shared == ()
    assert LabOptions(cwd=tmp_path / "in", shares=(tmp_path,)).shared == (tmp_path, tmp_path / "in")


@pytest.mark.parametrize(
    "line",
    [
        "BUG: kernel NULL pointer dereference, address: 0",
        "WARNING: CPU: 0 PID: 1 at kernel/x.c:1",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "Oops: 0002 [#1] PREEMPT SMP",
        "general protection fault, maybe for address 0x1",
    ],
)
def test_trouble_in_the_kernel_log_is_seen(line: str) -> None:
    assert _TROUBLE.search(f"[   12.345678] {line}")


def test_errors_know_their_exit_codes() -> None:
    assert issubclass(GuestNeverUp, PerfguestError)
    assert GuestNeverUp("").exit_code == LabError.exit_code


def test_another_emulator_brings_its_firmware(tmp_path: Path) -> None:
    rest = {"kernel": Path("k"), "initrd": Path("i"), "directory": tmp_path, "shared": (), "cpus": 1, "memory": 1024}
    fds = {"agent": 3, "control": 4, "qmp": 5}
    with pytest.raises(UsageError, match="no usr/bin/qemu-system-x86_64"):
        host_argv(**rest, fds=fds, emulator=tmp_path)
    program = tmp_path / "usr/bin/qemu-system-x86_64"
    program.parent.mkdir(parents=True)
    program.touch()
    argv = host_argv(**rest, fds=fds, emulator=tmp_path)
    assert argv[:3] == [str(program), "-L", str(tmp_path / "usr/share/qemu")]
    assert "-L" not in host_argv(**rest, fds=fds)
