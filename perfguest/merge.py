# SPDX-License-Identifier: Apache-2.0
"""Pairs perf's guest samples with the module's records: the same host CPU, the same guest IP, nearest in time, one to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.profile import I32, I64, U64

#: Nanoseconds between perf's clock reading and the module's in one sample. Both happen in one interrupt; a host that is itself emulated stops for that long.
DEFAULT_WINDOW = 20_000_000

# Each round pairs at least the closest two of a chain of candidates; real recordings need two or three.
_MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Side:
    """Columns of one side: ``time`` in ns, host ``cpu``, guest ``ip``. All have the same length."""

    time: I64
    cpu: I32
    ip: U64


@dataclass(frozen=True)
class Pairs:
    """``record_of``: for each sample the index of its record, or -1. ``distance``: ns between the two, of the paired samples."""

    record_of: I64
    distance: I64

    @property
    def paired(self) -> int:
        return int((self.record_of >= 0).sum())


def pair(samples: Side, records: Side, window: int = DEFAULT_WINDOW) -> Pairs:
    """Pairs are taken closest first: two with the same CPU and IP, each the other's nearest that is still free, not further than ``window`` ns apart."""
    n = len(samples.time)
    record_of = np.full(n, -1, np.int64)
    distance = np.zeros(n, np.int64)
    key = _keys(samples, records)
    free_s, free_r = np.arange(n), np.arange(len(records.time))
    for _ in range(_MAX_ROUNDS):
        s, r = _mutual(key[:n][free_s], samples.time[free_s], key[n:][free_r], records.time[free_r], window)
        if not len(s):
            break
        record_of[free_s[s]] = free_r[r]
        distance[free_s[s]] = np.abs(samples.time[free_s[s]] - records.time[free_r[r]])
        free_s, free_r = np.delete(free_s, s), np.delete(free_r, r)
    return Pairs(record_of, distance[record_of >= 0])


def _keys(samples: Side, records: Side) -> I64:
    """A number for each (cpu, ip), of the samples and then the records."""
    _, ip = np.unique(np.concatenate([samples.ip, records.ip]), return_inverse=True)
    cpu = np.concatenate([samples.cpu, records.cpu]).astype(np.int64)
    return ip.astype(np.int64) << 20 | cpu & 0xFFFFF


def _mutual(key_s: I64, time_s: I64, key_r: I64, time_r: I64, window: int) -> tuple[I64, I64]:
    """Indices of samples and records that are each other's nearest."""
    near_r = _nearest(key_s, time_s, key_r, time_r, window)
    near_s = _nearest(key_r, time_r, key_s, time_s, window)
    s = np.flatnonzero(near_r >= 0)
    s = s[near_s[near_r[s]] == s]
    return s, near_r[s]


def _nearest(key: I64, time: I64, key_of: I64, time_of: I64, window: int) -> I64:
    """For each of (key, time) the index of the nearest of (key_of, time_of) with the same key within the window, or -1. Of two as near the earlier."""
    if not len(key) or not len(key_of):
        return np.full(len(key), -1, np.int64)
    order = np.lexsort((time_of, key_of))
    position = _insertion(key_of[order], time_of[order], key, time)
    result = np.full(len(key), -1, np.int64)
    best = np.full(len(key), window, np.int64) + 1
    for side in (-1, 0):
        candidate = np.clip(position + side, 0, len(order) - 1)
        there = order[candidate]
        gap = np.abs(time_of[there] - time)
        better = (key_of[there] == key) & (position + side >= 0) & (position + side < len(order)) & (gap < best)
        result[better], best[better] = there[better], gap[better]
    return result


def _insertion(sorted_key: I64, sorted_time: I64, key: I64, time: I64) -> npt.NDArray[np.int64]:
    """Where each (key, time) would be inserted into the sorted pairs, before equal ones."""
    n = len(sorted_key)
    order = np.lexsort(
        (np.concatenate([np.ones(n, np.int8), np.zeros(len(key), np.int8)]), np.concatenate([sorted_time, time]), np.concatenate([sorted_key, key]))
    )
    is_sorted = order < n
    before = np.cumsum(is_sorted)
    result = np.empty(len(key), np.int64)
    result[order[~is_sorted] - n] = before[~is_sorted]
    return result
