# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds of CPU time for each frame that the unwinder finds.

    python -m tests.bench.frames [SAMPLES]

User stacks: those of Debian's Python at moments while it compiles a program, walked again and again. Kernel stacks: as deep as a busy kernel's, laid out by
the ORC table of the kernel in /boot, at random addresses of its text.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import numpy as np

from perfguest.capture.lab.kernels import find_kernel
from perfguest.formats.kernel_image import read_kernel_image
from perfguest.unwind import _native
from perfguest.unwind.engine import Engine, Samples
from perfguest.unwind.orc import ENTRY, orc_layout
from tests.unwind import kernel_stacks, traced

ROUNDS = 5
DEPTH = 14
WORK = "import ast, os, signal, inspect; text = inspect.getsource(ast); os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: compile(text, 'ast', 'exec')"


def join(samples: list[Samples], repeat: int) -> Samples:
    """All of them as one, in turn, again and again."""
    memory = b"".join(bytes(memoryview(s.memory)) for s in samples)
    bases = np.cumsum([0, *(len(memoryview(s.memory)) for s in samples)])[:-1]
    counts = np.concatenate([np.diff(s.copy_start) for s in samples] * repeat)
    return Samples(
        memory,
        np.concatenate([s.registers for s in samples] * repeat),
        np.concatenate([s.mode for s in samples] * repeat),
        np.concatenate([s.kernel for s in samples] * repeat),
        np.concatenate([s.space for s in samples] * repeat),
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([s.copy_address for s in samples] * repeat),
        np.concatenate([s.copy_offset + base for s, base in zip(samples, bases, strict=True)] * repeat),
        np.concatenate([s.copy_size for s in samples] * repeat),
    )


def user_stacks(engine: Engine, moments: int) -> list[Samples]:
    result = []
    with traced.running("/usr/bin/python3", "-c", WORK) as pid, traced.stopped(pid):
        space = traced.add_process(engine, pid)
        for _ in range(moments):
            # A thousand instructions on: another place, if not always another function.
            for _ in range(1000):
                traced.step(pid)
            registers = traced.registers(pid)
            result.append(traced.user_samples(registers, [traced.stack_of(pid, int(registers[4]))], space))
    return result


def kernel_stacks_of(engine: Engine, number: int) -> list[Samples]:
    """Frames of functions whose rule is the usual one: CFA = SP + offset."""
    image = read_kernel_image(str(find_kernel(None, None, []).image))
    ip, unwind = image.section(".orc_unwind_ip"), image.section(".orc_unwind")
    if not ip or not unwind:
        sys.exit(f"{image.path} has no ORC table")
    offsets = image.content(ip).view("<i4").astype(np.int64)
    addresses = np.uint64(ip.address) + np.arange(len(offsets), dtype=np.uint64) * 4 + offsets.astype(np.uint64)
    entries = image.content(unwind).view(ENTRY)
    layout = orc_layout(image.release, entries.tobytes())
    text = [(section.address, image.content(section)) for section in image.text]
    kernel = engine.add_kernel([(addresses, entries.tobytes())], layout, text)
    call = 0x205 if layout == _native.ORC_V5 else 5
    usual = np.flatnonzero((entries["flags"] & 0x70F == call) & (entries["sp_offset"] < 512) & (np.append(np.diff(addresses), 0) > 2))
    generator = np.random.default_rng(1)
    result = []
    for _ in range(number):
        rows = generator.choice(usual, DEPTH)
        stack, at = kernel_stacks.Stack(), 0
        for row, caller in pairwise(rows):
            at += int(entries["sp_offset"][row])
            stack.put(at - 8, int(addresses[caller]) + 1)
        result.append(kernel_stacks.sample([stack], kernel, rip=int(addresses[rows[0]]), rsp=kernel_stacks.STACK))
    return result


def measure(name: str, engine: Engine, samples: list[Samples], total: int) -> None:
    joined = join(samples, max(total // len(samples), 1))
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        stacks = engine.walk(joined)
        times.append((time.thread_time() - start) / len(stacks.address) * 1e9)
    depth = len(stacks.address) / len(joined.mode)
    distinct = len(np.unique(stacks.address))
    print(f"{name}: {times[0]:.0f} ns a frame at first, {min(times):.0f} ns then ({len(joined.mode)} stacks, {depth:.1f} deep, {distinct} addresses)")


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    engine = Engine()
    measure("user, .eh_frame", engine, user_stacks(engine, 50), total)
    measure("kernel, ORC", engine, kernel_stacks_of(engine, 200), total)


if __name__ == "__main__":
    main()
