# SPDX-License-Identifier: Apache-2.0
"""The command that is recorded: forked early, while there are no threads, and let go when everything records."""

from __future__ import annotations

import os
import shutil
import signal
import struct
from collections.abc import Sequence

from perfguest.capture.perf import die_with_parent
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError, UsageError

_ERRNO = struct.Struct("<i")


def check_command(command: Sequence[str]) -> None:
    """Raises :class:`UsageError` if there is no such program."""
    if command and not shutil.which(command[0]):
        raise UsageError(f"there is no program {command[0]!a} to run", "Give the path of an executable file, or its name if it is in PATH.")


class Workload:
    """``exited`` is a file descriptor that becomes readable when the command has ended. It keeps our terminal, group and standard streams."""

    def __init__(self, command: Sequence[str]) -> None:
        self._status: int | None = None
        go, self._cork = os.pipe()
        self._failure, failure = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _run_child(command, parent, go, self._cork, failure)
        os.close(go)
        os.close(failure)
        self.exited = os.pidfd_open(self._pid)

    def start(self) -> None:
        """Lets the command go. Raises :class:`CaptureError` if it cannot be executed."""
        os.write(self._cork, b"!")
        answer = os.read(self._failure, _ERRNO.size)
        if len(answer) == _ERRNO.size:
            raise CaptureError(f"cannot run the command: {os.strerror(_ERRNO.unpack(answer)[0])}", "Run it without perfguest first.")

    def status(self) -> int | None:
        """Its exit status as a shell has it, 128 + N for one that signal N ended; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = 128 - code if code < 0 else code
        return self._status

    def end(self, impatience: int) -> int:
        """Asks it to end and waits until it has; kills it once ``impatience``, a file descriptor, is readable. Gives its status."""
        if (status := self.status()) is not None:
            return status
        signal.pidfd_send_signal(self.exited, signal.SIGTERM)
        if self.exited not in wait_readable([self.exited, impatience]):
            signal.pidfd_send_signal(self.exited, signal.SIGKILL)
            wait_readable([self.exited])
        status = self.status()
        return 0 if status is None else status

    def close(self) -> None:
        """Afterwards it is gone, and its status is known."""
        # One that was never let go ends here by itself.
        os.close(self._cork)
        if self.status() is None:
            signal.pidfd_send_signal(self.exited, signal.SIGKILL)
            wait_readable([self.exited])
            self.status()
        os.close(self._failure)
        os.close(self.exited)


def _run_child(command: Sequence[str], parent: int, go: int, cork: int, failure: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(parent, signal.SIGTERM)
        os.close(cork)
        if os.read(go, 1) == b"!":
            os.execvp(command[0], list(command))  # noqa: S606 - the user's own command
    except OSError as error:
        os.write(failure, _ERRNO.pack(error.errno or 0))
    finally:
        os._exit(127)
