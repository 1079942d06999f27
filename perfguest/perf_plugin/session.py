# SPDX-License-Identifier: Apache-2.0
"""One run of ``perf script -s``: finds the recording whose perf.data perf has opened, converts it, prints its stacks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import BinaryIO, NoReturn

from perfguest.errors import EnvironmentProblem, FormatError, PerfguestError, UsageError
from perfguest.terminal import printable
from perfguest.writers import perf_script
from perfguest.writers.text import escape

# At the beginning of each perf.data: tools/perf/util/header.c.
_MAGIC = b"PERFILE2"
_PROC_SELF = Path("/proc/self")
# Kept of messages.
_LINES = "\n\t"
# Options of 'perfguest convert' that the script takes too, and the fields of GuestSymbolOptions that they fill. The first three are perf's own as well.
_GUEST_OPTIONS = {"guestkallsyms": "kallsyms", "guestvmlinux": "vmlinux", "guestmount": "mounts", "guest-binary": "binaries"}


def run(arguments: list[str]) -> int:
    """Prints the joined stacks to standard output. ``arguments``: those after the script's name. Gives the exit code; errors are printed in words."""
    try:
        # In this order: what is said of options must not stand behind a gigabyte of stacks.
        options, ignored = guest_options(arguments, perf_arguments(arguments))
        if ignored:
            sys.stderr.write(f"perfguest: all samples are printed; not taken into account: {escape(' '.join(ignored))}\n")
        _print(opened_recording(), options, sys.stdout.buffer)
    except PerfguestError as error:
        sys.stderr.write(f"perfguest: {printable(str(error), keep=_LINES)}\n")
        return error.exit_code
    except BrokenPipeError:
        # Who read has seen enough; as quiet as any program that SIGPIPE ends. Python would complain when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _print(recording: Path, options: dict[str, tuple[str, ...]], out: BinaryIO) -> None:
    # Late, so that errors in the command line are said by a perf whose Python lacks something.
    from perfguest.convert import ConvertOptions, load_profile
    from perfguest.guest_stacks import Unwinding
    from perfguest.private_directory import cache_directory
    from perfguest.symbols.guest import GuestSymbolOptions

    unwinding = Unwinding(kept_tables=cache_directory("guest-tables"))
    profile = load_profile(recording, ConvertOptions(guest=GuestSymbolOptions(**options), unwinding=unwinding))
    for note in profile.notes:
        sys.stderr.write(f"perfguest: {escape(note)}\n")
    perf_script.write(profile, out)
    out.flush()


def opened_recording(proc_self: Path = _PROC_SELF) -> Path:
    """The recording whose perf.data this process, perf, has opened.

    Which file that is, perf does not tell its scripts. What it was called in the command line (``-i``, or nothing) matters less than what is open.
    Raises :class:`FormatError` if it is none of a recording, :class:`EnvironmentProblem` if perf reads from a pipe.
    """
    path = _opened_perf_data(proc_self / "fd")
    if path is None:
        raise EnvironmentProblem("perf has no perf.data open: it reads from a pipe", "give perf the recording's file: -i RECORDING/perf.data")
    if path.name != "perf.data" or not (path.parent / "recording.pb").is_file():
        raise FormatError(f"{path}: not the perf.data of a perfguest recording", "take one that 'perfguest record' has made: -i RECORDING/perf.data")
    return path.parent


def _opened_perf_data(descriptors: Path) -> Path | None:
    # The last one: what perf inherited was open before.
    for descriptor in sorted(descriptors.iterdir(), key=lambda entry: int(entry.name), reverse=True):
        try:
            path = descriptor.readlink()
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(len(_MAGIC)) == _MAGIC:
                        return path
        except OSError:
            # Closed meanwhile, as that of the listing itself, or not ours to read.
            continue
    return None


def perf_arguments(arguments: list[str], proc_self: Path = _PROC_SELF) -> list[str]:
    """What stands in perf's command line between ``script`` and the script's own ``arguments``."""
    line = [part.decode(errors="surrogateescape") for part in (proc_self / "cmdline").read_bytes().split(b"\0")[:-1]]
    return line[1 : len(line) - len(arguments)]


def guest_options(arguments: list[str], perf: list[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The fields of GuestSymbolOptions as given to the script or else to perf, and the options of perf that have no effect here.

    Raises :class:`UsageError` for arguments of the script that it does not know.
    """
    own = vars(_parser().parse_args(arguments))
    known, unknown = _perf_parser().parse_known_args(perf)
    fields = {field: tuple(own[field] or vars(known)[field] or ()) for field in _GUEST_OPTIONS.values()}
    return fields, [word for word in unknown if word.startswith("-") and word != "--"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        options = ", ".join(f"--{name}" for name in _GUEST_OPTIONS)
        raise UsageError(message, f"the script takes {options}, as 'perfguest convert' does")


def _parser() -> _Parser:
    parser = _Parser(prog="perfguest", add_help=False, allow_abbrev=False)
    for name, field in _GUEST_OPTIONS.items():
        parser.add_argument(f"--{name}", dest=field, action="append")
    return parser


def _perf_parser() -> _Parser:
    parser = _parser()
    for names in (("-i", "--input"), ("-s", "--script")):
        parser.add_argument(*names)
    parser.add_argument("-f", "--force", action="store_true")
    parser.add_argument("words", nargs="*")
    return parser
