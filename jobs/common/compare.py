"""Finished runs side by side, on one page, and whether their difference is real.

    python -m jobs.common.compare digits-mlp digits-cnn    # runs of ~/trainyard, or of --storage, or paths

All must have been tested on the same rows, which are found by what is in them where they are numbered otherwise: the
same images as IDX and as Parquet. Each pair is put to the test of its kind of prediction, see jobs/common/paired.py.
With more than two runs the p-values are Holm's, for all pairs together.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import hashlib
import itertools
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, DataError, TrainyardError
from cluster.core.storage import Store
from jobs.common import declared_metrics
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.command_line import current_names, flatten
from jobs.common.config import PREPARED_FOLDER, DataConfig, RunConfig
from jobs.common.data.counter_rng import IntArray
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader
from jobs.common.declared_metrics import CLASSIFICATION, Metric, Values
from jobs.common.evaluation.metrics import Evaluation, evaluate
from jobs.common.execution.run_state import RUN_FILE, RunState
from jobs.common.formatting import shown
from jobs.common.paired import (
    SIGNIFICANT,
    Pair,
    PairedErrors,
    holm,
    paired_classes,
    paired_numbers,
    paired_tokens,
    sentence,
)
from jobs.common.report import charts, html
from jobs.common.report.html import number
from jobs.common.runs.console import duration
from jobs.common.runs.run_folder import RESULT_FILE, newest_attempt, read_record
from jobs.common.training import predictions
from jobs.common.training.predictions import Predictions

PROG = "python -m jobs.common.compare"
Kind = Literal["classes", "numbers", "tokens"]
"""What is predicted of a row."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run has left that can be compared."""

    name: str
    config: JsonObject
    result: JsonObject
    history: Sequence[JsonObject]
    test: Predictions
    evaluation: Evaluation | None
    """Of a classifier."""
    fingerprint: str = ""
    """Of the data."""

    @property
    def kind(self) -> Kind:
        """By the predictions: numbers have labels that are numbers, tokens have only their count."""
        if self.evaluation is not None:
            return "classes"
        return "numbers" if self.test.labels.dtype.kind == "f" else "tokens"

    @property
    def declared(self) -> Sequence[Metric]:
        """What its job says of its figures; of a run that an older version made, a classifier's."""
        return [Metric(**each) for each in self.result.get("declared_metrics", ())] or CLASSIFICATION

    @property
    def figures(self) -> Values:
        """Of the test rows, by name."""
        return self.evaluation.scalars() if self.evaluation else self.result["metrics"]["test"]

    @property
    def dataset(self) -> Dataset | None:
        """The prepared data, where it is still in the storage: looked for only where rows are numbered otherwise."""
        storage = Store.open(self.config["run"]["storage"])
        with suppress(TrainyardError, OSError):
            for key in storage.child(PREPARED_FOLDER).folders():
                with suppress(FileNotFoundError, DataError):
                    found = Dataset.load(storage.child(f"{PREPARED_FOLDER}/{key}"))
                    if found.has(self.fingerprint):
                        return found
        return None

    @property
    def right(self) -> NDArray[np.bool_]:
        """(rows,): which test rows it got right."""
        return self.test.probabilities.argmax(axis=1) == self.test.labels


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Writes the page, prints what it found. Returns the exit code."""
    asked = parser(prog).parse_args(arguments)
    try:
        runs = aligned([finished(name, asked.storage) for name in asked.runs])
        pairs = compared(runs)
        asked.out.write_text(render(runs, pairs))
    except TrainyardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: --out {asked.out}: {error.strerror}; name a file that can be written", file=sys.stderr)
        return 2
    for pair in pairs:
        print(sentence(pair))
    print(f"comparison: {asked.out.absolute()}")
    return 0


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("runs", nargs="+", metavar="RUN",
                      help="two or more names of runs, or paths or URIs of their folders")
    made.add_argument("--storage", default=RunConfig().storage, help="folder of the runs (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("comparison.html"), help="the page (default: %(default)s)")
    return made


# ── reading ──
def finished(run: str, storage: str) -> Finished:
    """The newest attempt of a run. Raises: ConfigError if it is none, or has not finished."""
    top = Store.open(run) if "/" in run else Store.open(storage).child(run)
    store = newest_attempt(top)
    record, result = read_record(store, RUN_FILE), read_record(store, RESULT_FILE)
    if not record:
        raise ConfigError(f"no run at {top.location()}: name one of the runs in --storage {storage}, or its folder")
    if result.get("status") != "done":
        raise ConfigError(f"run {run!r} is not done ({result.get('status', 'it has no result yet')}): let it finish "
                          "first")
    names = record["data"].get("classes")
    generation = Checkpoints(store.child("checkpoints")).current_generation()
    assert generation is not None, "a run that is done has a generation"
    test, how = predictions.read(store, generation, "test"), record["config"]["eval"]
    judged = evaluate(test.probabilities, test.labels, names, top_k=how["top_k"],
                      bootstrap_samples=how["bootstrap_samples"]) if names else None
    return Finished(name=record["name"], config=record["config"], result=result, history=RunState.open(store).history,
                    test=test, evaluation=judged, fingerprint=record["data"]["fingerprint"])


def aligned(runs: Sequence[Finished]) -> list[Finished]:
    """With their test rows in the order of the first run's.

    Raises: ConfigError if there is nothing to compare, or the test rows are not the same.
    """
    if len(runs) < 2:
        raise ConfigError("one run is nothing to compare: name two or more")
    first, *others = runs
    return [first, *(_aligned(first, other) for other in others)]


def _aligned(first: Finished, other: Finished) -> Finished:
    if first.kind != other.kind:
        raise ConfigError(f"run {first.name!r} predicts {first.kind}, {other.name!r} {other.kind}: compare runs that "
                          "do the same")
    a, b = first.test, other.test
    if np.array_equal(a.row_ids, b.row_ids) and np.array_equal(a.labels, b.labels):
        return other
    if (order := _same_rows(first, other)) is None:
        raise ConfigError(f"runs {first.name!r} and {other.name!r} were not tested on the same rows: train both with "
                          "the same --data.uri and --data.split-seed")
    moved = Predictions(a.row_ids, b.labels[order], b.probabilities[order])
    return replace(other, test=moved)


def _same_rows(first: Finished, other: Finished) -> IntArray | None:
    """The place in the other's predictions of each of the first's, by what is in the rows; None where that differs."""
    data = first.dataset, other.dataset
    if data[0] is None or data[1] is None or data[0].class_names != data[1].class_names:
        return None
    mine, theirs = _contents(data[0]), _contents(data[1])
    if sorted(mine) != sorted(theirs) or not len(mine) == len(first.test.labels) == len(other.test.labels):
        return None
    order = np.empty(len(mine), np.int64)
    order[sorted(range(len(mine)), key=mine.__getitem__)] = sorted(range(len(theirs)), key=theirs.__getitem__)
    return order


def _contents(dataset: Dataset) -> list[bytes]:
    """A hash of each test row, in the order of row ids: of all its columns but the id."""
    reader = Reader.open(dataset, "test", DataConfig())
    found: list[tuple[int, bytes]] = []
    try:
        for start in range(0, reader.num_rows, _ROWS_AT_ONCE):
            rows = reader.rows(start, min(start + _ROWS_AT_ONCE, reader.num_rows))
            columns = [np.ascontiguousarray(rows[name]) for name in sorted(rows) if name != "row_id"]
            found += [(int(row_id), hashlib.sha256(b"".join(column[i].tobytes() for column in columns)).digest())
                      for i, row_id in enumerate(rows["row_id"])]
    finally:
        reader.close()
    return [digest for _, digest in sorted(found)]


# ── comparing ──
def compared(runs: Sequence[Finished]) -> list[Pair]:
    """Every pair of runs."""
    pairs = [_paired(a, b) for a, b in itertools.combinations(runs, 2)]
    adjusted = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_value=p) for pair, p in zip(pairs, adjusted, strict=True)]


def _paired(a: Finished, b: Finished) -> Pair:
    if a.kind == "classes":
        return paired_classes(a.name, b.name, (a.right, b.right))
    return (paired_numbers if a.kind == "numbers" else paired_tokens)(a.name, b.name, (a.test, b.test))


# ── the page ──
def render(runs: Sequence[Finished], pairs: Sequence[Pair]) -> str:
    """The comparison as one HTML document."""
    return html.render(
        "comparison.html", "jobs.common", runs=runs, pairs=pairs, sentence=sentence, significant=SIGNIFICANT,
        differences=[_difference(pair) for pair in pairs], metrics=_metrics(runs), charts=_curves(runs),
        recalls=_recalls(runs), fields=_fields(runs))


def _difference(pair: Pair) -> tuple[object, ...]:
    names = f"{pair.second} less {pair.first}"
    if isinstance(pair, PairedErrors):
        gap, low, high = map(declared_metrics.figure, pair.difference)
        return names, gap, f"{low} – {high}", f"{pair.p_value:.3g}"
    gap, low, high = (f"{100 * each:+.2f}" for each in pair.difference)
    return (names, pair.both, pair.only_first, pair.only_second, pair.neither, gap, f"{low} – {high}",
            f"{pair.p_value:.3g}")


def _metrics(runs: Sequence[Finished]) -> list[list[str]]:
    rows = declared_metrics.rows(_declared(runs), [run.figures for run in runs])
    return [*rows, ["steps", *(shown(int(run.result["steps"])) for run in runs)],
            ["samples/s", *(f"{run.result['samples_per_s']:,.0f}" for run in runs)],
            ["time", *(duration(run.result["wall_s"]) for run in runs)]]


def _declared(runs: Sequence[Finished]) -> Sequence[Metric]:
    """Of all runs, each once."""
    return [*{metric.name: metric for run in runs for metric in run.declared}.values()]


def _curves(runs: Sequence[Finished]) -> dict[str, Markup]:
    named = {metric.while_training: "loss" if metric.while_training == "loss" else metric.label
             for metric in _declared(runs) if metric.while_training}
    return {title: charts.line_chart(lines, x_label="epoch", name=title, log="loss" in title)
            for title, key in ((f"Validation {label}", f"validation_{name}") for name, label in named.items())
            if (lines := {run.name: line for run in runs if (line := _line(run, key))[0]})}


def _line(run: Finished, key: str) -> charts.Line:
    points = {float(row.get("epoch", row["step"])): float(row[key]) for row in run.history if key in row}
    return list(points), list(points.values())


def _recalls(runs: Sequence[Finished]) -> list[list[str]]:
    """By class, those that differ most first."""
    judged = [run.evaluation for run in runs if run.evaluation]
    if not judged:
        return []
    recalls = [[score.recall for score in each.classes] for each in judged]
    spread = [max((r or 0.0) for r in column) - min((r or 0.0) for r in column)
              for column in zip(*recalls, strict=True)]
    order = sorted(range(len(spread)), key=lambda k: -spread[k])[:20]
    return [[judged[0].class_names[k], *(number(of_run[k]) for of_run in recalls)] for k in order]


def _fields(runs: Sequence[Finished]) -> list[list[str]]:
    """Those of the config that are not the same."""
    found = [flatten(run.config) for run in runs]
    flat = [current_names(values, {*itertools.chain(*found)}) for values in found]
    keys = [key for key in dict.fromkeys(itertools.chain(*flat))
            if len({shown(values.get(key)) for values in flat}) > 1]
    return [[key, *(shown(values.get(key)) for values in flat)] for key in keys if key != "run.name"]


if __name__ == "__main__":
    sys.exit(main())
