# SPDX-License-Identifier: Apache-2.0
"""``perfguest convert``: a recording becomes a file that other tools read."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from perfguest import _native
from perfguest.errors import PerfguestError, UsageError
from perfguest.host_profile import load_host_profile
from perfguest.private_directory import cache_directory
from perfguest.profile import Profile
from perfguest.selection import Selection, select
from perfguest.writers.text import escape

#: Format to (module of the writer, where it goes unless -o says so).
_FORMATS = {
    "script": ("perf_script", "-"),
    "pprof": ("pprof", "guest.pb.gz"),
    "flamegraph": ("flamegraph", "guest.html"),
    "chrome": ("chrome_trace", "guest.trace.json"),
    "folded": ("folded", "-"),
}
_FILE_HELP = "FILE for all VMs, or VM=FILE with a VM's name or pid; may be given several times."


def _format_option(name: str, text: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option(f"--{name}", "form", flag_value=name, help=text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recording", type=click.Path(path_type=Path), default="perfguest.data")
@_format_option("script", "Text as `perf script` prints it, for FlameGraph, speedscope, Firefox Profiler, Perfetto [default].")
@_format_option("pprof", "pprof's profile.proto, gzipped, for `go tool pprof`.")
@_format_option("flamegraph", "A flame graph as one HTML page, for any browser.")
@_format_option("chrome", "Chrome trace JSON: a track for each vCPU, guest thread, and host CPU, for Perfetto.")
@_format_option("folded", "Folded stacks: a line for each stack, with its number of samples.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where to write; - is standard output. [default: - or guest.pb.gz, guest.html, guest.trace.json]",
)
@click.option("--guestkallsyms", multiple=True, metavar="FILE", help=f"Copy of the guest's /proc/kallsyms. {_FILE_HELP}")
@click.option("--guestvmlinux", multiple=True, metavar="FILE", help=f"The guest's vmlinuz, vmlinux or System.map. {_FILE_HELP}")
@click.option(
    "--guestmount",
    multiple=True,
    metavar="DIR",
    help="Directory with the guest's kernel, modules and programs, at their paths in the guest. DIR or VM=DIR.",
)
@click.option("--guest-binary", multiple=True, metavar="FILE[@ADDRESS]", help="A program of the guest, loaded ADDRESS (hexadecimal) above where it was linked.")
@click.option(
    "--unwind",
    type=click.Choice(["auto", "fp", "scan"]),
    default="auto",
    show_default=True,
    help="How guests' stacks are followed: by the tables of kernel and programs, or frame pointers where there are none (auto); by frame pointers alone (fp); "
    "by whatever on the stack looks like a return address, marked with ? (scan).",
)
@click.option(
    "--host-root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/",
    metavar="DIR",
    help="Where the recorded host's files are [default: /]. Files there that have the path and build id of a guest's fill gaps, too.",
)
@click.option(
    "--weight", type=click.Choice(["samples", "period"]), help="What --folded counts: samples [default] or the event's period, nanoseconds for clocks."
)
@click.option("--vm", multiple=True, metavar="NAME", help="Only samples of this VM's threads, by its name or pid; may be given several times.")
@click.option("--guest-comm", multiple=True, metavar="NAME", help="Only samples of guest threads of this name; may be given several times.")
@click.option("--guest-pid", multiple=True, type=click.IntRange(0), metavar="PID", help="Only samples of this process, as the guest counts it.")
@click.option("--cgroup", multiple=True, metavar="PATH", help="Only samples of guest processes in this cgroup of the guest, or below it.")
@click.option(
    "--keep-tables/--no-keep-tables",
    default=True,
    show_default=True,
    help="Keep the unwind tables of guests' programs in ~/.cache/perfguest/guest-tables, and use those that other recordings or --guestmount gave of the same "
    "programs, by build id, where this guest had not read its own.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print no summary.")
def convert(
    *,
    recording: Path,
    form: str | None,
    output: str | None,
    guestkallsyms: tuple[str, ...],
    guestvmlinux: tuple[str, ...],
    guestmount: tuple[str, ...],
    guest_binary: tuple[str, ...],
    unwind: str,
    host_root: Path,
    weight: str | None,
    vm: tuple[str, ...],
    guest_comm: tuple[str, ...],
    guest_pid: tuple[int, ...],
    cgroup: tuple[str, ...],
    keep_tables: bool,
    quiet: bool,
) -> None:
    """Join and name the stacks of RECORDING (perfguest.data), and write them.

    RECORDING may be a perf.data of `perf record` as well, of a host with or without guests: then it is the host's stacks that are named and written.

    A stack reads, from its root: the VM, the vCPU's thread, the guest's thread, then the guest's user functions and its kernel's.
    What the host did in the VM's threads stands under the same thread.

    Guests' functions are named from what `perfguest record` read out of their memory. The options --guest* give files that add to it.

    \b
    Examples:
        perfguest convert --flamegraph --vm web1
        perfguest convert --pprof
        perfguest convert --chrome --guest-comm nginx
        perfguest convert --script --guestkallsyms web1=web1.kallsyms >guest.script
    """
    module, place = _FORMATS[form or "script"]
    if weight and form != "folded":
        raise UsageError("--weight is for --folded", "The other formats hold the samples and their periods.")
    guest_files = {"kallsyms": guestkallsyms, "vmlinux": guestvmlinux, "mounts": guestmount, "binaries": guest_binary}
    if recording.is_dir() or not recording.exists():
        profile = _load(recording, guest_files, host_root, unwind, cache_directory("guest-tables") if keep_tables else None)
    elif any(guest_files.values()):
        raise UsageError(f"{recording} holds no guests' stacks", "Files of guests are for what `perfguest record` wrote: give its directory.")
    else:
        _native.reuse_memory()
        profile = load_host_profile(recording, host_root)
    profile = select(profile, Selection(guest_comm, guest_pid, cgroup, vm))
    write: Callable[..., None] = importlib.import_module(f"perfguest.writers.{module}").write
    extra = {"weight": weight} if weight else {}
    target = output or place
    with _opened(target) as out:
        write(profile, out, **extra)
    if not quiet:
        _summary(profile, target)


def _load(recording: Path, guest_files: dict[str, tuple[str, ...]], host_root: Path, how: str, kept: Path | None) -> Profile:
    # Late: a perf.data alone takes less than what is loaded for guests.
    from perfguest.convert import ConvertOptions, load_profile
    from perfguest.guest_stacks import Unwinding
    from perfguest.symbols.guest import GuestSymbolOptions

    options = ConvertOptions(guest=GuestSymbolOptions(**guest_files), host_root=host_root, unwinding=Unwinding(how, kept))
    return load_profile(recording, options)


@contextmanager
def _opened(target: str) -> Iterator[BinaryIO]:
    """The file appears whole or not at all."""
    if target == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise PerfguestError(f"cannot write {path}: {error.strerror}", "Choose another place with -o.") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise PerfguestError(f"cannot write {path}: {error.strerror}", "Choose another place with -o.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _summary(profile: Profile, target: str) -> None:
    for note in profile.notes:
        click.echo(f"perfguest: {escape(note)}", err=True)
    where = "" if target == "-" else f" to {target}"
    click.echo(f"perfguest: wrote {len(profile.samples)} samples, {len(profile.stacks)} different stacks{where}", err=True)
