"""Finished runs side by side, on one page, and whether their difference is real.

    python -m jobs.common.compare digits-mlp digits-cnn    # runs of ~/trainyard, or of --storage, or paths

All must have been tested on the same rows, which are found by what is in them where they are numbered otherwise: the
same images as IDX and as Parquet. Each pair is put to the test of its kind of prediction, see jobs/common/paired.py.
With more than two runs the p-values are Holm's, for all pairs together.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from cluster.core.errors import TrainyardError
from cluster.core.storage import Store
from jobs.common import declared_metrics
from jobs.common.command_line import current_names, flatten
from jobs.common.config import COMPARISONS_FOLDER, INDEX_FILE, RunConfig
from jobs.common.declared_metrics import Metric
from jobs.common.finished_runs import Finished, aligned, finished
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

PROG = "python -m jobs.common.compare"
def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Writes the page, prints what it found. Returns the exit code."""
    asked = parser(prog).parse_args(arguments)
    try:
        runs = aligned([finished(name, asked.storage) for name in asked.runs])
        pairs = compared(runs)
        where = _write(asked, runs, pairs)
    except TrainyardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: --out {asked.out}: {error.strerror}; name a file that can be written", file=sys.stderr)
        return 2
    for pair in pairs:
        print(sentence(pair))
    print(f"comparison: {where}")
    return 0


def _write(asked: argparse.Namespace, runs: Sequence[Finished], pairs: Sequence[Pair]) -> str:
    """Returns where the page is: in the storage, where the page of all runs shows it, or the file that was asked for.
    Raises: StorageError; OSError of that file."""
    if asked.out is not None:
        asked.out.write_text(render(runs, pairs))
        return str(asked.out.absolute())
    from jobs.common.runs.index_page import keep_index

    storage = Store.open(asked.storage)
    path = f"{COMPARISONS_FOLDER}/{'-vs-'.join(run.name for run in runs)[:200]}.html"
    storage.write_text(path, render(runs, pairs, f"../{INDEX_FILE}"))
    keep_index(RunConfig(storage=asked.storage, tracking_uri=asked.tracking_uri), print)
    return storage.location(path)


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("runs", nargs="+", metavar="RUN",
                      help="two or more names of runs, or paths or URIs of their folders")
    made.add_argument("--storage", default=RunConfig().storage, help="folder of the runs (default: %(default)s)")
    made.add_argument("--out", type=Path, help="the page (default: in the storage, under comparisons/)")
    made.add_argument("--tracking-uri", help="MLflow server, which the page of all runs asks for versions; by default "
                                             "the SQLite file in the storage")
    return made


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
def render(runs: Sequence[Finished], pairs: Sequence[Pair], index: str = "") -> str:
    """The comparison as one HTML document. index: the way from there to the page of all runs."""
    return html.render(
        "comparison.html", "jobs.common", index=index, runs=runs, pairs=pairs, sentence=sentence,
        significant=SIGNIFICANT, differences=[_difference(pair) for pair in pairs], metrics=_metrics(runs),
        charts=_curves(runs), recalls=_recalls(runs), fields=_fields(runs))


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
