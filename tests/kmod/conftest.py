# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.kmod.pure_library import Pure


@pytest.fixture(scope="session")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Pure:
    return Pure(tmp_path_factory.mktemp("pure"))
