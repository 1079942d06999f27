# SPDX-License-Identifier: Apache-2.0
"""Inside the lab's host: VMs that come and go while one recording runs.

vms_inside.py SCENARIO SPECS: ``SPECS`` is a JSON file, the VMs as :mod:`tests.lab.vms` describes them. What each did goes to ``vms.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfguest.formats.guest_snapshot import read_snapshot
from perfguest.proto import guest_pb2

UP, BEAT, REBOOTS = b"PERFGUEST-GUEST-UP", b"PERFGUEST-HEARTBEAT", b"PERFGUEST-GUEST-REBOOTS"
FAILED = (b"PERFGUEST-WORKLOAD-FAILED", b"KVM internal error", b"Kernel panic")
#: Seconds without a word on its console after which a VM is lost; it may happen in the emulator.
STALL = 150.0
ATTEMPTS = 4
#: Heartbeats, of a second of the guest each, that are recorded of a kernel once it is known.
BEATS = 12


class Lost(Exception):
    """A VM that came to nothing."""


class Vm:
    """A VM and its console."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name = spec["name"]
        self._argv = spec["argv"]
        self._directory = Path(spec["directory"])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "console").open("wb") as console:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=console, stderr=subprocess.STDOUT)

    def say(self, line: str) -> None:
        """Types a line on its console."""
        assert self._process and self._process.stdin
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def count(self, marker: bytes) -> int:
        return (self._directory / "console").read_bytes().count(marker)

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Until it is so. Raises :class:`Lost` if the VM ends, fails or falls silent before."""
        console, quiet, before = self._directory / "console", time.monotonic(), -1
        while not condition():
            assert self._process
            if self._process.poll() is not None:
                raise Lost(f"{self.name} ended with status {self._process.returncode}, waiting for {what}")
            if found := [marker for marker in FAILED if self.count(marker)]:
                raise Lost(f"{self.name}: {found[0].decode()}, waiting for {what}")
            size = console.stat().st_size
            if size != before:
                quiet, before = time.monotonic(), size
            elif time.monotonic() - quiet > STALL:
                raise Lost(f"{self.name} is silent, waiting for {what}")
            time.sleep(0.2)

    def wait_for(self, marker: bytes, count: int) -> None:
        self.wait(f"{marker.decode()} {count}", lambda: self.count(marker) >= count)

    def end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def keep(self) -> None:
        """Copies what it wrote to the directory that is shared with the lab's outside."""
        target = Path("vms") / self.name
        target.mkdir(parents=True, exist_ok=True)
        for path in self._directory.iterdir():
            (target / path.name).write_bytes(path.read_bytes())


class Recorder:
    """``perfguest record`` until it is told to stop."""

    def __init__(self, output: str, frequency: int) -> None:
        self._output = Path(output)
        self._stop = Path(f"{output}.stop")
        wait = ["sh", "-c", f"until [ -e {self._stop} ]; do sleep 0.2; done"]
        command = [sys.executable, "-m", "perfguest", "record", "-o", output, "--guest-wait", "300", "-F", str(frequency), "--", *wait]
        self._process = subprocess.Popen(command)

    def kernels(self, vm: Vm) -> list[guest_pb2.VmKernel]:
        """Those that have been read of a VM until now, of each boot one."""
        if self._process.poll() is not None:
            raise SystemExit(f"the recorder ended with status {self._process.returncode}")
        snapshot = read_snapshot(self._output / "guests")
        found = [kernel for kernel in snapshot.kernels if kernel.vm_pid == vm.pid and kernel.level == "processes"] if snapshot else []
        return list({kernel.lstar: kernel for kernel in found}.values())

    def wait_for_kernels(self, vm: Vm, count: int) -> None:
        """Until so many kernels are known, and for some heartbeats of the guest more."""
        vm.wait(f"{count} kernels to be read", lambda: len(self.kernels(vm)) >= count)
        vm.wait_for(BEAT, vm.count(BEAT) + BEATS)

    def stop(self) -> None:
        self._stop.touch()
        if status := self._process.wait():
            raise SystemExit(f"the recorder ended with status {status}")


def attempt(vm: Vm, steps: Callable[[], None]) -> int:
    """Starts the VM and goes through the steps, with another VM if the emulator loses it. Gives its process."""
    for number in range(1, ATTEMPTS + 1):
        vm.start()
        try:
            steps()
        except Lost as error:
            print(f"{error}: attempt {number}", flush=True)
            vm.keep()
            vm.end()
        else:
            return vm.pid
    raise SystemExit(f"{vm.name} was lost {ATTEMPTS} times")


def kernels(vms: dict[str, Vm]) -> dict[str, int]:
    """Two VMs with a kernel each, one after which the recording starts and ends; then, within it, one that starts and boots into another kernel."""
    first, second, third = vms["first"], vms["second"], vms["third"]
    pids = {vm.name: attempt(vm, lambda vm=vm: vm.wait_for(UP, 1)) for vm in (first, second)}  # type: ignore[misc]
    recorder = Recorder("kernels", 200)
    for vm in (first, second):
        recorder.wait_for_kernels(vm, 1)
    for vm in (first, second):
        vm.end()

    def reboot() -> None:
        third.wait_for(UP, 1)
        recorder.wait_for_kernels(third, 1)
        third.say("reboot")
        third.wait_for(UP, 2)
        recorder.wait_for_kernels(third, 2)

    pids["third"] = attempt(third, reboot)
    recorder.stop()
    return pids


def threads(vms: dict[str, Vm]) -> dict[str, int]:
    """One VM whose tasks come and go, recorded for a while."""
    (vm,) = vms.values()

    def record() -> None:
        vm.wait_for(UP, 1)
        recorder.wait_for_kernels(vm, 1)
        vm.wait_for(BEAT, vm.count(BEAT) + 3 * BEATS)

    recorder = Recorder("threads", 499)
    pids = {vm.name: attempt(vm, record)}
    recorder.stop()
    return pids


def main(scenario: str, specs: Path) -> None:
    vms = {spec["name"]: Vm(spec) for spec in json.loads(specs.read_text())}
    try:
        pids = {"kernels": kernels, "threads": threads}[scenario](vms)
        for vm in vms.values():
            vm.keep()
        Path("vms.json").write_text(json.dumps(pids))
    finally:
        for vm in vms.values():
            vm.end()
        os.sync()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
