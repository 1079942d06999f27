# SPDX-License-Identifier: Apache-2.0
"""A running guest's kernel, against what the guest's own /proc, /sys and files say."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter

import drgn
import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from perfguest.capture.lab.kernels import find_kernel, load_order, module_bytes, module_name
from perfguest.formats.btf import BtfTable
from perfguest.formats.kernel_image import read_kernel_image
from perfguest.formats.kernel_payload import unpack_kernel
from perfguest.guest.kernel import GuestUnreadable, open_kernel
from perfguest.proto import guest_pb2
from perfguest.symbols.module_texts import ModuleTexts
from tests.guest.conftest import MODULES, Opened
from tests.guest.matrix import Findings

pytestmark = pytest.mark.lab

U64 = (1 << 64) - 1


def rows(symbols: guest_pb2.Symbols) -> list[tuple[int, str, str]]:
    addresses = np.frombuffer(symbols.addresses, "<u8").tolist()
    return list(zip(addresses, symbols.types.decode(), symbols.names.decode().split("\0")[:-1], strict=True))


def test_all_is_found(opened: Opened, findings: Findings) -> None:
    kernel = opened.kernel
    assert (kernel.level, kernel.reason) == ("processes", "")
    assert kernel.release == opened.guest.run("uname -r").decode().strip() == opened.image.release
    notes = opened.guest.run("cat /sys/kernel/notes")
    assert len(kernel.build_id) == 20
    assert kernel.build_id in notes
    assert opened.image.build_id == kernel.build_id
    assert kernel.kaslr_offset > 0
    vm = opened.vm
    assert (vm.vm_pid, vm.vm_id, vm.time, vm.level, vm.reason, vm.kaslr_offset, vm.lstar) == (7, 8, 9, "processes", "", kernel.kaslr_offset, kernel.lstar)
    findings.note(kernel.release, level=kernel.level)


def test_symbols_are_the_guests_own(opened: Opened) -> None:
    symbols = opened.kernel.symbols
    mine = zip(symbols.addresses.tolist(), symbols.types.decode(), (name.decode() for name in symbols.names), strict=True)
    assert list(mine) == [row[:3] for row in opened.kallsyms if not row[3]]
    assert len(symbols) > 50_000
    assert opened.kernel.address_of("entry_SYSCALL_64") == opened.kernel.lstar
    assert opened.kernel.address_of("no such symbol") is None


def test_every_symbol_of_the_guest_is_there(opened: Opened, findings: Findings) -> None:
    """Of kernel, modules and BPF together: the guest's /proc/kallsyms, line for line, whatever its order."""
    symbols = opened.kernel.symbols
    mine = list(zip(symbols.addresses.tolist(), symbols.types.decode(), (name.decode() for name in symbols.names), strict=True))
    for module in opened.vm.modules:
        mine += rows(module.symbols)
    mine += rows(opened.vm.bpf)
    assert Counter(mine) == Counter(row[:3] for row in opened.kallsyms)
    findings.note(opened.kernel.release, symbols=f"{len(mine):,}")


def test_linked_addresses_are_the_images(opened: Opened) -> None:
    image = read_kernel_image(str(opened.guest.kernel))
    linked = rows(opened.image.symbols)
    assert [row[0] for row in linked] == image.symbols.address.tolist()
    assert [row[2] for row in linked] == image.symbols.names


def test_text_is_the_images(opened: Opened) -> None:
    text = opened.image.text[0]
    addresses = {row[2]: row[0] for row in rows(opened.image.symbols)}
    assert text.address == addresses["_stext"]
    assert text.address + len(text.data) == addresses["_etext"]
    file = ELFFile(io.BytesIO(unpack_kernel(opened.guest.kernel.read_bytes(), "image")))
    section = file.get_section_by_name(".text")
    original = np.frombuffer(section.data(), np.uint8)
    start = section["sh_addr"] - text.address
    mine = np.frombuffer(text.data, np.uint8)[start : start + len(original)]
    # A running kernel patches itself: alternatives, static branches, relocations.
    assert np.count_nonzero(mine == original[: len(mine)]) > 0.95 * len(original)


def test_orc_is_the_images(opened: Opened, findings: Findings) -> None:
    file = ELFFile(io.BytesIO(unpack_kernel(opened.guest.kernel.read_bytes(), "image")))
    places = file.get_section_by_name(".orc_unwind_ip")
    distances = np.frombuffer(places.data(), "<i4").astype(np.int64)
    addresses = places["sh_addr"] + (np.arange(len(distances)) * 4).astype(np.uint64) + distances.astype(np.uint64)
    assert opened.image.orc.addresses == addresses.astype("<u8").tobytes()
    assert opened.image.orc.entries == file.get_section_by_name(".orc_unwind").data()
    assert len(addresses) > 200_000
    modules = sum(len(module.orc.addresses) // 8 for module in opened.vm.modules)
    findings.note(opened.kernel.release, ORC=f"{len(addresses) + modules:,}")


def test_btf_is_the_images(opened: Opened, findings: Findings) -> None:
    original = ELFFile(io.BytesIO(unpack_kernel(opened.guest.kernel.read_bytes(), "image"))).get_section_by_name(".BTF").data()
    start, stop = (opened.kernel.address_of(name) or 0 for name in ("__start_BTF", "__stop_BTF"))
    assert opened.kernel.read(start, stop - start) == original
    types = len(BtfTable(original))
    assert types > 50_000
    findings.note(opened.kernel.release, BTF=f"{types:,}")


def test_modules_are_the_guests_own(opened: Opened, findings: Findings) -> None:
    told = {line.split()[0]: int(line.split()[5], 16) for line in opened.guest.run("cat /proc/modules").decode().splitlines()}
    assert {module.name.decode(): module.address for module in opened.vm.modules} == told
    assert told
    for module in opened.vm.modules:
        theirs = sorted((row[:3] for row in opened.kallsyms if row[3] == f"[{module.name.decode()}]"), key=lambda row: row[0])
        assert rows(module.symbols) == theirs
        text = [row for row in theirs if row[1] in "tT"]
        inside = [row for row in text if module.address <= row[0] < module.address + module.size]
        assert len(inside) > 0.8 * len(text) > 0
        notes = opened.guest.run(f"cat /sys/module/{module.name.decode()}/notes/.note.gnu.build-id")
        assert module.build_id == notes[-20:]
    findings.note(opened.kernel.release, modules=str(len(told)))


def test_modules_code_is_that_of_their_files(opened: Opened) -> None:
    """But where it is relocated, and where the kernel rewrites its own code."""
    kernel = find_kernel(opened.guest.kernel, None, ())
    files = {module_name(path).removesuffix(".ko").replace("-", "_"): module_bytes(path) for path in load_order(kernel, (), MODULES)}
    vm = guest_pb2.VmKernel(lstar=opened.kernel.lstar, modules=opened.vm.modules)
    texts = [opened.kernel.module_text_proto(module.address, module.size) for module in opened.vm.modules]
    found = dict(ModuleTexts(texts).of(vm))
    assert len(found) == len(opened.vm.modules) > 0
    for module in opened.vm.modules:
        name = module.name.decode()
        start = int(opened.guest.run(f"cat /sys/module/{name}/sections/.text").decode(), 16) - module.address
        theirs = np.frombuffer(ELFFile(io.BytesIO(files[name])).get_section_by_name(".text").data(), np.uint8)
        mine = found[module.address][start : start + len(theirs)]
        assert len(mine) == len(theirs) > 0
        assert np.mean(mine == theirs) > 0.7


def orc_of(file: ELFFile, places: dict[str, int]) -> list[tuple[int, bytes]]:
    """(address, entry) by a module's file, for the sections that are in memory at ``places``."""
    symbols = list(file.get_section_by_name(".symtab").iter_symbols())
    entries = file.get_section_by_name(".orc_unwind").data()
    found = []
    for relocation in file.get_section_by_name(".rela.orc_unwind_ip").iter_relocations():
        symbol = symbols[relocation["r_info_sym"]]
        section = file.get_section(symbol["st_shndx"]).name
        if section in places:
            entry = relocation["r_offset"] // 4 * 6
            found.append((places[section] + symbol["st_value"] + relocation["r_addend"], entries[entry : entry + 6]))
    return found


def test_modules_have_their_orc(opened: Opened) -> None:
    kernel = find_kernel(opened.guest.kernel, None, ())
    files = {module_name(path).removesuffix(".ko").replace("-", "_"): module_bytes(path) for path in load_order(kernel, (), MODULES)}
    for module in opened.vm.modules:
        listing = opened.guest.run(f"cd /sys/module/{module.name.decode()}/sections; grep -H . .[!o]*").decode()
        places = {line.split(":")[0]: int(line.split(":")[1], 16) for line in listing.splitlines()}
        theirs = set(orc_of(ELFFile(io.BytesIO(files[module.name.decode()])), places))
        addresses = np.frombuffer(module.orc.addresses, "<u8")
        entries = [module.orc.entries[i : i + 6] for i in range(0, len(module.orc.entries), 6)]
        mine = list(zip(addresses.tolist(), entries, strict=True))
        assert theirs
        assert theirs <= set(mine)
        assert np.all(np.diff(addresses.astype(np.int64)) >= 0)
        # What is there besides is of code that ran while loading only.
        assert not [row for row in mine if module.address <= row[0] < module.address + module.size and row not in theirs]


def test_bpf_programs_are_the_guests_own(opened: Opened) -> None:
    theirs = sorted(row[:3] for row in opened.kallsyms if row[3] == "[bpf]")
    assert rows(opened.vm.bpf) == theirs
    assert {re.sub(".*_", "", name) for _, _, name in theirs} >= {"first", "second", "third"}


def test_types_are_the_compilers(opened: Opened) -> None:
    """vmcoreinfo holds sizes and offsets that the compiler put there."""
    prog, info = opened.kernel.prog, opened.kernel.info
    assert prog
    assert info
    checked = 0
    for key, value in info.lines.items():
        size, offset = re.fullmatch(r"SIZE\((\w+)\)", key), re.fullmatch(r"OFFSET\((\w+)\.(\w+)\)", key)
        name = (size or offset or [""] * 2)[1]
        if not name:
            continue
        type_ = prog.type(name if name.endswith("_t") else f"struct {name}")
        while type_.kind == drgn.TypeKind.TYPEDEF:
            type_ = type_.type
        if size:
            assert type_.size == int(value), key
            checked += 1
        elif offset and type_.has_member(offset[2]):
            assert type_.member(offset[2]).bit_offset == 8 * int(value), key
            checked += 1
    assert checked > 20
    assert prog.constant("PIDTYPE_TGID").value_() == 1
    assert prog["init_task"].pid.value_() == 0
    assert prog["init_uts_ns"].name.release.string_().decode() == opened.kernel.release


def test_running_task_is_the_guests(opened: Opened) -> None:
    guest, kernel = opened.guest, opened.kernel
    layout = kernel.task_layout()
    assert layout
    stat = guest.run(f"cat /proc/{opened.busy}/stat").decode().split()
    seen = set()
    for _ in range(1000):
        with guest.stopped():
            registers = guest.registers()
            # In the kernel's half of the address space: else the user's GS base is in.
            base = registers.gs_base if registers.gs_base >> 63 else int.from_bytes(kernel.read(kernel.address_of("__per_cpu_offset") or 0, 8), "little")
            task = int.from_bytes(kernel.read(base + layout.current & U64, 8), "little")
            pid, tgid = (int.from_bytes(kernel.read(task + place, 4), "little") for place in (layout.pid, layout.tgid))
            comm = kernel.read(task + layout.comm, 16).split(b"\0")[0]
            ticks = int.from_bytes(kernel.read(task + layout.start, 8), "little") // 10_000_000
            stack = int.from_bytes(kernel.read(task + layout.stack, 8), "little")
        assert pid == 0 or comm, (pid, comm)
        assert stack >> 47 == 0x1FFFF or stack >> 56 == 0xFF
        if pid == opened.busy:
            assert (tgid, comm.decode(), str(ticks)) == (opened.busy, stat[1].strip("()"), stat[21])
            seen.add(registers.gs_base >> 63)
        # Both in user mode, where GS is the user's, and in the kernel, where it is the CPU's.
        if len(seen) == 2:
            break
    assert 0 in seen


def test_translation_is_the_emulators(opened: Opened) -> None:
    guest, memory = opened.guest, opened.kernel.memory
    rng = np.random.default_rng(3)
    image = opened.kernel.text[0] + rng.integers(0, 60 << 20, 40, np.uint64)
    with guest.stopped():
        registers = guest.registers()
        assert opened.kernel.info
        direct = np.uint64(opened.kernel.info.direct_map or 0) + rng.integers(0, 600 << 20, 40, np.uint64)
        modules = [module.address + 5 for module in opened.vm.modules]
        user = [0x400123, 0x401000, 0x5E2FFF, 0x7FFF_FFFF_0000, 0xFFFF_8000_0000_0000, registers.rip]
        found = 0
        for gva in [*image.tolist(), *direct.tolist(), *modules, *user]:
            answer = guest.qmp.execute("human-monitor-command", **{"command-line": f"gva2gpa {gva:#x}"})
            told = re.match(r"gpa: (0x[0-9a-f]+)", answer)
            try:
                mine = memory.translate(registers.cr3, gva)
            except Exception as error:
                assert not told, (hex(gva), answer, error)
                continue
            assert told, (hex(gva), mine)
            assert int(told[1], 16) == mine
            found += 1
    assert found > 60


def test_dead_registers_are_passed_over(opened: Opened) -> None:
    good = next(opened.guest.hints())
    bad = [(0, good[1]), (1 << 60, good[1]), (0x1000, good[1]), (opened.guest.ram, good[1]), (good[0], 0), (good[0], good[1] - (1 << 30))]
    kernel = open_kernel(opened.guest.memory(), [*bad, good])
    assert kernel.level == "processes"
    with pytest.raises(GuestUnreadable, match="no Linux kernel in the guest's memory"):
        open_kernel(opened.guest.memory(), bad)
    with pytest.raises(GuestUnreadable, match="no register"):
        open_kernel(opened.guest.memory(), [])
    endless = itertools.cycle(bad)
    with pytest.raises(GuestUnreadable):
        open_kernel(opened.guest.memory(), endless)
