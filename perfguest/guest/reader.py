# SPDX-License-Identifier: Apache-2.0
"""The process that reads one guest's memory, forked by :mod:`perfguest.guest.zygote` for this guest alone.

It gives up its rights, says ``HELLO`` and answers requests (:mod:`perfguest.guest.wire`) until the channel ends. Whatever fails is said in ``DONE``: a guest
can break any code that reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Any

from perfguest.errors import FormatError, PerfguestError
from perfguest.formats.guest_snapshot import is_key
from perfguest.formats.guest_stream import Memslot
from perfguest.guest import sandbox, wire
from perfguest.guest.memory import TAKEN_AWAY, GuestFault, VmEnded
from perfguest.guest.wire import Kind
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

if TYPE_CHECKING:
    from perfguest.guest.kernel import LiveKernel
    from perfguest.guest.memory import GuestMemory

#: Processes whose files can be asked for, the latest.
_KEPT_PROCESSES = 512
#: Kernels' tables that are asked for at one opening: the guest says which it might run.
_MOST_ASKED = 4
_MOST_OWNERS = 256
#: Of one process that are told.
_MOST_PROBLEMS = 4


class _Guest:
    """The guest as far as it is open. ``has_processes``: what reads processes is there."""

    def __init__(self, memory: int, channel: int, has_processes: bool = True) -> None:
        self._has_processes = has_processes
        self._memory = memory
        self._channel = channel
        self._kernel: Any = None
        self._files: dict[int, dict[str, Any]] = {}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Opens the kernel, and says what it is, unless it is known already."""
        from perfguest.guest.kernel import open_kernel
        from perfguest.guest.memory import GuestMemory

        self._kernel = None
        self._files.clear()
        memory = GuestMemory(self._memory, [Memslot(*slot) for slot in request["slots"]], request["la57"])
        hints = [(cr3, lstar) for cr3, lstar in request["hints"]]
        kernel, mark = self._open_known(memory, hints, request)
        if kernel is None:
            memory.la57 = request["la57"]
            kernel = open_kernel(memory, hints, request["la57"])
            mark = self._tell_kernel(kernel, request)
        vm_kernel = kernel.vm_kernel_proto(request["vm_pid"], request["vm_id"], request["time"])
        vm_kernel.cpu_seconds = time.process_time()
        self._send(wire.frame(Kind.EVENT, pb.GuestEvent(kernel=vm_kernel).SerializeToString()))
        layout = kernel.task_layout() if self._has_processes else None
        self._kernel = kernel
        return {"release": kernel.release, "fingerprint": mark, "layout": dataclasses.asdict(layout) if layout else None}

    def _open_known(self, memory: GuestMemory, hints: list[tuple[int, int]], request: dict[str, Any]) -> tuple[LiveKernel | None, str]:
        """The kernel and its fingerprint, if it is one of those whose tables the recorder has."""
        from perfguest.guest import tables
        from perfguest.guest.kernel import find_known, open_known

        known = [tables.Candidate(one["mark"], bytes.fromhex(one["build_id"]), one["entry"], tuple(one["notes"])) for one in request["tables"]]
        asked: dict[str, tables_pb2.KernelTables] = {}
        for found in find_known(memory, hints, request["la57"], known if self._has_processes else []):
            mark = found.candidate.mark
            if mark not in asked:
                if len(asked) >= _MOST_ASKED:
                    break
                self._send(wire.pack(Kind.WANT, {"mark": mark}))
                asked[mark] = tables_pb2.KernelTables.FromString(wire.receive_payload(self._channel, Kind.TABLES))
            try:
                kernel = open_known(memory, found, asked[mark])
            except (FormatError, GuestFault):
                # It only says to be that kernel, or this page table is gone: there may be another one, and else it is read as if nothing were known.
                continue
            if kernel.level == "processes":
                return kernel, mark
        return None, ""

    def _tell_kernel(self, kernel: LiveKernel, request: dict[str, Any]) -> str:
        """Sends what is the same in each guest that runs the kernel, as far as the recorder has it not yet; gives its fingerprint."""
        image = kernel.kernel_proto()
        mark = wire.fingerprint(image) if image.symbols.addresses else ""
        if mark and mark not in request["known"]:
            self._send(wire.frame(Kind.KERNEL, image.SerializeToString()))
        if mark and all(mark != one["mark"] for one in request["tables"]):
            try:
                raw = kernel.raw()
            except (GuestFault, VmEnded):
                return mark
            if raw is not None and raw.ByteSize() <= wire.LIMITS[Kind.RAW]:
                self._send(wire.frame(Kind.RAW, raw.SerializeToString()))
        return mark

    def tables(self, request: dict[str, Any]) -> dict[str, Any]:
        """Makes tables of the pieces that follow the request, of which alone this process has ever heard."""
        from perfguest.guest import tables

        raw = tables_pb2.KernelRaw.FromString(wire.receive_payload(self._channel, Kind.RAW))
        self._send(wire.frame(Kind.TABLES, tables.decode(raw).SerializeToString()))
        return {}

    def modules(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends the kernel's modules and BPF programs as they are now."""
        # Some of them would take the place of all that were known.
        vm_kernel = self._kernel.vm_kernel_proto(request["vm_pid"], request["vm_id"], request["time"], whole=True)
        vm_kernel.cpu_seconds = time.process_time()
        self._send(wire.frame(Kind.EVENT, pb.GuestEvent(kernel=vm_kernel).SerializeToString()))
        return {}

    def text(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends the code of one of the kernel's modules."""
        text = self._kernel.module_text_proto(request["address"], request["size"])
        self._send(wire.frame(Kind.EVENT, pb.GuestEvent(module_text=text).SerializeToString()))
        return {}

    def owners(self, request: dict[str, Any]) -> dict[str, Any]:
        """Says which processes have these page tables."""
        from perfguest.guest import processes

        return {"owners": processes.owners(self._kernel, request["tables"])[:_MOST_OWNERS]}

    def process(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends the process, and gives what could not be read of it; nothing if it is gone."""
        from perfguest.guest import processes

        read = processes.inspect(self._kernel, request["tgid"], request["start"])
        if read is None:
            return {"found": False}
        process = read.message
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
        return {"found": True, "problems": read.problems[:_MOST_PROBLEMS]}

    def binary(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends what is there of one of the process's files."""
        from perfguest.guest import binaries

        handle = self._files.get(request["tgid"], {}).get(request["key"])
        if handle is None:
            return {"found": False}
        binary = binaries.read_binary(self._kernel, handle, request["budget"])
        self._send(wire.frame(Kind.BINARY, binary.SerializeToString()))
        return {"found": True}

    def _send(self, data: bytes) -> None:
        wire.send(self._channel, data)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """How one request went; ``failed`` says why not well, and ``ended`` that no other will."""
        if self._kernel is None and request["do"] not in {"open", "tables"}:
            return {"failed": "its kernel is not open"}
        if self._kernel is not None:
            self._kernel.memory.taken_away = False
        try:
            methods = {
                "open": self.open,
                "tables": self.tables,
                "modules": self.modules,
                "text": self.text,
                "owners": self.owners,
                "process": self.process,
                "binary": self.binary,
            }
            return methods[request["do"]](request)
        except VmEnded as end:
            return {"failed": end.message, "ended": True}
        except PerfguestError as error:
            missing = self._kernel is not None and self._kernel.memory.taken_away and TAKEN_AWAY not in error.message
            return {"failed": f"{TAKEN_AWAY}: {error.message}" if missing else error.message}
        except MemoryError:
            return {"failed": "reading it takes more memory than is allowed"}
        except RecursionError:
            return {"failed": "its structures do not end"}
        except Exception as error:  # the guest's doing, or a defect of ours: either way the recorder is to know, and goes on
            return {"failed": f"{type(error).__name__}: {error}"}


def _key(name: str) -> str:
    """The name as one under which something can be stored."""
    return name if is_key(name) else hashlib.sha256(name.encode()).hexdigest()[:40]


def load() -> tuple[str, str]:
    """Imports all that is needed later, when no file can be opened any more. Gives what is missing for anything at all, and for processes, in words."""
    # What Python itself would look up at the first use.
    for codec in ("ascii", "latin-1", "utf-8", "utf-16-le"):
        b"".decode(codec)
    try:
        # numpy loads this at the first use of some functions.
        import numpy.ma  # noqa: F401

        from perfguest.guest import kernel, memory, tables  # noqa: F401
    except ImportError as error:
        return f"the reader of guests' memory cannot be loaded: {error}", ""
    try:
        import drgn.helpers.linux  # noqa: F401

        from perfguest.guest import binaries, processes  # noqa: F401
    except ImportError as error:
        return "", "drgn is not installed (pip install 'perfguest[record]')" if error.name == "drgn" else f"drgn cannot be loaded: {error}"
    return "", ""


def read(loaded: tuple[str, str], memory: int, channel: int, parent: int, limits: dict[str, Any]) -> int:
    """The reader's life; gives its exit status. ``loaded``: as :func:`load` gave it."""
    unusable, missing = loaded
    sandbox.die_with(parent)
    sandbox.prepare()
    confined = sandbox.enter(parent, limits["memory"], limits["cpu"])
    wire.send(channel, wire.pack(Kind.HELLO, {"unusable": unusable, "missing": missing, "confined": confined}))
    guest = _Guest(memory, channel, not missing)
    while (request := wire.receive(channel)) is not None:
        done = guest.answer(request)
        text = str(done.get("failed", ""))[:2000]
        wire.send(channel, wire.pack(Kind.DONE, {**done, "cpu": time.process_time(), **({"failed": text} if text else {})}))
    return 0
