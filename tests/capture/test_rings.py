# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.capture.debugfs import ModuleSettings
from perfguest.capture.rings import record_bytes, ring_bytes

MIB, GIB = 1 << 20, 1 << 30
FP, AUTO, MOST = ModuleSettings(kernel_stack=0, user_stack=0), ModuleSettings(), ModuleSettings(user_stack=65536, chain_depth=1024)


@pytest.mark.parametrize(
    ("settings", "rate", "cpus", "memory", "size"),
    [
        (FP, 997, 16, 64 * GIB, 4 * MIB),
        (AUTO, 997, 16, 64 * GIB, 8 * MIB),
        (AUTO, 4000, 16, 64 * GIB, 32 * MIB),
        (MOST, 997, 16, 64 * GIB, 32 * MIB),
        (MOST, 1_000_000, 16, 64 * GIB, 64 * MIB),
        (AUTO, 997, 256, 16 * GIB, 4 * MIB),
        (AUTO, 997, 256, 4 * GIB, 1 * MIB),
    ],
)
def test_sizes(settings: ModuleSettings, rate: int, cpus: int, memory: int, size: int) -> None:
    assert ring_bytes(settings, rate, cpus, memory) == size


@given(
    st.builds(ModuleSettings, kernel_stack=st.sampled_from([0, 16384]), user_stack=st.integers(0, 65536), chain_depth=st.integers(0, 1024)),
    st.integers(1, 1_000_000),
    st.integers(1, 8192),
    st.integers(1 * GIB, 1 << 44),
)
def test_bounds(settings: ModuleSettings, rate: int, cpus: int, memory: int) -> None:
    size = ring_bytes(settings, rate, cpus, memory)
    assert size & (size - 1) == 0 and MIB <= size <= 64 * MIB
    # What the module wants before it samples: two of the largest records.
    assert size >= 2 * (record_bytes(settings) + 16384)
    assert size == MIB or size * cpus <= memory / 16
    assert size >= min(record_bytes(settings) * rate // 4, 64 * MIB, memory // 16 // cpus // 2)


def test_the_hosts_own_memory_is_asked_for() -> None:
    assert MIB <= ring_bytes(AUTO, 997, 2) <= 64 * MIB
