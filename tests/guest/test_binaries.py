# SPDX-License-Identifier: Apache-2.0
"""Build ids in pieces of ELF images, against readelf, and in garbage."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.guest.binaries import files
from perfguest.guest.notes import build_id
from perfguest.proto import guest_pb2

_PROGRAMS = [path for path in map(Path, ("/usr/bin/perl", "/bin/ls", "/usr/bin/perf", "/lib64/ld-linux-x86-64.so.2", "/bin/busybox")) if path.exists()]
_IMAGE = Path("/bin/ls").read_bytes()[:4096]


@pytest.mark.parametrize("program", _PROGRAMS, ids=str)
def test_build_id_is_what_readelf_says(program: Path) -> None:
    image = program.read_bytes()
    notes = subprocess.run(["readelf", "-n", program], check=True, capture_output=True, text=True).stdout
    assert [build_id(lambda offset, size: image[offset : offset + size]).hex()] == (re.findall(r"Build ID: (\w+)", notes) or [""])


def test_no_build_id_where_the_page_is_not_there() -> None:
    assert build_id(lambda offset, size: _IMAGE[offset : offset + size] if offset + size <= 200 else None) == b""
    assert build_id(lambda offset, size: None) == b""


@given(st.binary(max_size=600))
def test_garbage_has_no_build_id(data: bytes) -> None:
    assert len(build_id(lambda offset, size: data[offset : offset + size])) <= 64
    image = b"\x7fELF\x02\x01" + data
    assert len(build_id(lambda offset, size: image[offset : offset + size])) <= 64


@given(st.lists(st.tuples(st.integers(0, len(_IMAGE) - 1), st.integers(0, 255)), max_size=20))
def test_broken_image_is_never_read_far(changes: list[tuple[int, int]]) -> None:
    image = bytearray(_IMAGE)
    for at, value in changes:
        image[at] = value
    total = 0

    def read(offset: int, size: int) -> bytes:
        nonlocal total
        assert 0 <= offset < 1 << 63
        total += size
        return bytes(image[offset : offset + size])

    assert len(build_id(read)) <= 64
    assert total < 64 * (1 << 16) + 8192


def test_files_are_those_mapped_executable() -> None:
    process = guest_pb2.Process(tgid=7, start_time=9)
    process.mappings.add(start=0x1000, end=0x2000, path=b"/a", binary="aa")
    process.mappings.add(start=0x2000, end=0x3000, path=b"/a", binary="aa", executable=True)
    process.mappings.add(start=0x4000, end=0x5000, path=b"/b", binary="bb")
    process.mappings.add(start=0x6000, end=0x7000, path=b"", executable=True)
    assert {key: handle.vma_start for key, handle in files(process).items()} == {"aa": 0x2000}
