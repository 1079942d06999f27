from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CpuLosses(_message.Message):
    __slots__ = ["cpu", "lost", "taken", "written"]
    CPU_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    cpu: int
    lost: _containers.RepeatedScalarFieldContainer[int]
    taken: int
    written: int
    def __init__(self, cpu: _Optional[int] = ..., taken: _Optional[int] = ..., written: _Optional[int] = ..., lost: _Optional[_Iterable[int]] = ...) -> None: ...

class Host(_message.Message):
    __slots__ = ["cpu_vendor", "hostname", "kernel_build_id", "online_cpus", "release"]
    CPU_VENDOR_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    KERNEL_BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    ONLINE_CPUS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    cpu_vendor: str
    hostname: str
    kernel_build_id: bytes
    online_cpus: int
    release: str
    def __init__(self, hostname: _Optional[str] = ..., release: _Optional[str] = ..., cpu_vendor: _Optional[str] = ..., online_cpus: _Optional[int] = ..., kernel_build_id: _Optional[bytes] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ["complete", "ended", "ended_by", "format_version", "host", "losses", "perfguest_version", "sampling", "started", "vms"]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ENDED_BY_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    PERFGUEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    complete: bool
    ended: float
    ended_by: str
    format_version: int
    host: Host
    losses: _containers.RepeatedCompositeFieldContainer[CpuLosses]
    perfguest_version: str
    sampling: Sampling
    started: float
    vms: _containers.RepeatedCompositeFieldContainer[VirtualMachine]
    def __init__(self, format_version: _Optional[int] = ..., perfguest_version: _Optional[str] = ..., host: _Optional[_Union[Host, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., vms: _Optional[_Iterable[_Union[VirtualMachine, _Mapping]]] = ..., losses: _Optional[_Iterable[_Union[CpuLosses, _Mapping]]] = ..., started: _Optional[float] = ..., ended: _Optional[float] = ..., complete: bool = ..., ended_by: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ["buffer_kb", "chain_depth", "clock", "command", "event", "frequency", "kernel_stack_bytes", "locator", "perf_command", "perf_version", "trigger", "user_stack_bytes"]
    BUFFER_KB_FIELD_NUMBER: _ClassVar[int]
    CHAIN_DEPTH_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_FIELD_NUMBER: _ClassVar[int]
    KERNEL_STACK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOCATOR_FIELD_NUMBER: _ClassVar[int]
    PERF_COMMAND_FIELD_NUMBER: _ClassVar[int]
    PERF_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    USER_STACK_BYTES_FIELD_NUMBER: _ClassVar[int]
    buffer_kb: int
    chain_depth: int
    clock: str
    command: _containers.RepeatedScalarFieldContainer[str]
    event: str
    frequency: int
    kernel_stack_bytes: int
    locator: str
    perf_command: _containers.RepeatedScalarFieldContainer[str]
    perf_version: str
    trigger: str
    user_stack_bytes: int
    def __init__(self, perf_version: _Optional[str] = ..., perf_command: _Optional[_Iterable[str]] = ..., event: _Optional[str] = ..., frequency: _Optional[int] = ..., clock: _Optional[str] = ..., trigger: _Optional[str] = ..., locator: _Optional[str] = ..., kernel_stack_bytes: _Optional[int] = ..., user_stack_bytes: _Optional[int] = ..., chain_depth: _Optional[int] = ..., command: _Optional[_Iterable[str]] = ..., buffer_kb: _Optional[int] = ...) -> None: ...

class Thread(_message.Message):
    __slots__ = ["comm", "tid"]
    COMM_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    comm: str
    tid: int
    def __init__(self, tid: _Optional[int] = ..., comm: _Optional[str] = ...) -> None: ...

class VirtualMachine(_message.Message):
    __slots__ = ["comm", "command_line", "name", "pid", "start_time", "threads"]
    COMMAND_LINE_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    comm: str
    command_line: _containers.RepeatedScalarFieldContainer[str]
    name: str
    pid: int
    start_time: int
    threads: _containers.RepeatedCompositeFieldContainer[Thread]
    def __init__(self, pid: _Optional[int] = ..., name: _Optional[str] = ..., comm: _Optional[str] = ..., command_line: _Optional[_Iterable[str]] = ..., start_time: _Optional[int] = ..., threads: _Optional[_Iterable[_Union[Thread, _Mapping]]] = ...) -> None: ...
