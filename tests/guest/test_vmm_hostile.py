# SPDX-License-Identifier: Apache-2.0
"""Recorders and their readers, on memory that a guest's VMM takes away, or that a guest has made to hold readers up."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from perfguest.guest import processes
from perfguest.guest.kernel import open_kernel
from perfguest.guest.memory import TAKEN_AWAY, VM_ENDED
from tests.guest.emulated import KERNELS, EmulatedGuest
from tests.guest.patched import close, copy_of
from tests.guest.recorded import Original, Run, check_names, recording
from tests.guest.vmm import HeldMemory

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def original() -> Iterator[Original]:
    with EmulatedGuest(KERNELS[0], modules=("overlay",), memory=256) as guest:
        listing = [line.split() for line in guest.run("cat /proc/kallsyms").splitlines()]
        kallsyms = {words[2]: int(words[0], 16) for words in listing[::-1] if len(words) == 3}
        lstar = guest.lstar()
        with guest.stopped():
            memory, hint = copy_of(guest.memory()), (guest.registers().cr3, lstar)
    kernel = open_kernel(memory, [hint])
    process = processes.read_process(kernel, 1)
    assert process
    yield Original(memory, kernel, (kernel.kernel_cr3, lstar), (1, 1, process.start_time, process.comm), kallsyms)
    close([memory])


@pytest.fixture
def run(original: Original, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with HeldMemory(original.memory) as held, recording(original, held, tmp_path) as begin:
        yield begin


def test_undisturbed(run: Callable[..., Run]) -> None:
    found = run()
    found.begin()
    found.wait(lambda: found.told)
    found.task()
    found.wait(lambda: len(found.snapshot.processes) == 1)
    peak = found.peak()
    line = found.end()
    print(f"{peak >> 20} MiB, {line}")
    assert line.startswith(f"web: Linux {found.original.kernel.release}, 1 process")
    assert line.endswith("from its memory")
    assert peak < 400 << 20
    check_names(found)


@pytest.mark.parametrize("what", ["a slot goes", "all slots go", "the VMM ends"])
@pytest.mark.parametrize("when", ["while it is opened", "once it is open"])
def test_memory_that_goes_away(run: Callable[..., Run], what: str, when: str) -> None:
    found = run()
    found.begin()
    if when == "while it is opened":
        found.wait_opening()
    else:
        found.wait(lambda: found.told)
    if what == "the VMM ends":
        found.held.end()
    else:
        # The large one is the last.
        for slot in found.held.slots[-1:] if what == "a slot goes" else found.held.slots:
            found.held.unmap(slot)
    found.task()
    begun = time.monotonic()
    line = found.end()
    print(f"{what} {when}: {time.monotonic() - begun:.1f} s, {line}")
    assert time.monotonic() - begun < 60
    why = VM_ENDED if what == "the VMM ends" else TAKEN_AWAY
    assert why in line
    if what == "the VMM ends":
        # Nothing but that.
        assert line.endswith(f": {why}")
    if when == "once it is open":
        assert line.startswith(f"web: Linux {found.original.kernel.release}, 0 processes, 0 binaries (0 B) from its memory, 1 not read in time: ")
    assert not found.snapshot.processes
    check_names(found)


@pytest.mark.parametrize("kind", ["each entry", "the top"])
def test_page_tables_that_map_themselves(run: Callable[..., Run], kind: str) -> None:
    """One page is all levels of the tables: everything is mapped, to it. It takes readers no longer than they may take, and no more memory."""
    found = run(request_cpu=10.0)
    table = 0x100000
    entries = [table | 0x63] * 512
    if kind == "the top":
        # The last entries alone, as kernels have them, and what they lead to.
        entries[:256] = [0] * 256
    found.held.write(table, struct.pack("<512Q", *entries))
    found.begin(cr3=table)
    vm, begun = found.vm(), time.monotonic()
    # It may be over quickly.
    peak = found.peak_until(lambda: vm._opening.tries and not vm.opening)
    line = found.end()
    print(f"{kind}: {time.monotonic() - begun:.1f} s, {peak >> 20} MiB, {line}")
    assert line.startswith("web: kernel not known, nothing from its memory: ")
    assert 0 < peak < 1200 << 20
    assert {kernel.level for kernel in found.snapshot.kernels} == {"addresses"}


@pytest.mark.parametrize("what", ["kallsyms of endless number", "kallsyms of endless names", "BTF of garbage", "BTF of endless length"])
def test_tables_of_garbage_and_endless_length(run: Callable[..., Run], what: str) -> None:
    found = run()
    kernel, held = found.original.kernel, found.held
    info = kernel.info
    assert info

    def put(address: int, data: bytes) -> None:
        for at in range(0, len(data), 2048):
            held.write(kernel.memory.translate(kernel.kernel_cr3, address + at), data[at : at + 2048])

    tokens, btf = info.symbol("kallsyms_token_table") or 0, kernel.address_of("__start_BTF") or 0
    if what == "kallsyms of endless number":
        put(info.symbol("kallsyms_num_syms") or 0, b"\xff\xff\xff\xff")
    elif what == "kallsyms of endless names":
        put(tokens, b"a" * 2048)
    elif what == "BTF of garbage":
        put(btf + 24, np.random.default_rng(1).bytes(1 << 16))
    else:
        # The header's length of types, and of strings.
        put(btf + 12, struct.pack("<III", 0xFFFF_FFFC, 0xFFFF_FFF0, 0xFFFF_FFFF))
    found.begin()
    found.task()
    vm = found.vm()
    peak = found.peak_until(lambda: not vm.opening and vm.state.level)
    line = found.end()
    print(f"{what}: {peak >> 20} MiB, {line}")
    assert 0 < peak < 1200 << 20
    assert "0 processes" in line or "no processes" in line or "nothing from its memory" in line
    assert ("no BTF" in line or "BTF" in line) if what.startswith("BTF") else "symbol" in line
    check_names(found)
