# SPDX-License-Identifier: Apache-2.0
"""What `perfguest convert` takes of a perf.data, beside what other programs take that make text or folded stacks of the same file: CPU time of all processes.

``python -m tests.bench.peers [DIRECTORY]``: records this machine while perl, python3, openssl, a compiler, grep and find run on it, some 10,000, 100,000 and
1,000,000 samples with callchains; with a DIRECTORY, there, or what an earlier run left there. Peers that are not installed are left out and named:
FlameGraph's stackcollapse-perf.pl (in the directory PERFGUEST_FLAMEGRAPH, or on the PATH), and flamegraph, which is perf script and inferno's stackcollapse.
Before anything is measured, our folded stacks are held against stackcollapse-perf.pl's.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

_REPEATS = 3
#: Samples wanted: samples a second and CPU.
_SIZES = {10_000: 1000, 100_000: 5000, 1_000_000: 10000}
_REPOSITORY = Path(__file__).parents[2]
_FIELDS = "comm,pid,tid,cpu,time,event,ip,sym,dso"

_PERL = """
my %h; sub f { my ($n) = @_; $n < 2 ? $n : f($n - 1) + f($n - 2) }
while (1) { f(14); $h{$_} = join ",", map { int $_ * rand 9 } 1..5 for 1..200; my $s = join "", sort values %h; $s =~ s/(.)(.)/$2$1/g }
"""
_PYTHON = """
import copy, json, random, re, zlib
def tree(depth): return {"a": [tree(depth - 1) for _ in range(3)], "b": random.random()} if depth else "x" * random.randrange(20)
while True:
    made = tree(5); text = json.dumps(made, indent=1); json.loads(text); copy.deepcopy(made); zlib.compress(text.encode())
    re.sub("[0-9]+", lambda match: match[0][::-1], text)
"""
_BUSY = (
    ("perl", "-e", _PERL),
    (sys.executable, "-c", _PYTHON),
    ("sh", "-c", "while :; do openssl speed -seconds 1 rsa2048 sha256 ecdsap256; done"),
    ("sh", "-c", f"while :; do gcc -O2 -x c -c -o /dev/null -I{_REPOSITORY}/perfguest/unwind/native {_REPOSITORY}/perfguest/unwind/native/cfi.c; done"),
    ("sh", "-c", "while :; do find /usr/share -type f | sort | xargs -d '\\n' -n 50 grep -c perf; done"),
)


@dataclass(frozen=True)
class Way:
    """From a perf.data to something: a shell's command. ``output``: it makes the same as this option of ours, None if nothing that we do."""

    name: str
    command: str
    output: str


def record(directory: Path) -> dict[int, Path]:
    """A perf.data of each size; those that are there are taken."""
    made = {}
    for samples, frequency in _SIZES.items():
        path = made[samples] = directory / f"{samples}.data"
        if path.exists():
            continue
        seconds = samples / frequency / (os.cpu_count() or 1)
        busy = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) for command in _BUSY]
        try:
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(frequency), "-m", "2048", "-g", "-a", "-o", path, "sleep", f"{seconds:.1f}"]
            subprocess.run(command, check=True)
        finally:
            for process in busy:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return made


def ways(path: Path, scratch: Path) -> list[Way]:
    """Ours, and the peers' that are installed."""
    ours = [Way(f"perfguest --{form}", f"{sys.executable} -m perfguest convert -q --{form} {path} -o {scratch}/ours.{form}", form) for form in _FORMS]
    peers = [
        Way("perf script", f"perf script -i {path} -F {_FIELDS} >{scratch}/script", "script"),
        Way("perf report -g folded", f"perf report -i {path} --stdio --no-children -g folded,count >{scratch}/report", "folded"),
        Way("perf data convert --to-json", f"perf data convert -f -i {path} --to-json {scratch}/json; rm {scratch}/json", "script"),
    ]
    if collapse := _stackcollapse():
        peers.append(
            Way("perf script | stackcollapse-perf.pl", f"perf script -i {path} -F {_FIELDS} | perl {collapse} --all >{scratch}/theirs.folded", "folded")
        )
    if flamegraph := shutil.which("flamegraph"):
        command = f"{flamegraph} --perfdata {path} -o {scratch}/svg --post-process 'tee {scratch}/inferno.folded'"
        peers.append(Way("flamegraph (perf script, inferno; with its picture)", command, "folded"))
    return [*ours, *peers]


_FORMS = ("folded", "pprof", "script")


def _stackcollapse() -> str | None:
    return shutil.which("stackcollapse-perf.pl", path=os.environ.get("PERFGUEST_FLAMEGRAPH", "") + os.pathsep + os.environ["PATH"])


def cpu_seconds(command: str) -> float:
    """User and system time of the command and all that it starts."""
    arguments = ["sh", "-c", f"exec >/dev/null 2>&1; {command}"]
    pid = os.posix_spawn("/bin/sh", arguments, os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return used.ru_utime + used.ru_stime


def agreement(path: Path, scratch: Path) -> str:
    """What our folded stacks and stackcollapse-perf.pl's have in common."""
    made = {way.name: way for way in ways(path, scratch)}
    theirs = made.get("perf script | stackcollapse-perf.pl")
    if theirs is None:
        return "stackcollapse-perf.pl is not there to compare with"
    for way in (made["perfguest --folded"], theirs):
        cpu_seconds(way.command)
    # perf demangles; we leave that to whoever shows the names.
    with (scratch / "ours.folded").open("rb") as mangled:
        demangled = subprocess.run(["c++filt", "-p"], stdin=mangled, capture_output=True, check=True).stdout
    ours_counts, their_counts = _folded(demangled), _folded((scratch / "theirs.folded").read_bytes())
    same = sum((ours_counts & their_counts).values())
    return f"{ours_counts.total()} samples in ours, {their_counts.total()} in stackcollapse-perf.pl's; {100 * same / ours_counts.total():.2f}% in equal stacks"


def _folded(text: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in text.decode("utf-8", "replace").splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = map(_comparable, stack.split(";"))
        # Where frame pointers led in programs without them: we leave out what lies in no code.
        counts[";".join((thread, *dropwhile(lambda frame: frame == "?", frames)))] += int(count)
    return counts


def _comparable(frame: str) -> str:
    """What one calls by its address and the other by its file is a frame without a name; and stackcollapse-perf.pl changes names."""
    if re.fullmatch(r"0x[0-9a-f]+|\[.*\]", frame):
        return "?"
    return re.sub(r"\(.*|_\[[kij]\]$", "", frame.replace(" ", "_"))


def main(directory: Path) -> None:
    # As an installed package has it.
    compileall.compile_dir(_REPOSITORY / "perfguest", quiet=1)
    os.environ["PYTHONPATH"] = str(_REPOSITORY)
    missing = [name for name, found in (("stackcollapse-perf.pl", _stackcollapse()), ("flamegraph", shutil.which("flamegraph"))) if not found]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=directory) as made:
        scratch = Path(made)
        for samples, path in record(directory).items():
            print(f"\n{samples} samples, {path.stat().st_size >> 20} MiB: {agreement(path, scratch)}", flush=True)
            all_ways = ways(path, scratch)
            runs: dict[str, list[float]] = {way.name: [] for way in all_ways}
            for _ in range(_REPEATS):
                for way in all_ways:
                    runs[way.name].append(cpu_seconds(way.command))
            _print(all_ways, {name: min(seconds) for name, seconds in runs.items()})


def _print(all_ways: list[Way], seconds: dict[str, float]) -> None:
    print(f"{'':52} {'CPU s':>8}  times perfguest's " + " ".join(f"{'--' + form:>9}" for form in _FORMS))
    for way in all_ways:
        ratios = " ".join(f"{seconds[way.name] / seconds[f'perfguest --{form}']:9.1f}" for form in _FORMS) if not way.name.startswith("perfguest") else ""
        print(f"{way.name:52} {seconds[way.name]:8.2f}  {'':18} {ratios}".rstrip(), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
