"""report.html: one file that shows a run to a person. It needs no network, no script and nothing beside it.

    write_report(store, "report.html", ReportContent(title=…, run=RunFacts(…), evaluations={"test": evaluation}, …))
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common import declared_metrics
from jobs.common.command_line import flatten
from jobs.common.declared_metrics import Metric, Values
from jobs.common.evaluation.metrics import ClassScore, Evaluation, Mistakes
from jobs.common.extras import ExtrasAccount
from jobs.common.formatting import shown
from jobs.common.provenance import without_secrets
from jobs.common.report import charts, html, images
from jobs.common.report.html import Section, number

REPORT_FILE = "report.html"
MAX_MATRIX, MAX_CLASS_ROWS, MAX_PAIRS, MAX_EVENTS, MAX_PICTURES = 25, 50, 20, 200, 24


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """How the run went. `started` is in seconds since 1970; `events` are lines of text, oldest first."""

    name: str
    status: str
    started: float
    duration_s: float
    restarts: int = 0
    lost_steps: int = 0
    skipped_steps: int = 0
    goodput: float | None = None
    samples_per_s: float | None = None
    recovery_s: Sequence[float] = ()
    """From the last step before each failure to the first one after it."""
    events: Sequence[str] = ()
    time_s: Mapping[str, float] = field(default_factory=dict[str, float])
    """Where the time went, by cause."""
    cost: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of all `workers`, and of that what failures `lost`; empty where nobody gave a price."""
    trains: bool = True
    """False of a model that was judged alone: then nothing is said of how a run went."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report shows, as plain values; what is empty is left out. Every text is escaped."""

    title: str
    run: RunFacts
    metrics: Mapping[str, Values] = field(default_factory=dict[str, Values])
    """By split; the last one, or `test`, is the one whose figures come first."""
    declared: Sequence[Metric] = ()
    """What they are, the most important first."""
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict[str, Evaluation])
    """Of a classifier, by split: the same one is shown in full."""
    history: Sequence[JsonObject] = ()
    """Rows with `step`, perhaps `epoch`, and any numbers by name."""
    chosen: str = ""
    """Which of the checkpoints the model is, and why: a sentence."""
    mistakes: Mistakes | None = None
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    data: JsonObject = field(default_factory=JsonObject)
    """What `Dataset.describe` gives: fingerprint, rows and class counts by split."""
    data_page: str = ""
    index: str = ""
    """Where the page of all runs is, from this one's folder."""
    """The page beside it that shows the data (data_report.py)."""
    environment: Mapping[str, object] = field(default_factory=dict[str, object])
    artifact: str = ""
    """Where the model is."""
    sections: Sequence[Section] = ()
    """A job's own, shown after the evaluation."""


def write_report(store: Store, path: str, content: ReportContent) -> None:
    """Writes the file. Raises: StorageError, StorageFullError."""
    store.write_text(path, render(content))


def left_out_section(extras: ExtrasAccount, budget: str) -> list[Section]:
    """What this report does not have for want of time; nothing where it has all."""
    if not extras.left_out:
        return []
    return [html.section("Left out", f"For want of time: {', '.join(extras.left_out)}. What a report shows beyond the "
                         "metrics is made the cheapest first, and nothing is begun that is not likely to fit into "
                         f"--eval.extras-budget {budget}; what there is took {extras.spent_s:,.1f} s.")]


def _time_rows(time_s: Mapping[str, float]) -> list[tuple[str, str, str]]:
    whole = sum(time_s.values()) or 1.0
    return [*((cause, f"{seconds:,.1f}", f"{seconds / whole:.1%}") for cause, seconds in time_s.items()),
            ("all of it", f"{whole:,.1f}", "100%")]


def render(content: ReportContent) -> str:
    """The report as one HTML document."""
    run, split = content.run, _main(content.metrics)
    e = content.evaluations.get(split)
    return html.render(
        "run_report.html", content=content, index=content.index, split=split, e=e, charts=charts,
        data_uri=images.data_uri, started=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.started)),
        took=_duration(run.duration_s),
        recovery_s=statistics.median(run.recovery_s) if run.recovery_s else None,
        groups=_chart_groups(content.history, content.declared),
        has_train_loss=any("train_loss" in row for row in content.history),
        headlines=_headlines(content, split), time_rows=_time_rows,
        metrics=declared_metrics.rows(content.declared, [*content.metrics.values()]),
        rows_judged=[f"{each.num_rows:,}" for each in content.evaluations.values()],
        confusions=_confusions(e) if e else (),
        class_rows=_class_rows(e) if e else (), pictures=_pictures(content.mistakes),
        config=without_secrets(flatten(content.config)), environment=without_secrets(flatten(content.environment)),
        **_data(content.data), max_matrix=MAX_MATRIX, max_events=MAX_EVENTS, max_class_rows=MAX_CLASS_ROWS)


def _main(metrics: Mapping[str, Values]) -> str:
    """The split that counts."""
    return "test" if "test" in metrics else next(reversed(list(metrics)), "")


def _headlines(content: ReportContent, split: str) -> list[tuple[str, str, str]]:
    """Of the split that counts: what, how much, and the interval or which way is better."""
    values = content.metrics.get(split, {})
    found = declared_metrics.present(content.declared, values)[: declared_metrics.MOST_HEADLINES]
    return [(f"{split} {metric.label}" if place == 0 else metric.label,
             declared_metrics.figure(values[metric.name]) + (f" {metric.unit}" if metric.unit else ""),
             declared_metrics.interval(metric, values)
             or ("higher is better" if metric.sign > 0 else "lower is better"))
            for place, metric in enumerate(found)]


def _chart_groups(history: Sequence[JsonObject], declared: Sequence[Metric] = (),
                  most: int = 8) -> dict[str, dict[str, charts.Line]]:
    """One chart for losses, one for scores, and one for each other number.
    Of a step done twice, the last value counts."""
    values: dict[str, dict[float, float]] = {}
    for row in history:
        for key, value in row.items():
            if key not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(key, {})[float(row["step"])] = float(value)
    labels = {f"validation_{metric.while_training}": f"validation {metric.label}" for metric in declared
              if metric.while_training and "loss" not in metric.while_training}
    groups: dict[str, dict[str, charts.Line]] = {}
    for key, points in values.items():
        steps = sorted(points)
        label = labels.get(key, key.replace("_", " "))
        groups.setdefault(_chart_of(key, label), {})[label] = (steps, [points[step] for step in steps])
    order = ["Loss", "Scores", "Learning rate", "Samples per s"]
    ranked = sorted(groups, key=lambda title: order.index(title) if title in order else len(order))
    return {title: groups[title] for title in ranked[:most]}


def _chart_of(key: str, label: str) -> str:
    if "loss" in key:
        return "Loss"
    if any(word in key for word in ("accuracy", "f1", "auc")):
        return "Scores"
    return {"lr": "Learning rate"}.get(key, label[:1].upper() + label[1:])


def _confusions(e: Evaluation) -> list[tuple[object, ...]]:
    """Of many classes: the pairs that are most often taken for each other."""
    places = [(int(i), int(k)) for i, k in zip(*e.confusion.nonzero(), strict=True) if i != k]
    found = [(int(e.confusion[i, k]), i, k) for i, k in places]
    worst = sorted(found, key=lambda item: (-item[0], item[1:]))[:MAX_PAIRS]
    return [(e.class_names[i], e.class_names[k], n, f"{n / e.classes[i].support:.2%}") for n, i, k in worst]


def _class_rows(e: Evaluation) -> list[tuple[object, ...]]:
    """All classes; where there are too many, the worst."""
    def badness(score: ClassScore) -> float:
        return 2.0 if score.f1 is None else score.f1

    scores = e.classes if len(e.classes) <= MAX_CLASS_ROWS else sorted(e.classes, key=badness)[:MAX_CLASS_ROWS]
    return [(s.name, *map(number, (s.precision, s.recall, s.f1, s.auc)), s.support, s.predicted) for s in scores]


def _pictures(mistakes: Mistakes | None) -> Sequence[tuple[object, ...]]:
    """Image, label, prediction and confidence of each."""
    if mistakes is None:
        return []
    rows = zip(mistakes.images, mistakes.labels, mistakes.predictions, mistakes.confidences, strict=True)
    return list(rows)[:MAX_PICTURES]


def _data(described: JsonObject) -> dict[str, object]:
    data = dict(described)
    counts = cast(Mapping[str, Sequence[int]], data.pop("class_counts", {}))
    names = [str(name) for name in data.pop("classes", ())]
    rows = [[name, *(count[k] for count in counts.values())] for k, name in enumerate(names[:MAX_CLASS_ROWS])]
    rows.append(["all", *(sum(count) for count in counts.values())])
    return {"about_data": without_secrets(data), "counts": counts if names else {}, "num_classes": len(names),
            "count_rows": rows}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes
            else f"{shown(float(seconds))} s")
