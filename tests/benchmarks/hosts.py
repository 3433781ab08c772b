"""Every job across hosts: the same weights, bit for bit, as from as many processes of one machine."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import runs
from tests.benchmarks.results import Figure, Outcome
from tests.faults import cnn, ray_hosts
from tests.faults import test_transformer_faults as transformer
from tests.faults.ray_hosts import Cluster

TITLE = "every job on three workers across three hosts, against three processes of one machine"
MLP = [*runs.QUICK, "--run.workers", "3", "--train.epochs", "4"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    only: tuple[str, ...] = ()


QUICK = Settings(only=("MLP",))
NOTES = (
    "Hosts are Linux namespaces with an address, shared memory and process numbers of their own, one worker each; the "
    "driver is on the first. The same: all tensors of the last checkpoint, model and optimiser, byte for byte, and the "
    "artifact's sha256.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    text = transformer.written_text(workspace)
    jobs: dict[str, tuple[str, list[str]]] = {
        "MLP": ("mlp", MLP), "CNN": ("cnn", [*cnn.FLAGS, "--run.workers", "3"]),
        **{f"Transformer, {strategy}": ("transformer", transformer.flags_of(strategy, text))
           for strategy in ("ddp", "zero2", "zero3")},
    }
    samples: dict[str, dict[str, Any]] = {}
    with ray_hosts.cluster([1, 1, 1]) as cluster:
        cluster.await_nodes()
        for name, (job, flags) in jobs.items():
            if not settings.only or name in settings.only:
                samples[name] = compared(cluster, workspace / name.replace(", ", "-"), job, flags)
    figures = [Figure(name=f"{name}: equal bit for bit", value=found["equal"], at_least=1)
               for name, found in samples.items()]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def compared(cluster: Cluster, folder: Path, job: str, flags: list[str]) -> dict[str, Any]:
    began = time.monotonic()
    alone, across = folder / "alone", folder / "across"
    with runs.run(alone, *flags, quick=False, job=job) as started:
        started.finished(300)
    with runs.run(across, *flags, quick=False, job=job, engine="ray", env=cluster.environment(),
                  on=cluster.head.command()) as started:
        result = started.finished(300)
    mine, theirs = state(job, across), state(job, alone)
    equal = mine.keys() == theirs.keys() and all(mine[key].tobytes() == theirs[key].tobytes() for key in mine)
    return {"equal": int(equal and digest(job, across) == digest(job, alone)), "tensors": len(mine),
            "restarts": result["restarts"],
            "seconds": round(time.monotonic() - began, 1)}


def state(job: str, folder: Path) -> dict[Any, Any]:
    """Every tensor of the newest checkpoint."""
    return {**transformer.state(folder)} if job == "transformer" else {**runs.weights(folder)}


def digest(job: str, folder: Path) -> str:
    return cnn.keras_digest(folder) if job == "cnn" else runs.artifact_digest(folder)
