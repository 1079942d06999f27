# SPDX-License-Identifier: Apache-2.0
"""Which perf event samples guests on this host, and how an event must be written so that it does."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterator

from perfguest.capture.host import HostPaths
from perfguest.capture.module_build import Say
from perfguest.capture.preflight import mediated_pmu
from perfguest.errors import UsageError

HARDWARE_EVENT = "cycles:GH"
SOFTWARE_EVENT = "cpu-clock:GH"

#: perf_event_open(2): the system call's number on x86-64, struct perf_event_attr of the first version (64 bytes).
_PERF_EVENT_OPEN = 298
_ATTR = struct.Struct("<IIQQQQQIIQ")
_PERF_FLAG_FD_CLOEXEC = 8

_MODIFIERS = re.compile(r"[ukhIGHpPSDWeb]*")


def default_event(paths: HostPaths, say: Say, has_pmu: bool | None = None) -> str:
    """Cycles where this host's PMU can sample guests, the software clock elsewhere, with one line on why."""
    if mediated_pmu(paths):
        say("KVM lends the whole PMU to its guests (enable_mediated_pmu): cycles would not see them. Sampling by cpu-clock instead")
        return SOFTWARE_EVENT
    if not (pmu_samples() if has_pmu is None else has_pmu):
        say("this host has no hardware counters that can sample: sampling by cpu-clock instead of cycles")
        return SOFTWARE_EVENT
    return HARDWARE_EVENT


def guest_event(event: str) -> str:
    """The event as the user gave it, with the modifiers that make perf sample guests too. Raises :class:`UsageError` if it cannot."""
    return ",".join(_one_event(part) for part in _split(event))


def is_software(event: str) -> bool:
    """Whether no part of the event raises the NMI of hardware counters."""
    return all(re.match(r"(cpu-clock|task-clock|page-faults|faults|context-switches|cs|cpu-migrations|migrations|dummy)\b", part) for part in _split(event))


def number(event: str) -> int:
    """How many events these are: each gives samples of its own."""
    return len(list(_split(event)))


def pmu_samples() -> bool:
    """Whether the kernel can sample CPU cycles here: it opens a counter with a period, on CPU 0, and closes it."""
    # type (hardware 0), size, config (cycles 0), period, sample_type, read_format, flags (disabled), wakeup, breakpoint, config1
    attr = ctypes.create_string_buffer(_ATTR.pack(0, _ATTR.size, 0, 1_000_000_000, 1, 0, 1, 0, 0, 0), _ATTR.size)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (attr, ctypes.c_int(-1), ctypes.c_int(0), ctypes.c_int(-1), ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC))
    fd: int = libc.syscall(ctypes.c_long(_PERF_EVENT_OPEN), *arguments)
    if fd < 0:
        return False
    os.close(fd)
    return True


def _one_event(event: str) -> str:
    if not event:
        raise UsageError("an event has no name", "Give -e as perf takes it, for example -e cycles or -e cpu-clock.")
    # PMU events are written pmu/terms/modifiers, all others event:modifiers; tracepoints have a colon of their own.
    raw = re.fullmatch(r"([^/]+/[^/]*/)(.*)", event)
    name, separator, modifiers = (raw[1], "", raw[2]) if raw else event.rpartition(":")
    if not raw and not separator:
        name, modifiers = event, ""
    if not _MODIFIERS.fullmatch(modifiers.lstrip(":") if raw else modifiers):
        return event
    modifiers = modifiers.lstrip(":")
    if "p" in modifiers or "P" in modifiers:
        raise UsageError(f"{event}: precise sampling (PEBS) does not work in guests", f"Give it without p: -e {name}{'' if raw else ':'}GH.")
    if "H" in modifiers and "G" not in modifiers:
        raise UsageError(f"{event}: H alone samples the host only", f"Give -e {name}{'' if raw else ':'}GH for both.")
    if "G" not in modifiers:
        modifiers += "GH"
    return f"{name}{'' if raw else ':'}{modifiers}"


def _split(events: str) -> Iterator[str]:
    """At the commas that are not within a group or a PMU's terms."""
    part, depth, in_terms = "", 0, False
    for char in events:
        in_terms ^= char == "/"
        depth += (char == "{") - (char == "}")
        if char == "," and depth <= 0 and not in_terms:
            yield part.strip()
            part = ""
        else:
            part += char
    yield part.strip()
