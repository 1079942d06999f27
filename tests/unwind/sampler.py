# SPDX-License-Identifier: Apache-2.0
"""Samples an emulated guest as the kernel module samples one of KVM's: the guest is stopped, and its registers, its running task and copies of its stacks are
put into records of the module's own format. What is needed to unwind and to name them is read by the package's reader of guests' memory."""

from __future__ import annotations

import gzip
import random
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from perfguest.errors import LabError
from perfguest.formats.guest_format import parse_format
from perfguest.formats.guest_snapshot import DIRECTORY, SnapshotWriter
from perfguest.formats.recording import FORMAT_VERSION, RecordingPaths, stream_head, write_recording
from perfguest.guest import binaries, processes
from perfguest.guest.binaries import FileHandle
from perfguest.guest.kernel import GuestUnreadable, open_kernel
from perfguest.guest.memory import PAGE, GuestFault, GuestMemory
from perfguest.proto import guest_pb2
from perfguest.proto import recording_pb2 as pb
from tests.capture import made_stream
from tests.guest.emulated import EmulatedGuest
from tests.unwind import perf_file

#: As in the module: THREAD_SIZE and IRQ_STACK_SIZE of x86-64, and how far below its stack pointer user code keeps data.
STACK, RED_ZONE = 16384, 128

#: ``enum pg_reg`` (kmod/perfguest_abi.h): the hardware's order.
REGISTERS = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))

# kmod/perfguest_abi.h: PG_SAMPLE_*, enum pg_section_kind, enum pg_end.
USER, LONG_MODE, CODE64, CODE32, REGS, CR3, GS, KERNEL_GS, TASK = (1 << bit for bit in (0, 1, 2, 3, 8, 9, 10, 11, 12))
CHAIN_KERNEL, CHAIN_USER, STACK_KERNEL, STACK_TASK, STACK_USER = range(1, 6)
_FULL, _TOP, _BAD_FRAME, _NOT_MAPPED = 2, 3, 5, 7

_LAYOUTS = parse_format(made_stream.FORMAT.decode())
_SAMPLE, _SECTION = _LAYOUTS["sample"].dtype, _LAYOUTS["section"].dtype
_USER_CODE = (0x33, 0x23)
# struct pt_regs and, in kernels built with FRED (6.9 on), the 16 bytes above it.
_PT_REGS, _FRED = 168, 16
_CS, _SP = 17 * 8, 19 * 8
_FILE_BUDGET = 64 << 20


@dataclass(frozen=True)
class Cpu:
    """Of a vCPU that stands still. ``values``: registers by QEMU's names for them."""

    values: dict[str, int]
    gs: int
    code64: bool

    @classmethod
    def parse(cls, text: str) -> Cpu:
        """Of what QEMU's monitor prints for ``info registers``."""
        values = {name: int(value, 16) for name, value in re.findall(r"\b(R[A-Z0-9]{1,2}|RIP|RFL|CPL|CR[0-4]|EFER) ?=([0-9a-f]+)", text)}
        gs = re.search(r"^GS =\S+ ([0-9a-f]+)", text, re.MULTILINE)
        assert gs, text
        return cls(values, int(gs[1], 16), "CS64" in text)


@dataclass(frozen=True)
class _Task:
    pid: int
    tgid: int
    start: int
    comm: bytes
    stack: int


class Sampler:
    """Makes a recording of a guest in ``directory``, from ``with`` to its end; then it is whole. ``stack_size``: bytes of user stacks that are copied.

    Samples stand where the guest was stopped: there a block of QEMU's translated code begins, after a jump. So every other sample is taken after the guest
    went on instruction by instruction for a moment: there it may stand anywhere, between a push and the next as well.
    """

    def __init__(self, guest: EmulatedGuest, directory: Path, stack_size: int = 65536, seed: int = 7) -> None:
        self.guest = guest
        self.directory = directory
        self.stack_size = stack_size
        self.count = 0
        self._random = random.Random(seed)
        self._memory: GuestMemory = guest.memory()
        self.kernel = open_kernel(self._memory, guest.hints())
        layout = self.kernel.task_layout()
        assert layout, self.kernel.reason
        self._layout = layout
        offsets = self.kernel.address_of("__per_cpu_offset")
        assert offsets
        #: Of the only CPU: what the kernel has in its GS base.
        self._per_cpu = struct.unpack("<Q", self.kernel.read(offsets, 8))[0]
        self._thread: int = guest.qmp.execute("query-cpus-fast")[0]["thread-id"]
        self._known: dict[int, tuple[int, int]] = {}
        self._handles: dict[str, FileHandle] = {}
        self._sizes: dict[str, int] = {}
        self._perf: list[tuple[int, int, bool]] = []
        self._steps: str | None = None

    def __enter__(self) -> Sampler:
        self.directory.mkdir(parents=True)
        self._paths = RecordingPaths(self.directory)
        self._snapshot = SnapshotWriter(self.directory / DIRECTORY)
        self._stream: BinaryIO = self._paths.guest_stream.open("wb")
        self._stream.write(stream_head(made_stream.FORMAT))
        self._began = time.monotonic_ns()
        self._stream.write(made_stream.vm_record(1, self.guest.pid, self.guest.lstar(), self.guest.slots(), self._began))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                with self.guest.stopped():
                    self._write_guest()
                self._write_host()
        finally:
            self._stream.close()
            self._snapshot.close()

    def take(self, count: int, most: float = 0.004) -> None:
        """That many samples, at random moments ``most`` seconds apart at the most."""
        for number in range(count):
            # The pause between two samples; nothing is waited for.
            time.sleep(self._random.uniform(0.0005, most))
            with self.guest.stopped():
                if number % 2 == 0:
                    self._sample()
                    continue
                self._step_by_step("on")
            time.sleep(self._random.uniform(0.0001, 0.001))
            with self.guest.stopped():
                self._sample()
                self._step_by_step("off")

    def _step_by_step(self, which: str) -> None:
        """One instruction to each block of translated code; the monitor's command for it has been another one since QEMU 8.1."""
        if self._steps is None:
            self._steps = "singlestep" if self._monitor("help singlestep").startswith("singlestep [on|off]") else "one-insn-per-tb"
        answer = self._monitor(f"{self._steps} {which}")
        assert not answer.strip(), answer

    def _monitor(self, line: str) -> str:
        text = self.guest.qmp.execute("human-monitor-command", **{"command-line": line})
        if not isinstance(text, str):
            raise LabError(f"QEMU's monitor gave no text for {line!r}")
        return text

    def _sample(self) -> None:
        cpu, now = Cpu.parse(self._monitor("info registers")), time.monotonic_ns()
        user_mode = cpu.values["CPL"] == 3
        task = self._current()
        if task and task.tgid:
            self._look_at(task, now)
        sections = self._user_sections(cpu, cpu.values["RIP"], cpu.values["RSP"]) if user_mode else self._kernel_sections(cpu, task)
        record = self._record(cpu, task, now, len(sections))
        body = b"".join(sections)
        record["size"] = _SAMPLE.itemsize + len(body)
        self._stream.write(record.tobytes() + body)
        self._perf.append((now, cpu.values["RIP"], user_mode))
        self.count += 1

    def _record(self, cpu: Cpu, task: _Task | None, now: int, sections: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        values, user = cpu.values, cpu.values["CPL"] == 3
        flags = LONG_MODE | REGS | CR3 | GS | KERNEL_GS | (USER if user else 0) | (CODE64 if cpu.code64 else CODE32) | (TASK if task else 0)
        in_kernel = cpu.gs >> 63 != 0
        record = np.zeros(1, _SAMPLE)
        fields: dict[str, object] = {
            "type": 1, "time": now, "vm_id": 1, "vm_pid": self.guest.pid, "tid": self._thread, "nr_sections": sections, "flags": flags, "ip": values["RIP"],
            "rflags": values["RFL"], "cr0": values["CR0"], "cr3": values["CR3"], "cr4": values["CR4"], "efer": values["EFER"], "gs_base": cpu.gs,
            "kernel_gs_base": 0 if in_kernel else self._per_cpu,
        }  # fmt: skip
        if task:
            fields |= {"task_pid": task.pid, "task_tgid": task.tgid, "task_start": task.start, "task_comm": task.comm}
        for name, value in fields.items():
            record[name] = value
        record["regs"][0] = [values[name] for name in REGISTERS]
        return record

    def _kernel_sections(self, cpu: Cpu, task: _Task | None) -> list[bytes]:
        sp, cr3 = cpu.values["RSP"], cpu.values["CR3"]
        sections = [_section(CHAIN_KERNEL, sp, struct.pack("<Q", cpu.values["RIP"]), _BAD_FRAME)]
        if not cpu.code64 or not sp >> 63:
            # The first instructions of a system call, still on the user's stack.
            return sections
        sections += self._copy(STACK_KERNEL, cr3, sp, -sp % STACK, _TOP)
        # Not by the running task first: in a switch to another one the stack is the next one's already.
        entry = self._user_registers(sp + -sp % STACK)
        if entry is None and task is not None and not task.stack <= sp <= task.stack + STACK:
            sections += self._copy(STACK_TASK, cr3, task.stack, STACK, _TOP)
            entry = self._user_registers(task.stack + STACK)
        return sections + self._user_sections(cpu, *entry) if entry else sections

    def _user_sections(self, cpu: Cpu, ip: int, sp: int) -> list[bytes]:
        start = self._user_stack_start(cpu.values["CR3"], sp)
        copy = self._copy(STACK_USER, cpu.values["CR3"], start, self.stack_size, _FULL) if sp > RED_ZONE else []
        return [_section(CHAIN_USER, sp, struct.pack("<Q", ip), _BAD_FRAME), *copy]

    def _user_stack_start(self, cr3: int, sp: int) -> int:
        """The red zone may reach into a page that was never touched: then the border of the next."""
        try:
            self._memory.translate(cr3, sp - RED_ZONE)
        except GuestFault:
            return max(sp - RED_ZONE, sp & -PAGE)
        return sp - RED_ZONE

    def _user_registers(self, end: int) -> tuple[int, int] | None:
        """IP and SP of the user program that the kernel works for, as it saved them at the top of the task's stack, if one ends there."""
        try:
            top = self.kernel.read(end - _PT_REGS - _FRED, _PT_REGS + _FRED)
        except GuestFault:
            return None
        for at in (_FRED, 0):
            cs, sp = (struct.unpack_from("<Q", top, at + offset)[0] for offset in (_CS, _SP))
            if cs & 0xFFFF in _USER_CODE and not sp >> 47:
                return struct.unpack_from("<Q", top, at + 16 * 8)[0], sp
        return None

    def _copy(self, kind: int, cr3: int, address: int, size: int, end: int) -> list[bytes]:
        """The section, of as many bytes as are mapped in a row from ``address`` on; none for no bytes."""
        if not size:
            return []
        try:
            return [_section(kind, address, self._memory.read_virtual(cr3, address, size), end)]
        except GuestFault:
            data = b""
        while len(data) < size:
            part = min(PAGE - (address + len(data)) % PAGE, size - len(data))
            try:
                data += self._memory.read_virtual(cr3, address + len(data), part)
            except GuestFault:
                return [_section(kind, address, data, _NOT_MAPPED)]
        return [_section(kind, address, data, end)]

    def _current(self) -> _Task | None:
        layout = self._layout
        pointer = self._per_cpu + layout.current & (1 << 64) - 1
        task = struct.unpack("<Q", self.kernel.read(pointer, 8))[0]
        places = (layout.pid, layout.tgid, layout.comm, layout.start, layout.stack)
        first = min(places)
        data = self.kernel.read(task + first, max(places) + 16 - first)

        def number(place: int, size: int) -> int:
            return int.from_bytes(data[place - first : place - first + size], "little")

        comm = data[layout.comm - first :][:16].split(b"\0", 1)[0]
        return _Task(number(layout.pid, 4), number(layout.tgid, 4), number(layout.start, 8), comm, number(layout.stack, 8))

    def _look_at(self, task: _Task, now: int) -> None:
        """Reads the task's process if it is not known as it is now."""
        signature = processes.signature(self.kernel, task.tgid, task.start)
        if signature is None or signature == self._known.get(task.tgid):
            return
        try:
            process = processes.inspect(self.kernel, task.tgid, task.start)
        except GuestUnreadable:
            # Stopped in the middle of a change to its mappings: the next sample will show them.
            return
        if process is None:
            return
        self._known[task.tgid] = process.signature
        message = process.message
        message.vm_pid, message.vm_id, message.time = self.guest.pid, 1, now
        self._snapshot.event(guest_pb2.GuestEvent(process=message))
        for key, handle in processes.files(message).items():
            self._handles[key] = handle
            if key not in self._sizes:
                self._read_file(key, handle)

    def _read_file(self, key: str, handle: FileHandle) -> None:
        try:
            binary = binaries.read_binary(self.kernel, handle, _FILE_BUDGET)
        except GuestUnreadable:
            # The process is at its end.
            return
        size = sum(len(run.data) for run in binary.pages)
        if size > self._sizes.get(key, 0):
            self._snapshot.binary(key, binary)
            self._sizes[key] = size

    def _write_guest(self) -> None:
        """The kernel, and once more the files of what runs: more of their pages may be there now."""
        for key, handle in self._handles.items():
            self._read_file(key, handle)
        kernel = self.kernel.kernel_proto()
        key = kernel.build_id.hex()
        self._snapshot.kernel(key, kernel)
        vm = self.kernel.vm_kernel_proto(self.guest.pid, 1, self._began)
        self._snapshot.event(guest_pb2.GuestEvent(kernel=vm))
        for module in vm.modules:
            text = self.kernel.module_text_proto(module.address, module.size)
            text.vm_pid = vm.vm_pid
            self._snapshot.event(guest_pb2.GuestEvent(module_text=text))

    def _write_host(self) -> None:
        self._paths.perf_data.write_bytes(perf_file.perf_data(self.guest.pid, self._thread, self._perf))
        self._paths.kallsyms.write_bytes(gzip.compress(b"ffffffff81000000 T _text\n"))
        vm = pb.VirtualMachine(pid=self.guest.pid, name="guest", comm="qemu-system-x86")
        settings = pb.Sampling(event="cpu-clock", frequency=1000, clock="mono", kernel_stack_bytes=STACK, user_stack_bytes=self.stack_size)
        write_recording(self.directory, pb.Recording(format_version=FORMAT_VERSION, complete=True, vms=[vm], sampling=settings))


def _section(kind: int, address: int, data: bytes, end: int) -> bytes:
    head = np.zeros(1, _SECTION)
    for name, value in (("kind", kind), ("end", end), ("size", len(data)), ("address", address)):
        head[name] = value
    return head.tobytes() + data + bytes(-len(data) % 8)
