"""Tensors in a safetensors file: laid out in reused memory, hashed and checked while they are written,
verified while read.

The memory that a snapshot is copied into *is* the file, header and all, so writing needs no second copy and no
serialiser:
    bytes 0-7: length of the header | header: JSON, padded with spaces to 64 bytes | the tensors' raw bytes
(https://github.com/huggingface/safetensors#format). Tensors are sorted by item size (largest first), type and name, so
each is aligned and the file is the same whatever order they came in. NumPy has no bfloat16: such tensors, of others,
come back as the bits, uint16.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cluster.core.documents import parse_json
from cluster.core.errors import CheckpointError, NonFiniteStateError
from cluster.core.storage import Store, moved
from jobs.common.arrays import Array
from jobs.common.checkpoint.manifest import explain_reading

Tensors = Mapping[str, Array]

PIECE_BYTES = 4 << 20
"""Hashed, checked and written at a time: fits a core's cache, and is large enough that the GIL is hardly ever held."""
MOST_HEADER_BYTES = 64 << 20
"""Those of a million tensors."""

_TAGS = {"float64": "F64", "int64": "I64", "uint64": "U64", "float32": "F32", "int32": "I32", "uint32": "U32",
         "float16": "F16",
         "int16": "I16", "uint16": "U16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
_DTYPES = {tag: np.dtype(name).newbyteorder("<") for name, tag in (*_TAGS.items(), ("uint16", "BF16"))}
_FLOATS = ("F64", "F32", "F16")


class FileEntry(Protocol):
    """What a manifest says of one file: of a checkpoint, or of an artifact."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor lies: [start, stop) in bytes after the header."""

    name: str
    tag: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class _Entry:
    """What a header says of one tensor. `__metadata__` is the other thing that it holds, a name and text each."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class FileImage:
    """One safetensors file in page-aligned memory,
    which is kept and filled again as long as the tensors' shapes stay."""

    def __init__(self) -> None:
        self._wanted: list[tuple[str, str, tuple[int, ...]]] = []
        self._specs: list[TensorSpec] = []
        self._views: dict[str, Array] = {}
        self._data_start = 0
        self.data = memoryview(b"")
        """The file's bytes."""

    def fill(self, tensors: Tensors) -> None:
        """Copies the tensors in, at the speed of memory. Raises: TypeError."""
        self._lay_out(tensors)
        for name, view in self._views.items():
            np.copyto(view, tensors[name])

    def _lay_out(self, tensors: Tensors) -> None:
        """Makes memory for these tensors, if it is not there already."""
        wanted = sorted(((name, _tag(name, array), array.shape) for name, array in tensors.items()), key=_order)
        if wanted == self._wanted and self.data:
            return
        self._views, self.data = {}, memoryview(b"")  # lets the old memory go first
        self._wanted, self._specs = wanted, _specs(wanted)
        header = _header(self._specs)
        size = len(header) + (self._specs[-1].stop if self._specs else 0)
        self._data_start, self.data = len(header), _memory(size)
        self.data[: len(header)] = header
        self._views = {spec.name: self._view(spec) for spec in self._specs}

    def pieces(self) -> Iterator[memoryview]:
        """The file in order, with every floating-point number looked at.
        Raises: NonFiniteStateError, naming the tensor."""
        for start in range(0, len(self.data), PIECE_BYTES):
            stop = min(start + PIECE_BYTES, len(self.data))
            yield self.data[start:stop]
            self._require_finite(start - self._data_start, stop - self._data_start)

    def _require_finite(self, start: int, stop: int) -> None:
        for tag, first, last in _regions(self._specs):
            low, high = max(first, start), min(last, stop)
            if tag in _FLOATS and low < high and not _finite(self._flat(tag, low, high)):
                raise NonFiniteStateError(f"tensor {self._first_non_finite(tag, low, high)!r} holds NaN or infinity")

    def _first_non_finite(self, tag: str, start: int, stop: int) -> str:
        for spec in self._specs:
            low, high = max(spec.start, start), min(spec.stop, stop)
            if spec.tag == tag and low < high and not _finite(self._flat(tag, low, high)):
                return spec.name
        raise AssertionError("a region is made of its tensors")

    def _flat(self, tag: str, start: int, stop: int) -> Array:
        return np.frombuffer(self.data[self._data_start + start : self._data_start + stop], _DTYPES[tag])

    def _view(self, spec: TensorSpec) -> Array:
        return self._flat(spec.tag, spec.start, spec.stop).reshape(spec.shape)


def write_pieces(pieces: Iterator[memoryview], write: Callable[[memoryview], object]) -> tuple[int, str]:
    """Passes the pieces on while hashing them; their total size and sha256."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        write(piece)
        moved()
        size += len(piece)
    return size, digest.hexdigest()


def damage(store: Store, entry: FileEntry) -> str | None:
    """What is wrong with a stored file, or None. Reads all of it, in pieces."""
    try:
        _read(store, entry, np.empty(PIECE_BYTES, np.uint8))
    except CheckpointError as error:
        return str(error)
    return None


def read_tensors(store: Store, entry: FileEntry) -> dict[str, Array]:
    """The tensors of one file, writable, in memory of the file's size that they share.

    Raises: CheckpointError if the file is not there or not what was written,
    StorageError if the storage cannot be read.
    """
    data = np.empty(entry.size, np.uint8)
    _read(store, entry, data)
    return tensors_in(data, entry)


def tensors_in(data: npt.NDArray[np.uint8], entry: FileEntry) -> dict[str, Array]:
    """The tensors of a file that has been read: they share its memory. Raises: CheckpointError."""
    try:
        data_start, specs = read_header(data.data, entry.size)
    except ValueError as error:
        raise CheckpointError(f"{entry.path}: is not safetensors ({error})") from error
    return {s.name: data[data_start + s.start : data_start + s.stop].view(_DTYPES[s.tag]).reshape(s.shape)
            for s in specs}


def header_bytes(head: bytes) -> int:
    """How long a file's header is, or as much of it as is read. head: the file's first 8 bytes."""
    return min(int.from_bytes(head, "little"), MOST_HEADER_BYTES)


def read_header(begins: bytes | memoryview, size: int) -> tuple[int, list[TensorSpec]]:
    """Where the tensors of a file begin, and each of them, in the order of their bytes.

    begins: the file's bytes, at least as far as its header goes. size: of the whole file.
    Raises: ValueError if it is not safetensors, or tensors lie outside the file or do not fill it one after the other.
    """
    start = 8 + int.from_bytes(begins[:8], "little")
    if size < 8 or start > min(size, 8 + MOST_HEADER_BYTES) or len(begins) < start:
        raise ValueError(f"its header of {start - 8:,} bytes does not fit")
    header = parse_json(bytes(begins[8:start]), dict[str, _Entry | dict[str, str]])
    found = [_spec(name, entry) for name, entry in header.items() if isinstance(entry, _Entry)]
    specs = sorted(found, key=lambda spec: (spec.start, spec.stop))
    end = 0
    for spec in specs:
        if spec.start != end:
            raise ValueError(f"tensor {spec.name!r} does not begin where the one before it ends")
        end = spec.stop
    if start + end != size:
        raise ValueError(f"its tensors have {end:,} bytes, the file {size - start:,} for them")
    return start, specs


def _spec(name: str, entry: _Entry) -> TensorSpec:
    """Raises: ValueError."""
    start, stop = entry.data_offsets
    if entry.dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} is of the type {entry.dtype[:20]!r}")
    if min(0, *entry.shape, start) < 0 or stop - start != math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize:
        raise ValueError(f"tensor {name!r} of shape {entry.shape} is not what its {stop - start} bytes hold")
    return TensorSpec(name, entry.dtype, entry.shape, start, stop)


def _read(store: Store, entry: FileEntry, memory: npt.NDArray[np.uint8]) -> None:
    """Reads a whole file through memory (of the file's size, or less and used again and again),
    comparing size and hash."""
    digest = hashlib.sha256()
    try:
        with store.reading(entry.path) as stream:
            if stream.size() != entry.size:
                raise CheckpointError(f"{entry.path}: has {stream.size()} bytes, {entry.size} were written")
            for start in range(0, entry.size, PIECE_BYTES):
                place = memory[start : start + PIECE_BYTES] if len(memory) == entry.size else memory
                piece = place[: min(PIECE_BYTES, entry.size - start)]
                if stream.readinto(piece) != len(piece):
                    raise CheckpointError(f"{entry.path}: ends early")
                moved()
                digest.update(piece.data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{entry.path}: is missing") from error
    except OSError as error:
        raise explain_reading(error, store, entry.path) from error
    if digest.hexdigest() != entry.sha256:
        raise CheckpointError(f"{entry.path}: sha256 differs")


def _memory(size: int) -> memoryview:
    """Page-aligned, not shared with children."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _tag(name: str, array: Array) -> str:
    if name == "__metadata__" or array.dtype.name not in _TAGS:
        raise TypeError(f"tensor {name!r} of type {array.dtype} cannot be stored as safetensors")
    return _TAGS[array.dtype.name]


def _order(wanted: tuple[str, str, tuple[int, ...]]) -> tuple[int, str, str]:
    name, tag, _ = wanted
    return -_DTYPES[tag].itemsize, tag, name


def _specs(wanted: list[tuple[str, str, tuple[int, ...]]]) -> list[TensorSpec]:
    specs: list[TensorSpec] = []
    start = 0
    for name, tag, shape in wanted:
        stop = start + int(np.prod(shape, dtype=np.int64)) * _DTYPES[tag].itemsize
        specs.append(TensorSpec(name, tag, shape, start, stop))
        start = stop
    return specs


def _header(specs: list[TensorSpec]) -> bytes:
    entries = {s.name: {"dtype": s.tag, "shape": list(s.shape), "data_offsets": [s.start, s.stop]} for s in specs}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _regions(specs: list[TensorSpec]) -> Iterator[tuple[str, int, int]]:
    """(tag, start, stop) of the tensors of each type, which lie together."""
    for tag in dict.fromkeys(spec.tag for spec in specs):
        same = [spec for spec in specs if spec.tag == tag]
        yield tag, same[0].start, same[-1].stop


def _finite(values: Array) -> bool:
    """Whether all are finite. A finite sum says so at the speed of memory; only another one needs a closer look."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.add.reduce(values))) or bool(np.isfinite(values).all())
