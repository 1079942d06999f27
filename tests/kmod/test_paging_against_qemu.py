# SPDX-License-Identifier: Apache-2.0
"""QEMU's own page table walk as oracle, on the same tables, for the translation and for what the tests' builder builds."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.kmod.page_tables import BY_NAME, CR0_PE, EFER_LMA, MIB4, MODES, Mode, PageTables
from tests.kmod.pure_library import PAGE, Guest, Memory, Pure

# Numbers of the registers in QEMU's gdbstub for x86-64 (gdb-xml/i386-64bit.xml).
CR0, CR3, CR4, EFER = 27, 29, 30, 32


class Qemu:
    """A machine that never runs: memory and registers are set by the gdb protocol, addresses asked for by QMP."""

    def __init__(self, gdb: socket.socket, qmp: socket.socket) -> None:
        self._gdb, self._qmp = gdb, qmp.makefile("rw")
        self._qmp.readline()
        self._command("qmp_capabilities")
        self._ask("qXfer:features:read:target.xml:0,ffb")  # before that it takes no single registers
        self._packet("Qqemu.PhyMemMode:1")

    def _ask(self, payload: str) -> bytes:
        self._gdb.sendall(f"${payload}#{sum(payload.encode()) & 255:02x}".encode())
        answer = b""
        while b"#" not in answer[:-2]:
            part = self._gdb.recv(4096)
            assert part, "QEMU is gone"
            answer += part
        self._gdb.sendall(b"+")
        return answer.lstrip(b"+")

    def _packet(self, payload: str) -> None:
        answer = self._ask(payload)
        assert answer == b"$OK#9a", f"{payload}: {answer!r}"

    def _command(self, name: str, **arguments: str) -> str:
        print(json.dumps({"execute": name, "arguments": arguments}), file=self._qmp, flush=True)
        return str(json.loads(self._qmp.readline())["return"])

    def enter(self, registers: dict[str, int]) -> None:
        """Paging off, then what chooses the mode, then paging on: in that order the processor makes EFER.LMA itself."""
        steps = ((CR0, CR0_PE), (CR4, registers["cr4"]), (EFER, registers["efer"] & ~EFER_LMA), (CR3, registers["cr3"]), (CR0, registers["cr0"]))
        for number, value in steps:
            self._packet(f"P{number:x}={value.to_bytes(8, 'little').hex()}")

    def load(self, memory: Memory) -> None:
        for number, page in memory.pages.items():
            for start in range(0, PAGE, PAGE // 4):
                self._packet(f"M{number * PAGE + start:x},{PAGE // 4:x}:{page[start : start + PAGE // 4].hex()}")

    def translate(self, gva: int) -> int | None:
        answer = self._command("human-monitor-command", **{"command-line": f"gva2gpa {gva:#x}"})
        return int(answer.split()[1], 16) if answer.startswith("gpa:") else None


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(60)
    listener.bind(str(path))
    listener.listen()
    return listener


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    directory = tmp_path_factory.mktemp("qemu")
    gdb, qmp = directory / "gdb", directory / "qmp"
    command = ["qemu-system-x86_64", "-machine", "microvm", "-accel", "tcg", "-cpu", "max", "-m", "64", "-S", "-nodefaults", "-display", "none"]
    command += ["-gdb", f"unix:{gdb},server=off", "-qmp", f"unix:{qmp},server=off"]
    with _listen(gdb) as gdb_listener, _listen(qmp) as qmp_listener, subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            with qmp_listener.accept()[0] as qmp_socket, gdb_listener.accept()[0] as gdb_socket:
                yield Qemu(gdb_socket, qmp_socket)
        finally:
            process.terminate()


def _random_tables(mode: Mode, random: Random) -> PageTables:
    tables = PageTables(mode, Memory(), maxphyaddr=40, noise=random)
    near = random.getrandbits(mode.address_bits)
    for _ in range(12):
        size = random.choice(mode.page_sizes)
        gva = mode.canonical((random.choice([near + random.randrange(-4, 4) * size, random.getrandbits(mode.address_bits)])) & ~(size - 1))
        gpa = random.getrandbits(40 if size == MIB4 or mode.entry_size == 8 else 32) & ~(size - 1)
        if not tables.overlaps(gva, size):
            tables.map(gva, gpa, size)
    return tables


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_translates_as_qemu_does(pure: Pure, qemu: Qemu, mode: Mode) -> None:
    random = Random(mode.name)
    for _ in range(3):
        tables = _random_tables(mode, random)
        registers = tables.registers()
        qemu.load(tables.memory)
        qemu.enter(registers)
        guest = Guest(pure, tables.memory, **registers)
        mapped = 0
        for start, (_, size) in tables.mappings.items():
            for page in (start, start + size - PAGE, start + random.randrange(size // PAGE) * PAGE, start - PAGE, start + size):
                gva = mode.canonical(page)
                err, gpa, _ = guest.translate(gva)
                assert qemu.translate(gva) == (None if err else gpa)
                mapped += not err
        assert mapped >= 3


def test_the_machine_has_the_modes(qemu: Qemu) -> None:
    """The oracle tells modes apart: what is mapped in one is not in another."""
    tables = PageTables(BY_NAME["4-level"], Memory())
    tables.map(0x40_0000, 0x7000)
    registers = tables.registers()
    qemu.load(tables.memory)
    qemu.enter(registers | {"cr0": CR0_PE})
    assert qemu.translate(0x40_0000) == 0x40_0000
    qemu.enter(registers)
    assert qemu.translate(0x40_0000) == 0x7000
    assert qemu.translate(0x50_0000) is None
