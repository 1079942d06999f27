# SPDX-License-Identifier: Apache-2.0
"""Our unwinder beside perf's, on the same samples of this machine's programs: CPU time a frame, and how many stacks are whole.

``python -m tests.bench.unwinding [SECONDS [REPEATS]]``. Both see what ``perf record --call-graph dwarf`` wrote, and both print the addresses of all frames.
The whole job is all that the process takes, from reading the recording to printing; what unwinding takes of it is, for perf, what it takes more than
when it is to print one frame of each stack, and for us the walk. A stack is whole that ends in the code at a program's entry point.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from perfguest.formats.perf_data import read_perf_data
from perfguest.unwind.guest import ENDS
from tests.bench.host_walk import Programs

_HERE = Path(__file__).parent
_PERL = (
    "sub deep { my ($n, $c) = @_; return $n ? deep($n - 1, $c) + 1 : $c->() }"
    ' my $end = time + $ARGV[0]; my %h; while (time < $end) { deep(8, sub { my $t = join ",", map { $_ * 7 % 1009 } 1 .. 400;'
    " $h{$1}++ while $t =~ /(\\d+),/g; scalar(my @s = sort { $a <=> $b } split /,/, $t) }) }"
)
_PYTHON = """
import json, re, sys, time
def deep(n, call):
    return deep(n - 1, call) + 1 if n else call()
def work():
    rows = [{"key": i * 7 % 1009, "text": "x" * (i % 13)} for i in range(300)]
    rows.sort(key=lambda row: row["key"])
    return len(re.sub("[0-9]+", lambda m: m[0][::-1], json.dumps(json.loads(json.dumps(rows)))))
end = time.time() + float(sys.argv[1])
while time.time() < end:
    deep(6, work)
"""


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the whole job and of unwinding in it, frames that were printed, stacks that are whole, why others are not."""

    job: float
    unwinding: float
    frames: int
    whole: int
    rest: str = ""


def workloads(directory: Path, seconds: int) -> dict[str, list[str]]:
    """Each runs for about so many seconds."""
    program, junk = directory / "sorting", directory / "junk"
    for compiler, target in (("gcc", program), ("musl-gcc", directory / "musl")):
        subprocess.run([compiler, "-O2", "-fomit-frame-pointer", "-o", target, _HERE / "sorting.c"], check=True)
    with junk.open("wb") as file:
        file.truncate(seconds << 28)
    each = str(max(seconds // 3, 1))
    return {
        "perl": ["/usr/bin/perl", "-e", _PERL, str(seconds)],
        "python3": ["/usr/bin/python3", "-c", _PYTHON, str(seconds)],
        "openssl speed": ["openssl", "speed", "-seconds", each, "-bytes", "8192", "sha256", "aes-256-cbc", "rsa2048"],
        "openssl dgst": ["openssl", "dgst", "-sha256", str(junk)],
        "C, qsort": [str(program), str(seconds)],
        # Its C library has no tables, as in Alpine.
        "C, musl's qsort": [str(directory / "musl"), str(seconds)],
    }


def _run(command: list[str | Path]) -> tuple[str, str, float]:
    """What it printed, its stderr, and the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, cwd=_HERE.parents[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.decode(), done.stderr.decode(), used


def by_perf(recording: Path) -> Cost:
    script: list[str | Path] = ["perf", "script", "--no-inline", "-i", recording]
    text, _, job = _run([*script, "-F", "ip"])
    _, _, one_frame = _run([*script, "-F", "ip", "--max-stack", "1"])
    programs = Programs(read_perf_data(recording))
    whole = 0
    # Of a user address perf prints the offset in the file.
    for block in _run([*script, "-F", "ip,dso"])[0].split("\n\n"):
        frames = re.findall(r"^\s*(\w+) \((.*)\)$", block, re.MULTILINE)
        whole += bool(frames) and programs.is_start_of(frames[-1][1], int(frames[-1][0], 16))
    return Cost(job, job - one_frame, len(text.split()), whole)


def by_us(recording: Path) -> Cost:
    text, told, _ = _run([sys.executable, "-m", "tests.bench.host_walk", recording])
    result = json.loads(told)
    ends = Counter({ENDS.get(int(end), "not walked"): count for end, count in result["ends"].items() if ENDS.get(int(end)) != "whole"})
    # What judging the stacks takes is no part of the job.
    return Cost(result["all"], result["walk"], len(text.split()), result["whole"], ", ".join(f"{count} {end}" for end, count in ends.most_common()))


def _row(name: str, samples: int, perf: list[Cost], us: list[Cost]) -> str:
    def per_frame(costs: list[Cost], what: str) -> float:
        return statistics.median(1e6 * getattr(cost, what) / max(cost.frames, 1) for cost in costs)

    columns = [f"{name:15} {samples:6} samples"]
    for called, costs in (("perf", perf), ("perfguest", us)):
        columns.append(
            f"{called}: {costs[0].frames / samples:5.1f} frames, {100 * costs[0].whole / samples:6.2f}% whole, "
            f"{per_frame(costs, 'unwinding'):7.3f} us a frame, {per_frame(costs, 'job'):7.3f} with all else"
        )
    ratios = [per_frame(perf, what) / per_frame(us, what) for what in ("unwinding", "job")]
    least = min(per_frame([one], "unwinding") / per_frame([other], "unwinding") for one, other in zip(perf, us, strict=True))
    rest = f"\n{'':15} not whole for perfguest: {us[0].rest}" if us[0].rest else ""
    return "  |  ".join([*columns, f"ratio {ratios[0]:.1f} (at least {least:.1f}), {ratios[1]:.1f}"]) + rest


def main(seconds: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name, command in workloads(Path(directory), seconds).items():
            recording = Path(directory) / "perf.data"
            record = ["perf", "record", "-q", "-B", "-N", "--call-graph", "dwarf,8192", "-e", "cpu-clock:u", "-F", "4999", "-o", recording, "--", *command]
            _run(record)
            samples = len(read_perf_data(recording).samples)
            pairs = [(by_perf(recording), by_us(recording)) for _ in range(repeats)]
            print(_row(name, samples, [perf for perf, _ in pairs], [us for _, us in pairs]), flush=True)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(*given, *(6, 3)[len(given) :]))
