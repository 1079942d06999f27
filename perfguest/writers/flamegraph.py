# SPDX-License-Identifier: Apache-2.0
"""A flame graph as one HTML page that needs nothing else: no network, no other file, no program but a browser.

Names come out of guests and are hostile, so nothing of them is ever HTML or script. All that a profile holds stands as JSON in a data block
(``<script type="application/json">``), in ASCII and without ``<``, ``>`` and ``&``; the script shows it by ``textContent`` and ``fillText`` alone;
and the page's Content-Security-Policy runs that script and no other, by its hash, and loads nothing.

The data block: ``host``, ``started`` (seconds since the epoch, or null), ``seconds`` (from the first sample to the last), ``notes``; ``names`` and ``modules``;
``kinds``, what a frame can be; and columns as ``[type, base64]``, of little-endian numbers:

- Labels are what frames of the same name, module and kind have in common: ``labelName``, ``labelModule``, ``labelKind``, and ``labelUnproven``, 1 for a frame
  that only looks like a caller.
- The tree has a root, and each node's children follow those of the node before: ``children``, how many each node has, is all that it takes, and ``label``,
  for each node after the root. Siblings stand in the order of their names.
- ``events`` have a ``name``, ``clock`` (its periods are nanoseconds), and of the nodes in which samples end: ``skip``, the distance to the one before or the
  root, ``samples``, and ``period``, their sum.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from perfguest.profile import I32, I64, Mode, Profile, Stacks
from perfguest.writers.call_tree import CallTree
from perfguest.writers.columns import display_names, is_clock, unique_rows
from perfguest.writers.text import escape

#: What a frame can be, as the page's legend has it. The first four are :class:`Mode` 1 to 4.
_KINDS = ("other", "host kernel", "host user", "guest kernel", "guest user", "VM", "thread", "guest thread")
_ROOTS = {"[vm]": "VM", "[thread]": "thread", "[guest-thread]": "guest thread"}
_UNPROVEN = "? "
_SCRIPTS = ("tree.js", "view.js", "page.js")
_PLACE = re.compile(rb"\{\{(\w+)\}\}")


def write(profile: Profile, out: BinaryIO) -> None:
    """Writes the page to ``out``. The same profile always gives the same bytes.

    As in folded stacks, a VM's begin with the VM and the thread, all others with the thread's name.
    """
    style, script = _part("page.css"), b"".join(map(_part, _SCRIPTS))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    parts = {b"policy": policy.encode(), b"style": style, b"script": script, b"data": _data_block(_data(profile))}
    out.write(_PLACE.sub(lambda place: parts[place[1]], _part("page.html")))


def _part(name: str) -> bytes:
    return importlib.resources.files("perfguest.writers").joinpath("flamegraph_page", name).read_bytes()


def _hash(inline: bytes) -> str:
    """As a policy names a script or style that stands in the page itself."""
    return "sha256-" + base64.b64encode(hashlib.sha256(inline).digest()).decode()


def _data_block(value: Any) -> bytes:
    """JSON in ASCII that no parser of HTML takes for anything but text. Outside of strings JSON has none of these characters."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026").encode("ascii")


def _data(profile: Profile) -> dict[str, Any]:
    samples, started = profile.samples, profile.wall_start
    comm = np.where(samples.vm < 0, samples.comm, -1)
    first, kind = unique_rows(samples.stack, comm)
    threads, thread = np.unique(comm[first], return_inverse=True)
    stacks = _with_roots(profile.stacks, samples.stack[first], threads, thread, len(profile.frames))
    numbers, labels = _labels(profile, threads)
    tree = CallTree.of(stacks, numbers)
    used = np.bincount(tree.label, minlength=len(labels)) > 0
    return {
        "host": escape(profile.hostname),
        "started": started if started is not None and math.isfinite(started) else None,
        "seconds": int(samples.time[-1] - samples.time[0]) / 1e9 if len(samples) else 0,
        "notes": [escape(note) for note in profile.notes],
        "kinds": _KINDS,
        **_label_columns([labels[number] for number in np.flatnonzero(used).tolist()]),
        "children": _column(np.bincount(tree.parent + 1, minlength=len(tree.parent) + 1)),
        "label": _column((np.cumsum(used) - 1)[tree.label]),
        "events": list(_events(profile, tree.leaf[kind] + 1)),
    }


def _with_roots(stacks: Stacks, which: I32, threads: I32, thread: npt.NDArray[np.integer[Any]], frames: int) -> Stacks:
    """The stacks ``which``, each with its thread at the root: frame ``frames`` + ``thread``, unless that is -1 in ``threads`` and there are other frames."""
    count = np.diff(stacks.start)[which]
    rooted = (threads[thread] >= 0) | (count == 0)
    start = np.concatenate([[0], np.cumsum(count + rooted)]).astype(np.int64)
    places = np.repeat(stacks.start[which] - start[:-1], count + rooted) + np.arange(start[-1])
    # A place for the root behind the last stack; whatever else stands at roots' places is overwritten.
    found = np.append(stacks.frames, np.int32(0))[places]
    found[start[1:][rooted] - 1] = frames + thread[rooted]
    return Stacks(start, found)


@dataclass(frozen=True, order=True)
class _Label:
    name: str
    kind: int
    module: str
    unproven: bool = False


def _labels(profile: Profile, threads: I32) -> tuple[I64, list[_Label]]:
    """For each frame, then for each of the ``threads`` (indices of strings, -1 for none), the number of its label; and the labels, by their names."""
    files = [escape(mapping.name) for mapping in profile.mappings] + [""]
    roots = [_KINDS.index(_ROOTS.get(mapping.name, "other")) for mapping in profile.mappings] + [0]
    rows = zip(display_names(profile), profile.frames.mode.tolist(), profile.frames.mapping.tolist(), strict=True)
    found = [
        _Label(name, roots[mapping], "") if mode == Mode.NONE else _Label(name, mode, files[mapping], name.startswith(_UNPROVEN))
        for name, mode, mapping in rows
    ]
    names = [escape(profile.strings[thread]) if thread >= 0 else "" for thread in threads.tolist()]
    found += [_Label(name, _KINDS.index("thread"), "") if name else _Label("[unknown]", 0, "") for name in names]
    labels = sorted(set(found))
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers[label] for label in found], np.int64), labels


def _label_columns(labels: list[_Label]) -> dict[str, Any]:
    names = {label.name: 0 for label in labels}
    modules = {label.module: 0 for label in labels}
    for table in (names, modules):
        table.update((text, number) for number, text in enumerate(table))
    return {
        "names": list(names),
        "modules": list(modules),
        "labelName": _column([names[label.name] for label in labels]),
        "labelModule": _column([modules[label.module] for label in labels]),
        "labelKind": _column([label.kind for label in labels]),
        "labelUnproven": _column([label.unproven for label in labels]),
    }


def _events(profile: Profile, leaf: I64) -> Iterator[dict[str, Any]]:
    """Those that have samples. ``leaf``: for each sample the node that it ends in."""
    for number, name in enumerate(profile.events):
        rows = np.flatnonzero(profile.samples.event == number)
        samples = np.bincount(leaf[rows])
        nodes = np.flatnonzero(samples)
        if len(nodes):
            period = np.zeros(len(samples), np.int64)
            np.add.at(period, leaf[rows], profile.samples.period[rows])
            columns = {"skip": _column(np.diff(nodes, prepend=0)), "samples": _column(samples[nodes]), "period": _column(period[nodes].astype(np.float64))}
            yield {"name": escape(name), "clock": is_clock(name), **columns}


def _column(values: npt.ArrayLike) -> list[str]:
    """In the smallest type that holds the values: u1, u2, u4, or f8 for what is given as float64."""
    array = np.asarray(values)
    if array.dtype != np.float64 or not array.size:
        highest = int(array.max(initial=0))
        array = array.astype("u1" if highest < 1 << 8 else "<u2" if highest < 1 << 16 else "<u4")
    return [array.dtype.str[1:], base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()]
