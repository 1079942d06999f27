# SPDX-License-Identifier: Apache-2.0
"""Unique stacks as one tree of calls: the form in which V8's profiles, and so Chrome's traces, hold stacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.profile import I64, Stacks


@dataclass(frozen=True)
class CallTree:
    """Nodes 0 to n - 1; each comes after its parent.

    ``parent``: int64, -1 for roots. ``label``: int64, what stands at the node.
    ``leaf``: int64, for each stack the node that it ends in, -1 for one without frames.
    """

    parent: I64
    label: I64
    leaf: I64

    @classmethod
    def of(cls, stacks: Stacks, label: npt.NDArray[np.integer[Any]]) -> CallTree:
        """``label``: for each frame a number from 0 on; frames of equal labels under the same callers become one node."""
        length = np.diff(stacks.start)
        # Deepest first, so that the stacks that reach a depth are always the first ones.
        order = np.argsort(-length, kind="stable")
        last, deepest_first = stacks.start[1:][order] - 1, -length[order]
        labels = int(label.max(initial=0)) + 1
        node = np.full(len(stacks), -1, np.int64)
        parents, node_labels, nodes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for depth in range(int(length.max(initial=0))):
            reached = int(np.searchsorted(deepest_first, -depth))
            at = label[stacks.frames[last[:reached] - depth]].astype(np.int64)
            keys, which = np.unique((node[:reached] + 1) * labels + at, return_inverse=True)
            parents.append(keys // labels - 1)
            node_labels.append(keys % labels)
            node[:reached] = nodes + which
            nodes += len(keys)
        leaf = np.empty(len(stacks), np.int64)
        leaf[order] = node
        return cls(np.concatenate(parents), np.concatenate(node_labels), leaf)

    def with_callers(self, nodes: I64) -> I64:
        """``nodes`` and all above them, ascending and each once. Nodes of -1 are left out."""
        used = np.zeros(len(self.parent), bool)
        nodes = np.unique(nodes[nodes >= 0])
        while len(nodes):
            used[nodes] = True
            nodes = np.unique(self.parent[nodes])
            nodes = nodes[nodes >= 0]
            nodes = nodes[~used[nodes]]
        return np.flatnonzero(used).astype(np.int64)
