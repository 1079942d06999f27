# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from perfguest.capture.lab.kernels import image_release
from tests.guest.emulated import KERNELS
from tests.unwind import disk, native_walk, recorded
from tests.unwind.measure import Causes, Row
from tests.unwind.names import KernelNames
from tests.unwind.oracle import Oracle
from tests.unwind.recorded import Counts, Recorded
from tests.unwind.stacks import Evidence, read_evidence

_FIGURES = pytest.StashKey[list[str]]()


class Walks:
    """A recording, walked by the unwinder, and by the plain walk where somebody asks for that."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.evidence: Evidence = read_evidence(directory)
        self.names = KernelNames(self.evidence)
        self.causes = Causes(self.evidence, self.names)

    @cached_property
    def rows(self) -> list[Row]:
        return [Row(sample, walked) for sample, walked in zip(self.evidence.samples, native_walk.walk(self.evidence), strict=True)]

    @cached_property
    def by_code(self) -> list[Row]:
        """As if no page of the programs' tables had been there."""
        walked = native_walk.walk(self.evidence, tables=False)
        return [Row(sample, each) for sample, each in zip(self.evidence.samples, walked, strict=True)]

    @cached_property
    def plain(self) -> list[Row]:
        oracle = Oracle(self.evidence)
        return [Row(sample, oracle.walk(sample)) for sample in self.evidence.samples]


@dataclass(frozen=True)
class Guest:
    """``warm``: all of its files were in memory. ``cold``: as much of them as the guest had needed to run them."""

    recorded: Recorded
    programs: Path
    warm: Walks
    cold: Walks

    def rows(self, phase: str) -> list[Row]:
        return [self.warm.rows[number] for number in self.recorded.phases[phase]]

    @property
    def is_of_debian_12(self) -> bool:
        return self.recorded.release.startswith("6.1.")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("programs")
    disk.build_programs(directory)
    return directory


@pytest.fixture(scope="session")
def image(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk.make_disk(tmp_path_factory.mktemp("disk"), programs)


@pytest.fixture(scope="session", params=KERNELS, ids=lambda path: image_release(Path(path)))
def guest(request: pytest.FixtureRequest, programs: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    result = recorded.record(request.param, image, tmp_path_factory.mktemp("recorded"), Counts())
    return Guest(result, programs, Walks(result.directory), Walks(result.cold))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line that is printed at the end of all tests."""
    lines = request.config.stash.setdefault(_FIGURES, [])

    def add(line: str) -> None:
        lines.append(f"{request.node.name}: {line}")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("guests' stacks")
        for line in lines:
            terminalreporter.write_line(line)
