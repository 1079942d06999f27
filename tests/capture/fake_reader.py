# SPDX-License-Identifier: Apache-2.0
"""A reader of guests' memory that does what its first argument says, by perfguest/guest/wire.py: fake_reader.py MODE CHANNEL PARENT, a zygote."""

from __future__ import annotations

import os
import signal
import sys
import zlib
from typing import Any

from perfguest.guest import wire, zygote
from perfguest.guest.memory import VM_ENDED
from perfguest.guest.tables import hashes
from perfguest.guest.wire import Kind
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

LAYOUT = {"current": 0x1FB80, "pid": 2416, "tgid": 2420, "comm": 2976, "start": 2784, "stack": 32}


def kernel(build_id: bytes = b"\x01" * 20, names: bytes = b"_stext\0_etext\0") -> pb.Kernel:
    addresses = b"".join(value.to_bytes(8, "little") for value in (0xFFFFFFFF81000000, 0xFFFFFFFF81000010))
    return pb.Kernel(release="6.1.0", build_id=build_id, symbols=pb.Symbols(addresses=addresses, types=b"TT", names=names))


_PIECE = tables_pb2.Piece(address=0xFFFFFFFF81200000, size=32, data=bytes(32))
RAW = tables_pb2.KernelRaw(entry=0xFFFFFFFF81800000, text=0xFFFFFFFF81000000, notes=_PIECE, banner=_PIECE, symbols=_PIECE, btf=_PIECE)


class Reader:
    def __init__(self, mode: str, channel: int) -> None:
        self.mode = mode
        self.channel = channel

    def send(self, data: bytes) -> None:
        wire.send(self.channel, data)

    def message(self, kind: Kind, message: Any) -> None:
        self.send(wire.frame(kind, message.SerializeToString()))

    def done(self, **value: Any) -> None:
        self.send(wire.pack(Kind.DONE, value))

    def run(self) -> None:
        if self.mode == "silent from the start":
            signal.pause()
        self.send(wire.pack(Kind.HELLO, {"unusable": "no such thing" if self.mode == "unusable" else ""}))
        while (request := wire.receive(self.channel)) is not None:
            getattr(self, request["do"])(request)

    def open(self, request: dict[str, Any]) -> None:
        if self.mode == "busy up to VM 6":
            self.mode = "busy" if request["vm_id"] <= 6 else "works"
        match self.mode:
            case "silent":
                signal.pause()
            case "busy":
                while True:
                    pass
            case "exit":
                sys.exit(3)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "garbage":
                self.send(b"garbage" * 100_000)
            case "huge":
                self.send(wire.HEAD.pack(0xFFFFFFF0, Kind.KERNEL) + bytes(1 << 20))
            case "endless":
                while True:
                    self.message(Kind.EVENT, pb.GuestEvent(problem=pb.Problem(text="x" * (1 << 20))))
            case "endless kernels":
                while True:
                    self.message(Kind.KERNEL, kernel(os.urandom(20), b"a" * (1 << 20) + b"\0b\0"))
            case "no message":
                self.send(wire.frame(Kind.KERNEL, b"\xff" * 100))
            case "not json":
                self.send(wire.frame(Kind.DONE, b"{" * 1000))
            case "deep json":
                self.send(wire.frame(Kind.DONE, b"[" * 500_000))
            case "a list":
                self.send(wire.frame(Kind.DONE, b"[1]"))
            case "not asked for":
                self.message(Kind.EVENT, pb.GuestEvent(process=pb.Process(tgid=7)))
            case "symbols that do not fit":
                self.message(Kind.KERNEL, kernel(names=b"one\0"))
            case "a path for a key":
                self.message(Kind.EVENT, pb.GuestEvent(kernel=pb.VmKernel(level="symbols", kernel="../../../etc/passwd")))
            case "a layout of nonsense":
                self.message(Kind.EVENT, pb.GuestEvent(kernel=pb.VmKernel(level="processes")))
                self.done(layout={**LAYOUT, "pid": "1; rm -rf"})
            case "ends":
                self.done(failed=VM_ENDED, ended=True)
            case "fails":
                self.done(failed="nothing there\x1b[31m")
            case _:
                self.opened(request)

    def opened(self, request: dict[str, Any]) -> None:
        image = kernel()
        mark = wire.fingerprint(image)
        if self.mode == "wants without end":
            while True:
                self.send(wire.pack(Kind.WANT, {"mark": [mark]}))
        if self.mode == "gives garbage for tables":
            self.send(wire.frame(Kind.RAW, b"\xff" * 1000))
        if self.mode in {"lies about tables", "spins over tables"}:
            self.send(wire.frame(Kind.RAW, RAW.SerializeToString()))
        if mark not in request["known"]:
            self.message(Kind.KERNEL, image)
        self.message(Kind.EVENT, pb.GuestEvent(kernel=pb.VmKernel(level="processes", kernel=image.build_id.hex(), kaslr_offset=0x1000000)))
        self.done(release="6.1.0", fingerprint=mark, layout=LAYOUT)

    def tables(self, request: dict[str, Any]) -> None:
        """What the maker of tables, which is a process like this one, gives back."""
        raw = tables_pb2.KernelRaw.FromString(wire.receive_payload(self.channel, Kind.RAW))
        while self.mode == "spins over tables":
            pass
        made = tables_pb2.KernelTables(format_version=1, fingerprint="0" * 64, release="6.1.0", build_id=b"\1" * 20, raw=hashes(raw))
        self.message(Kind.TABLES, made)
        self.done()

    def modules(self, request: dict[str, Any]) -> None:
        if self.mode == "dies at modules":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.mode == "ends at modules":
            self.done(failed=VM_ENDED, ended=True)
            return
        loaded = pb.VmKernel(level="processes", kernel="ee", kaslr_offset=0x5000000)
        if self.mode in {"loads a module", "another module's code"}:
            loaded.modules.add(name=b"late", address=0xFFFFFFFFC0100000, size=0x3000)
        self.message(Kind.EVENT, pb.GuestEvent(kernel=loaded))
        self.done()

    def text(self, request: dict[str, Any]) -> None:
        if self.mode == "another module's code":
            request["address"] += 4096
        code = bytes(request["size"])
        self.message(Kind.EVENT, pb.GuestEvent(module_text=pb.ModuleText(address=request["address"], size=len(code), packed=zlib.compress(code))))
        self.done()

    def owners(self, request: dict[str, Any]) -> None:
        if self.mode == "finds no owners":
            self.done(failed="its tasks make no sense")
            return
        found = {"knows owners": [[7, 100]], "too many owners": [[7, 100]] * 1000, "owners of a kind": [["7", 100]]}.get(self.mode, [])
        self.done(owners=found if request["tables"] == [0x1000] else [])

    def process(self, request: dict[str, Any]) -> None:
        if self.mode == "dies at 666" and request["tgid"] == 666:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.mode == "ends at 666" and request["tgid"] == 666:
            self.done(failed=VM_ENDED, ended=True)
            return
        if self.mode == "gone":
            self.done(found=False)
            return
        tgid = request["tgid"] + (self.mode == "another process")
        process = pb.Process(tgid=tgid, start_time=request["start"], comm=b"c%d" % request["tgid"])
        for at, key in ((0x400, "aa"), (0x500, "bb")):
            process.mappings.add(start=at << 12, end=(at + 16) << 12, executable=True, path=b"/bin/" + key.encode(), binary=key)
        self.message(Kind.EVENT, pb.GuestEvent(process=process))
        self.done(found=True, problems=["its cgroup: none\x1b[31m", "more"] if self.mode == "parts" else [])

    def binary(self, request: dict[str, Any]) -> None:
        size = request["budget"] + (1 << 20) if self.mode == "more than its budget" else 8192
        binary = pb.Binary(path=b"/bin/x", size=size)
        binary.pages.add(address=0, data=bytes(size))
        self.message(Kind.BINARY, binary)
        self.done(found=True)


def live(memory: int, channel: int, parent: int, limits: dict[str, Any]) -> int:
    Reader(sys.argv[1], channel).run()
    return 0


if __name__ == "__main__":
    zygote.serve(int(sys.argv[2]), int(sys.argv[3]), live)
