# SPDX-License-Identifier: Apache-2.0
"""Kernels that are other than most, and those that mean harm: memory of a real guest, in which a test writes."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from perfguest.formats.guest_stream import Memslot
from perfguest.guest import processes
from perfguest.guest.kernel import GuestUnreadable, LiveKernel, open_kernel
from perfguest.guest.memory import VM_ENDED, GuestMemory, VmEnded
from tests.guest.emulated import KERNELS, EmulatedGuest
from tests.guest.patched import close, copy_of, write
from tests.guest.vmm import HeldMemory

pytestmark = pytest.mark.lab


@dataclass
class Victim:
    """A copy of a guest's memory. ``hint``: what leads into it."""

    memory: GuestMemory
    kernel: LiveKernel
    hint: tuple[int, int]

    def put(self, name: str, data: bytes, offset: int = 0) -> None:
        """Writes at a symbol of the kernel, byte by byte where it is mapped."""
        self.put_at((self.kernel.address_of(name) or 0) + offset, data)

    def put_at(self, gva: int, data: bytes) -> None:
        write(self.memory, self.memory.translate(self.kernel.kernel_cr3, gva), data)

    def open(self) -> LiveKernel:
        return open_kernel(self.memory, [self.hint] * 4)


@pytest.fixture(scope="module")
def original() -> Iterator[tuple[GuestMemory, LiveKernel, tuple[int, int], bytes]]:
    """A guest with 5-level paging, page-table isolation and no KASLR, stopped for good: its memory, its kernel, a CR3 of user mode, its kallsyms."""
    guest = EmulatedGuest(KERNELS[0], modules=("overlay", "fuse"), memory=256, cpu="max,la57=on,+pcid", append="pti=on nokaslr")
    with guest:
        listing = guest.run("cat /proc/kallsyms")
        guest.run("sh -c 'while :; do :; done' >/dev/null & echo")
        lstar, hint = guest.lstar(), None
        for _ in range(2000):
            with guest.stopped():
                registers = guest.registers()
                assert registers.la57
                if registers.cpl == 3:
                    memory, hint = copy_of(guest.memory()), (registers.cr3, lstar)
                    break
        assert hint
        yield memory, open_kernel(memory, [hint]), hint, listing
        close([memory])


@pytest.fixture
def victim(original: tuple[GuestMemory, LiveKernel, tuple[int, int], bytes]) -> Iterator[Victim]:
    memory, kernel, hint, _ = original
    copied = copy_of(memory)
    yield Victim(copied, kernel, hint)
    close([copied])


def test_five_levels_and_isolated_page_tables(original: tuple[GuestMemory, LiveKernel, tuple[int, int], bytes]) -> None:
    memory, kernel, hint, listing = original
    assert hint[0] & 1 << 12, "the CR3 of user mode is not the isolated one"
    assert (kernel.level, kernel.reason, kernel.kaslr_offset, memory.la57) == ("processes", "", 0, True)
    theirs = [line.split() for line in listing.decode().splitlines() if "[" not in line]
    mine = zip(kernel.symbols.addresses.tolist(), kernel.symbols.types.decode(), (name.decode() for name in kernel.symbols.names), strict=True)
    assert list(mine) == [(int(row[0], 16), row[1], row[2]) for row in theirs]
    assert {module.name for module in kernel.vm_kernel_proto(1, 2, 3).modules} == {b"overlay", b"fuse"}
    assert kernel.task_layout()
    told = GuestMemory(memory.fd, memory.slots)
    assert open_kernel(told, [hint], la57=True).level == "processes"


def test_no_vmcoreinfo(victim: Victim) -> None:
    data = victim.memory.read_virtual(victim.kernel.kernel_cr3, victim.kernel.address_of("vmcoreinfo_data") or 0, 8)
    victim.put_at(int.from_bytes(data, "little"), b"NOTHING=1\n")
    kernel = victim.open()
    assert (kernel.level, kernel.info, kernel.release, kernel.build_id) == ("processes", None, victim.kernel.release, victim.kernel.build_id)
    assert (kernel.kaslr_offset, kernel.kernel_cr3) == (0, victim.kernel.kernel_cr3)
    assert hash(kernel.kernel_proto().SerializeToString()) == hash(victim.kernel.kernel_proto().SerializeToString())
    assert kernel.task_layout() == victim.kernel.task_layout()
    assert list(kernel.vm_kernel_proto(1, 2, 3).modules) == list(victim.kernel.vm_kernel_proto(1, 2, 3).modules)


def test_no_btf(victim: Victim) -> None:
    victim.put("__start_BTF", b"\0\0")
    kernel = victim.open()
    assert (kernel.level, kernel.prog, kernel.task_layout()) == ("symbols", None, None)
    assert "no BTF" in kernel.reason
    assert kernel.symbols.names == victim.kernel.symbols.names
    assert "no BTF" in kernel.vm_kernel_proto(1, 2, 3).reason
    image = kernel.kernel_proto()
    assert (image.has_btf, image.orc) == (False, victim.kernel.kernel_proto().orc)


def test_btf_of_another_kernel(victim: Victim) -> None:
    """Types that are well-formed, and do not fit: the name of a task is elsewhere."""
    start, stop = (victim.kernel.address_of(name) or 0 for name in ("__start_BTF", "__stop_BTF"))
    data = victim.kernel.read(start, stop - start)
    layout = victim.kernel.task_layout()
    assert layout
    strings = 24 + struct.unpack_from("<I", data, 16)[0]
    comm = data.index(b"\0comm\0", strings) + 1 - strings
    at = -1
    while (at := data.find(struct.pack("<I", comm), at + 1)) >= 0:
        if data[at + 8 : at + 12] == struct.pack("<I", 8 * layout.comm):
            victim.put_at(start + at + 8, struct.pack("<I", 8 * layout.comm + 128))
    kernel = victim.open()
    assert kernel.level == "symbols"
    assert "do not fit its memory" in kernel.reason


def test_no_symbols(victim: Victim) -> None:
    tokens = victim.kernel.info.symbol("kallsyms_token_table") if victim.kernel.info else 0
    for at in range(0, 1024, 16):
        victim.put_at((tokens or 0) + at, b"\xff" * 16)
    kernel = victim.open()
    assert (kernel.level, len(kernel.symbols), kernel.prog) == ("addresses", 0, None)
    assert "no kernel symbol table" in kernel.reason
    assert kernel.kernel_proto().symbols.addresses == b""
    assert kernel.vm_kernel_proto(1, 2, 3).level == "addresses"


def test_symbols_of_garbage(victim: Victim) -> None:
    """Nothing but the right symbols, or none."""
    info = victim.kernel.info
    assert info
    rng = np.random.default_rng(5)
    for name in ("kallsyms_names", "kallsyms_token_table", "kallsyms_offsets", "kallsyms_num_syms"):
        address = info.symbol(name) or 0
        before = victim.kernel.read(address, 64)
        victim.put_at(address, rng.bytes(64))
        kernel = victim.open()
        assert kernel.level == "addresses", name
        victim.put_at(address, before)
    assert victim.open().level == "processes"


@pytest.mark.parametrize("kind", ["to itself", "into the middle", "to nowhere", "to user memory", "endless"])
def test_module_lists_that_lie(victim: Victim, kind: str) -> None:
    head = victim.kernel.address_of("modules") or 0
    first = int.from_bytes(victim.kernel.read(head, 8), "little")
    second = int.from_bytes(victim.kernel.read(first, 8), "little")
    if kind == "to itself":
        victim.put_at(first, struct.pack("<Q", first))
    elif kind == "into the middle":
        victim.put_at(second, struct.pack("<Q", first))
    elif kind == "to nowhere":
        victim.put_at(head, struct.pack("<Q", 0xFFFF_FFFF_FFFF_FFF8))
    elif kind == "to user memory":
        victim.put_at(head, struct.pack("<Q", 0x400000))
    else:
        # Each word of the log buffer's pages points to the next.
        buffer, end = (victim.kernel.address_of("__log_buf") or 0), 1 << 16
        words = np.arange(buffer + 8, buffer + end + 8, 8, dtype=np.uint64)
        for at in range(0, end, 4096):
            victim.put_at(buffer + at, words[at // 8 : (at + 4096) // 8].astype("<u8").tobytes()[: 4096 - (buffer + at) % 4096])
        victim.put_at(head, struct.pack("<Q", buffer))
    kernel = victim.open()
    begun = time.process_time()
    vm = kernel.vm_kernel_proto(1, 2, 3)
    assert time.process_time() - begun < 5
    assert (vm.level, len(vm.modules) <= 2) == ("processes", True)
    assert "modules" in vm.reason


def test_modules_that_lie_of_themselves(victim: Victim) -> None:
    assert victim.kernel.prog
    type_ = victim.kernel.prog.type("struct module")
    first = int.from_bytes(victim.kernel.read(victim.kernel.address_of("modules") or 0, 8), "little") - type_.member("list").bit_offset // 8
    table = int.from_bytes(victim.kernel.read(first + type_.member("kallsyms").bit_offset // 8, 8), "little")
    kallsyms = victim.kernel.prog.type("struct mod_kallsyms")
    count = table + kallsyms.member("num_symtab").bit_offset // 8
    orcs = first + (type_.member("arch").bit_offset + victim.kernel.prog.type("struct mod_arch_specific").member("num_orcs").bit_offset) // 8
    for number in (0xFFFF_FFFF, 1 << 17, 0):
        victim.put_at(count, struct.pack("<I", number))
        victim.put_at(orcs, struct.pack("<I", number))
        vm = victim.open().vm_kernel_proto(1, 2, 3)
        assert len(vm.modules) == 2
        assert sorted(len(module.symbols.types) > 0 for module in vm.modules) == [False, True]
        assert "symbols" in vm.reason
    name = first + type_.member("name").bit_offset // 8
    victim.put_at(name, b"\x1b[31m\n")
    kernel = victim.open()
    vm = kernel.vm_kernel_proto(1, 2, 3)
    assert b"\x1b[31m" not in vm.SerializeToString()
    # It costs itself alone, and is missed; a later reading gives all of them or none.
    assert (len(vm.modules), vm.reason) == (1, "a module: a module without a proper name")
    with pytest.raises(GuestUnreadable, match="a module without a proper name"):
        kernel.vm_kernel_proto(1, 2, 3, whole=True)


def test_modules_of_a_vm_that_has_ended(victim: Victim) -> None:
    kernel = victim.open()
    with HeldMemory(victim.memory) as held:
        memory = held.memory()
        live = open_kernel(memory, [victim.hint])
        assert len(live.vm_kernel_proto(1, 2, 3, whole=True).modules) == 2
        held.end()
        vm = live.vm_kernel_proto(1, 2, 3)
        assert (vm.level, vm.reason, len(vm.modules)) == ("processes", VM_ENDED, 0)
        with pytest.raises(VmEnded):
            live.vm_kernel_proto(1, 2, 3, whole=True)
        with pytest.raises(VmEnded):
            processes.read_process(live, 1)
        with pytest.raises(VmEnded):
            open_kernel(memory, [victim.hint] * 4)
        # What was read before is still there.
        assert live.kernel_proto().symbols == kernel.kernel_proto().symbols
        assert live.vm_kernel_proto(1, 2, 3).reason.startswith("its kernel's code and ORC table: the VM ended")


def test_page_tables_that_are_gone(victim: Victim) -> None:
    """The process of the CR3 ends, and its page table holds something else."""
    write(victim.memory, victim.hint[0] & ~0x1FFF, bytes(8192))
    with pytest.raises(GuestUnreadable):
        victim.open()
    own = (victim.kernel.kernel_cr3, victim.hint[1])
    assert open_kernel(victim.memory, [victim.hint, own]).level == "processes"


def test_memory_that_goes_away(victim: Victim) -> None:
    """Slots that are there no more, and pages that cannot be read."""
    memory = victim.memory
    for slots in ([], memory.slots[:1], [Memslot(slot.gpa, slot.size // 2, slot.hva) for slot in memory.slots], [Memslot(0, 1 << 30, 1 << 50)]):
        try:
            kernel = open_kernel(GuestMemory(memory.fd, slots), [victim.hint] * 4)
        except (GuestUnreadable, VmEnded):
            continue
        kernel.kernel_proto()
        kernel.vm_kernel_proto(1, 2, 3)


@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_ends(victim: Victim, seed: int) -> None:
    """Thousands of wild words over all that the kernel is."""
    rng = np.random.default_rng(seed)
    memory = victim.memory
    start = memory.translate(victim.kernel.kernel_cr3, victim.kernel.text[0])
    for at in rng.integers(start, start + (56 << 20), 3000).tolist():
        write(memory, at, rng.bytes(8))
    begun = time.process_time()
    try:
        kernel = victim.open()
        kernel.kernel_proto()
        vm = kernel.vm_kernel_proto(1, 2, 3)
        kernel.task_layout()
        assert vm.level in {"processes", "symbols", "addresses"}
    except GuestUnreadable:
        pass
    assert time.process_time() - begun < 20
