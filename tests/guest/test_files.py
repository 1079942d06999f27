# SPDX-License-Identifier: Apache-2.0
"""Tables out of a guest's files against those out of its memory, and against what the guest itself says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from perfguest.capture.lab.kernels import find_kernel, load_order, module_name
from perfguest.formats.guest_snapshot import GuestSnapshot, SnapshotWriter
from perfguest.formats.kernel_image import KernelImage, read_kernel_image
from perfguest.formats.kernel_message import kernel_tables
from perfguest.formats.kernel_module import ModuleFile, read_module
from perfguest.formats.orc import decode_orc
from perfguest.guest.kernel import open_kernel
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.kernel_tables import KernelTables, module_orc
from tests.guest.emulated import KERNELS, EmulatedGuest

pytestmark = pytest.mark.lab

MODULES = ("ext4", "overlay")


@dataclass(frozen=True)
class Guest:
    #: As memory told it.
    kernel: pb.Kernel
    vm: pb.VmKernel
    #: As its files tell it.
    image: KernelImage
    files: dict[str, ModuleFile]
    kallsyms: bytes
    #: Of each module where the guest says that its sections are.
    sections: dict[str, dict[str, int]]
    #: With its image and modules at their paths.
    directory: Path


@pytest.fixture(scope="module", params=KERNELS, ids=lambda path: Path(path).name)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with EmulatedGuest(request.param, modules=MODULES) as running:
        kernel = open_kernel(running.memory(), running.hints())
        assert kernel.level == "processes", kernel.reason
        vm = kernel.vm_kernel_proto(7, 8, 9)
        sections = {}
        for module in vm.modules:
            listing = running.run(f"cd /sys/module/{module.name.decode()}/sections; grep -H . .[!o]*").decode()
            sections[module.name.decode()] = {line.split(":")[0]: int(line.split(":")[1], 16) for line in listing.splitlines()}
        files = load_order(find_kernel(running.kernel, None, ()), (), MODULES)
        read = {module_name(path).removesuffix(".ko").replace("-", "_"): read_module(str(path)) for path in files}
        image = read_kernel_image(str(running.kernel))
        directory = tmp_path_factory.mktemp("files")
        (directory / "boot").mkdir()
        shutil.copy(running.kernel, directory / "boot" / f"vmlinuz-{running.release}")
        for path in files:
            place = directory / "lib/modules" / running.release / "kernel"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        yield Guest(kernel.kernel_proto(), vm, image, read, running.run("cat /proc/kallsyms"), sections, directory)


def symbol_rows(module: pb.Module) -> list[tuple[int, str, str]]:
    """Those in its code, in an order that does not depend on which of several names of an address stands first."""
    columns = zip(
        np.frombuffer(module.symbols.addresses, "<u8").tolist(), module.symbols.types.decode(), module.symbols.names.decode().split("\0")[:-1], strict=True
    )
    return sorted(row for row in columns if module.address <= row[0] < module.address + module.size)


def test_the_image_has_what_memory_has(guest: Guest) -> None:
    told = kernel_tables(guest.image)
    assert told.orc == guest.kernel.orc
    assert (told.release, told.build_id, told.has_btf) == (guest.kernel.release, guest.kernel.build_id, guest.kernel.has_btf)
    assert told.symbols.addresses == guest.kernel.symbols.addresses
    assert told.symbols.names == guest.kernel.symbols.names


def test_modules_are_laid_out_as_the_guest_has_them(guest: Guest) -> None:
    assert {module.name.decode() for module in guest.vm.modules} <= guest.files.keys()
    for module in guest.vm.modules:
        name = module.name.decode()
        file, told = guest.files[name], guest.sections[name]
        assert file.name == name
        assert file.release == guest.kernel.release
        assert bytes.fromhex(file.build_id) == module.build_id
        mine = {section.name: module.address + section.offset for section in file.sections if section.size}
        # The guest lists what it shows to tracers and debuggers, which is not every section.
        assert ".text" in mine
        assert {section: mine[section] for section in mine if section in told} == {section: told[section] for section in mine if section in told}
        assert file.size == module.size


def test_modules_have_the_orc_tables_of_memory(guest: Guest) -> None:
    compared = 0
    for module in guest.vm.modules:
        mine = guest.files[module.name.decode()].message(module.address)
        from_memory = module_orc(*decode_orc(module.orc, "memory"), module.address, module.size)
        from_file = module_orc(*decode_orc(mine.orc, "file"), mine.address, mine.size)
        assert from_file.addresses.tolist() == from_memory.addresses.tolist()
        assert from_file.entries == from_memory.entries
        compared += len(from_file.addresses)
    assert compared > 1000


def test_modules_have_the_symbols_of_memory(guest: Guest) -> None:
    for module in guest.vm.modules:
        assert symbol_rows(guest.files[module.name.decode()].message(module.address)) == symbol_rows(module)


def orc_rows(tables: KernelTables | None) -> dict[int, tuple[list[int], bytes]]:
    assert tables is not None
    return {table.start: (table.addresses.tolist(), table.entries) for table in tables.orc}


def symbols_of(guest: Guest, options: GuestSymbolOptions, snapshot: GuestSnapshot | None = None) -> GuestSymbols:
    return GuestSymbols.build([GuestVm(7, "web", (guest.vm.lstar,))], options, snapshot)


def from_memory(guest: Guest, directory: Path, vm: pb.VmKernel, options: GuestSymbolOptions) -> GuestSymbols:
    with SnapshotWriter(directory) as writer:
        writer.kernel(vm.kernel, guest.kernel)
    return symbols_of(guest, options, GuestSnapshot(directory, kernels=[vm]))


def test_files_alone_give_the_tables_of_memory(guest: Guest, tmp_path: Path) -> None:
    """With a copy of /proc/kallsyms for the places of the modules, and nothing read out of memory."""
    expected = orc_rows(from_memory(guest, tmp_path / "guests", guest.vm, GuestSymbolOptions()).kernel_tables(0, 0))
    assert len(expected) == 1 + len(guest.vm.modules)
    (tmp_path / "kallsyms").write_bytes(guest.kallsyms)
    symbols = symbols_of(guest, GuestSymbolOptions(kallsyms=(str(tmp_path / "kallsyms"),), mounts=(str(guest.directory),)))
    tables = symbols.kernel_tables(0)
    assert orc_rows(tables) == expected
    assert tables is not None
    assert tables.release == guest.kernel.release
    # The text before the kernel rewrote any of it, where it ran.
    text = {address - guest.vm.kaslr_offset: len(code) for address, code in tables.text}
    assert text == {section.address: section.size for section in guest.image.text}
    assert not [note for note in symbols.notes if "not used" in note or "not the" in note]


def test_files_fill_what_memory_lacks(guest: Guest, tmp_path: Path) -> None:
    expected = orc_rows(from_memory(guest, tmp_path / "whole", guest.vm, GuestSymbolOptions()).kernel_tables(0, 0))
    poor = pb.VmKernel()
    poor.CopyFrom(guest.vm)
    for module in poor.modules:
        module.ClearField("orc")
    without = from_memory(guest, tmp_path / "poor", poor, GuestSymbolOptions())
    assert len(orc_rows(without.kernel_tables(0, 0))) == 1
    filled = from_memory(guest, tmp_path / "filled", poor, GuestSymbolOptions(mounts=(str(guest.directory),)))
    assert orc_rows(filled.kernel_tables(0, 0)) == expected
    # Another build of each of them: its table would be a wrong one.
    for module in poor.modules:
        module.build_id = bytes(20)
    refused = from_memory(guest, tmp_path / "refused", poor, GuestSymbolOptions(mounts=(str(guest.directory),)))
    assert len(orc_rows(refused.kernel_tables(0, 0))) == 1
    assert any("of another build" in note for note in refused.notes)


def test_modules_that_are_elsewhere_in_the_list_are_refused(guest: Guest, tmp_path: Path) -> None:
    """One function of each module stands 16 bytes further in the guest than in the file."""
    lines, moved = [], set()
    for line in guest.kallsyms.decode().splitlines():
        address, kind, rest = line.split(" ", 2)
        module = rest.partition("\t")[2].strip("[]")
        inside = module in guest.files and module not in moved and kind in "tT"
        if inside and any(one.address <= int(address, 16) < one.address + one.size for one in guest.vm.modules):
            moved.add(module)
            address = f"{int(address, 16) + 16:016x}"
        lines.append(f"{address} {kind} {rest}\n")
    assert len(moved) == len(guest.vm.modules)
    (tmp_path / "kallsyms").write_text("".join(lines))
    symbols = symbols_of(guest, GuestSymbolOptions(kallsyms=(str(tmp_path / "kallsyms"),), mounts=(str(guest.directory),)))
    assert len(orc_rows(symbols.kernel_tables(0))) == 1
    assert any("their functions are in other places" in note for note in symbols.notes)


def test_the_image_of_another_boot_is_no_candidate(guest: Guest, tmp_path: Path) -> None:
    """One function of the kernel stands elsewhere: then the image in the directory is of another build, though its syscall entry fits."""
    text = guest.kallsyms.decode()
    line = next(line for line in text.splitlines() if line.endswith(" schedule"))
    (tmp_path / "kallsyms").write_text(text.replace(line, f"{int(line[:16], 16) + 16:016x}{line[16:]}"))
    symbols = symbols_of(guest, GuestSymbolOptions(kallsyms=(str(tmp_path / "kallsyms"),), mounts=(str(guest.directory),)))
    tables = symbols.kernel_tables(0)
    assert tables is None or not any(table.start < guest.vm.lstar < table.end for table in tables.orc)
    assert any("its functions are not where" in note for note in symbols.notes)
