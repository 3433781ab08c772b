"""report.html: one file that shows a run to a person. It needs no network, no script and nothing beside it.

    write_report(store, "report.html", ReportContent(title=…, run=RunFacts(…), evaluations={"test": evaluation}, …))
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cluster.core.storage import Store
from jobs.common.command_line import flatten
from jobs.common.evaluation.metrics import ClassScore, Evaluation, Mistakes
from jobs.common.formatting import shown
from jobs.common.provenance import without_secrets
from jobs.common.report import charts as plots
from jobs.common.report import images as report_images
from jobs.common.report.html import Section, escape, facts, figure, figures, note, page, table, tiles

MAX_MATRIX, MAX_CLASS_ROWS, MAX_PAIRS, MAX_EVENTS = 25, 50, 20, 200
_SCALARS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "log_loss": "log loss",
    "auc_macro": "AUC, macro", "auc_micro": "AUC, micro", "expected_calibration_error": "expected calibration error",
}  # fmt: skip

_TRAIN_LOSS = ("The training loss is the one that is minimised, the mean since the point before: dropout, augmentation and label "
               "smoothing, which the validation loss has not, lift it.")  # fmt: skip


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


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report shows, as plain values; what is empty is left out. Every text is escaped."""

    title: str
    run: RunFacts
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict[str, Evaluation])
    """By split; the last one, or `test`, is the one that is shown in full."""
    history: Sequence[Mapping[str, Any]] = ()
    """Rows with `step`, perhaps `epoch`, and any numbers by name."""
    chosen: str = ""
    """Which of the checkpoints the model is, and why: a sentence."""
    mistakes: Mistakes | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What `Dataset.describe` gives: fingerprint, rows and class counts by split."""
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    artifact: str = ""
    """Where the model is."""
    sections: Sequence[Section] = ()
    """A job's own, shown after the evaluation."""


def write_report(store: Store, path: str, content: ReportContent) -> None:
    """Writes the file. Raises: StorageError, StorageFullError."""
    store.write_text(path, render(content))


def render(content: ReportContent) -> str:
    """The report as one HTML document."""
    sections = [*_summary(content), *_training(content), *_evaluation(content), *_mistakes(content), *content.sections,
                _run(content.run), *_data(content), *_plain(content)]  # fmt: skip
    return page(content.title, _lead(content), sections)


def _lead(content: ReportContent) -> str:
    run = content.run
    kind = "status" if run.status == "done" else "status other"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.started))
    text = f"run {run.name} · started {when} · took {_duration(run.duration_s)}"
    place = f"<p>Artifact: <code>{escape(without_secrets(content.artifact))}</code></p>" if content.artifact else ""
    return f'<p class="lead"><span class="{kind}">{escape(run.status)}</span>{escape(text)}</p>{place}'


def _main(content: ReportContent) -> tuple[str, Evaluation] | None:
    """The split that counts."""
    name = "test" if "test" in content.evaluations else next(reversed(list(content.evaluations)), None)
    return (name, content.evaluations[name]) if name else None


def _summary(content: ReportContent) -> list[Section]:
    if not (main := _main(content)):
        return []
    split, e = main
    spread = f"95% interval {_percent(e.accuracy_low)} to {_percent(e.accuracy_high)}"
    cards = [
        (f"{split} accuracy", _percent(e.accuracy), spread if e.accuracy < 1 else f"no mistake in {e.num_rows:,} rows"),
        ("macro-F1", f"{e.macro_f1:.4f}", "mean over the classes"),
        ("log loss", f"{e.log_loss:.4f}", "in nats; lower is better"),
        ("AUC, macro", "–" if e.auc_macro is None else f"{e.auc_macro:.4f}", "one class against the rest"),
        ("calibration error", _percent(e.expected_calibration_error), "confidence against accuracy"),
    ]
    names = {**_SCALARS, f"top_{e.top_k}_accuracy": f"top-{e.top_k} accuracy"}
    scalars = {name: evaluation.scalars() for name, evaluation in content.evaluations.items()}
    rows = [[title, *(_number(values.get(key)) for values in scalars.values())] for key, title in names.items()]
    rows.insert(1, ["… its 95% interval",
                    *(f"{v.accuracy_low:.4f} – {v.accuracy_high:.4f}" for v in content.evaluations.values())])  # fmt: skip
    place = next(i for i, row in enumerate(rows) if row[0] == "macro-F1")
    rows.insert(place + 1, ["… its 95% interval",
                            *(f"{v.macro_f1_low:.4f} – {v.macro_f1_high:.4f}" for v in content.evaluations.values())])  # fmt: skip
    rows.append(["rows", *(f"{evaluation.num_rows:,}" for evaluation in content.evaluations.values())])
    return [Section(title="Summary", html=tiles(cards) + table(["metric", *scalars], rows))]


def _training(content: ReportContent) -> list[Section]:
    charts = [
        figure(plots.line_chart(lines, x_label="step", name=f"{title} by step", log=title == "Loss"), _named(title, lines),
               above=True)
        for title, lines in _chart_groups(content.history).items()
    ]
    if not charts:
        return []
    chosen = note(content.chosen) if content.chosen else ""
    return [Section(title="Training", html=chosen + figures(charts) + (note(_TRAIN_LOSS) if _has_train_loss(content) else ""))]


def _has_train_loss(content: ReportContent) -> bool:
    return any("train_loss" in row for row in content.history)


def _named(title: str, lines: Mapping[str, plots.Line]) -> str:
    """A single line has no legend that names it."""
    only = next(iter(lines))
    return f"{title}: {only}" if len(lines) == 1 and only != title.lower() else title


def _chart_groups(history: Sequence[Mapping[str, Any]], most: int = 8) -> dict[str, dict[str, plots.Line]]:
    """One chart for losses, one for scores, and one for each other number. Of a step done twice, the last value counts."""
    values: dict[str, dict[float, float]] = {}
    for row in history:
        for key, value in row.items():
            if key not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(key, {})[float(row["step"])] = float(value)
    groups: dict[str, dict[str, plots.Line]] = {}
    for key, points in values.items():
        steps = sorted(points)
        groups.setdefault(_chart_of(key), {})[key.replace("_", " ")] = (steps, [points[step] for step in steps])
    order = ["Loss", "Scores", "Learning rate", "Samples per s"]
    ranked = sorted(groups, key=lambda title: order.index(title) if title in order else len(order))
    return {title: groups[title] for title in ranked[:most]}


def _chart_of(key: str) -> str:
    if "loss" in key:
        return "Loss"
    if any(word in key for word in ("accuracy", "f1", "auc")):
        return "Scores"
    return {"lr": "learning rate"}.get(key, key.replace("_", " ")).capitalize()


def _evaluation(content: ReportContent) -> list[Section]:
    if not (main := _main(content)):
        return []
    split, e = main
    charts = [figure(plots.roc_chart(e), "ROC curves, each class against the rest"
                     + (", the five worst classes" if len(e.classes) > 10 else ""))]  # fmt: skip
    if plots.reaches_the_corner(e):
        charts.append(figure(plots.roc_chart(e, corner=True), "The upper left corner of the same, enlarged"))
    charts.append(figure(plots.reliability_chart(e), "Reliability: how often the model is right when it is this sure. "
                         f"Expected calibration error {_percent(e.expected_calibration_error)} "
                         f"over {len(e.reliability)} bins"))  # fmt: skip
    return [
        Section(title=f"ROC and calibration ({split})", html=figures(charts)),
        Section(title=f"Classes ({split})", html=_beside(_confusion(e), _classes(e), len(e.classes) <= 12)),
    ]


def _beside(left: str, right: str, narrow: bool) -> str:
    return figures([f"<div>{left}</div>", f"<div>{right}</div>"]) if narrow else f"{left}<h3>By class</h3>{right}"


def _confusion(e: Evaluation) -> str:
    if len(e.classes) > MAX_MATRIX:
        image = figure(plots.confusion_chart(e), "Rows by true class, columns by predicted class; darker is a larger share")
        return image + "<h3>Most frequent confusions</h3>" + _pairs(e)
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in e.class_names)
    body = "".join(
        f"<tr><th scope=row>{escape(name)}</th>{''.join(_cell(int(n), int(row.sum()), i == k) for k, n in enumerate(row))}</tr>"
        for i, (name, row) in enumerate(zip(e.class_names, e.confusion, strict=True))
    )
    matrix = f'<div class="wide"><table class="confusion"><thead><tr><th scope=col></th>{head}</tr></thead>{body}</table></div>'
    return note("Confusion matrix: a row for each true class, a column for each predicted one.") + matrix


def _cell(count: int, total: int, right: bool) -> str:
    if not count:
        return "<td class=none>·</td>"
    return f'<td class={"hit" if right else "miss"} style="--v:{count / total:.3f}">{count}</td>'


def _pairs(e: Evaluation) -> str:
    places = [(int(i), int(k)) for i, k in zip(*e.confusion.nonzero(), strict=True) if i != k]
    found = [(int(e.confusion[i, k]), i, k) for i, k in places]
    worst = sorted(found, key=lambda item: (-item[0], item[1:]))[:MAX_PAIRS]
    rows = [(e.class_names[i], e.class_names[k], n, _percent(n / e.classes[i].support)) for n, i, k in worst]
    return table(["true class", "predicted class", "rows", "of the true class"], rows)


def _classes(e: Evaluation) -> str:
    def badness(score: ClassScore) -> float:
        return 2.0 if score.f1 is None else score.f1

    rows = list(e.classes) if len(e.classes) <= MAX_CLASS_ROWS else sorted(e.classes, key=badness)[:MAX_CLASS_ROWS]
    cut = note(f"The {len(rows)} worst of {len(e.classes)} classes, by F1." if len(rows) < len(e.classes)
               else "By class, one against the rest.")  # fmt: skip
    cells = [(s.name, *map(_number, (s.precision, s.recall, s.f1, s.auc)), s.support, s.predicted) for s in rows]
    return cut + table(["class", "precision", "recall", "F1", "AUC", "rows", "predicted"], cells)


def _mistakes(content: ReportContent) -> list[Section]:
    main = _main(content)
    if content.mistakes is None or not len(content.mistakes.labels) or not main:
        return []
    pictures = report_images.gallery(content.mistakes, main[1].class_names)
    text = note(f"Rows of the {main[0]} split that the model got wrong with the greatest confidence.")
    return [Section(title="Worst mistakes", html=text + pictures)]


def _run(run: RunFacts) -> Section:
    recovered = "of workers or of the driver"
    if run.recovery_s:
        recovered += f", {statistics.median(run.recovery_s):.1f} s each"
    rate = [("samples/s", f"{run.samples_per_s:,.0f}", "of all workers")] if run.samples_per_s else []
    cards = [
        ("time", _duration(run.duration_s), "over all its drivers"),
        *rate,
        ("restarts", str(run.restarts), recovered),
        ("steps lost", str(run.lost_steps), "executed twice"),
        ("steps skipped", str(run.skipped_steps), "loss or gradient not finite"),
        ("goodput", "–" if run.goodput is None else _percent(run.goodput), "useful steps, of the time taken"),
    ]
    events = list(run.events)[-MAX_EVENTS:]
    lines = "".join(f"<li>{escape(without_secrets(event))}</li>" for event in events)
    dropped = note(f"The last {MAX_EVENTS} of {len(run.events)} events.") if len(events) < len(run.events) else ""
    listed = f'<ul class="events">{lines}</ul>' if events else note("No events: no failure, no damaged checkpoint.")
    return Section(title="How the run went", html=tiles(cards) + dropped + listed)


def _data(content: ReportContent) -> list[Section]:
    data = dict(content.data)
    counts = cast(Mapping[str, Sequence[int]], data.pop("class_counts", {}))
    names = [str(name) for name in data.pop("classes", ())]
    if not content.data:
        return []
    about = facts(without_secrets(data))
    if not counts or not names:
        return [Section(title="Data", html=about)]
    rows = [[name, *(count[k] for count in counts.values())] for k, name in enumerate(names[:MAX_CLASS_ROWS])]
    rows.append(["all", *(sum(count) for count in counts.values())])
    cut = note(f"The first {MAX_CLASS_ROWS} of {len(names)} classes.") if len(names) > MAX_CLASS_ROWS else ""
    return [Section(title="Data", html=f"{about}<h3>Rows by class and split</h3>{cut}{table(['class', *counts], rows)}")]


def _plain(content: ReportContent) -> list[Section]:
    parts = {"Config": content.config, "Environment": content.environment}
    return [Section(title=title, html=facts(without_secrets(flatten(values)))) for title, values in parts.items() if values]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(fraction: float) -> str:
    return f"{fraction:.2%}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{shown(float(seconds))} s"
