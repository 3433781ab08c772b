"""Which files an artifact may hold: formats that cannot run code when they are read; never pickle, under any name."""

import zipfile
from pathlib import PurePosixPath
from typing import Any

from jobs.common import onnx_format

HEAD_BYTES = 16
SAFE_SUFFIXES = (".safetensors", ".keras", ".json", ".txt", ".md", ".model", ".jinja", ".onnx")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".py", ".so")


def refusal(path: str, head: bytes | None = None, stream: Any = None) -> str | None:
    """Why a file may not be in an artifact, to follow its name; None if it may.

    head: its first `HEAD_BYTES`, where they are known. stream: the open, seekable file, for a look inside an archive or a graph.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in SAFE_SUFFIXES:
        return f"is not in a safe format ({', '.join(SAFE_SUFFIXES)}): {suffix or 'no suffix'} may hold a pickle"
    if head is None:
        return None
    if suffix == ".safetensors":
        return None if head[8:9] == b"{" else "is not safetensors"
    if suffix == ".keras":
        return _archive_refusal(stream) if head[:4] == b"PK\x03\x04" else "is not a Keras archive"
    if suffix == ".onnx":
        return _onnx_refusal(head, stream)
    return _pickle_refusal(head)


def _pickle_refusal(head: bytes) -> str | None:
    looks_pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return "holds a pickle" if looks_pickled or head[:4] == b"PK\x03\x04" or head[:6] == b"\x93NUMPY" else None


def _onnx_refusal(head: bytes, stream: Any) -> str | None:
    if stream is None:
        return _pickle_refusal(head)
    stream.seek(0)
    return _pickle_refusal(head) or onnx_format.refusal(stream.read())


def _archive_refusal(stream: Any) -> str | None:
    if stream is None:
        return None
    try:
        names = zipfile.ZipFile(stream).namelist()
    except zipfile.BadZipFile:
        return "is a damaged archive"
    unsafe = [name for name in names if PurePosixPath(name).suffix.lower() in _PICKLES]
    return f"holds {unsafe[0]}, which may be a pickle" if unsafe else None
