# SPDX-License-Identifier: Apache-2.0
"""Joins "as of": what was last said of a key before a moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from perfguest import _native

I64 = npt.NDArray[np.int64]


def latest(keys: I64, times: I64, query_keys: I64, query_times: I64) -> I64:
    """For each query the index of the last entry with the same key and a time not after it, or -1.

    Of entries equal in both, the one that stands last counts.
    """
    order = np.lexsort((times, keys))
    rows = np.frombuffer(_native.latest(keys[order], times[order], np.ascontiguousarray(query_keys), np.ascontiguousarray(query_times)), np.int64)
    found: I64 = np.append(order, -1)[rows]
    return found
