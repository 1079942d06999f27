# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capture.fake_host import FakeHost


@pytest.fixture
def fake_host(tmp_path: Path) -> Iterator[FakeHost]:
    made = FakeHost(tmp_path / "host")
    yield made
    for fd in made.streams:
        os.close(fd)
