# SPDX-License-Identifier: Apache-2.0
"""What the cache of guests' kernels gives back: what was put in, or nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perfguest.capture import guest_cache
from perfguest.capture.guest_cache import KernelCache
from perfguest.formats.guest_snapshot import SnapshotWriter
from perfguest.guest import wire
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2
from tests.capture.fake_reader import kernel

Damage = Callable[[Path], object]


def piece(size: int, moved: int = 0) -> tables_pb2.Piece:
    return tables_pb2.Piece(address=0xFFFFFFFF81200000, size=size, moved=moved, sha256=hashlib.sha256(bytes(size)).digest())


def tables_of(image: pb.Kernel) -> tables_pb2.KernelTables:
    raw = tables_pb2.KernelRaw(entry=0xFFFFFFFF81800000, text=0xFFFFFFFF81000000, notes=piece(36), banner=piece(160), symbols=piece(800, 9), btf=piece(400))
    made = tables_pb2.KernelTables(format_version=1, fingerprint=wire.fingerprint(image), release=image.release, build_id=image.build_id, raw=raw)
    made.addresses, made.types, made.names, made.btf_places = image.symbols.addresses, image.symbols.types, image.symbols.names, bytes(8)
    return made


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, str]:
    """A cache with a kernel and its tables, and the kernel's fingerprint."""
    image = kernel()
    mark = wire.fingerprint(image)
    with SnapshotWriter(tmp_path / "guests") as writer:
        writer.kernel("01" * 20, image)
    cache = KernelCache(tmp_path / "cache")
    cache.keep("01" * 20, mark, tmp_path / "guests/kernels" / f"{'01' * 20}.pb.gz")
    cache.keep_tables(mark, tables_of(image))
    cache.close()
    return tmp_path / "cache", mark


def test_kernel_and_tables_come_back(stored: tuple[Path, str], tmp_path: Path) -> None:
    directory, mark = stored
    cache = KernelCache(directory)
    assert (cache.known(), cache.with_tables()) == ([mark], [mark])
    assert cache.tables(mark) == tables_of(kernel())
    assert cache.fetch(mark, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / f"guests/kernels/{'01' * 20}.pb.gz").read_bytes()
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def lead_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def block(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[Damage] = [
    lambda path: flip(path, 20),
    lambda path: flip(path, -1),
    lambda path: flip(path, path.stat().st_size // 2),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-5]),
    lambda path: path.write_bytes(path.read_bytes() + b"more"),
    lead_away,
    block,
    lambda path: os.chown(path, 12345, 12345),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
@pytest.mark.parametrize("with_tables", [True, False])
def test_damaged_or_foreign_kernel_is_not_believed(stored: tuple[Path, str], tmp_path: Path, damage: Damage, with_tables: bool) -> None:
    directory, mark = stored
    (packed,) = directory.glob("*.pb.gz")
    if not with_tables:
        next(iter(directory.glob("*.tables"))).unlink()
    damage(packed)
    cache = KernelCache(directory)
    assert not cache.fetch(mark, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert mark not in cache.known()


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_or_foreign_tables_are_not_believed(stored: tuple[Path, str], tmp_path: Path, damage: Damage) -> None:
    directory, mark = stored
    (tables,) = directory.glob("*.tables")
    damage(tables)
    cache = KernelCache(directory)
    assert cache.tables(mark) is None
    assert cache.with_tables() == []
    # The kernel itself is as good as it was.
    assert cache.fetch(mark, tmp_path / "out")


def test_tables_of_another_kernel_are_not_believed(stored: tuple[Path, str]) -> None:
    directory, mark = stored
    (tables,) = directory.glob("*.tables")
    other = tables_of(kernel(b"\x02" * 20))
    body = bytes(32) + other.SerializeToString()
    tables.write_bytes(b"PGTABLES" + body[:32] + hashlib.sha256(body).digest() + body[32:])
    assert KernelCache(directory).tables(mark) is None


@pytest.mark.parametrize(("kernels", "size"), [(3, 1 << 30), (100, 4000)])
def test_size_is_bounded_and_the_latest_used_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: int, size: int) -> None:
    monkeypatch.setattr(guest_cache, "MOST_KERNELS", kernels)
    monkeypatch.setattr(guest_cache, "MOST_BYTES", size)
    cache = KernelCache(tmp_path / "cache")
    marks = []
    for number in range(8):
        image = kernel(bytes([number]) * 20, os.urandom(1000).replace(b"\0", b"x") + b"\0b\0")
        marks.append(wire.fingerprint(image))
        with SnapshotWriter(tmp_path / "guests") as writer:
            writer.kernel("01", image)
        cache.keep("01", marks[-1], tmp_path / "guests/kernels/01.pb.gz")
        age = number * 10**9
        os.utime(tmp_path / f"cache/01-{marks[-1]}.pb.gz", ns=(age, age))
    stays = cache.known()
    assert stays == marks[-len(stays) :]
    assert len(stays) == 3
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= size
