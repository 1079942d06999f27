from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KernelRaw(_message.Message):
    __slots__ = ["banner", "btf", "entry", "notes", "orc_entries", "orc_places", "symbols", "text"]
    BANNER_FIELD_NUMBER: _ClassVar[int]
    BTF_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ORC_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ORC_PLACES_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    banner: Piece
    btf: Piece
    entry: int
    notes: Piece
    orc_entries: Piece
    orc_places: Piece
    symbols: Piece
    text: int
    def __init__(self, entry: _Optional[int] = ..., notes: _Optional[_Union[Piece, _Mapping]] = ..., banner: _Optional[_Union[Piece, _Mapping]] = ..., symbols: _Optional[_Union[Piece, _Mapping]] = ..., btf: _Optional[_Union[Piece, _Mapping]] = ..., orc_places: _Optional[_Union[Piece, _Mapping]] = ..., orc_entries: _Optional[_Union[Piece, _Mapping]] = ..., text: _Optional[int] = ...) -> None: ...

class KernelTables(_message.Message):
    __slots__ = ["addresses", "btf_places", "build_id", "fingerprint", "format_version", "names", "raw", "release", "types"]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    BTF_PLACES_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    addresses: bytes
    btf_places: bytes
    build_id: bytes
    fingerprint: str
    format_version: int
    names: bytes
    raw: KernelRaw
    release: str
    types: bytes
    def __init__(self, format_version: _Optional[int] = ..., fingerprint: _Optional[str] = ..., release: _Optional[str] = ..., build_id: _Optional[bytes] = ..., raw: _Optional[_Union[KernelRaw, _Mapping]] = ..., addresses: _Optional[bytes] = ..., types: _Optional[bytes] = ..., names: _Optional[bytes] = ..., btf_places: _Optional[bytes] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ["address", "data", "moved", "sha256", "size"]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    address: int
    data: bytes
    moved: int
    sha256: bytes
    size: int
    def __init__(self, address: _Optional[int] = ..., size: _Optional[int] = ..., moved: _Optional[int] = ..., sha256: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...
