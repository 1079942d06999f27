# SPDX-License-Identifier: Apache-2.0
"""Address spaces for the unwinder: mappings of several readings put together, and the tables of static programs."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.proto import guest_pb2 as pb
from perfguest.unwind.spaces import _tables_of_static, merged_mappings

mapping = st.builds(
    pb.Mapping,
    start=st.integers(0, 40).map(lambda page: page << 12),
    end=st.integers(0, 44).map(lambda page: page << 12),
    offset=st.sampled_from([0, 4096, 1 << 63]),
    executable=st.booleans(),
)


@given(st.lists(st.builds(pb.Process, mappings=st.lists(mapping, max_size=6)), min_size=1, max_size=4))
def test_mappings_are_disjoint_and_the_first_reading_wins(readings: list[pb.Process]) -> None:
    merged = merged_mappings(readings)
    assert all(start < end for start, end, *_ in merged)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(merged))
    usable = [(reading, one) for reading in readings for one in reading.mappings if one.executable and one.start < one.end and one.offset < 1 << 63]
    kept = [one for *_, one in merged]
    for place, (_, one) in enumerate(usable):
        # What is left out is covered, in part at least, by what was there before.
        assert any(one is other for other in kept) or any(one.start < other.end and other.start < one.end for _, other in usable[:place])


@pytest.mark.parametrize("static", [True, False])
def test_tables_of_static_programs_are_found_by_their_section(tmp_path: Path, static: bool) -> None:
    program = tmp_path / "program"
    command = ["gcc", "-x", "c", "-", "-o", str(program), *(["-static"] if static else [])]
    subprocess.run(command, input=b"int main(void) { return 0; }", check=True)
    data = program.read_bytes()
    pages = [(at, data[at : at + 4096]) for at in range(0, len(data), 4096)]
    said = subprocess.run(["readelf", "-SW", program], capture_output=True, text=True, check=True).stdout
    found = re.search(r" \.eh_frame\s+PROGBITS\s+\S+ (\S+) (\S+)", said)
    assert found
    assert _tables_of_static(len(data), pages) == ((int(found[1], 16), int(found[2], 16)) if static else None)
    # Without the section headers, which stand at the end, nothing tells.
    assert _tables_of_static(len(data), pages[: len(pages) // 2]) is None
    assert _tables_of_static(len(data), []) is None
