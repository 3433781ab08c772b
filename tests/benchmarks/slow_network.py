"""A step of the Transformer over a slow network, by strategy, and what sending less, or more rarely, gives back."""

import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Figure, Outcome
from tests.faults import ray_hosts
from tests.runs import Job, result, run

TITLE = "a training step over 100 Mbit/s and 20 ms, by strategy"
FAST = "one machine's memory as the network"
ROWS = 12
"""Of a pass on a worker."""
FLAGS = ("--task", "generate", "--data.tokenizer", "characters", "--data.max-length", "64", "--model.layers", "4",
         "--model.heads",
         "4", "--model.dropout", "0", "--run.tracking-uri", "none", "--eval.samples", "0", "--run.workers", "2",
         "--run.max-failures", "0", "--run.checkpoint-every-steps", "1000000",
         "--train.epochs", "1000000", "--train.max-rows-per-pass", str(ROWS))
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "ddp": (1, ()),
    "ddp, gradients in bf16": (1, ("--scale.gradients", "bf16")),
    "ddp, 4 passes a step": (4, ()),
    "ddp, 4 passes a step, gradients in bf16": (4, ("--scale.gradients", "bf16")),
    "zero2": (1, ("--scale.strategy", "zero2")),
    "zero2, 4 passes a step": (4, ("--scale.strategy", "zero2")),
    "zero3": (1, ("--scale.strategy", "zero3")),
}
"""Name -> passes of a worker in a step, and flags."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 256
    """3.2 million parameters: 12.7 MB of gradients in fp32."""
    steps: int = 44
    """The first 20 are left out."""
    mbit_per_s: float = 100.0
    delay_s: float = 0.02
    repeats: int = 1
    cases: tuple[str, ...] = tuple(CASES)


QUICK = Settings(width=64, steps=30, cases=("ddp", "zero3"))
NOTES = (
    "Two hosts (Linux namespaces of one machine) with a worker each, and the head on a third. Links of 100 Mbit/s each "
    "way (tc tbf); what a host sends is 20 ms on its way (tests/faults/wire.py), so 40 ms there and back.",
    "From a run's own samples per second, of both workers, its first 20 steps left out. With more "
    "passes a step it sums more rows at a time, so another batch size and learning rate.",
    "Both workers and all of Ray share two cores, so without a slow network too a row takes longer than on machines of "
    "their own.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    text = written(workspace / "text.txt")
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with ray_hosts.cluster([0, 1, 1]) as cluster:
        cluster.await_nodes()
        for network in (FAST, "slow network"):
            if network != FAST:
                for host in cluster.net.hosts:
                    cluster.net.limit(host, settings.mbit_per_s)
                    cluster.net.delay(host, settings.delay_s)
            samples[network] = {name: [] for name in settings.cases}
            for repeat in range(settings.repeats):
                for number, name in enumerate(settings.cases):
                    folder = workspace / f"{len(samples)}-{number}-{repeat}"
                    samples[network][name].append(trained(cluster, folder, text, settings, *CASES[name]))
    return Outcome(figures=tuple(figures(samples)), samples=samples, notes=NOTES)


def figures(samples: dict[str, dict[str, list[dict[str, Any]]]]) -> list[Figure]:
    found: list[Figure] = []
    rate = {network: {name: statistics.median(each["samples_per_s"] for each in runs) for name, runs in cases.items()}
            for network, cases in samples.items()}
    slow = rate["slow network"]
    for name in slow:
        rows = 2 * ROWS * CASES[name][0]
        found += [Figure(name=f"{name}: a step, {network}", value=1e3 * rows / rates[name], unit="ms")
                  for network, rates in rate.items()]
    found += [Figure(name=f"{name}: rows per second over those of ddp, slow network", value=slow[name] / slow["ddp"])
              for name in slow if name != "ddp"]
    return found


def trained(cluster: ray_hosts.Cluster, folder: Path, text: Path, settings: Settings, passes: int,
            flags: tuple[str, ...]) -> dict[str, Any]:
    every = [*FLAGS, "--data.uri", str(text), "--model.width", str(settings.width), "--train.max-steps",
             str(settings.steps),
             "--train.global-batch-size", str(2 * ROWS * passes), *flags]
    with run(folder, *every, quick=False, job="transformer", engine="ray", env=cluster.environment(),
             on=cluster.workers[0].command()) as job:
        found = _ended(job)
    return {name: found[name] for name in ("samples_per_s", "steps", "restarts")}


def _ended(job: Job) -> dict[str, Any]:
    assert job.wait(900) == 0, job.text[-4000:]
    return result(job.folder)


def written(path: Path) -> Path:
    """Some 3,000 rows of words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(300)]
    path.write_text(" ".join(rng.choices(words, k=35_000)))
    return path
