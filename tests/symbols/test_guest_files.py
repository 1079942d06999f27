# SPDX-License-Identifier: Apache-2.0
"""Directories with a guest's files: what is found in them, what is believed, and what is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats.kernel_image import KernelImage, read_kernel_image
from perfguest.formats.kernel_message import kernel_tables
from perfguest.formats.kernel_module import ModuleFile, read_module
from perfguest.formats.orc import decode_orc
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.guest_files import GuestFiles, placed_by_memory, placed_by_symbols
from perfguest.symbols.kallsyms import module_symbols
from perfguest.symbols.kernel_tables import KernelTables, OrcTable, module_orc, read_tables

KERNEL = sorted(Path("/boot").glob("vmlinuz-*"))[-1]
RELEASE = KERNEL.name.removeprefix("vmlinuz-")
MODULE = next(Path("/lib/modules", RELEASE).rglob("overlay.ko*"))
OFFSET = 0x1E600000
BASE = 0xFFFFFFFFC0400000


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return read_kernel_image(str(KERNEL))


@pytest.fixture(scope="module")
def module() -> ModuleFile:
    return read_module(str(MODULE))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guest")
    (root / "boot").mkdir()
    shutil.copy(KERNEL, root / "boot")
    modules = root / "usr/lib/modules" / RELEASE / "kernel/fs"
    modules.mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    shutil.copy(MODULE, modules)
    (modules.parent.parent / "build").symlink_to("/usr/src")
    return root


def lstar_of(image: KernelImage) -> int:
    entry = image.address_of("entry_SYSCALL_64")
    assert entry is not None
    return entry + OFFSET


def build(image: KernelImage, *mounts: Path) -> GuestSymbols:
    return GuestSymbols.build([GuestVm(7, "web", (lstar_of(image),))], GuestSymbolOptions(mounts=tuple(map(str, mounts))))


def calls_in(image: KernelImage, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return addresses behind direct calls of the image's functions, where it runs."""
    text = image.text[0]
    content = image.content(text)
    starts = set((image.symbols.address - np.uint64(text.address)).tolist())
    found = []
    for at in np.flatnonzero(content == 0xE8).tolist():
        if at + 5 + int.from_bytes(content[at + 1 : at + 5].tobytes(), "little", signed=True) in starts:
            found.append(text.address + at + 5 + OFFSET)
        if len(found) == count:
            break
    return np.array(found, np.uint64)


def check(symbols: GuestSymbols, returns: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    symbols.check_kernels(np.zeros(len(returns), np.int32), returns, np.ones(len(returns), bool))


def test_an_image_in_a_directory_names_and_unwinds(image: KernelImage, directory: Path) -> None:
    symbols = build(image, directory)
    check(symbols, calls_in(image, 100))
    tables = symbols.kernel_tables(0)
    assert tables is not None
    expected, entries = decode_orc(kernel_tables(image).orc, "image")
    assert (tables.orc[0].addresses == expected + np.uint64(OFFSET)).all()
    assert tables.orc[0].entries == entries
    assert tables.release == RELEASE
    named = symbols.resolve_kernel(np.zeros(1, np.int32), np.array([lstar_of(image) + 3], np.uint64))
    assert [named.names[int(named.name[0])], int(named.offset[0])] == ["entry_SYSCALL_64", 3]
    assert symbols.notes == []


def test_an_image_that_the_samples_contradict_is_not_used(image: KernelImage, directory: Path) -> None:
    symbols = build(image, directory)
    check(symbols, calls_in(image, 100) + np.uint64(1))
    assert symbols.kernel_tables(0) is None
    assert any("is not the kernel that VM web (7) ran: only" in note for note in symbols.notes)


def test_an_image_of_another_place_is_not_used(image: KernelImage, directory: Path) -> None:
    symbols = GuestSymbols.build([GuestVm(7, "web", (lstar_of(image) + 0x1000,))], GuestSymbolOptions(mounts=(str(directory),)))
    assert symbols.kernel_tables(0) is None
    assert any("KASLR moves a kernel" in note for note in symbols.notes)


def test_of_two_images_that_fit_none_is_used_unless_the_samples_tell(image: KernelImage, directory: Path, tmp_path: Path) -> None:
    """The other one has the same symbols and another build id, and other code in its functions."""
    (tmp_path / "boot").mkdir()
    other = bytearray(image.elf)
    at = other.index(bytes.fromhex(image.build_id))
    other[at] ^= 1
    text = image.text[0]
    other[text.offset : text.offset + text.size] = b"\x90" * text.size
    (tmp_path / "boot" / "vmlinuz-9.9.9-other").write_bytes(other)
    undecided = build(image, directory, tmp_path)
    check(undecided, calls_in(image, 3))
    assert undecided.kernel_tables(0) is None
    assert any("can each be its kernel" in note for note in undecided.notes)
    decided = build(image, directory, tmp_path)
    check(decided, calls_in(image, 100))
    tables = decided.kernel_tables(0)
    assert tables is not None
    assert tables.text[0][1][: text.size].tobytes() == image.content(text).tobytes()


def test_links_do_not_lead_out_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").symlink_to(KERNEL)
    (tmp_path / "lib").symlink_to("/lib")
    files = GuestFiles([tmp_path], "VM web (7)")
    assert files.images() == []
    assert files.images("../../boot/x") == []
    tables = KernelTables("")
    files.add_modules(tables, RELEASE, [], {"overlay": [(BASE, "x")]})
    assert tables.orc == []


def rows_at(module: ModuleFile, base: int) -> list[tuple[int, str]]:
    return [(base + offset, name) for offset, name in zip(module.offsets.tolist(), module.names, strict=True)]


def test_a_module_is_placed_by_the_guests_symbols(module: ModuleFile, directory: Path) -> None:
    rows = rows_at(module, BASE)
    # Its data and its neighbours do not matter.
    assert placed_by_symbols(module, [*rows, (BASE + 0x800000, "data_of_it"), (BASE - 0x1000, "other")]) == BASE
    tables = KernelTables(RELEASE)
    GuestFiles([directory], "VM web (7)").add_modules(tables, RELEASE, [], {"overlay": rows, "bpf": [(BASE, "x")]})
    assert [(table.start, table.end) for table in tables.orc] == [(BASE, BASE + module.size)]
    assert tables.orc[0].addresses[:-1].tolist() == [BASE + offset for offset in module.orc_offsets.tolist() if offset < module.size]


@given(data=st.data())
def test_a_module_of_another_build_is_never_placed(data: st.DataObject, module: ModuleFile) -> None:
    """One of its functions elsewhere, missing, or one too many."""
    rows = rows_at(module, BASE)
    place = data.draw(st.integers(0, len(rows) - 1))
    change = data.draw(st.sampled_from(["moved", "missing", "more"]))
    address, name = rows[place]
    if change == "moved":
        rows[place] = (address + data.draw(st.sampled_from([-16, 16, 4096])), name)
    elif change == "missing":
        del rows[place]
    else:
        rows.append((BASE + data.draw(st.integers(0, module.size - 1)), "one_more"))
    with pytest.raises(FormatError, match="is not the module that the guest loaded"):
        placed_by_symbols(module, rows)


def test_a_module_is_placed_by_what_was_read_of_it(module: ModuleFile) -> None:
    told = pb.Module(name=b"overlay", build_id=bytes.fromhex(module.build_id), address=BASE, size=module.size)
    assert placed_by_memory(module, told, "") == BASE
    told.build_id = bytes(20)
    with pytest.raises(FormatError, match="another build"):
        placed_by_memory(module, told, RELEASE)
    told.build_id = b""
    assert placed_by_memory(module, told, RELEASE) == BASE
    for release, size in (("", module.size), ("5.0", module.size), (RELEASE, module.size + 4096)):
        told.size = size
        with pytest.raises(FormatError, match="another build"):
            placed_by_memory(module, told, release)


def test_module_symbols_of_kallsyms() -> None:
    text = b"ffffffff81000000 T _text\nffffffffc0400000 t one\t[mod]\nffffffffc0400010 r two\t[mod]\nffffffffc0500000 t p\t[bpf]\n"
    assert module_symbols(text) == {"mod": [(0xFFFFFFFFC0400000, "one"), (0xFFFFFFFFC0400010, "two")], "bpf": [(0xFFFFFFFFC0500000, "p")]}


def orc_message(*addresses: int) -> pb.Orc:
    return pb.Orc(addresses=np.array(addresses, "<u8").tobytes(), entries=b"".join(bytes([place + 1] * 6) for place in range(len(addresses))))


def test_a_modules_table_ends_with_its_code() -> None:
    addresses, entries = decode_orc(orc_message(BASE, BASE + 16, BASE + 4096, BASE + 8192), "module")
    table = module_orc(addresses, entries, BASE, 4096)
    assert table.addresses.tolist() == [BASE, BASE + 16, BASE + 4096]
    assert table.entries == b"\1" * 6 + b"\2" * 6 + bytes(6)


def test_tables_of_a_snapshot_are_where_the_kernel_ran() -> None:
    linked = 0xFFFFFFFF81000000
    good = pb.Module(name=b"good", address=BASE, size=4096, orc=orc_message(BASE, BASE + 8))
    over = pb.Module(name=b"over", address=BASE + 100, size=4096, orc=orc_message(BASE + 200))
    bad = pb.Module(name=b"bad", address=BASE + 8192, size=4096, orc=pb.Orc(addresses=bytes(8), entries=bytes(5)))
    text = np.arange(32, dtype=np.uint8)
    tables = read_tables(pb.VmKernel(kaslr_offset=OFFSET, modules=[good, over, bad]), "6.1", orc_message(linked, linked + 32), [(linked, text)])
    assert [table.start for table in tables.orc] == [linked + OFFSET, BASE]
    assert tables.orc[0].addresses.tolist() == [linked + OFFSET, linked + OFFSET + 32]
    assert [(address, code.tolist()) for address, code in tables.text] == [(linked + OFFSET, list(range(32)))]
    assert tables.notes == ["the ORC table of module bad does not fit together"]
    assert [len(table.addresses) for table in tables.orc] == [2, 3]


U64S = st.integers(0, 2**64 - 1)


@given(st.lists(U64S, max_size=6), U64S, U64S, U64S)
def test_hostile_tables_stay_in_the_kernels_half(addresses: list[int], offset: int, start: int, size: int) -> None:
    message = orc_message(*sorted(addresses))
    event = pb.VmKernel(kaslr_offset=offset, modules=[pb.Module(name=b"m", address=start, size=size, orc=message)])
    tables = read_tables(event, "", message, [(start, np.zeros(4, np.uint8))])
    for table in tables.orc:
        assert isinstance(table, OrcTable)
        assert len(table.entries) == 6 * len(table.addresses)
        assert all(table.start <= address <= table.end for address in table.addresses.tolist())
        assert 1 << 63 <= table.start < table.end <= 0xFFFFFFFFFF000000
