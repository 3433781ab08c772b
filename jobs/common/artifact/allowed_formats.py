"""Which files an artifact may hold: formats that cannot run code when they are read; never pickle, under any name."""

import io
import sys
import zipfile
from collections.abc import Collection
from pathlib import PurePosixPath

from jobs.common.archives import expansion_refusal
from jobs.common.artifact import model_config, onnx_format
from jobs.common.checkpoint.safetensors_image import header_bytes, read_header

SAFE_SUFFIXES = (".safetensors", ".keras", ".json", ".txt", ".md", ".model", ".jinja", ".onnx")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".py", ".so")
_HEAD_BYTES = 16


def name_refusal(path: str) -> str | None:
    """Why a file of this name may not be in an artifact, to follow the name; None if it may."""
    suffix = _suffix(path)
    if suffix in SAFE_SUFFIXES:
        return None
    return f"is not in a safe format ({', '.join(SAFE_SUFFIXES)}): {suffix or 'no suffix'} may hold a pickle"


def bytes_checked(path: str, head: bytes) -> int:
    """How many bytes from the start of a file `refusal` has to see. head: its first 8."""
    if _suffix(path) == ".safetensors":
        return 8 + header_bytes(head[:8])
    return sys.maxsize if _suffix(path) in (".keras", ".onnx", ".json") else _HEAD_BYTES


def refusal(path: str, begins: bytes, size: int, beside: Collection[str] | None = None) -> str | None:
    """Why a file may not be in an artifact, to follow its name; None if it may.

    begins: its first `bytes_checked` bytes. size: of all of it.
    beside: the names of the files in its folder, where known.
    """
    suffix = _suffix(path)
    if suffix == ".safetensors":
        return _tensors_refusal(begins, size)
    if suffix == ".keras":
        return _archive_refusal(begins) if begins[:4] == b"PK\x03\x04" else "is not a Keras archive"
    if why := head_refusal(path, begins):
        return why
    if suffix == ".onnx":
        return onnx_format.refusal(begins)
    return model_config.refusal(path, begins, beside) if suffix == ".json" else None


def head_refusal(path: str, head: bytes) -> str | None:
    """The same of a file of which only the beginning is known, while the rest is still to be written."""
    if _suffix(path) in (".safetensors", ".keras"):
        right = head[8:9] == b"{" if _suffix(path) == ".safetensors" else head[:4] == b"PK\x03\x04"
        return None if right else f"is not {_suffix(path)}"
    looks_pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return "holds a pickle" if looks_pickled or head[:4] == b"PK\x03\x04" or head[:6] == b"\x93NUMPY" else None


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _tensors_refusal(begins: bytes, size: int) -> str | None:
    try:
        read_header(begins, size)
    except ValueError as error:
        return f"is not safetensors ({error})"
    return None


def _archive_refusal(data: bytes) -> str | None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "is a damaged archive"
    unsafe = [name for name in archive.namelist() if PurePosixPath(name).suffix.lower() in _PICKLES]
    return f"holds {unsafe[0]}, which may be a pickle" if unsafe else expansion_refusal(archive, len(data))
