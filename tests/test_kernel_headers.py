# SPDX-License-Identifier: Apache-2.0
"""The fetcher of kernels' headers: how they are made to work where they are unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from perfguest.capture.lab.kernels import Kernel
from perfguest.errors import EnvironmentProblem
from tests import kernel_headers


def test_only_programs_that_need_a_newer_c_library_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(shutil.which("true") or "")
    assert not kernel_headers._needs_newer_libc(program)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.2")
    assert kernel_headers._needs_newer_libc(program)


def test_a_wrapped_program_runs_with_the_libraries_beside_it(tmp_path: Path) -> None:
    libraries = tmp_path / "libraries"
    for name in ("lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libc.so.6"):
        (libraries / name).parent.mkdir(parents=True)
        shutil.copy(f"/{name}", libraries / name)
    program, text = tmp_path / "cat", tmp_path / "two  words"
    text.write_text("read\n")
    shutil.copy(shutil.which("cat") or "", program)
    kernel_headers._wrap(program, libraries, libraries)
    told = subprocess.run([program, text, "/proc/self/maps"], capture_output=True, text=True, check=True).stdout
    assert told.startswith("read\n")
    assert f" {libraries}/usr/lib/x86_64-linux-gnu/libc.so.6\n" in told
    assert " /usr/lib/x86_64-linux-gnu/libc.so.6\n" not in told


def test_headers_name_their_place_and_this_machines_compiler(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("KBUILD_OUTPUT=/usr/src/linux-headers-1-amd64\ninclude /usr/src/linux-headers-1-common/Makefile\n")
    (tmp_path / ".kernelvariables").write_text("CCACHE = ccache\nCC = $(if $(DEBIAN_KERNEL_USE_CCACHE),$(CCACHE)) $(CROSS_COMPILE)gcc-14\n")
    kernel_headers._adapt(tmp_path, Path("/cache/headers-1"))
    assert "include /cache/headers-1/usr/src/linux-headers-1-common/Makefile\n" in (tmp_path / "Makefile").read_text()
    (tmp_path / "auto.conf").write_text("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=y\n")
    (tmp_path / "test.mk").write_text("include .kernelvariables\ninclude auto.conf\nall:;@echo '$(CC)' '[$(CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT)]'\n")
    made = subprocess.run(["make", "-C", tmp_path, "-s", "-f", "test.mk", "CROSS_COMPILE="], capture_output=True, text=True, check=True)
    assert made.stdout == "gcc []\n"


def test_an_installed_kernel_without_headers_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(Path("/boot/vmlinuz-6.1.0-1-amd64"), "6.1.0-1-amd64", tmp_path)
    monkeypatch.setattr(kernel_headers, "guest_kernel", lambda series: kernel.image)
    monkeypatch.setattr(kernel_headers, "find_kernel", lambda image, modules, needed: kernel)
    with pytest.raises(EnvironmentProblem, match=r"6\.1\.0-1-amd64: no .*/build") as caught:
        kernel_headers.build_tree("6.1")
    assert "apt install linux-headers-6.1.0-1-amd64" in str(caught.value)
    (tmp_path / "build").mkdir()
    (tmp_path / "build/Makefile").touch()
    assert kernel_headers.build_tree("6.1").directory == tmp_path / "build"


def test_what_is_not_offered_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_headers.main(["4.19"]) == 2
    assert "no such series: 4.19; there are 5.10," in capsys.readouterr().err
