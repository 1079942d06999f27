# SPDX-License-Identifier: Apache-2.0
"""``perfguest record``: guest stacks and perf's samples into a recording."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from perfguest.capture.debugfs import WHOLE_STACK, ModuleSettings
from perfguest.capture.guests import GuestSettings
from perfguest.capture.recorder import RecordSettings
from perfguest.capture.recorder import record as run_recorder
from perfguest.private_directory import cache_directory

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(least: int, most: int, multiple: int = 1) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """Reads bytes, or a number with a unit B, K, M or G; None if the option is not there."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        match = re.fullmatch(r"([0-9]{1,12})([BKMG]?)", value.upper())
        if not match:
            raise click.BadParameter(f"{value!r} is no size: give bytes, or a number and K, M or G", ctx, param)
        size = int(match[1]) * _UNITS[match[2]]
        if not least <= size <= most or size % multiple:
            raise click.BadParameter(f"{value!r} is not between {least} and {most} bytes, in steps of {multiple}", ctx, param)
        return size

    return convert


def _what_is_taken(call_graph: str, stack_size: int | None, chain_depth: int | None) -> ModuleSettings:
    if call_graph == "fp" and stack_size is not None:
        raise click.BadOptionUsage("stack_size", "--stack-size is for copies of stacks, which --call-graph fp takes none of")
    if call_graph == "dump" and chain_depth is not None:
        raise click.BadOptionUsage("chain_depth", "--chain-depth is for chains of frame pointers, which --call-graph dump takes none of")
    return ModuleSettings(
        kernel_stack=0 if call_graph == "fp" else WHOLE_STACK,
        user_stack=0 if call_graph == "fp" else stack_size or ModuleSettings.user_stack,
        chain_depth=0 if call_graph == "dump" else chain_depth or ModuleSettings.chain_depth,
    )


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=RecordSettings.output,
    show_default=True,
    metavar="DIR",
    help="The recording; one that is there moves to DIR.old.",
)
@click.option("-e", "--event", metavar="EVENT", help="perf's event to sample on [default: cycles, or cpu-clock where there is no PMU]. GH is added.")
@click.option(
    "-F", "--frequency", type=click.IntRange(1, 1_000_000), default=RecordSettings.frequency, show_default=True, help="Samples a second, of each CPU."
)
@click.option("-p", "--pid", type=click.IntRange(1), multiple=True, metavar="PID", help="Only the VM of this process; may be given several times.")
@click.option("--vm", metavar="NAME", help="Only the VM of this name.")
@click.option("--trigger", type=click.Choice(["auto", "probe", "nmi"]), default="auto", show_default=True, help="What takes the guest's stack.")
@click.option(
    "--locator", type=click.Choice(["auto", "preempt", "accessor", "percpu", "scan"]), default="auto", show_default=True, help="How the running vCPU is found."
)
@click.option(
    "--call-graph",
    type=click.Choice(["auto", "fp", "dump"]),
    default="auto",
    show_default=True,
    help="How a guest's stack is taken. fp: the chain of frame pointers, which few distributions' kernels and programs have, and no memory of stacks. dump: "
    "copies of the guest's kernel stack (all of it) and user stack, which convert unwinds. auto: both.",
)
@click.option(
    "--stack-size",
    callback=_size(8, 65536, 8),
    metavar="BYTES",
    help=f"Copy so much of the guest's user stack [default: {ModuleSettings.user_stack}]. It may hold secrets: see docs/privacy.md.",
)
@click.option("--chain-depth", type=click.IntRange(1, 1024), metavar="N", help=f"Frames of each frame-pointer chain [default: {ModuleSettings.chain_depth}].")
@click.option("--clock", type=click.Choice(["local", "mono"]), default="local", show_default=True, help="perf's clock: its own, or CLOCK_MONOTONIC.")
@click.option(
    "-m",
    "--buffer",
    callback=_size(64 << 10, 1 << 30, 1024),
    metavar="SIZE",
    help="The module's buffer, of each CPU [default: by --frequency and what is taken, 1M to 64M].",
)
@click.option(
    "--guest-memory",
    type=click.Choice(["all", "kernel", "off"]),
    default=GuestSettings.mode,
    show_default=True,
    help="What may be read of the guests' memory for naming and unwinding: see docs/privacy.md.",
)
@click.option(
    "--guest-wait",
    type=click.FloatRange(0),
    default=GuestSettings.wait,
    show_default=True,
    metavar="SECONDS",
    help="At the end, wait at most so long for what is still being read of the guests' memory.",
)
@click.option("--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End after this time.")
@click.option(
    "--kdir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Headers to build the module with [default: the running kernel's]."
)
@click.option("--perf", default="perf", show_default=True, metavar="PATH", help="The perf to run.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(
    *,
    output: Path,
    event: str | None,
    frequency: int,
    pid: tuple[int, ...],
    vm: str | None,
    trigger: str,
    locator: str,
    call_graph: str,
    stack_size: int | None,
    chain_depth: int | None,
    clock: str,
    buffer: int | None,
    guest_memory: str,
    guest_wait: float,
    duration: float | None,
    kdir: Path | None,
    perf: str,
    command: tuple[str, ...],
) -> None:
    """Record the stacks of this host's guests while COMMAND runs, or until Ctrl-C. Exits with COMMAND's status.

    Needs root. Loads the kernel module if it is not there (built first if need be), and unloads it afterwards.
    """
    taken = _what_is_taken(call_graph, stack_size, chain_depth)
    module = replace(taken, trigger=trigger, locator=locator, clock=clock, buffer_kb=buffer >> 10 if buffer else None)
    guests = GuestSettings(guest_memory, guest_wait, cache_directory("guest-kernels"))
    sys.exit(run_recorder(RecordSettings(output, event, frequency, pid, vm, module, duration, command, perf, kdir, guests)))


if __name__ == "__main__":
    record()
