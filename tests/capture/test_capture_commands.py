# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import perfguest.commands.record as record_command
from perfguest.capture.debugfs import ModuleSettings
from perfguest.capture.guests import GuestSettings
from perfguest.capture.recorder import RecordSettings
from perfguest.commands.module import module
from perfguest.commands.record import record
from perfguest.private_directory import cache_directory


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RecordSettings]:
    """The settings that the recorder would have been given; it ends with status 3."""
    seen: list[RecordSettings] = []

    def recorder(settings: RecordSettings) -> int:
        seen.append(settings)
        return 3

    monkeypatch.setattr(record_command, "run_recorder", recorder)
    return seen


def test_defaults(asked: list[RecordSettings]) -> None:
    assert CliRunner().invoke(record, []).exit_code == 3
    assert asked == [RecordSettings(guests=GuestSettings(cache=cache_directory("guest-kernels")))]


def test_all_options(asked: list[RecordSettings]) -> None:
    words = "-o out -e cycles -F 99 -p 5 -p 6 --vm web --trigger nmi --locator scan --stack-size 64K --chain-depth 9"
    words += " --clock mono -m 1M --duration 2.5 --guest-memory kernel --guest-wait 3"
    assert CliRunner().invoke(record, [*words.split(), "--", "cmd", "-o", "x"]).exit_code == 3
    module_settings = ModuleSettings("nmi", "scan", "mono", 16384, 65536, 9, 1024)
    guests = GuestSettings("kernel", 3.0, cache_directory("guest-kernels"))
    assert asked == [RecordSettings(Path("out"), "cycles", 99, (5, 6), "web", module_settings, 2.5, ("cmd", "-o", "x"), guests=guests)]


@pytest.mark.parametrize(
    ("words", "kernel_stack", "user_stack", "chain_depth"),
    [
        ("", 16384, 8192, 127),
        ("--call-graph auto", 16384, 8192, 127),
        ("--call-graph auto --stack-size 16K --chain-depth 9", 16384, 16384, 9),
        ("--call-graph fp", 0, 0, 127),
        ("--call-graph fp --chain-depth 9", 0, 0, 9),
        ("--call-graph dump", 16384, 8192, 0),
        ("--call-graph dump --stack-size 8", 16384, 8, 0),
    ],
)
def test_call_graphs(asked: list[RecordSettings], words: str, kernel_stack: int, user_stack: int, chain_depth: int) -> None:
    assert CliRunner().invoke(record, words.split()).exit_code == 3
    assert [settings.module for settings in asked] == [ModuleSettings(kernel_stack=kernel_stack, user_stack=user_stack, chain_depth=chain_depth)]


def test_help_teaches_how_stacks_are_taken() -> None:
    text = " ".join(CliRunner().invoke(record, ["--help"]).output.split())
    assert "--call-graph [auto|fp|dump]" in text and "--stack-size BYTES Copy so much of the guest's user stack [default: 8192]" in text


@pytest.mark.parametrize(
    "words",
    [
        "--call-graph dwarf",
        "--stack-size 65K",
        "--stack-size x",
        "--stack-size 0",
        "--stack-size 12",
        "--call-graph fp --stack-size 8192",
        "--call-graph dump --chain-depth 9",
        "--chain-depth 0",
        "-m 1K",
        "-F 0",
        "--duration 0",
        "--trigger timer",
        "--guest-memory some",
    ],
)
def test_values_out_of_range(asked: list[RecordSettings], words: str) -> None:
    result = CliRunner().invoke(record, words.split())
    assert result.exit_code == 2
    assert not asked


def test_module_that_is_not_loaded() -> None:
    # Nothing here loads it but recorders in the lab.
    result = CliRunner().invoke(module, ["status"])
    assert (result.exit_code, result.output) == (0, "not loaded\n")
