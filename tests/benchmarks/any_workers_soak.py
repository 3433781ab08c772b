"""`--run.exact any-workers` for each job, again and again: one digest for every number of workers, changed in mid-run
or not, under SIGKILLs, and across hosts."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import runs
from tests.benchmarks.hosts import digest, state
from tests.benchmarks.results import Figure, Outcome
from tests.faults import cnn, ray_hosts, walk
from tests.faults import test_transformer_faults as transformer
from tests.faults.ray_hosts import Cluster

TITLE = "the same bits on 1 to 4 workers, and from 3 to 1, 2 and 3 under SIGKILLs"
IMAGES = ["--run.num-shards", "5", "--train.epochs", "16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    only: tuple[str, ...] = ("MLP", "PyTorch", "CNN", "Transformer")
    steps: int = 300
    repeats: int = 10
    workers: tuple[int, ...] = (2, 3, 4)
    """Numbers of workers that do not change on the way."""
    across_hosts: int = 1
    """How often each job makes the way from 3 to 3 workers on three hosts."""


QUICK = Settings(only=("MLP",), repeats=1, workers=(2,), across_hosts=0)
NOTES = (
    "Dropout and augmentation are on where a job has them. What must be equal to the run of one worker: all tensors of "
    "the last checkpoint, model and optimiser, byte for byte, the artifact's sha256, the metrics, and the rows of "
    "every step.",
    "From 3 to 3: on three workers, one of which is killed at a random step, then the driver; on one, driver killed; "
    "on two, one killed, then the driver; on three, one killed, to the end. The steps are in the samples.",
    "Across hosts (Linux namespaces with an address, shared memory and process numbers of their own, one worker each) "
    "drivers alone are killed; the run of one worker is a process of the machine itself.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    text = transformer.written_text(workspace)
    jobs = {name: (job, [*flags, "--run.exact", "any-workers", "--train.max-steps", str(settings.steps)])
            for name, (job, flags) in jobs_of(text).items() if name in settings.only}
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for name, (job, flags) in jobs.items():
        with runs.run(workspace / name / "alone", *flags, "--run.workers", "1", quick=False, job=job) as started:
            started.finished(600)
        for number in range(settings.repeats):
            for workers in settings.workers:
                with runs.run(workspace / name / f"{number}-{workers}", *flags, "--run.workers", str(workers),
                              quick=False, job=job) as started:
                    started.finished(600)
                samples[name].append(compared(job, started.folder, f"{workers} workers"))
            samples[name].append(moved(job, flags, workspace / name / f"{number}-moved", settings.steps))
    if settings.across_hosts:
        with ray_hosts.cluster([1, 1, 1]) as cluster:
            cluster.await_nodes()
            for name, (job, flags) in jobs.items():
                for number in range(settings.across_hosts):
                    folder = workspace / name / f"{number}-hosts"
                    samples[name].append(moved(job, flags, folder, settings.steps, cluster))
    return Outcome(figures=tuple(figure for name in jobs for figure in figures(name, samples[name])), samples=samples,
                   notes=(f"{settings.steps} steps, {settings.repeats} times.", *NOTES))


def jobs_of(text: Path) -> Mapping[str, tuple[str, list[str]]]:
    """Name → the job's own, and its flags."""
    module = [*runs.QUICK[2:], "--model.build", "tests.unit.own_classes:Images"]
    return {"MLP": ("mlp", [*runs.QUICK, *IMAGES, "--run.trace-rows"]),
            "PyTorch": ("pytorch", [*module, *IMAGES, "--run.trace-rows"]),
            "CNN": ("cnn", [*cnn.FLAGS, *IMAGES]),
            "Transformer": ("transformer", [*transformer.flags_of("ddp", text), "--run.num-shards", "4",
                                            "--train.epochs", "10"])}


def moved(job: str, flags: list[str], folder: Path, steps: int, cluster: Cluster | None = None) -> dict[str, Any]:
    """From 3 to 1, 2 and 3 workers."""
    where: dict[str, Any] = {"engine": "ray", "env": cluster.environment(),
                             "on": cluster.head.command()} if cluster else {}

    def start(workers: int) -> runs.Start:
        return runs.run(folder, *flags, "--run.workers", str(workers), quick=False, job=job, **where)

    began, at = time.monotonic(), sorted(random.sample(range(20, steps // 2), 4))
    if cluster:  # processes have other numbers there
        walk.walked(start, at, None, lambda started: runs.end_tree(started.process.pid), 600)
    else:
        walk.walked(start, at, timeout_s=600)
    how = "across hosts, from 3 to 3 workers" if cluster else "from 3 to 3 workers"
    return compared(job, folder, how) | {"at_steps": at, "seconds": round(time.monotonic() - began, 1)}


def compared(job: str, folder: Path, how: str) -> dict[str, Any]:
    alone = folder.parent / "alone"
    mine, theirs = state(job, folder), state(job, alone)
    equal = {"tensors": {name: each.tobytes() for name, each in mine.items()}
             == {name: each.tobytes() for name, each in theirs.items()},
             "artifact": digest(job, folder) == digest(job, alone),
             "metrics": runs.result(folder)["metrics"] == runs.result(alone)["metrics"],
             # who is killed right after a step may not have noted its rows
             "rows": runs.consumed_rows(folder).items() <= runs.consumed_rows(alone).items()}
    print(f"{job}, {how}: {equal}", flush=True)
    return {"how": how, "equal": equal, "restarts": runs.result(folder)["restarts"]}


def figures(name: str, samples: list[dict[str, Any]]) -> list[Figure]:
    """How many runs are equal, of each way."""
    found: list[Figure] = []
    for how in dict.fromkeys(sample["how"] for sample in samples):
        equal = [all(sample["equal"].values()) for sample in samples if sample["how"] == how]
        found.append(Figure(name=f"{name}, {how}: runs with the bits of one worker's", value=sum(equal),
                            unit=f"of {len(equal)}", at_least=len(equal)))
    return found
