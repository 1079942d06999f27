# SPDX-License-Identifier: Apache-2.0
"""The log that samples are held against tells right from wrong."""

from __future__ import annotations

import pytest

from tests.lab.task_log import Task, TaskLog

_LOG = """process 301 5000000000 5001000000 5020000000 s7
process 301 9000000000 9001000000 9020000000 s8
task 6000000000 12 3 kworker/u2:0-events_unbound
task 6000000000 1 0 init"""
_DISTANCE = 1000


def log() -> TaskLog:
    return TaskLog(line.split(" ") for line in _LOG.splitlines())


@pytest.mark.parametrize(
    ("task", "verdict"),
    [
        (Task(301, 301, 5_000_500_000, "s7", 5_010_001_000), ""),
        (Task(301, 301, 5_000_500_000, "brief", 5_010_001_000), ""),
        (Task(301, 301, 5_000_500_000, "s8", 5_010_001_000), "another name"),
        (Task(301, 301, 9_000_500_000, "s8", 9_010_001_000), ""),
        (Task(301, 301, 9_000_500_000, "s8", 9_030_001_000), "not then"),
        (Task(301, 301, 7_000_000_000, "s8", 7_000_001_000), "no such task"),
        (Task(302, 302, 5_000_500_000, "s7", 5_010_001_000), "no such task"),
        (Task(301, 1, 5_000_500_000, "s7", 5_010_001_000), "no task here has threads"),
        (Task(12, 12, 35_000_000, "kworker/u2:0", 6_500_000_000), ""),
        (Task(12, 12, 35_000_000, "kworker/u2:1", 6_500_000_000), "another name"),
        (Task(12, 12, 35_000_000, "kworker/u2:0", 16_500_000_000), "not then"),
        (Task(1, 1, 5_000_000, "init", 1_000_000_000), ""),
        (Task(0, 0, 0, "swapper/0", 1), ""),
        (Task(0, 0, 0, "init", 1), "the idle task has another name"),
    ],
)
def test_a_task_that_ran_then(task: Task, verdict: str) -> None:
    assert log().ran_then(task, _DISTANCE) == verdict
    assert (log().brief, log().pids, log().seconds) == (2, 1, 4.0)
    assert [log().pace(seconds) for seconds in (4, 5)] == [1 / 4, 2 / 5]
