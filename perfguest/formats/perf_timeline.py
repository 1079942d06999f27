# SPDX-License-Identifier: Apache-2.0
"""Joins "as of": what was last said of a key before a moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from perfguest.rows import distinct_values

I64 = npt.NDArray[np.int64]


def latest(keys: I64, times: I64, query_keys: I64, query_times: I64) -> I64:
    """For each query the index of the last entry with the same key and a time not after it, or -1.

    Of entries equal in both, the one that stands last counts.
    """
    found = np.full(len(query_keys), -1, np.int64)
    if not len(keys) or not len(query_keys):
        return found
    owners, moments = distinct_values(keys), distinct_values(times)
    # Key and time become one number, so that a single search serves all keys.
    step = len(moments) + 1
    entries = np.searchsorted(owners, keys) * step + np.searchsorted(moments, times) + 1
    order = np.argsort(entries, kind="stable")
    owner = np.minimum(np.searchsorted(owners, query_keys), len(owners) - 1)
    wanted = owner * step + np.searchsorted(moments, query_times, "right")
    before = np.searchsorted(entries[order], wanted, "right") - 1
    candidates = order[np.maximum(before, 0)]
    same_key = (before >= 0) & (owners[owner] == query_keys) & (keys[candidates] == query_keys)
    found[same_key] = candidates[same_key]
    return found
