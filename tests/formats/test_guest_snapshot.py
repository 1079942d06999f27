# SPDX-License-Identifier: Apache-2.0
"""guests/ is read as it was written, up to a tear, and no bytes in it make the reader fail in another way than with words."""

from __future__ import annotations

import gzip
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats import guest_snapshot
from perfguest.formats.guest_snapshot import SnapshotWriter, read_snapshot
from perfguest.proto import guest_pb2 as pb

KEY = "ab" * 20
PROCESS = pb.Process(vm_pid=7, tgid=3, comm=b"a\xffb", mappings=[pb.Mapping(start=1, end=2, path=b"/x")])


@pytest.fixture
def guests(tmp_path: Path) -> Path:
    with SnapshotWriter(tmp_path / "guests") as writer:
        writer.kernel(KEY, pb.Kernel(release="6.1", build_id=b"\xab" * 20))
        writer.binary(KEY, pb.Binary(path=b"/bin/x", size=5, pages=[pb.Bytes(address=0, data=b"12345")]))
        writer.event(pb.GuestEvent(kernel=pb.VmKernel(vm_pid=7, kernel=KEY)))
        writer.event(pb.GuestEvent(process=PROCESS))
        writer.event(pb.GuestEvent(problem=pb.Problem(vm_pid=7, text="none")))
    return tmp_path / "guests"


def test_what_is_written_is_read(guests: Path) -> None:
    snapshot = read_snapshot(guests)
    assert snapshot is not None
    assert [one.kernel for one in snapshot.kernels] == [KEY] and snapshot.processes == [PROCESS] and snapshot.problems[0].text == "none"
    kernel, binary = snapshot.kernel(KEY), snapshot.binary(KEY)
    assert kernel is not None and kernel.release == "6.1"
    assert binary is not None and binary.pages[0].data == b"12345"
    assert snapshot.kernel("cd") is None and not snapshot.notes


def test_files_are_what_gzip_writes(guests: Path) -> None:
    assert pb.Kernel.FromString(gzip.decompress((guests / "kernels" / f"{KEY}.pb.gz").read_bytes())).release == "6.1"


def test_no_snapshot_is_none(tmp_path: Path) -> None:
    assert read_snapshot(tmp_path / "guests") is None


def test_a_writer_goes_on_where_another_ended(guests: Path) -> None:
    with SnapshotWriter(guests) as writer:
        assert writer.has_kernel(KEY) and writer.has_binary(KEY) and not writer.has_kernel("cd")
        writer.event(pb.GuestEvent(process=PROCESS))
    snapshot = read_snapshot(guests)
    assert snapshot is not None and len(snapshot.processes) == 2


@pytest.mark.parametrize("key", ["", "../../etc/x", "AB", "a/b", "a" * 200])
def test_keys_that_lead_elsewhere_are_refused(key: str, guests: Path) -> None:
    with SnapshotWriter(guests) as writer, pytest.raises(ValueError, match="is no key"):
        writer.kernel(key, pb.Kernel())
    snapshot = read_snapshot(guests)
    assert snapshot is not None and snapshot.kernel(key) is None


def test_events_are_read_up_to_the_tear(guests: Path) -> None:
    whole = (guests / "events").read_bytes()
    found = []
    for end in range(len(whole) + 1):
        (guests / "events").write_bytes(whole[:end])
        snapshot = read_snapshot(guests)
        assert snapshot is not None
        found.append(len(snapshot.kernels) + len(snapshot.processes) + len(snapshot.problems))
        assert all("not whole events" in note for note in snapshot.notes)
    assert found == sorted(found) and found[0] == 0 and found[-1] == 3 and found[-2] == 2


def test_a_full_disk_leaves_what_was_there(guests: Path) -> None:
    """The limit on a file's size acts as a full disk does: a part is written, then nothing."""
    before = (guests / "events").read_bytes()
    big = pb.GuestEvent(problem=pb.Problem(text="x" * 100_000))
    with SnapshotWriter(guests) as writer:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, hard))
        try:
            with pytest.raises(OSError):
                writer.event(big)
            with pytest.raises(OSError):
                writer.binary("cd", pb.Binary(pages=[pb.Bytes(data=bytes(range(256)) * 8 + Path(__file__).read_bytes())]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (guests / "events").read_bytes() == before
        assert [path.name for path in (guests / "binaries").iterdir()] == [f"{KEY}.pb.gz"]
        writer.event(big)
    snapshot = read_snapshot(guests)
    assert snapshot is not None and len(snapshot.problems) == 2 and not snapshot.notes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut off"),
        (b"no gzip", "damaged"),
        (gzip.compress(b"\xff" * 50), "damaged"),
        (gzip.compress(pb.Kernel(format_version=2).SerializeToString()), "format 2"),
        (gzip.compress(pb.Kernel(release="x").SerializeToString()), "format 0"),
        (gzip.compress(b"\x2a\x00" * 300_000), "too many fields"),
        (gzip.compress(pb.Kernel(format_version=1, release="6").SerializeToString())[:-9], "cut off"),
    ],
)
def test_damaged_kernels_are_notes(content: bytes, words: str, guests: Path) -> None:
    (guests / "kernels" / f"{KEY}.pb.gz").write_bytes(content)
    snapshot = read_snapshot(guests)
    assert snapshot is not None and snapshot.kernel(KEY) is None
    assert len(snapshot.notes) == 1 and words in snapshot.notes[0]


def test_bombs_are_not_unpacked(guests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_snapshot, "MAX_UNPACKED", 1 << 16)
    (guests / "binaries" / f"{KEY}.pb.gz").write_bytes(gzip.compress(pb.Binary(format_version=1, path=bytes(1 << 20)).SerializeToString()))
    snapshot = read_snapshot(guests)
    assert snapshot is not None and snapshot.binary(KEY) is None and "too long" in snapshot.notes[0]


def test_events_of_endless_fields_are_left_out(guests: Path) -> None:
    # Two bytes each in the file, a hundred in memory.
    event = pb.GuestEvent(process=pb.Process(mappings=[pb.Mapping()] * 300_000)).SerializeToString()
    with (guests / "events").open("ab") as file:
        file.write(len(event).to_bytes(4, "little") + event)
    snapshot = read_snapshot(guests)
    assert snapshot is not None and len(snapshot.processes) == 1 and "too many fields" in snapshot.notes[0]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_reader(junk: bytes, framed: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        guests = Path(name)
        (guests / "kernels").mkdir()
        (guests / "events").write_bytes(len(junk).to_bytes(4, "little") + junk if framed else junk)
        (guests / "kernels" / "aa.pb.gz").write_bytes(gzip.compress(junk) if framed else junk)
        snapshot = read_snapshot(guests)
        assert snapshot is not None
        snapshot.kernel("aa")
