# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import perfguest.commands.record as record_command
from perfguest.capture.debugfs import ModuleSettings
from perfguest.capture.guest_cache import cache_directory
from perfguest.capture.guests import GuestSettings
from perfguest.capture.recorder import RecordSettings
from perfguest.commands.module import module
from perfguest.commands.record import record


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
    assert asked == [RecordSettings(guests=GuestSettings(cache=cache_directory()))]


def test_all_options(asked: list[RecordSettings]) -> None:
    words = "-o out -e cycles -F 99 -p 5 -p 6 --vm web --trigger nmi --locator scan --kernel-stack 16K --user-stack 65536 --chain-depth 9"
    words += " --clock mono -m 1M --duration 2.5 --guest-memory kernel --guest-wait 3"
    assert CliRunner().invoke(record, [*words.split(), "--", "cmd", "-o", "x"]).exit_code == 3
    module_settings = ModuleSettings("nmi", "scan", "mono", 16384, 65536, 9, 1024)
    guests = GuestSettings("kernel", 3.0, cache_directory())
    assert asked == [RecordSettings(Path("out"), "cycles", 99, (5, 6), "web", module_settings, 2.5, ("cmd", "-o", "x"), guests=guests)]


@pytest.mark.parametrize(
    "words",
    [
        "--kernel-stack 17K",
        "--kernel-stack x",
        "--user-stack 1M",
        "-m 1K",
        "--kernel-stack 7",
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
