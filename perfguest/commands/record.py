# SPDX-License-Identifier: Apache-2.0
"""``perfguest record``: guest stacks and perf's samples into a recording."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

from perfguest.capture.debugfs import ModuleSettings
from perfguest.capture.guest_cache import cache_directory
from perfguest.capture.guests import GuestSettings
from perfguest.capture.recorder import RecordSettings
from perfguest.capture.recorder import record as run_recorder

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(least: int, most: int, multiple: int = 1) -> Callable[[click.Context, click.Parameter, str], int]:
    """Reads bytes, or a number with a unit B, K, M or G."""

    def convert(ctx: click.Context, param: click.Parameter, value: str) -> int:
        match = re.fullmatch(r"([0-9]{1,12})([BKMG]?)", value.upper())
        if not match:
            raise click.BadParameter(f"{value!r} is no size: give bytes, or a number and K, M or G", ctx, param)
        size = int(match[1]) * _UNITS[match[2]]
        if not least <= size <= most or size % multiple:
            raise click.BadParameter(f"{value!r} is not between {least} and {most} bytes, in steps of {multiple}", ctx, param)
        return size

    return convert


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
@click.option("--kernel-stack", callback=_size(0, 16384, 8), default="0", show_default=True, metavar="BYTES", help="Copy so much of the guest's kernel stack.")
@click.option("--user-stack", callback=_size(0, 65536, 8), default="0", show_default=True, metavar="BYTES", help="Copy so much of the guest's user stack.")
@click.option("--chain-depth", type=click.IntRange(1, 1024), default=ModuleSettings.chain_depth, show_default=True, help="Frames of each frame-pointer chain.")
@click.option("--clock", type=click.Choice(["local", "mono"]), default="local", show_default=True, help="perf's clock: its own, or CLOCK_MONOTONIC.")
@click.option(
    "-m", "--buffer", callback=_size(64 << 10, 1 << 30, 1024), default="4M", show_default=True, metavar="SIZE", help="The module's buffer, of each CPU."
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
    kernel_stack: int,
    user_stack: int,
    chain_depth: int,
    clock: str,
    buffer: int,
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
    module = ModuleSettings(trigger, locator, clock, kernel_stack, user_stack, chain_depth, buffer >> 10)
    guests = GuestSettings(guest_memory, guest_wait, cache_directory())
    sys.exit(run_recorder(RecordSettings(output, event, frequency, pid, vm, module, duration, command, perf, kdir, guests)))


if __name__ == "__main__":
    record()
