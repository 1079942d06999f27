# SPDX-License-Identifier: Apache-2.0
"""Chooses samples of a profile by VM and by the guest's thread that they hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from perfguest.errors import UsageError
from perfguest.profile import I32, Frames, Profile, Samples, Stacks
from perfguest.writers.text import escape

_TOLD = 10


@dataclass(frozen=True)
class Selection:
    """What samples must have: of each kind that is given, one of its values.

    ``comms``: names of threads, whole. ``pids``: processes (tgid), as the guest counts. ``cgroups``: paths; those below belong to them. ``vms``: names, or pids
    of the VMM: all samples of its threads, the host's too.
    """

    comms: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()
    vms: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.comms or self.pids or self.cgroups or self.vms)


def select(profile: Profile, selection: Selection) -> Profile:
    """The profile with the selected samples, and the stacks and frames that they have. Raises :class:`UsageError` if there are none."""
    if not selection:
        return profile
    samples = profile.samples
    chosen = np.ones(len(samples), bool)
    if selection.vms:
        chosen &= np.isin(samples.vm, _vms(profile, selection.vms))
        if not chosen.any():
            sampled = _named_vms(profile)
            raise UsageError("no sample of these VMs", f"Sampled were: {sampled}." if sampled else "No VM was sampled; a perf.data alone knows none.")
    if selection.comms:
        chosen &= _matches(profile, samples.guest_comm, lambda text: text in selection.comms)
    if selection.pids:
        chosen &= np.isin(samples.guest_pid, [pid for pid in selection.pids if 0 <= pid < 1 << 31])
    if selection.cgroups:
        wanted = [path.rstrip("/") for path in selection.cgroups]
        chosen &= _matches(profile, samples.cgroup, lambda text: any(text.rstrip("/") == path or text.startswith(path + "/") for path in wanted))
    if not chosen.any():
        raise UsageError("no sample of a guest's thread matches", _known(profile))
    return _keep(profile, np.flatnonzero(chosen), f"{int(np.count_nonzero(chosen))} of {len(samples)} samples were selected")


def _vms(profile: Profile, wanted: tuple[str, ...]) -> list[int]:
    return [number for number, vm in enumerate(profile.vms) if vm.name in wanted or str(vm.pid) in wanted]


def _named_vms(profile: Profile) -> str:
    counts = Counter(profile.samples.vm[profile.samples.vm >= 0].tolist())
    return ", ".join(f"{escape(profile.vms[number].name)} ({profile.vms[number].pid})" for number, _ in counts.most_common(_TOLD))


def _matches(profile: Profile, column: I32, accepts: Callable[[str], bool]) -> npt.NDArray[np.bool_]:
    """``column``: indices of strings, -1 for none, which nothing accepts."""
    numbers = np.unique(column[column >= 0])
    return np.isin(column, [number for number in numbers.tolist() if accepts(profile.strings[number])])


def _known(profile: Profile) -> str:
    comms = Counter(profile.samples.guest_comm[profile.samples.guest_comm >= 0].tolist())
    if not comms:
        return "This recording does not say which of the guests' threads ran: it was made without reading guests' memory, or the reading failed."
    told = ", ".join(escape(profile.strings[comm]) for comm, _ in comms.most_common(_TOLD))
    return f"Those with most samples: {told}."


def _keep(profile: Profile, rows: npt.NDArray[np.intp], note: str) -> Profile:
    used, stack = np.unique(profile.samples.stack[rows], return_inverse=True)
    start = profile.stacks.start
    count = (start[1:] - start[:-1])[used]
    new_start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    places = np.repeat(start[:-1][used] - new_start[:-1], count) + np.arange(new_start[-1])
    kept, frame = np.unique(profile.stacks.frames[places], return_inverse=True)
    columns = {field.name: getattr(profile.samples, field.name)[rows] for field in fields(Samples)}
    columns["stack"] = stack.astype(np.int32)
    frames = Frames(**{field.name: getattr(profile.frames, field.name)[kept] for field in fields(Frames)})
    return replace(profile, frames=frames, stacks=Stacks(new_start, frame.astype(np.int32)), samples=Samples(**columns), notes=[*profile.notes, note])
