# SPDX-License-Identifier: Apache-2.0
"""What ``perfguest convert --pprof`` takes of a large recording: CPU time and memory.

``python -m tests.bench.converting RECORDING [SAMPLES [LEAST_FRAMES MOST_BYTES]]``: the recording is multiplied to so many samples, and to twice as many, of
those of its samples whose stacks have at least so many frames and at most so many bytes. What memory the second takes more is what a sample takes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.bench.multiply import choose, multiply

_REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """CPU seconds, user and system; bytes that were resident at most, mapped pages of files too."""

    cpu: float
    resident: int


def convert(recording: Path, *options: str) -> Cost:
    """The least of some runs."""
    runs = []
    for _ in range(_REPEATS):
        command = [sys.executable, "-m", "perfguest", "convert", "-q", *options, str(recording)]
        pid = os.posix_spawn(sys.executable, command, os.environ)
        _, status, used = os.wait4(pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        runs.append(Cost(used.ru_utime + used.ru_stime, used.ru_maxrss << 10))
    return min(runs, key=lambda run: run.cpu)


def main(recording: Path, samples: int = 100_000, least_frames: int = 1, most_bytes: int = 1 << 20) -> None:
    chosen = choose(recording, least_frames, most_bytes)
    if not len(chosen.samples):
        raise SystemExit(f"{recording} has no samples of guests with such stacks")
    copies = -(-samples // len(chosen.samples))
    costs = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as directory:
        for times in (1, copies, 2 * copies):
            target = Path(directory) / f"{times}.data"
            made = multiply(recording, chosen, target, times)
            cost = convert(target, "--pprof", "-o", str(Path(directory) / "pprof.gz"))
            size = sum(path.stat().st_size for path in (target / "guest.stream", target / "perf.data"))
            print(
                f"{made.samples:8} samples of {made.frames:.1f} guest frames and {made.stack_bytes:.0f} bytes of stack ({size >> 20} MiB): "
                f"{cost.cpu:.2f} s of CPU, {cost.resident >> 20} MiB resident",
                flush=True,
            )
            costs.append((made.samples, cost))
    (once, first), (twice, second) = costs[-2:]
    more = twice - once
    print(f"each further sample: {1e6 * (second.cpu - first.cpu) / more:.2f} us of CPU, {(second.resident - first.resident) / more:.0f} bytes resident")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:]))
