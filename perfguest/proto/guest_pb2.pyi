from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Binary(_message.Message):
    __slots__ = ["build_id", "format_version", "pages", "path", "size"]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    build_id: bytes
    format_version: int
    pages: _containers.RepeatedCompositeFieldContainer[Bytes]
    path: bytes
    size: int
    def __init__(self, format_version: _Optional[int] = ..., build_id: _Optional[bytes] = ..., path: _Optional[bytes] = ..., size: _Optional[int] = ..., pages: _Optional[_Iterable[_Union[Bytes, _Mapping]]] = ...) -> None: ...

class Bytes(_message.Message):
    __slots__ = ["address", "data"]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    address: int
    data: bytes
    def __init__(self, address: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class GuestEvent(_message.Message):
    __slots__ = ["kernel", "module_text", "problem", "process"]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    MODULE_TEXT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    kernel: VmKernel
    module_text: ModuleText
    problem: Problem
    process: Process
    def __init__(self, kernel: _Optional[_Union[VmKernel, _Mapping]] = ..., process: _Optional[_Union[Process, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., module_text: _Optional[_Union[ModuleText, _Mapping]] = ...) -> None: ...

class Kernel(_message.Message):
    __slots__ = ["build_id", "format_version", "has_btf", "orc", "release", "symbols", "text"]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_BTF_FIELD_NUMBER: _ClassVar[int]
    ORC_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    build_id: bytes
    format_version: int
    has_btf: bool
    orc: Orc
    release: str
    symbols: Symbols
    text: _containers.RepeatedCompositeFieldContainer[Bytes]
    def __init__(self, format_version: _Optional[int] = ..., release: _Optional[str] = ..., build_id: _Optional[bytes] = ..., symbols: _Optional[_Union[Symbols, _Mapping]] = ..., text: _Optional[_Iterable[_Union[Bytes, _Mapping]]] = ..., orc: _Optional[_Union[Orc, _Mapping]] = ..., has_btf: bool = ...) -> None: ...

class Mapping(_message.Message):
    __slots__ = ["binary", "end", "executable", "inode", "offset", "path", "start"]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    binary: str
    end: int
    executable: bool
    inode: int
    offset: int
    path: bytes
    start: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., offset: _Optional[int] = ..., path: _Optional[bytes] = ..., inode: _Optional[int] = ..., executable: bool = ..., binary: _Optional[str] = ...) -> None: ...

class Module(_message.Message):
    __slots__ = ["address", "build_id", "name", "orc", "size", "symbols"]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ORC_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    address: int
    build_id: bytes
    name: bytes
    orc: Orc
    size: int
    symbols: Symbols
    def __init__(self, name: _Optional[bytes] = ..., build_id: _Optional[bytes] = ..., address: _Optional[int] = ..., size: _Optional[int] = ..., symbols: _Optional[_Union[Symbols, _Mapping]] = ..., orc: _Optional[_Union[Orc, _Mapping]] = ...) -> None: ...

class ModuleText(_message.Message):
    __slots__ = ["address", "lstar", "packed", "size", "time", "vm_id", "vm_pid"]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LSTAR_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_PID_FIELD_NUMBER: _ClassVar[int]
    address: int
    lstar: int
    packed: bytes
    size: int
    time: int
    vm_id: int
    vm_pid: int
    def __init__(self, vm_pid: _Optional[int] = ..., vm_id: _Optional[int] = ..., time: _Optional[int] = ..., lstar: _Optional[int] = ..., address: _Optional[int] = ..., size: _Optional[int] = ..., packed: _Optional[bytes] = ...) -> None: ...

class Orc(_message.Message):
    __slots__ = ["addresses", "entries"]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    addresses: bytes
    entries: bytes
    def __init__(self, addresses: _Optional[bytes] = ..., entries: _Optional[bytes] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ["text", "vm_pid"]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VM_PID_FIELD_NUMBER: _ClassVar[int]
    text: str
    vm_pid: int
    def __init__(self, vm_pid: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ["cgroup", "comm", "command", "cr3", "mappings", "namespace_pid", "perf_map", "pid", "start_time", "tgid", "time", "vm_id", "vm_pid"]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    CR3_FIELD_NUMBER: _ClassVar[int]
    MAPPINGS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_PID_FIELD_NUMBER: _ClassVar[int]
    PERF_MAP_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    TGID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_PID_FIELD_NUMBER: _ClassVar[int]
    cgroup: bytes
    comm: bytes
    command: bytes
    cr3: int
    mappings: _containers.RepeatedCompositeFieldContainer[Mapping]
    namespace_pid: int
    perf_map: bytes
    pid: int
    start_time: int
    tgid: int
    time: int
    vm_id: int
    vm_pid: int
    def __init__(self, vm_pid: _Optional[int] = ..., vm_id: _Optional[int] = ..., time: _Optional[int] = ..., pid: _Optional[int] = ..., tgid: _Optional[int] = ..., start_time: _Optional[int] = ..., comm: _Optional[bytes] = ..., command: _Optional[bytes] = ..., cgroup: _Optional[bytes] = ..., namespace_pid: _Optional[int] = ..., cr3: _Optional[int] = ..., mappings: _Optional[_Iterable[_Union[Mapping, _Mapping]]] = ..., perf_map: _Optional[bytes] = ...) -> None: ...

class Symbols(_message.Message):
    __slots__ = ["addresses", "names", "types"]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    addresses: bytes
    names: bytes
    types: bytes
    def __init__(self, addresses: _Optional[bytes] = ..., types: _Optional[bytes] = ..., names: _Optional[bytes] = ...) -> None: ...

class VmKernel(_message.Message):
    __slots__ = ["bpf", "cpu_seconds", "kaslr_offset", "kernel", "level", "lstar", "modules", "reason", "time", "vm_id", "vm_pid"]
    BPF_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KASLR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LSTAR_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_PID_FIELD_NUMBER: _ClassVar[int]
    bpf: Symbols
    cpu_seconds: float
    kaslr_offset: int
    kernel: str
    level: str
    lstar: int
    modules: _containers.RepeatedCompositeFieldContainer[Module]
    reason: str
    time: int
    vm_id: int
    vm_pid: int
    def __init__(self, vm_pid: _Optional[int] = ..., vm_id: _Optional[int] = ..., time: _Optional[int] = ..., kernel: _Optional[str] = ..., kaslr_offset: _Optional[int] = ..., lstar: _Optional[int] = ..., modules: _Optional[_Iterable[_Union[Module, _Mapping]]] = ..., bpf: _Optional[_Union[Symbols, _Mapping]] = ..., level: _Optional[str] = ..., reason: _Optional[str] = ..., cpu_seconds: _Optional[float] = ...) -> None: ...
