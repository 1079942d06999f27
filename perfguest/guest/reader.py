# SPDX-License-Identifier: Apache-2.0
"""The process that reads one guest's memory: ``python -m perfguest.guest.reader MEMORY CHANNEL PARENT LIMITS``, started by the recorder.

``MEMORY`` and ``CHANNEL`` are file descriptors, the VMM's memory and a socket (:mod:`perfguest.guest.wire`); ``LIMITS`` JSON. It loads all that it needs, gives
up its rights, says ``HELLO`` and answers requests until the channel ends. Whatever fails is said in ``DONE``: a guest can break any code that reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from perfguest.errors import PerfguestError
from perfguest.formats.guest_snapshot import is_key
from perfguest.formats.guest_stream import Memslot
from perfguest.guest import sandbox, wire
from perfguest.guest.wire import Kind
from perfguest.proto import guest_pb2 as pb

#: Processes whose files can be asked for, the latest.
_KEPT_PROCESSES = 512


class _Guest:
    """The guest as far as it is open. ``send``: puts a frame on the channel. ``has_processes``: what reads processes is there."""

    def __init__(self, memory: int, send: Callable[[bytes], None], has_processes: bool = True) -> None:
        self._has_processes = has_processes
        self._memory = memory
        self._send = send
        self._kernel: Any = None
        self._files: dict[int, dict[str, Any]] = {}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Opens the kernel, and says what it is, unless its fingerprint is known already."""
        from perfguest.guest.kernel import open_kernel
        from perfguest.guest.memory import GuestMemory

        self._kernel = None
        self._files.clear()
        begun = time.process_time()
        memory = GuestMemory(self._memory, [Memslot(*slot) for slot in request["slots"]], request["la57"])
        kernel = open_kernel(memory, [(cr3, lstar) for cr3, lstar in request["hints"]], request["la57"])
        image = kernel.kernel_proto()
        print_of = wire.fingerprint(image) if image.symbols.addresses else ""
        if print_of and print_of not in request["known"]:
            self._send(wire.frame(Kind.KERNEL, image.SerializeToString()))
        vm_kernel = kernel.vm_kernel_proto(request["vm_pid"], request["vm_id"], request["time"])
        vm_kernel.cpu_seconds = time.process_time() - begun
        self._send(wire.frame(Kind.EVENT, pb.GuestEvent(kernel=vm_kernel).SerializeToString()))
        layout = kernel.task_layout() if self._has_processes else None
        self._kernel = kernel
        return {"release": kernel.release, "fingerprint": print_of, "layout": dataclasses.asdict(layout) if layout else None}

    def process(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends the process and gives the keys of its files, or nothing if it is gone."""
        from perfguest.guest import processes

        process = processes.read_process(self._kernel, request["tgid"], request["start"])
        if process is None:
            return {"found": False}
        files = {_key(key): handle for key, handle in processes.files(process).items()}
        for mapping in process.mappings:
            if mapping.binary:
                mapping.binary = _key(mapping.binary)
        process.vm_pid, process.vm_id, process.time = request["vm_pid"], request["vm_id"], request["time"]
        self._send(wire.frame(Kind.EVENT, pb.GuestEvent(process=process).SerializeToString()))
        self._files.pop(process.tgid, None)
        self._files[process.tgid] = files
        while len(self._files) > _KEPT_PROCESSES:
            del self._files[next(iter(self._files))]
        return {"found": True}

    def binary(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends what is there of one of the process's files."""
        from perfguest.guest import binaries

        handle = self._files.get(request["tgid"], {}).get(request["key"])
        if handle is None:
            return {"found": False}
        binary = binaries.read_binary(self._kernel, handle, request["budget"])
        self._send(wire.frame(Kind.BINARY, binary.SerializeToString()))
        return {"found": True}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """How one request went; ``failed`` says why not well."""
        if self._kernel is None and request["do"] != "open":
            return {"failed": "its kernel is not open"}
        try:
            return {"open": self.open, "process": self.process, "binary": self.binary}[request["do"]](request)
        except PerfguestError as error:
            return {"failed": error.message}
        except MemoryError:
            return {"failed": "reading it takes more memory than is allowed"}
        except RecursionError:
            return {"failed": "its structures do not end"}
        except Exception as error:  # the guest's doing, or a defect of ours: either way the recorder is to know, and goes on
            return {"failed": f"{type(error).__name__}: {error}"}


def _key(name: str) -> str:
    """The name as one under which something can be stored."""
    return name if is_key(name) else hashlib.sha256(name.encode()).hexdigest()[:40]


def _load() -> tuple[str, str]:
    """Imports all that is needed later, when no file can be opened any more. Gives what is missing for anything at all, and for processes, in words."""
    # What Python itself would look up at the first use.
    for codec in ("ascii", "latin-1", "utf-8", "utf-16-le"):
        b"".decode(codec)
    try:
        # numpy loads this at the first use of some functions.
        import numpy.ma  # noqa: F401

        from perfguest.guest import kernel, memory  # noqa: F401
    except ImportError as error:
        return f"the reader of guests' memory cannot be loaded: {error}", ""
    try:
        import drgn.helpers.linux  # noqa: F401

        from perfguest.guest import binaries, processes  # noqa: F401
    except ImportError as error:
        return "", "drgn is not installed (pip install 'perfguest[record]')" if error.name == "drgn" else f"drgn cannot be loaded: {error}"
    return "", ""


def main(arguments: list[str]) -> int:
    """The process's exit status."""
    memory, channel, parent = map(int, arguments[:3])
    limits = json.loads(arguments[3])
    sandbox.die_with(parent)
    unusable, missing = _load()
    sandbox.prepare()
    confined = sandbox.enter(parent, limits["memory"], limits["cpu"])

    def send(data: bytes) -> None:
        wire.send(channel, data)

    send(wire.pack(Kind.HELLO, {"unusable": unusable, "missing": missing, "confined": confined}))
    guest = _Guest(memory, send, not missing)
    while (request := wire.receive(channel)) is not None:
        done = guest.answer(request)
        text = str(done.get("failed", ""))[:2000]
        send(wire.pack(Kind.DONE, {**done, "cpu": time.process_time(), **({"failed": text} if text else {})}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
