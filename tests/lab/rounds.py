# SPDX-License-Identifier: Apache-2.0
"""Inside the lab: loads the module, samples, and unloads it again, many times, while perf samples all the time. Ends each round in another way.

rounds.py NUMBER [BUILD_DIRECTORY_OF_THE_KERNEL]
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from perfguest.capture import module
from perfguest.capture.debugfs import ModuleFiles, ModuleSettings
from perfguest.capture.host import HostPaths

PATHS = HostPaths()


def sampled(streams: dict[int, int]) -> int:
    """Waits for records on any stream, and says how many bytes came."""
    ready, _, _ = select.select(list(streams.values()), [], [], 300)
    return sum(len(os.read(fd, 1 << 20)) for fd in ready)


def one_round(number: int, built: Path) -> None:
    subprocess.run(["insmod", built], check=True)
    files = ModuleFiles(PATHS.debugfs)
    files.apply(ModuleSettings(trigger="nmi" if number % 5 == 4 else "probe"))
    streams = files.open_streams(list(range(os.cpu_count() or 1)))
    files.enable()
    # The trigger nmi sees nothing of the software event, but is registered and unregistered under it.
    if number % 5 != 4 and not sampled(streams):
        raise SystemExit(f"round {number}: no record came")
    if number % 2:
        files.disable()
    for fd in streams.values():
        os.close(fd)
    if (PATHS.debugfs / "perfguest" / "enable").read_text().strip() != "0":
        raise SystemExit(f"round {number}: still sampling with nobody there")
    subprocess.run(["rmmod", "perfguest"], check=True)


def main(rounds: int, kdir: Path | None = None) -> None:
    built = module.prepare(kdir, PATHS, print)
    assert built, "the module is loaded already"
    perf = subprocess.Popen(["perf", "record", "-e", "cpu-clock:GH", "-F", "900", "-a", "-g", "-o", "/tmp/rounds.data"], stderr=subprocess.DEVNULL)
    try:
        for number in range(rounds):
            one_round(number, built)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
    print("rounds", rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
