# SPDX-License-Identifier: Apache-2.0
"""The fetcher of guests' kernels: what it chooses, and what it says when Debian does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import guest_kernels


def test_plain_kernels_in_the_order_of_their_versions() -> None:
    packages = ["6.12.90+deb12.1-amd64", "6.1.0-9-amd64", "7.3.4+deb13-cloud-amd64", "5.10.0-32-amd64-dbg", "6.1.0-56-amd64", "7.3.4+deb13-amd64", "amd64"]
    releases = guest_kernels._releases([f"linux-image-{package}" for package in packages])
    assert releases == ["6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.90+deb12.1-amd64", "7.3.4+deb13-amd64"]


def test_image_and_modules_where_they_have_packages_of_their_own() -> None:
    names = ["linux-image-7.3.4-amd64", "linux-modules-7.3.4-amd64", "linux-binary-7.3.4-amd64", "linux-headers-7.3.4-amd64", "linux-modules-7.2.1-amd64"]
    assert guest_kernels._packages("7.3.4-amd64", names) == ["linux-binary-7.3.4-amd64", "linux-image-7.3.4-amd64", "linux-modules-7.3.4-amd64"]


def test_newer_packages_become_what_older_ones_are(tmp_path: Path) -> None:
    modules = tmp_path / "usr/lib/modules/7.3.4-amd64"
    modules.mkdir(parents=True)
    for name in ("vmlinuz", "modules.order", "modules.builtin"):
        (modules / name).write_text(name)
    guest_kernels._arrange(tmp_path, "7.3.4-amd64")
    assert (tmp_path / "boot/vmlinuz-7.3.4-amd64").read_text() == "vmlinuz"
    assert (tmp_path / "lib/modules/7.3.4-amd64/modules.dep").exists()


def test_a_suite_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert guest_kernels.main(["5.10"]) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert "no guest kernel 5.10: Debian's suite bullseye does not answer: " in told.err
    assert "PERFGUEST_GUEST_KERNELS" in told.err
    # Nothing that could be taken for a kernel stays behind.
    assert not (tmp_path / "perfguest/test-kernels/5.10").exists()


def test_what_is_not_offered_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert guest_kernels.main(["4.19"]) == 2
    assert "no such series: 4.19; there are 5.10," in capsys.readouterr().err


def test_what_was_fetched_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(guest_kernels, "_fetch", lambda series, cache: pytest.fail("asked for again"))
    image = tmp_path / "perfguest/test-kernels/5.10/boot/vmlinuz-5.10.0-32-amd64"
    image.parent.mkdir(parents=True)
    image.touch()
    assert guest_kernels.guest_kernel("5.10") == image
