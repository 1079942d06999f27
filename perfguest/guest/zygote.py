# SPDX-License-Identifier: Apache-2.0
"""Makes readers of guests' memory quickly: ``python -m perfguest.guest.zygote CHANNEL PARENT``, started by the recorder once.

It imports all that a reader needs, and forks one for each request that comes over ``CHANNEL`` (a SOCK_SEQPACKET socket): the request is the reader's limits in
JSON, with two descriptors, the VMM's memory and the reader's own channel. The answer is JSON with the reader's ``pid``, and a pidfd; later comes ``ended``,
the pid, with its ``status`` as os.waitstatus_to_exitcode has it. It reads no guest's memory and hears of nobody but the recorder, so nothing of a guest
gets from one reader to the next.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from perfguest.guest import sandbox

#: What a reader does: (memory, channel, pid of the zygote, limits) to its exit status.
Child = Callable[[int, int, int, dict[str, Any]], int]

_MAX_REQUEST = 4096


def serve(channel: int, parent: int, child: Child) -> int:
    """Forks readers until the channel ends. They end with this process."""
    sandbox.die_with(parent)
    # What is there now is shared by all readers: the collector is not to write to it.
    gc.collect()
    gc.freeze()
    running: dict[int, int] = {}
    with socket.socket(fileno=channel) as control:
        poll = select.poll()
        poll.register(control, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd != control.fileno():
                    poll.unregister(fd)
                    pid = running.pop(fd)
                    os.close(fd)
                    _tell(control, {"ended": pid, "status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})
                elif (pidfd := _fork(control, running, child)) is None:
                    return 0
                elif pidfd >= 0:
                    poll.register(pidfd, select.POLLIN)


def _fork(control: socket.socket, running: dict[int, int], child: Child) -> int | None:
    """The pidfd of a new reader; None at the channel's end."""
    request, fds, _, _ = socket.recv_fds(control, _MAX_REQUEST, 2)
    if not request:
        return None
    memory, channel = fds
    zygote = os.getpid()
    pid = os.fork()
    if not pid:
        _become(control, running, child, (memory, channel, zygote, json.loads(request)))
    os.close(memory)
    os.close(channel)
    pidfd = os.pidfd_open(pid)
    running[pidfd] = pid
    socket.send_fds(control, [json.dumps({"pid": pid}).encode()], [pidfd])
    return pidfd


def _become(control: socket.socket, running: dict[int, int], child: Child, arguments: tuple[int, int, int, dict[str, Any]]) -> None:
    """The new process: it never returns from here, and has nothing of the zygote's."""
    status = 1
    try:
        control.close()
        for pidfd in running:
            os.close(pidfd)
        os.setsid()
        status = child(*arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def _tell(control: socket.socket, value: dict[str, int]) -> None:
    control.send(json.dumps(value).encode())


def main(arguments: list[str]) -> int:
    """The process's exit status."""
    from perfguest.guest import reader

    return serve(int(arguments[0]), int(arguments[1]), partial(reader.read, reader.load()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
