# SPDX-License-Identifier: Apache-2.0
"""The agent's side of one command: its process, its pipes or its terminal. Standard library alone."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import pty
import selectors
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping
from typing import Any

from perfguest.capture.lab.wire import Kind

_CHUNK = 64 << 10
# The largest pipe (fs.pipe-max-size).
_PIPE_CHUNKS = (1 << 20) // _CHUNK + 1
Send = Callable[[Kind, bytes], None]
Watch = Callable[[int, int, "Callable[[], None] | None"], None]


class Command:
    """A running command. Output goes to the lab as it comes; EXIT follows the last of it."""

    def __init__(self, process: subprocess.Popen[bytes], outputs: dict[int, Kind], stdin: int, send: Send, watch: Watch) -> None:
        self._process = process
        self._outputs = outputs
        self._stdin = stdin
        self._send = send
        self._watch = watch
        self._pending = bytearray()
        self._input_ends = False
        for fd in outputs:
            os.set_blocking(fd, False)
            watch(fd, selectors.EVENT_READ, functools.partial(self._read, fd))
        if stdin not in outputs:
            os.set_blocking(stdin, False)
        # Readable as soon as the process has ended: the loop need not wait for its next turn.
        self._pidfd = os.pidfd_open(process.pid)
        watch(self._pidfd, selectors.EVENT_READ, lambda: watch(self._pidfd, 0, None))

    @classmethod
    def start(cls, request: Mapping[str, Any], send: Send, watch: Watch) -> Command | None:
        """Starts what a RUN frame asks for; what cannot be started is reported as a shell does, by 126 and 127."""
        try:
            command = cls._on_terminal(request, send, watch) if request["pty"] else cls._on_pipes(request, send, watch)
        except OSError as error:
            send(Kind.STDERR, f"lab: {request['argv'][0]}: {error.strerror}\n".encode())
            send(Kind.EXIT, json.dumps(127 if error.errno == errno.ENOENT else 126).encode())
            return None
        return command

    @classmethod
    def _on_pipes(cls, request: Mapping[str, Any], send: Send, watch: Watch) -> Command:
        process = subprocess.Popen(
            request["argv"],
            env=request["env"],
            cwd=request["cwd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdin and process.stdout and process.stderr  # noqa: S101
        outputs = {os.dup(process.stdout.fileno()): Kind.STDOUT, os.dup(process.stderr.fileno()): Kind.STDERR}
        stdin = os.dup(process.stdin.fileno())
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        return cls(process, outputs, stdin, send, watch)

    @classmethod
    def _on_terminal(cls, request: Mapping[str, Any], send: Send, watch: Watch) -> Command:
        master, terminal = pty.openpty()
        _set_size(master, *request["pty"])
        try:
            process = subprocess.Popen(
                request["argv"],
                env=request["env"],
                cwd=request["cwd"],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
                # The agent has no threads.
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            )
        except OSError:
            os.close(master)
            raise
        finally:
            os.close(terminal)
        return cls(process, {master: Kind.STDOUT}, master, send, watch)

    def feed(self, data: bytes) -> None:
        """Input for the command; none: its end."""
        if data:
            self._pending += data
        else:
            self._input_ends = True
        self._write()

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.Signals(number))

    def resize(self, rows: int, columns: int) -> None:
        """Tells the command's terminal its new size."""
        if self._stdin in self._outputs:
            _set_size(self._stdin, rows, columns)

    def tick(self) -> bool:
        """Whether the command has ended and all was told."""
        status = self._process.poll()
        if status is None:
            return False
        # What the command wrote is in the pipes by now; what children that it left behind write later is nobody's.
        for fd in list(self._outputs):
            self._drain(fd)
        self._close_all()
        self._send(Kind.EXIT, json.dumps(status).encode())
        return True

    def abandon(self) -> None:
        """The lab no longer wants to know of it: kills its process group, without an EXIT."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._close_all()

    def _close_all(self) -> None:
        self._close_input()
        for fd in list(self._outputs):
            self._close(fd)
        self._watch(self._pidfd, 0, None)
        os.close(self._pidfd)

    def _drain(self, fd: int) -> None:
        """Reads until the pipe is empty, or what a child that still writes can have put there since."""
        for _ in range(_PIPE_CHUNKS):
            if fd in self._outputs:
                self._read(fd)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            # How a terminal says that its other end is closed.
            if error.errno != errno.EIO:
                raise
            data = b""
        if data:
            self._send(self._outputs[fd], data)
        else:
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._watch(fd, 0, None)
        if fd == self._stdin:
            self._stdin = -1
        del self._outputs[fd]
        os.close(fd)

    def _write(self) -> None:
        """Writes what the command takes now, and comes back when it takes more."""
        if self._stdin < 0:
            self._acknowledge(len(self._pending))
            return
        terminal = self._stdin in self._outputs
        try:
            self._acknowledge(os.write(self._stdin, self._pending) if self._pending else 0)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO}:
                raise
            self._acknowledge(len(self._pending))
            if not terminal:
                self._close_input()
            return
        if not self._pending and self._input_ends and not terminal:
            self._close_input()
            return
        events = selectors.EVENT_WRITE if self._pending else 0
        if terminal:
            self._watch(self._stdin, events | selectors.EVENT_READ, self._terminal_ready)
        else:
            self._watch(self._stdin, events, self._write)

    def _terminal_ready(self) -> None:
        self._read(self._stdin)
        if self._pending:
            self._write()

    def _acknowledge(self, count: int) -> None:
        if count:
            del self._pending[:count]
            self._send(Kind.STDIN_TAKEN, json.dumps(count).encode())

    def _close_input(self) -> None:
        if self._stdin >= 0 and self._stdin not in self._outputs:
            self._watch(self._stdin, 0, None)
            os.close(self._stdin)
            self._stdin = -1


def _set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
