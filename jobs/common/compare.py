"""Finished runs of classifiers side by side, on one page, and whether their difference is real.

    python -m jobs.common.compare digits-mlp digits-cnn    # runs of ~/trainyard, or of --storage, or paths

All must have been tested on the same rows. Each pair is put to McNemar's exact test: of the rows that one gets right
and the other wrong, would so uneven a split happen by chance? With more than two runs the p-values are Holm's,
for all pairs together.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, TrainyardError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.command_line import flatten
from jobs.common.config import RunConfig
from jobs.common.evaluation.metrics import Evaluation, evaluate
from jobs.common.execution.run_state import RUN_FILE, RunState
from jobs.common.formatting import shown
from jobs.common.report import charts, html
from jobs.common.report.html import number
from jobs.common.runs.console import duration
from jobs.common.runs.run_folder import RESULT_FILE, newest_attempt, read_record
from jobs.common.training import predictions
from jobs.common.training.predictions import Predictions

SIGNIFICANT = 0.05
PROG = "python -m jobs.common.compare"
_METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1",
            "log_loss": "log loss",
            "auc_macro": "AUC, macro", "expected_calibration_error": "calibration error"}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run has left that can be compared."""

    name: str
    config: JsonObject
    result: JsonObject
    history: Sequence[JsonObject]
    test: Predictions
    evaluation: Evaluation

    @property
    def right(self) -> NDArray[np.bool_]:
        """(rows,): which test rows it got right."""
        return self.test.probabilities.argmax(axis=1) == self.test.labels


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two runs on the same rows."""

    first: str
    second: str
    both: int
    """Rows that both got right."""
    only_first: int
    only_second: int
    neither: int
    p_value: float
    """McNemar's exact test, two-sided."""

    @property
    def difference(self) -> tuple[float, float, float]:
        """Accuracy of the second less that of the first, and the ends of its 95% interval (Agresti & Min 2005: half a
        row is added to each of the four counts)."""
        rows = self.both + self.only_first + self.only_second + self.neither
        b, c, n = self.only_second + 0.5, self.only_first + 0.5, rows + 2
        middle, half = (b - c) / n, 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
        return (self.only_second - self.only_first) / rows, max(-1.0, middle - half), min(1.0, middle + half)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Writes the page, prints what it found. Returns the exit code."""
    asked = parser(prog).parse_args(arguments)
    try:
        runs = [finished(name, asked.storage) for name in asked.runs]
        check(runs)
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
    """The newest attempt of a run. Raises: ConfigError if it is none, has not finished, or is no classifier's."""
    top = Store.open(run) if "/" in run else Store.open(storage).child(run)
    store = newest_attempt(top)
    record, result = read_record(store, RUN_FILE), read_record(store, RESULT_FILE)
    if not record:
        raise ConfigError(f"no run at {top.location()}: name one of the runs in --storage {storage}, or its folder")
    if result.get("status") != "done":
        raise ConfigError(f"run {run!r} is not done ({result.get('status', 'it has no result yet')}): let it finish "
                          "first")
    names = record["data"].get("classes")
    if not names:
        raise ConfigError(f"run {run!r} is not a classifier's: only classifiers can be compared row by row")
    generation = Checkpoints(store.child("checkpoints")).current_generation()
    assert generation is not None, "a run that is done has a generation"
    test, how = predictions.read(store, generation, "test"), record["config"]["eval"]
    judged = evaluate(test.probabilities, test.labels, names, top_k=how["top_k"],
                      bootstrap_samples=how["bootstrap_samples"])
    return Finished(name=record["name"], config=record["config"], result=result, history=RunState.open(store).history,
                    test=test,
                    evaluation=judged)


def check(runs: Sequence[Finished]) -> None:
    """Raises: ConfigError if there is nothing to compare, or the test rows are not the same."""
    if len(runs) < 2:
        raise ConfigError("one run is nothing to compare: name two or more")
    first = runs[0]
    for other in runs[1:]:
        same = (np.array_equal(first.test.row_ids, other.test.row_ids)
                and np.array_equal(first.test.labels, other.test.labels))
        if not same:
            raise ConfigError(f"runs {first.name!r} and {other.name!r} were not tested on the same rows: train both "
                              "with the same --data.uri and --data.split-seed")


# ── comparing ──
def compared(runs: Sequence[Finished]) -> list[Paired]:
    """Every pair of runs."""
    pairs = [_paired(a, b) for a, b in itertools.combinations(runs, 2)]
    adjusted = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_value=p) for pair, p in zip(pairs, adjusted, strict=True)]


def _paired(a: Finished, b: Finished) -> Paired:
    only_a, only_b = int((a.right & ~b.right).sum()), int((~a.right & b.right).sum())
    return Paired(first=a.name, second=b.name, both=int((a.right & b.right).sum()), only_first=only_a,
                  only_second=only_b,
                  neither=int((~a.right & ~b.right).sum()), p_value=mcnemar(only_a, only_b))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test:
    a fair coin thrown for each row that one alone got right (McNemar 1947)."""
    from scipy.stats import binomtest

    rows = only_first + only_second
    return float(binomtest(only_first, rows).pvalue) if rows else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that none of them is likely to be small by chance (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def sentence(pair: Paired) -> str:
    """What a pair's numbers mean."""
    gap, low, high = pair.difference
    numbers = (f"(difference {100 * gap:+.2f} points, 95% interval {100 * low:+.2f} to {100 * high:+.2f}; p = "
               f"{pair.p_value:.2g})")
    if pair.p_value >= SIGNIFICANT:
        return f"{pair.second} against {pair.first}: no real difference is shown {numbers}"
    return f"{pair.second} is {'better' if gap > 0 else 'worse'} than {pair.first} {numbers}"


# ── the page ──
def render(runs: Sequence[Finished], pairs: Sequence[Paired]) -> str:
    """The comparison as one HTML document."""
    return html.render(
        "comparison.html", "jobs.common", runs=runs, pairs=pairs, sentence=sentence, significant=SIGNIFICANT,
        differences=[_difference(pair) for pair in pairs], metrics=_metrics(runs), charts=_curves(runs),
        recalls=_recalls(runs), fields=_fields(runs))


def _difference(p: Paired) -> tuple[object, ...]:
    gap, low, high = p.difference
    return (f"{p.second} less {p.first}", p.both, p.only_first, p.only_second, p.neither, f"{100 * gap:+.2f}",
            f"{100 * low:+.2f} – {100 * high:+.2f}", f"{p.p_value:.3g}")


def _metrics(runs: Sequence[Finished]) -> list[list[str]]:
    rows = [[title, *(number(getattr(run.evaluation, key)) for run in runs)] for key, title in _METRICS.items()]
    rows.insert(1, ["… its 95% interval",
                    *(f"{r.evaluation.accuracy_low:.4f} – {r.evaluation.accuracy_high:.4f}" for r in runs)])
    return [*rows, ["steps", *(shown(int(run.result["steps"])) for run in runs)],
            ["samples/s", *(f"{run.result['samples_per_s']:,.0f}" for run in runs)],
            ["time", *(duration(run.result["wall_s"]) for run in runs)]]


def _curves(runs: Sequence[Finished]) -> dict[str, Markup]:
    return {title: charts.line_chart(lines, x_label="epoch", name=title, log="loss" in title)
            for key, title in (("validation_loss", "Validation loss"), ("validation_accuracy", "Validation accuracy"))
            if (lines := {run.name: line for run in runs if (line := _line(run, key))[0]})}


def _line(run: Finished, key: str) -> charts.Line:
    points = {float(row.get("epoch", row["step"])): float(row[key]) for row in run.history if key in row}
    return list(points), list(points.values())


def _recalls(runs: Sequence[Finished]) -> list[list[str]]:
    """By class, those that differ most first."""
    recalls = [[score.recall for score in run.evaluation.classes] for run in runs]
    spread = [max((r or 0.0) for r in column) - min((r or 0.0) for r in column)
              for column in zip(*recalls, strict=True)]
    order = sorted(range(len(spread)), key=lambda k: -spread[k])[:20]
    return [[runs[0].evaluation.class_names[k], *(number(of_run[k]) for of_run in recalls)] for k in order]


def _fields(runs: Sequence[Finished]) -> list[list[str]]:
    """Those of the config that are not the same."""
    flat = [flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(itertools.chain(*flat))
            if len({shown(values.get(key)) for values in flat}) > 1]
    return [[key, *(shown(values.get(key)) for values in flat)] for key in keys if key != "run.name"]


if __name__ == "__main__":
    sys.exit(main())
