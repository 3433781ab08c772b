"""Which code, libraries and machine a result came from: what an artifact and a report say about their origin."""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from cluster.core.shadows import PACKAGES

SOURCE_FOLDERS = PACKAGES
SOURCE_SUFFIXES = (".py", ".yaml")
LIBRARIES = ("numpy", "pyarrow", "ray", "scikit-learn", "safetensors", "mlflow", "torch", "tensorflow", "keras",
             "transformers", "tokenizers", "deepspeed", "onnx", "onnxruntime")
_MODULES = {"scikit-learn": "sklearn"}
"""What a library is imported as, where not by its own name."""
_USER_INFO = re.compile(r"://[^/@\s]+:[^/@\s]+@")
_PARAMETER = re.compile(r"(?i)\b(access_key|secret_key|session_token|password|token)=[^&\s]+")
_LABELS = {"code": "code", "processor": "processor", "gpu": "GPU", "threads": "threads", "world_size": "workers"}
ROOT = Path(__file__).parents[2]


def code_version(root: Path = ROOT) -> str:
    """`git:COMMIT`, with `+changes` where the tree differs from it;
    without git (a submitted job), `sha256:…` of the source.

    The hash is over the paths and contents of the Python and YAML files of this project's folders.
    """
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            changed = _git(root, "status", "--porcelain", "--untracked-files=no")
            return f"git:{commit}{'+changes' if changed else ''}"
    return f"sha256:{_source_digest(root)}"


def library_versions() -> dict[str, str]:
    """Versions of Python and of those libraries in `LIBRARIES` that are installed; imports none of them."""
    versions = {name: version for name in LIBRARIES if (version := _installed(name)) is not None}
    return {"python": platform.python_version(), **versions}


def used_libraries(environment: Mapping[str, object] | None = None) -> dict[str, str]:
    """Of `library_versions` those that this process has imported. environment: a checkpoint's, whose workers' libraries
    count, too."""
    known = cast(Mapping[str, str], (environment or {}).get("libraries") or {})
    here = {name: version for name, version in library_versions().items()
            if name == "python" or _MODULES.get(name, name) in sys.modules}
    return {**known, **here}


def machine() -> dict[str, str]:
    """The machine that asks: system, processor model, cores that this process may use."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }


def environment() -> dict[str, object]:
    """System, processor, GPU, cores, threads (OMP_NUM_THREADS), code and installed libraries; imports no library.

    A loop adds what it knows better: `environment() | {"threads": 1, "world_size": 3}`.
    """
    return {**machine(), "gpu": _gpu(), "threads": os.environ.get("OMP_NUM_THREADS"), "code": code_version(),
            "libraries": library_versions()}


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """What is no longer the same, so that bit-identical results are not promised any more;
    one line each, none if all is.

    Something that only one of the two knows does not count.
    """
    before, after = _decisive(old), _decisive(new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if key in after and before[key] != after[key]]


def without_secrets(value: object) -> Any:
    """The same plain value with credentials inside URIs replaced by `***`; nested dicts and lists are gone through."""
    if isinstance(value, str):
        return _PARAMETER.sub(r"\1=***", _USER_INFO.sub("://***@", value))
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in cast(Mapping[str, object], value).items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in cast(list[object], value)]
    return value


@cache
def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10,
                              check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _source_digest(root: Path) -> str:
    digest = hashlib.sha256()
    files = (path for folder in SOURCE_FOLDERS for path in (root / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES)
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _decisive(values: Mapping[str, object]) -> dict[str, str]:
    libraries = cast(Mapping[str, str], values.get("libraries") or {})
    named = {label: values.get(key) for key, label in _LABELS.items()} | dict(libraries)
    return {label: str(value) for label, value in named.items() if value is not None}


def _gpu() -> str | None:
    """Models of NVIDIA GPUs as the driver shows them, without asking a library."""
    models: list[str] = []
    for place in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = place.read_text().splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return ", ".join(models) or None
