# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perfguest
from perfguest.capture import module
from perfguest.errors import EnvironmentProblem, ModuleProblem
from tests.capture.fake_host import FakeHost

_INSTALLED = sorted(Path("/lib/modules").glob("*/kernel/net/nfc/nfc.ko"))


class FakeKernel:
    """Loads and unloads in the fake host's /sys, or fails."""

    def __init__(self, host: FakeHost, code: int = 0) -> None:
        self._directory = host.paths.sys / "module/perfguest"
        self._code = code
        self.done: list[str] = []

    def load(self, path: Path) -> None:
        """As finit_module(2)."""
        self._fail()
        self.done.append("load")
        self._directory.mkdir()
        (self._directory / "version").write_text(perfguest.__version__)
        (self._directory / "srcversion").write_text(module.object_source_version(path))

    def unload(self, name: str) -> None:
        """As delete_module(2)."""
        self._fail()
        self.done.append(f"unload {name}")
        shutil.rmtree(self._directory)

    def _fail(self) -> None:
        if self._code:
            raise OSError(self._code, os.strerror(self._code))


@pytest.fixture
def empty_host(fake_host: FakeHost) -> FakeHost:
    """With nothing loaded."""
    shutil.rmtree(fake_host.paths.sys / "module/perfguest")
    return fake_host


@pytest.fixture
def object_file() -> Path:
    """A module that Debian built, of the few that have a srcversion."""
    return _INSTALLED[-1]


def test_source_version_is_modinfos(object_file: Path) -> None:
    expected = subprocess.run(["/sbin/modinfo", "-F", "srcversion", str(object_file)], capture_output=True, text=True, check=True).stdout.strip()
    assert expected
    assert module.object_source_version(object_file) == expected


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: b"\x7fELF\x02\x01\x01" + data))
def test_garbage_is_no_module(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.ko"
    path.write_bytes(data)
    try:
        assert module.object_source_version(path) == ""
    except ModuleProblem as error:
        assert str(path) in str(error)


def test_what_was_loaded_here_is_unloaded_also_after_an_error(empty_host: FakeHost, object_file: Path) -> None:
    kernel = FakeKernel(empty_host)
    with pytest.raises(ZeroDivisionError), module.loaded(object_file, empty_host.paths, print, kernel):
        assert module.loaded_module(empty_host.paths)
        raise ZeroDivisionError
    assert kernel.done == ["load", "unload perfguest"]


def test_what_was_loaded_before_stays(empty_host: FakeHost, object_file: Path) -> None:
    kernel = FakeKernel(empty_host)
    assert module.load(object_file, empty_host.paths, kernel)
    with module.loaded(object_file, empty_host.paths, print, kernel):
        pass
    with module.loaded(None, empty_host.paths, print, kernel):
        pass
    assert kernel.done == ["load"]


def test_other_build_is_named(empty_host: FakeHost, object_file: Path) -> None:
    module.load(object_file, empty_host.paths, FakeKernel(empty_host))
    (empty_host.paths.sys / "module/perfguest/srcversion").write_text("0123456789ABCDEF01234567")
    with pytest.raises(ModuleProblem, match="another build") as raised:
        module.load(object_file, empty_host.paths, FakeKernel(empty_host))
    assert "--reload" in raised.value.hint


@pytest.mark.parametrize(
    ("code", "lockdown", "words"),
    [
        (errno.EKEYREJECTED, "none [integrity] confidentiality", "lockdown (integrity)"),
        (errno.EPERM, "none integrity [confidentiality]", "lockdown (confidentiality)"),
        (errno.EKEYREJECTED, "[none] integrity confidentiality", "signed modules only"),
        (errno.EPERM, "[none] integrity confidentiality", "not permitted"),
        (errno.ENOEXEC, "", "another kernel"),
        (errno.EINVAL, "", "another kernel"),
        (errno.ENOENT, "", "symbol"),
        (errno.ENOSYS, "", "without loadable modules"),
        (errno.ENOMEM, "", "Cannot allocate memory"),
    ],
)
def test_refusal_is_said_in_words(empty_host: FakeHost, object_file: Path, code: int, lockdown: str, words: str) -> None:
    path = empty_host.paths.sys / "kernel/security/lockdown"
    path.parent.mkdir(parents=True)
    path.write_text(lockdown + "\n")
    with pytest.raises(ModuleProblem) as raised:
        module.load(object_file, empty_host.paths, FakeKernel(empty_host, code))
    assert words in raised.value.message
    assert raised.value.hint


def test_modules_may_be_turned_off(empty_host: FakeHost, object_file: Path) -> None:
    (empty_host.paths.proc / "sys/kernel/modules_disabled").write_text("1\n")
    with pytest.raises(ModuleProblem, match="modules_disabled"):
        module.load(object_file, empty_host.paths, FakeKernel(empty_host, errno.EPERM))


def test_unload(empty_host: FakeHost, object_file: Path) -> None:
    kernel = FakeKernel(empty_host)
    assert not module.unload(empty_host.paths, kernel)
    module.load(object_file, empty_host.paths, kernel)
    with pytest.raises(ModuleProblem, match="recorder is running"):
        module.unload(empty_host.paths, FakeKernel(empty_host, errno.EAGAIN))
    assert module.unload(empty_host.paths, kernel)


def test_module_that_is_busy_in_the_end_is_said(empty_host: FakeHost, object_file: Path) -> None:
    said: list[str] = []
    with module.loaded(object_file, empty_host.paths, said.append, FakeKernel(empty_host)) as _:
        (empty_host.paths.sys / "module/perfguest/version").write_text("")
        busy = FakeKernel(empty_host, errno.EBUSY)
        module._unload_ours(empty_host.paths, busy, said.append)
    assert "stays loaded" in said[0]


def test_without_headers_a_loaded_module_of_this_version_will_do(fake_host: FakeHost, tmp_path: Path) -> None:
    assert module.prepare(tmp_path, fake_host.paths, print) is None
    (fake_host.paths.sys / "module/perfguest/version").write_text("0.0.1\n")
    with pytest.raises(EnvironmentProblem, match="no headers"):
        module.prepare(tmp_path, fake_host.paths, print)
