# SPDX-License-Identifier: Apache-2.0
"""Kernels read out of memory, made from Debian's image: named as /proc/kallsyms names them, refused where they contradict themselves or the samples."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats.guest_snapshot import GuestSnapshot, SnapshotWriter, read_snapshot
from perfguest.formats.kernel_image import KernelImage, read_kernel_image
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.resolved import Resolved
from perfguest.symbols.snapshot_kernel import decode_symbols
from tests.snapshots import events, kernel_message, modules_of, symbols_message

U64 = npt.NDArray[np.uint64]
OFFSET = 0x1E600000
VM = GuestVm(7, "web")
MODULES = [(0xFFFFFFFFC0100000, "t", "mod_one"), (0xFFFFFFFFC0100040, "T", "mod_two"), (0xFFFFFFFFC0101000, "d", "mod_data")]
BPF = [(0xFFFFFFFFC0900010, "t", "bpf_prog_6deef7357e7b4530"), (0xFFFFFFFFC0900800, "d", "bpf_end")]


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return read_kernel_image(str(sorted(Path("/boot").glob("vmlinuz-*"))[-1]))


@pytest.fixture(scope="module")
def lstar(image: KernelImage) -> int:
    entry = image.address_of("entry_SYSCALL_64")
    assert entry is not None
    return entry + OFFSET


@pytest.fixture(scope="module")
def stored(image: KernelImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kernel") / "guests"
    with SnapshotWriter(directory) as writer:
        writer.kernel("aa", kernel_message(image))
        writer.kernel("bb", pb.Kernel(release="other", symbols=symbols_message([(0xFFFFFFFF81000000, "T", "_text"), (0xFFFFFFFF81900000, "T", "other")])))
    return directory


@pytest.fixture(scope="module")
def kallsyms(image: KernelImage, tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = zip(image.symbols.address.tolist(), map(chr, image.symbols.kind.tolist()), image.symbols.names, strict=True)
    lines = [f"{address + OFFSET if address >> 63 else address:016x} {kind} {name}\n" for address, kind, name in rows]
    lines += [f"{address:016x} {kind} {name}\t[mod]\n" for address, kind, name in MODULES] + [
        f"{address:016x} {kind} {name}\t[bpf]\n" for address, kind, name in BPF
    ]
    path = tmp_path_factory.mktemp("kallsyms") / "kallsyms"
    path.write_text("".join(lines))
    return str(path)


def event(lstar: int, time: int = 100, key: str = "aa", offset: int = OFFSET, modules: list[pb.Module] | None = None) -> pb.VmKernel:
    if modules is None:
        modules = [pb.Module(name=b"mod", address=MODULES[0][0], size=0x2000, symbols=symbols_message(MODULES))]
    bpf = symbols_message(BPF)
    return pb.VmKernel(vm_pid=7, vm_id=1, time=time, kernel=key, kaslr_offset=offset, lstar=lstar, modules=modules, bpf=bpf, level="processes")


def build(
    stored: Path, kernels: list[pb.VmKernel], options: GuestSymbolOptions | None = None, lstars: tuple[int, ...] = (), texts: Sequence[pb.ModuleText] = ()
) -> GuestSymbols:
    snapshot = GuestSnapshot(stored, kernels=kernels, module_texts=list(texts))
    return GuestSymbols.build([GuestVm(7, "web", lstars)], options or GuestSymbolOptions(), snapshot)


def names(resolved: Resolved) -> list[tuple[str, int, str]]:
    texts, dsos = [*resolved.names, "?"], [*(dso.name for dso in resolved.dsos), "?"]
    return [(texts[name], int(offset), dsos[dso]) for name, offset, dso in zip(resolved.name, resolved.offset, resolved.dso, strict=True)]


def resolve(symbols: GuestSymbols, addresses: U64, time: int = 200, lstar: int = 0) -> list[tuple[str, int, str]]:
    vm = np.zeros(len(addresses), np.int32)
    kernel = symbols.kernel_at(vm, np.full(len(addresses), time), np.full(len(addresses), lstar, np.uint64))
    return names(symbols.resolve_kernel(vm, addresses, kernel))


def column(*addresses: int) -> U64:
    return np.array(addresses, np.uint64)


def test_names_are_those_of_kallsyms(stored: Path, kallsyms: str, lstar: int, image: KernelImage) -> None:
    random = np.random.default_rng(1)
    text = image.text[0]
    addresses = random.integers(text.address + OFFSET, text.address + text.size + OFFSET, 20_000, dtype=np.uint64)
    addresses = np.concatenate([addresses, column(*(address + 3 for address, _, _ in MODULES + BPF), 0xFFFFFFFFC0200000, 0xFFFFFFFFC0900805)])
    given_file = build(stored, [], GuestSymbolOptions(kallsyms=(kallsyms,)), (lstar,))
    from_memory = build(stored, [event(lstar)], lstars=(lstar,))
    expected = names(given_file.resolve_kernel(np.zeros(len(addresses), np.int32), addresses))
    assert resolve(from_memory, addresses, lstar=lstar) == expected
    assert (
        sum(name != "?" for name, _, _ in expected) > 19_000 and ("mod_one", 3, "[mod]") in expected and ("bpf_prog_6deef7357e7b4530", 3, "[bpf]") in expected
    )
    assert from_memory.notes == []


def test_files_come_first_and_memory_fills_their_gaps(stored: Path, lstar: int, tmp_path: Path) -> None:
    entry = lstar
    (tmp_path / "kallsyms").write_text(f"{entry:016x} T entry_SYSCALL_64\n{entry + 0x40:016x} T from_file\n")
    symbols = build(stored, [event(lstar)], GuestSymbolOptions(kallsyms=(str(tmp_path / "kallsyms"),)), (lstar,))
    found = resolve(symbols, column(entry + 0x48, MODULES[0][0] + 1, entry - 0x100000))
    assert found[0] == ("from_file", 8, "[guest.kernel.kallsyms]") and found[1] == ("mod_one", 1, "[mod]")
    assert found[2][0] not in {"?", "from_file"}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"offset": OFFSET + 0x1000}, "cannot stand"), ({"offset": 1 << 30}, "cannot stand"), ({"offset": OFFSET + 0x200000}, "syscall entry is")],
)
def test_kernels_that_contradict_their_place_are_refused(stored: Path, lstar: int, change: dict[str, int], words: str) -> None:
    symbols = build(stored, [event(lstar, **change)], lstars=(lstar,))
    assert resolve(symbols, column(lstar + 5))[0][0] == "?"
    assert any(words in note for note in symbols.notes) and any("have no names" in note for note in symbols.notes)


def test_another_kernel_at_the_same_entry_is_refused_by_the_returns(stored: Path, lstar: int, image: KernelImage) -> None:
    """Its addresses follow no call in this one's text."""
    random = np.random.default_rng(2)
    text = image.text[0]
    returns = random.integers(text.address + OFFSET, text.address + text.size + OFFSET, 200, dtype=np.uint64)
    symbols = build(stored, [event(lstar)], lstars=(lstar,))
    vm = np.zeros(len(returns), np.int32)
    kernel = symbols.kernel_at(vm, np.full(len(returns), 200), np.zeros(len(returns), np.uint64))
    symbols.check_kernels(vm, returns, np.ones(len(returns), bool), kernel)
    assert any("is not the kernel that it ran" in note for note in symbols.notes)
    assert {name for name, _, _ in resolve(symbols, returns)} == {"?"}


def test_returns_are_proven_by_the_text(stored: Path, lstar: int, image: KernelImage) -> None:
    symbols = build(stored, [event(lstar)], lstars=(lstar,))
    content = image.content(image.text[0])
    calls = np.flatnonzero(content[: 1 << 20] == 0xE8).astype(np.uint64)
    returns = np.uint64(image.text[0].address + OFFSET + 5) + calls
    vm, kernel = np.zeros(len(returns), np.int32), np.zeros(len(returns), np.int32)
    verdict = symbols.proven_returns(vm, returns, kernel)
    # Most bytes e8 are calls; those within other instructions lead elsewhere.
    assert np.count_nonzero(verdict == 1) > 0.6 * len(returns)
    moved = symbols.proven_returns(vm, returns + np.uint64(1), kernel)
    assert np.count_nonzero(moved == 1) < 0.05 * len(returns)
    modules = symbols.proven_returns(vm[:2], column(MODULES[0][0] + 9, 0xFFFFFFFFC0300000), kernel[:2])
    assert modules.tolist() == [-1, -1]
    assert symbols.proven_returns(vm[:2], column(0xFFFF888000001000, 0xFFFFC90000001000), kernel[:2]).tolist() == [0, 0]


def module_text(lstar: int, code: bytes, **other: int) -> pb.ModuleText:
    return pb.ModuleText(**{"vm_pid": 7, "lstar": lstar, "address": MODULES[0][0], "size": len(code), **other}, packed=zlib.compress(code))


def test_returns_into_modules_are_proven_by_their_code(stored: Path, lstar: int) -> None:
    start = MODULES[0][0]
    code = bytearray(0x2000)
    code[0x10:0x15] = b"\xe8" + (lstar - (start + 0x15)).to_bytes(4, "little", signed=True)
    symbols = build(stored, [event(lstar)], lstars=(lstar,), texts=[module_text(lstar, bytes(code))])
    assert symbols.proven_returns(np.zeros(2, np.int32), column(start + 0x15, start + 0x20), np.zeros(2, np.int32)).tolist() == [1, 0]
    tables = symbols.kernel_tables(0, 0)
    assert tables is not None
    assert tables.text[-1][0] == start
    assert tables.text[-1][1].tobytes() == code


@pytest.mark.parametrize(
    "wrong",
    [{"vm_pid": 8}, {"lstar": 5}, {"address": 0xFFFFFFFFC0400000}, {"size": 0x1000}, {"size": 0}, {"size": 0x3000}, {"size": 1 << 40}, {"packed": b"\x78"}],
    ids=str,
)
def test_code_that_is_not_what_it_says_is_not_used(stored: Path, lstar: int, wrong: dict[str, Any]) -> None:
    text = module_text(lstar, bytes(0x2000))
    for name, value in wrong.items():
        setattr(text, name, value)
    kernel = event(lstar)
    kernel.modules[0].size = text.size
    symbols = build(stored, [kernel], lstars=(lstar,), texts=[text])
    assert symbols.proven_returns(np.zeros(1, np.int32), column(MODULES[0][0] + 9), np.zeros(1, np.int32)).tolist() == [-1]


def test_a_reboot_changes_the_kernel(stored: Path, lstar: int) -> None:
    other = 0xFFFFFFFF81900000
    symbols = build(stored, [event(lstar, 100), event(other + 0x200000, 900, "bb", 0x200000, [])], lstars=(lstar, other + 0x200000))
    assert resolve(symbols, column(lstar + 5), 500, lstar)[0][0] != "?"
    # Read late, but its entry was in force before.
    assert resolve(symbols, column(other + 0x200005), 600, other + 0x200000) == [("other", 5, "[guest.kernel.kallsyms]")]
    # A third one, that was never read.
    assert resolve(symbols, column(lstar + 5), 950, lstar + 0x400000)[0][0] == "?"


def test_modules_loaded_later_are_found(stored: Path, lstar: int) -> None:
    symbols = build(stored, [event(lstar, 100, modules=[]), event(lstar, 900)], lstars=(lstar,))
    assert resolve(symbols, column(MODULES[0][0] + 1), 500, lstar) == [("mod_one", 1, "[mod]")]


def test_the_level_is_told(stored: Path) -> None:
    symbols = build(stored, [pb.VmKernel(vm_pid=7, time=1, level="addresses", reason="no kallsyms")])
    assert "VM web (7): its memory told addresses only: no kallsyms" in symbols.notes


def test_modules_of_kallsyms_are_modules(kallsyms: str) -> None:
    assert [module.name for module in modules_of(Path(kallsyms))] == [b"mod", b"bpf"]


@pytest.mark.parametrize(
    "message",
    [
        pb.Symbols(addresses=bytes(8), types=b"tt", names=b"a\0b\0"),
        pb.Symbols(addresses=bytes(16), types=b"tt", names=b"a\0"),
        pb.Symbols(addresses=bytes(16), types=b"tt", names=b"a\0b\0c"),
        pb.Symbols(addresses=b"\1" + bytes(15), types=b"tt", names=b"a\0b\0"),
    ],
)
def test_columns_that_do_not_fit_are_refused(message: pb.Symbols) -> None:
    with pytest.raises(FormatError):
        decode_symbols(message, "x")


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.sampled_from("tTwWdDaA?\x00"), TEXT), max_size=8),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**64 - 1), max_size=5),
)
def test_hostile_kernels_break_nothing(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, str]], offset: int, addresses: list[int]) -> None:
    directory = tmp_path_factory.mktemp("hostile")
    with SnapshotWriter(directory) as writer:
        writer.kernel("aa", pb.Kernel(symbols=symbols_message(rows), text=[pb.Bytes(address=row[0], data=row[2].encode()) for row in rows]))
        for one in events(
            pb.VmKernel(vm_pid=7, kernel="aa", kaslr_offset=offset, lstar=offset, modules=[pb.Module(symbols=symbols_message(rows), address=offset)])
        ):
            writer.event(one)
    snapshot = read_snapshot(directory)
    assert snapshot is not None
    symbols = GuestSymbols.build([VM], GuestSymbolOptions(), snapshot)
    found = column(*addresses)
    resolve(symbols, found)
    symbols.proven_returns(np.zeros(len(found), np.int32), found, symbols.kernel_at(np.zeros(len(found), np.int32), np.zeros(len(found), np.int64), found))
