# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, cut off, or no perf.data at all; and guest samples, which only a KVM host can record, made from a real file."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats import perf_records, zstd_stream
from perfguest.formats.perf_attr import parse_attr
from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.formats.perf_timeline import latest
from perfguest.formats.zstd_stream import decompress_stream

# PERF_RECORD_AUXTRACE of tools/perf/util/event.h in the kernel's source.
_AUXTRACE = 71
_WORKLOAD = ["sh", "-c", "seq 100000 | sort -n | sha1sum >/dev/null"]


def _record(path: Path, *options: str) -> bytes:
    subprocess.run(["perf", "record", "-q", "-F", "1999", "-g", "-e", "cpu-clock", *options, "-o", str(path), "--", *_WORKLOAD], check=True, timeout=60)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _record(tmp_path_factory.mktemp("whole") / "perf.data")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _record(tmp_path_factory.mktemp("compressed") / "perf.data", "-z")


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    command = ["perf", "record", "-q", "-F", "1999", "-g", "-e", "cpu-clock", "-o", "-", "--", *_WORKLOAD]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "perf.data"


def _read(path: Path, data: bytes) -> PerfData:
    path.write_bytes(data)
    return read_perf_data(path)


def _data_section(data: bytes) -> tuple[int, int]:
    start, size = struct.unpack_from("<QQ", data, 40)
    return start, size


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no perf.data file"),
        (b"PERFILE2", "no perf.data file"),
        (b"\x7fELF" + bytes(200), "no perf.data file"),
        (b"2ELIFREP" + bytes(200), "big-endian"),
        (b"PERFFILE" + bytes(200), "before Linux 3.3"),
        (b"PERFILE2" + struct.pack("<Q", 104) + bytes(20), "ends within its header"),
        (b"PERFILE2" + struct.pack("<Q", 104) + bytes(88), "list of events"),
        (b"PERFILE2" + struct.pack("<Q", 16), "describes no events"),
    ],
)
def test_what_cannot_be_read_is_refused_with_words(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        _read(tmp_path / "perf.data", data)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_perf_data(tmp_path / "none")
    with pytest.raises(FormatError, match="is a directory"):
        read_perf_data(tmp_path)


def test_impossible_record_size_names_its_offset(whole: bytes, scratch: Path) -> None:
    samples = _read(scratch, whole).samples
    start, size = _data_section(whole)
    first, last = int(samples.offset[0]), int(samples.offset.max())
    for offset, wrong in ((first, 0), (first, 7), (last, 0xFFF8)):
        assert offset + wrong > start + size or wrong < 8
        broken = bytearray(whole)
        struct.pack_into("<H", broken, offset + 6, wrong)
        with pytest.raises(FormatError, match=f"{offset:#x} has an impossible size of {wrong} bytes"):
            _read(scratch, bytes(broken))


def test_callchain_longer_than_its_record(whole: bytes, scratch: Path) -> None:
    data = _read(scratch, whole)
    index = int(np.argmax(np.diff(data.samples.chain_start)))
    offset = int(data.samples.offset[index])
    words = data.events[int(data.samples.event[index])].sample_words()
    broken = bytearray(whole)
    for count in (int(np.diff(data.samples.chain_start)[index]) + 1, 1 << 40, (1 << 64) - 1):
        struct.pack_into("<Q", broken, offset + 8 + 8 * len(words), count)
        with pytest.raises(FormatError, match=f"{offset:#x}.*too short"):
            _read(scratch, bytes(broken))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_truncated_file_gives_what_stands_before_the_tear(whole: bytes, scratch: Path, share: float) -> None:
    cut = int(share * (len(whole) - 1))
    start, size = _data_section(whole)
    before = _read(scratch, whole)
    if cut < start:
        with pytest.raises(FormatError):
            _read(scratch, whole[:cut])
        return
    after = _read(scratch, whole[:cut])
    # A record whose header says more than is left is the torn one.
    ends = before.samples.offset + [struct.unpack_from("<H", whole, at + 6)[0] for at in before.samples.offset.tolist()]
    kept = ends <= cut
    assert after.samples.offset.tolist() == before.samples.offset[kept].tolist()
    assert after.samples.ip.tolist() == before.samples.ip[kept].tolist()
    assert np.array_equal(np.diff(after.samples.chain_start), np.diff(before.samples.chain_start)[kept])
    if cut < start + size:
        assert any("cut off" in note for note in after.notes)
        assert after.header.hostname == ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    choice=st.sampled_from(["whole", "compressed", "piped"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), max_size=4),
)
def test_damaged_file_gives_our_error_or_whole_columns(
    *, whole: bytes, compressed: bytes, piped: bytes, scratch: Path, choice: str, changes: list[tuple[float, bytes]]
) -> None:
    data = bytearray({"whole": whole, "compressed": compressed, "piped": piped}[choice])
    for share, garbage in changes:
        # Half of the damage to the first kilobytes, where sizes and offsets stand.
        at = int(share * 2 * len(data)) if share < 0.5 else int((share - 0.5) * 2 * min(len(data), 2048))
        data[at : at + len(garbage)] = garbage[: len(data) - at]
    _expect_error_or_columns(scratch, bytes(data))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=400), pipe=st.booleans())
def test_garbage_behind_the_magic(scratch: Path, garbage: bytes, pipe: bool) -> None:
    _expect_error_or_columns(scratch, b"PERFILE2" + struct.pack("<Q", 16 if pipe else 104) + garbage)


def _expect_error_or_columns(path: Path, data: bytes) -> None:
    try:
        read = _read(path, data)
    except FormatError as error:
        assert str(path) in error.message
        return
    samples = read.samples
    assert len(samples.cpu) == len(samples.ip) == len(samples.event) == len(samples.chain_start) - 1 == len(samples)
    assert samples.chain_start[-1] == len(samples.chain)
    assert (np.diff(samples.time) >= 0).all()
    assert ((samples.event >= 0) & (samples.event < len(read.events))).all()
    names, which = read.comms_at(samples.tid, samples.time)
    assert all(0 <= index < len(names) for index in which.tolist())


def test_guest_samples(whole: bytes, scratch: Path) -> None:
    host = _read(scratch, whole)
    patched = bytearray(whole)
    modes = {}
    for number, offset in enumerate(host.samples.offset.tolist()):
        modes[offset] = (4, 5, 1, 2)[number % 4]
        misc = struct.unpack_from("<H", patched, offset + 4)[0]
        struct.pack_into("<H", patched, offset + 4, misc & ~7 | modes[offset])
    guest = _read(scratch, bytes(patched))
    assert guest.samples.cpumode.tolist() == [modes[offset] for offset in guest.samples.offset.tolist()]
    assert guest.samples.ip.tolist() == host.samples.ip.tolist()


def test_losses_and_throttling_are_counted(whole: bytes, scratch: Path) -> None:
    start, size = _data_section(whole)
    extra = struct.pack("<IHHQQ", perf_records.LOST, 0, 24, 0, 17) + struct.pack("<IHHQQ", perf_records.LOST, 0, 24, 0, 5)
    extra += struct.pack("<IHHQ", perf_records.LOST_SAMPLES, 0, 16, 3)
    extra += struct.pack("<IHHQQQ", perf_records.THROTTLE, 0, 32, 0, 0, 0) * 2 + struct.pack("<IHHQQQ", perf_records.UNTHROTTLE, 0, 32, 0, 0, 0)
    before = _read(scratch, whole)
    data = bytearray(whole[: start + size] + extra)
    struct.pack_into("<Q", data, 48, size + len(extra))
    data[72:104] = bytes(32)
    after = _read(scratch, bytes(data))
    assert after.lost - before.lost == 22
    assert after.lost_samples - before.lost_samples == 3
    assert after.throttled - before.throttled == 2
    assert after.unthrottled - before.unthrottled == 1
    assert after.samples.ip.tolist() == before.samples.ip.tolist()
    # Without the description of the host, names are those of the attributes.
    assert [event.name for event in after.events] == [event.name for event in before.events]


def test_aux_data_behind_its_record_is_stepped_over(whole: bytes, scratch: Path) -> None:
    start, size = _data_section(whole)
    garbage = b"\xff" * 21
    auxtrace = struct.pack("<IHHQQQIIII", _AUXTRACE, 0, 48, len(garbage), 0, 0, 0, 0, 0, 0) + garbage
    data = bytearray(whole[:start] + auxtrace + whole[start : start + size])
    struct.pack_into("<Q", data, 48, size + len(auxtrace))
    data[72:104] = bytes(32)
    # All records behind it are no longer aligned.
    before = _read(scratch, whole)
    chain = before.samples.chain.tolist()
    read = _read(scratch, bytes(data))
    assert read.samples.chain.tolist() == chain
    assert read.samples.time.tolist() == before.samples.time.tolist()
    assert read.comms.comm == before.comms.comm


def test_sample_of_an_unknown_event_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "perf.data"
    whole = bytearray(_record(path, "-a"))
    before = read_perf_data(path)
    at = before.events[0].sample_words().get(1 << 16) or before.events[0].sample_words()[1 << 6]
    struct.pack_into("<Q", whole, int(before.samples.offset[0]) + at, 1 << 50)
    after = _read(path, bytes(whole))
    assert len(after.samples) == len(before.samples) - 1
    assert any("1 samples belong to no event" in note for note in after.notes)


def test_attr_shorter_than_the_first_published() -> None:
    with pytest.raises(FormatError, match="0x10"):
        parse_attr("file", bytes(200), 16, 63)


def test_no_zstd_library_is_said(monkeypatch: pytest.MonkeyPatch, compressed: bytes, scratch: Path) -> None:
    def refuse(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(zstd_stream.ctypes, "CDLL", refuse)
    with pytest.raises(FormatError, match=r"libzstd\.so\.1") as caught:
        _read(scratch, compressed)
    assert "libzstd1" in caught.value.hint


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_what_is_no_zstd(pieces: list[bytes]) -> None:
    try:
        assert len(decompress_stream(pieces, 1000)) <= 1000
    except FormatError as error:
        assert "compressed" in error.message


def test_zstd_pieces_are_one_stream() -> None:
    text = bytes(range(256)) * 4000
    zstd = ctypes.CDLL("libzstd.so.1")
    zstd.ZSTD_compress.restype = ctypes.c_size_t
    output = ctypes.create_string_buffer(2 * len(text))
    size = zstd.ZSTD_compress(output, ctypes.c_size_t(len(output)), text, ctypes.c_size_t(len(text)), 3)
    packed = output.raw[:size]
    assert decompress_stream([packed[at : at + 97] for at in range(0, len(packed), 97)], len(text)) == text
    with pytest.raises(FormatError, match="more than"):
        decompress_stream([packed], 500_000)


_moments = st.lists(st.tuples(st.integers(-3, 3), st.integers(-(1 << 60), 1 << 60) | st.integers(0, 5)), max_size=12)


@settings(deadline=None)
@given(_moments, _moments)
def test_latest_is_the_last_entry_before(entries: list[tuple[int, int]], queries: list[tuple[int, int]]) -> None:
    columns = [np.array([row[column] for row in rows], np.int64) for rows in (entries, queries) for column in (0, 1)]
    found = latest(columns[0], columns[1], columns[2], columns[3])
    for (key, moment), index in zip(queries, found.tolist(), strict=True):
        candidates = [(time, position) for position, (owner, time) in enumerate(entries) if owner == key and time <= moment]
        assert index == (max(candidates)[1] if candidates else -1)
