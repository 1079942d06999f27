# SPDX-License-Identifier: Apache-2.0
"""A recorder on a fake host, as a process of its own: run_recorder.py HOST OUTPUT PERF [COMMAND…]."""

from __future__ import annotations

import sys
from pathlib import Path

from perfguest.capture.host import HostPaths
from perfguest.capture.recorder import RecordSettings, record
from perfguest.errors import PerfguestError


def main(root: str, output: str, perf: str, *command: str) -> int:
    """The recorder's exit status."""
    host = Path(root)
    paths = HostPaths(host / "proc", host / "sys", host / "dev", host / "debugfs")
    settings = RecordSettings(Path(output), event="cpu-clock", perf=perf, command=command, kdir=host)
    try:
        return record(settings, paths)
    except PerfguestError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
