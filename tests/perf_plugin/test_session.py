# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.errors import EnvironmentProblem, FormatError, UsageError
from perfguest.perf_plugin.session import guest_options, opened_recording, perf_arguments


def _process(tmp_path: Path, targets: list[str | Path], command: bytes = b"perf\0script\0") -> Path:
    """A made-up /proc/self with these files open."""
    process = tmp_path / "self"
    (process / "fd").mkdir(parents=True)
    (process / "cmdline").write_bytes(command)
    for descriptor, target in enumerate(targets):
        (process / "fd" / str(descriptor)).symlink_to(target)
    return process


def _perf_data(directory: Path, name: str = "perf.data") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "recording.pb").touch()
    (directory / name).write_bytes(b"PERFILE2" + bytes(96))
    return directory / name


def test_of_several_the_one_that_perf_opened_counts(tmp_path: Path) -> None:
    inherited, opened = _perf_data(tmp_path / "first"), _perf_data(tmp_path / "second")
    others: list[str | Path] = ["/dev/null", "pipe:[1]", inherited, opened, tmp_path / "first/recording.pb", "/gone/perf.data (deleted)"]
    # Ten and more descriptors: they are numbers, not words.
    assert opened_recording(_process(tmp_path, [*others, *["/dev/null"] * 8])) == tmp_path / "second"


def test_reading_from_a_pipe_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="pipe"):
        opened_recording(_process(tmp_path, ["pipe:[1]", "/dev/null"]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"perf\.data\.old"):
        opened_recording(_process(tmp_path, [_perf_data(tmp_path / "recording", "perf.data.old")]))


def test_command_line_of_perf_ends_where_the_scripts_begins(tmp_path: Path) -> None:
    process = _process(tmp_path, [], b"perf\0script\0-i\0x\xff\0-s\0s.py\0--\0--guestmount\0/m\0")
    assert perf_arguments(["--guestmount", "/m"], process) == ["script", "-i", "x\udcff", "-s", "s.py", "--"]


def test_own_options_win_over_perfs() -> None:
    options, ignored = guest_options(["--guestmount=/own"], ["script", "--guestmount", "/perfs", "--guestkallsyms=/k", "-G", "--cpu", "1", "-s", "x"])
    assert options == {"mounts": ("/own",), "kallsyms": ("/k",), "vmlinux": (), "binaries": ()}
    assert ignored == ["-G", "--cpu"]


def test_options_may_be_given_several_times() -> None:
    options, _ = guest_options(["--guestkallsyms", "a=1", "--guestkallsyms=b=2", "--guest-binary", "x@1000"], ["script"])
    assert options == {"kallsyms": ("a=1", "b=2"), "binaries": ("x@1000",), "mounts": (), "vmlinux": ()}


@pytest.mark.parametrize("arguments", [["--foo"], ["word"], ["--guestmount"]])
def test_unknown_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        guest_options(arguments, ["script"])


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("-=isf guestmount\0\udc80"), max_size=14)), st.lists(st.text(max_size=5)))
def test_no_arguments_give_a_traceback(own: list[str], perf: list[str]) -> None:
    with contextlib.suppress(UsageError):
        options, _ = guest_options(own, perf)
        assert options.keys() == {"kallsyms", "vmlinux", "mounts", "binaries"}
