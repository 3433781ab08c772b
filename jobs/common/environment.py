"""Where a result was computed, as far as it decides bits: recorded in each checkpoint, artifact and report."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.common.provenance import code_version, library_versions, machine

_LABELS = {"code": "code", "processor": "processor", "gpu": "GPU", "threads": "threads", "world_size": "workers"}


def environment() -> dict[str, Any]:
    """System, processor, GPU, cores, threads (OMP_NUM_THREADS), code and library versions; imports no library.

    A loop adds what it knows better: `environment() | {"threads": 1, "world_size": 3}`.
    """
    return machine() | {
        "gpu": _gpu(), "threads": os.environ.get("OMP_NUM_THREADS"), "code": code_version(), "libraries": library_versions(),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is no longer the same, so that bit-identical results are not promised any more; one line each, none if all is.

    Something that only one of the two knows does not count.
    """
    before, after = _decisive(old), _decisive(new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if key in after and before[key] != after[key]]


def _decisive(values: Mapping[str, Any]) -> dict[str, str]:
    named = {label: values.get(key) for key, label in _LABELS.items()} | dict(values.get("libraries") or {})
    return {label: str(value) for label, value in named.items() if value is not None}


def _gpu() -> str | None:
    """Models of NVIDIA GPUs as the driver shows them, without asking a library."""
    models: list[str] = []
    for place in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = place.read_text().splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return ", ".join(models) or None
