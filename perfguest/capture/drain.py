# SPDX-License-Identifier: Apache-2.0
"""Moves what the module's streams give into guest.stream, in a thread of its own."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from perfguest.errors import CaptureError, PerfguestError
from perfguest.formats.recording import stream_head

#: One read gives whole records only, so it must be larger than any record.
READ_SIZE = 1 << 20


class Drain:
    """Appends whole reads of all streams to a file. ``streams``: non-blocking file descriptors by CPU, which this closes in the end.
    ``observe`` is given each of the reads, once it is written; it must neither wait nor raise.

    ``failed`` is a file descriptor that becomes readable when the thread has given up; :meth:`stop` then raises why. What was written until then can be read.
    """

    def __init__(self, streams: dict[int, int], path: Path, format_text: bytes, observe: Callable[[bytes], None] | None = None) -> None:
        self.bytes_written = 0
        self._observe = observe
        self.failed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._path = path
        self._open = dict(streams)
        self._problem: PerfguestError | None = None
        self._thread: threading.Thread | None = None
        self._file = -1
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._write(stream_head(format_text))
        except OSError as error:
            self.close()
            raise _write_problem(path, error) from error

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Reads what is still there, once sampling is off, and ends. Raises :class:`CaptureError` if not everything could be written."""
        if self._thread:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
        if self._problem:
            raise self._problem

    def close(self) -> None:
        """Closes everything; without a :meth:`stop` before, what was not read yet is gone."""
        if self._thread:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
        for fd in [*self._open.values(), self._file, self.failed, self._stop]:
            if fd >= 0:
                os.close(fd)
        self._open = {}
        self._file = self.failed = self._stop = -1

    def _run(self) -> None:
        try:
            self._drain()
        except OSError as error:
            self._problem = _write_problem(self._path, error)
        except PerfguestError as error:
            self._problem = error
        if self._problem:
            os.eventfd_write(self.failed, 1)

    def _drain(self) -> None:
        with select.epoll() as epoll:
            cpus = {fd: cpu for cpu, fd in self._open.items()}
            for fd in cpus:
                epoll.register(fd, select.EPOLLIN)
            epoll.register(self._stop, select.EPOLLIN)
            stopping = False
            while not stopping:
                for fd, _ in epoll.poll():
                    if fd == self._stop:
                        stopping = True
                    elif self._move(fd, cpus[fd]) == 0:
                        # The module's streams have no end; without this, one that had would be reported for ever.
                        epoll.unregister(fd)
            for fd, cpu in cpus.items():
                while self._move(fd, cpu):
                    pass

    def _move(self, fd: int, cpu: int) -> int | None:
        """Bytes moved; 0 at the end of the stream; None if nothing is there now."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise CaptureError(f"cannot read the module's stream of CPU {cpu}: {error.strerror}", "See dmesg.") from error
        self._write(data)
        if self._observe:
            self._observe(data)
        return len(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self.bytes_written += len(data)


def _write_problem(path: Path, error: OSError) -> CaptureError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CaptureError(
            f"the disk is full: {path} ends early", "What was written until then can be converted. Make room, or record somewhere else with -o."
        )
    return CaptureError(f"cannot write {path}: {error.strerror}", "What was written until then can be converted.")
