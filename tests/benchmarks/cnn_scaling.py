"""The CNN on two workers against one, where the rest of a step goes, and what Ray Train adds to a step."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import images, ray_cluster, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Record, Watch
from tests.runs import ROOT

TITLE = "the CNN on two workers against one, and under Ray Train against the local session"
WATCHED = "tests.benchmarks.cnn_watched"
TEXTBOOK = ("--config", str(ROOT / "jobs/cnn/textbook.yaml"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 12_000
    """Of the textbook network's legs; the default one, which takes six times as long, has a third."""
    epochs: int = 6
    """The first of them is left out."""
    ray_epochs: int = 9


QUICK = Settings(rows=2_400, epochs=2, ray_epochs=3)
NOTES = (
    "Efficiency of two workers: samples per second of two over twice those of one, with the same rows per worker and "
    "step, local processes of one thread each, by turns. A third run is of two workers that leave the all-reduce out: "
    "what it takes less than the second is what that costs, waiting for the slower worker included; what it takes more "
    "than one worker, is what two cost each other on one processor's caches, memory and clock. A negative part says "
    "that the run without sums was the slower one.",
    "The all-reduce is TensorFlow's ring over gRPC, of one tensor with all gradients.",
    "Ray's share: one worker each, the textbook network, both runs alive and training an epoch by turns; the median "
    "over neighbouring turns.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    figures: list[Figure] = []
    samples = {}
    for name, batch, rows, recipe in (("textbook network, batch 32", 32, settings.rows, TEXTBOOK),
                                      ("default preset, batch 36", 36, settings.rows // 3, ())):
        place = workspace / name.split()[0]
        data = images.prepared(images.write_splits(place / "images", rows, 400), place / "storage")
        legs = two_against_one(place, data, batch, settings.epochs, recipe)
        figures += figures_of(name, *legs)
        samples[name] = legs
    local, ray = under_ray(workspace / "ray", settings)
    pairs = list(zip(local.legs[1:], ray.legs[1:], strict=True))
    ratios = sorted(b["seconds"] / a["seconds"] for a, b in pairs)
    figures += [
        Figure(name="a step under Ray Train over one under the local session", value=statistics.median(ratios),
               at_most=1.02),
        Figure(name="its lower quartile", value=ratios[len(ratios) // 4]),
        Figure(name="its upper quartile", value=ratios[len(ratios) * 3 // 4]),
        Figure(name="the same in CPU time of the worker",
               value=statistics.median(b["cpu"] / a["cpu"] for a, b in pairs)),
    ]
    return Outcome(figures=tuple(figures), samples=samples | {"local": local.legs, "ray": ray.legs}, notes=NOTES)


def two_against_one(place: Path, data: Path, batch: int, epochs: int, recipe: tuple[str,
                                                                                    ...]) -> tuple[list[dict], ...]:
    """Legs of one worker, of two, and of two that sum nothing."""
    def flags(workers: int) -> list[str]:
        return [*recipe, "--run.engine", "local", "--run.workers", str(workers), "--data.uri", str(data),
                "--data.cache-dir",
                str(place / "cache"), "--train.global-batch-size", str(batch * workers), "--train.epochs", str(epochs),
                "--eval.robustness-rows", "0"]

    runs = [(place / "storage/one", Watch(), flags(1)), (place / "storage/two", Watch(), flags(2)),
            (place / "storage/apart", Watch(without_sum=True), flags(2))]
    return tuple(records[0].legs for records in stopwatch.by_turns(runs, module=WATCHED))


def figures_of(name: str, one: list[dict], two: list[dict], apart: list[dict]) -> list[Figure]:
    step = [statistics.median(leg["seconds"] / leg["steps"] for leg in legs[1:]) for legs in (one, two, apart)]
    parts = {"a step of one worker": step[0], "a step of two": step[1], "all-reduce, and waiting": step[1] - step[2],
             "two workers on one processor": step[2] - step[0]}
    return [Figure(name=f"{name}: efficiency of two workers", value=step[0] / step[1]),
            *(Figure(name=f"{name}: {part}", value=1e6 * value, unit="µs/step") for part, value in parts.items())]


def under_ray(place: Path, settings: Settings) -> tuple[Record, Record]:
    data = images.prepared(images.write_splits(place / "images", settings.rows, 400), place / "storage")
    flags = [*TEXTBOOK, "--data.uri", str(data), "--data.cache-dir", str(place / "cache"), "--train.epochs",
             str(settings.ray_epochs), "--eval.robustness-rows", "0"]
    runs = [(place / "storage" / engine, Watch(), [*flags, "--run.engine", engine]) for engine in ("local", "ray")]
    with ray_cluster.running(1):
        (local,), (ray,) = stopwatch.by_turns(runs, module=WATCHED)
    return local, ray
