# SPDX-License-Identifier: Apache-2.0
"""Tables out of a guest's files against those out of its memory, and against what the guest itself says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from perfguest.capture.lab.kernels import find_kernel, load_order, module_name
from perfguest.formats.kernel_image import KernelImage, read_kernel_image
from perfguest.formats.kernel_message import kernel_tables
from perfguest.formats.kernel_module import ModuleFile, read_module
from perfguest.formats.orc import decode_orc
from perfguest.guest.kernel import open_kernel
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.kernel_tables import module_orc
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


@pytest.fixture(scope="module", params=KERNELS, ids=lambda path: Path(path).name)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
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
        yield Guest(kernel.kernel_proto(), vm, image, read, running.run("cat /proc/kallsyms"), sections)


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
