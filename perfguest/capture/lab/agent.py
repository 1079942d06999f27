# SPDX-License-Identifier: Apache-2.0
"""Runs inside the lab's host, by the standard library alone: starts the guests, watches them, and runs one command at a time for the lab outside.

``agent.json`` beside the busybox in ``/run/perfguest-lab`` holds the guests' settings.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from perfguest.capture.lab.agent_command import Command
from perfguest.capture.lab.agent_guest import Guest
from perfguest.capture.lab.wire import Kind, Unpacker, pack

DIRECTORY = Path("/run/perfguest-lab")
PORT = "/dev/virtio-ports/perfguest.agent"
_DMESG_PART = 64 << 10
_ALIVE_EVERY = 5.0


class PowerOff(Exception):
    """The lab is done with this host."""


class Agent:
    """One loop over the port, the guests' consoles and the command's pipes."""

    def __init__(self, port: int, guests: list[dict[str, str]]) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._unpacker = Unpacker()
        self._guests = [Guest(number, settings, self.send, self.watch) for number, settings in enumerate(guests)]
        self._command: Command | None = None

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Sends one frame; waits while the lab does not read."""
        data = memoryview(pack(kind, payload))
        while data:
            data = data[os.write(self._port, data) :]

    def watch(self, fd: int, events: int, callback: Callable[[], None] | None) -> None:
        """Calls ``callback`` when ``fd`` is ready for ``events``; none of them: no longer."""
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def serve(self) -> None:
        """Runs until the lab sends POWEROFF or goes away."""
        self.send(Kind.HELLO, json.dumps({"release": os.uname().release}).encode())
        self.watch(self._port, selectors.EVENT_READ, self._read_port)
        for guest in self._guests:
            guest.start()
        before = alive = time.monotonic()
        while True:
            for key, _ in self._selector.select(1.0):
                if key.fd in self._selector.get_map():
                    key.data()
            now = time.monotonic()
            for guest in self._guests:
                # A second or two a turn: time in which this loop itself stood still does not count against the guest.
                guest.tick(min(now - before, 2.0))
            before = now
            if now - alive > _ALIVE_EVERY:
                self.send(Kind.ALIVE)
                alive = now
            if self._command and self._command.tick():
                self._command = None

    def _read_port(self) -> None:
        data = os.read(self._port, 65536)
        if not data:
            raise PowerOff
        for kind, payload in self._unpacker.feed(data):
            self._obey(kind, payload)

    def _obey(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.RUN:
            if self._command:
                self._command.abandon()
            self.send(Kind.STARTED)
            self._command = Command.start(json.loads(payload), self.send, self.watch)
        elif kind is Kind.DMESG:
            self._send_dmesg()
        elif kind is Kind.POWEROFF:
            raise PowerOff
        elif self._command and kind is Kind.STDIN:
            self._command.feed(payload)
        elif self._command and kind is Kind.SIGNAL:
            self._command.signal(json.loads(payload))
        elif self._command and kind is Kind.RESIZE:
            self._command.resize(*json.loads(payload))

    def _send_dmesg(self) -> None:
        done = subprocess.run([str(DIRECTORY / "busybox"), "dmesg"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        for at in range(0, len(done.stdout), _DMESG_PART):
            self.send(Kind.DMESG_PART, done.stdout[at : at + _DMESG_PART])
        self.send(Kind.DMESG_PART)


def _load_kvm() -> None:
    done = subprocess.run(["modprobe", "kvm_amd"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode or not Path("/dev/kvm").exists():
        raise RuntimeError(f"modprobe kvm_amd gave no /dev/kvm: {done.stderr.strip() or done.returncode}")


def main() -> None:
    """Serves the lab until it is done; what goes wrong is told to it and to the console."""
    agent = Agent(os.open(PORT, os.O_RDWR), json.loads((DIRECTORY / "agent.json").read_text()))
    try:
        _load_kvm()
        agent.serve()
    except PowerOff:
        return
    except Exception as error:
        traceback.print_exc()
        agent.send(Kind.FAILED, json.dumps({"reason": str(error)}).encode())
        sys.exit(1)


if __name__ == "__main__":
    main()
