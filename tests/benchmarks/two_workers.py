"""Two workers against one at the same batch per worker, by turns, and where the rest goes."""

import statistics
from pathlib import Path

import numpy as np

from tests.benchmarks import images, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Record, Watch
from tests.runs import ROOT

TEXTBOOK = ("--config", str(ROOT / "jobs/mlp/textbook.yaml"))
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "textbook network, batch 64": (64, TEXTBOOK),
    "textbook network, batch 512": (512, TEXTBOOK),
    "default preset, batch 64": (64, ()),
}
PARTS = ("backward", "reduce", "all_reduce", "step_if_finite")
NOTE = (
    "Efficiency of two workers: samples per second of two over twice those of one, with the same rows per worker and "
    "step, local processes, by turns. The parts are medians per step, and add up to the step of two workers less the "
    "step of one. The two share one processor's caches, memory and clock, and its cores with whatever else runs: "
    "`backward takes longer`."
)


def measure(rows: int, other_rows: int, epochs: int, workspace: Path) -> Outcome:
    """epochs: of one worker; the first of them is left out."""
    data = images.prepared(images.write_splits(workspace / "images", rows, other_rows), workspace / "storage")
    figures: list[Figure] = []
    samples = {}
    for number, (name, (batch_size, recipe)) in enumerate(CASES.items()):
        def flags(workers: int, batch_size: int = batch_size, recipe: tuple[str, ...] = recipe) -> list[str]:
            return [*recipe, "--run.engine", "local", "--run.workers", str(workers), "--data.uri", str(data),
                    "--data.cache-dir",
                    str(workspace / "cache"), "--train.global-batch-size", str(batch_size * workers), "--train.epochs",
                    str(epochs * workers)]

        watch = Watch(parts=True)
        one, two = stopwatch.by_turns([(workspace / f"storage/{count}-{number}", watch, flags(count))
                                       for count in (1, 2)])
        figures += figures_of(name, one, two)
        samples[name] = {"one worker": _without_calls(one[0]),
                         "two workers": [_without_calls(record) for record in two]}
    return Outcome(figures=tuple(figures), samples=samples, notes=(NOTE,))


def figures_of(name: str, one: list[Record], two: list[Record]) -> list[Figure]:
    """The efficiency, and where the time of a step of two workers goes that one worker does not need."""
    step = [statistics.median(leg["seconds"] / leg["steps"] for leg in records[0].legs[1:]) for records in (one, two)]
    reduces = np.array([_calls(record, "all_reduce") for record in two])
    parts = {
        "all-reduce itself": float(np.median(reduces.min(axis=0))),
        "waiting for the slower worker": float(np.median(reduces.mean(axis=0) - reduces.min(axis=0))),
        "gradients into one buffer and back": _median(two, "reduce") - _median(two, "all_reduce"),
        "backward takes longer": _median(two, "backward") - _median(one, "backward"),
        "check and optimiser take longer": _median(two, "step_if_finite") - _median(one, "step_if_finite"),
    }
    parts["the rest (data, Python)"] = step[1] - step[0] - sum(parts.values())
    seconds = {"a step of one worker": step[0], "a step of two": step[1], **parts}
    return [Figure(name=f"{name}: efficiency of two workers", value=step[0] / step[1]),
            *(Figure(name=f"{name}: {part}", value=1e6 * value, unit="µs/step") for part, value in seconds.items())]


def _calls(record: Record, name: str) -> list[float]:
    """Seconds of each call in the legs, without the first leg, and without each leg's first call,
    which waits for the turn."""
    return [seconds for leg in record.legs[1:] for seconds in leg[name][1:]]


def _median(records: list[Record], name: str) -> float:
    return statistics.median(seconds for record in records for seconds in _calls(record, name))


def _without_calls(record: Record) -> list[dict]:
    """The legs without the seconds of each call."""
    return [{key: value for key, value in leg.items() if key not in PARTS} for leg in record.legs]
