"""Charts as inline SVG that takes its colours from the page: readable in light and dark, and in print.

Drawn with matplotlib's object interface, so no state outlives a chart. Colours that stand for CSS variables go in, and
are replaced in the text that comes out; letters stay letters, in the page's own font.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import io
import re
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from jobs.common.arrays import Array
from jobs.common.evaluation.metrics import Evaluation
from jobs.common.evaluation.roc import RocCurve

MAX_POINTS = 400
MAX_NAMED = 60
NUM_COLOURS = 8
INK, FAINT, PANEL = "#010101", "#010102", "#010103"
"""Colours that the page replaces by its own: of letters, of lines in the background, of the background."""
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)", PANEL: "var(--panel)"} | {
    f"#0102{i:02x}": f"var(--series-{i})" for i in range(NUM_COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "legend.fontsize": 8, "lines.linewidth": 1.6,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.5, "axes.axisbelow": True, "legend.facecolor": PANEL,
    "legend.edgecolor": FAINT, "legend.framealpha": 0.85, "legend.fancybox": False, "figure.facecolor": "none",
    "axes.facecolor": "none", "savefig.facecolor": "none", "axes.formatter.limits": (-3, 5),
}

Line = tuple[Sequence[float], Sequence[float]]


def line_chart(lines: Mapping[str, Line], *, x_label: str, name: str, log: bool = False) -> Markup:
    """Values over steps or epochs from 0 on, one line a name; long lines are averaged down to 400 points.
    `name` is what a screen reader says.

    log: a logarithmic scale, where the values are positive and span more than a factor of 50.
    """
    with chart(name) as (axes, done):
        for i, (label, (xs, ys)) in enumerate(lines.items()):
            x, y = _thinned(np.asarray(xs, float), np.asarray(ys, float))
            marker = "o" if len(x) <= 30 else ""
            axes.plot(x, y, label=plain(label), color=colour(i), marker=marker, markersize=3)
        values = np.concatenate([np.asarray(ys, float) for _, ys in lines.values()])
        if log and values.min() > 0 and values.max() > 50 * values.min():
            axes.set_yscale("log")
        axes.set(xlabel=x_label, xlim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if len(lines) > 1:
            axes.legend(loc="best")
    return done[0]


def roc_chart(evaluation: Evaluation, *, corner: bool = False) -> Markup:
    """ROC curves: averages, and the classes (of more than ten, the five worst).
    `corner`: the upper left tenth, enlarged."""
    name = "The upper left corner of the ROC curves" if corner else "ROC curves, one class against the rest"
    with chart(name) as (axes, done):
        for i, (label, curve, dash) in enumerate(_roc_lines(evaluation)):
            axes.plot(curve.false_positive_rate, curve.true_positive_rate, dash, label=f"{label} ({curve.area:.4f})",
                      color=colour(i), linewidth=2.0 if i < 2 else 1.0)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        if corner:
            axes.set(xlim=(-0.002, 0.1), ylim=(0.9, 1.005))
        else:
            axes.plot([0, 1], [0, 1], ":", color=FAINT)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.legend(loc="lower right", title="area under the curve", title_fontsize=8)
    return done[0]


def reaches_the_corner(evaluation: Evaluation) -> bool:
    """Whether the mean ROC curve has something to show in the upper left tenth."""
    mean = evaluation.roc_macro
    return mean is not None and float(np.interp(0.08, mean.false_positive_rate, mean.true_positive_rate)) > 0.92


def reliability_chart(evaluation: Evaluation) -> Markup:
    """Accuracy against confidence, with how many rows each bin holds below."""
    bins = [b for b in evaluation.reliability if b.count]
    with chart("Reliability diagram: accuracy against confidence") as (axes, done):
        axes.plot([0, 1], [0, 1], ":", color=INK, label="perfectly calibrated")
        width = bins[0].high - bins[0].low
        share = [b.count / evaluation.num_rows for b in bins]
        axes.bar([b.low for b in bins], share, width, align="edge", color=colour(1), alpha=0.25,
                 label="share of the rows")
        axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], "-o", color=colour(0), markersize=4,
                  label="this model")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
        axes.legend(loc="best")
    return done[0]


def confusion_chart(evaluation: Evaluation) -> Markup:
    """The confusion matrix of many classes as an image: darkness is the share of a true class's rows."""
    counts = evaluation.confusion.astype(float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with chart("Confusion matrix as an image") as (axes, done):
        axes.imshow(_pooled(np.sqrt(shares)), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto",
                    extent=(-0.5, len(shares) - 0.5, len(shares) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.set(xlabel="predicted class", ylabel="true class")
        if len(shares) <= MAX_NAMED:
            names = [plain(name) for name in evaluation.class_names]
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
    return done[0]


@contextmanager
def chart(name: str, *, width: float = 4.8, height: float = 3.3) -> Generator[tuple[Any, list[Markup]]]:
    """Axes to draw on, and a list that holds the SVG's text once the block has ended.
    name: what a screen reader says. Inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    done: list[Markup] = []
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        left, below = 0.624 / width, 0.495 / height
        yield figure.add_axes((left, below, 1 - left - 0.192 / width, 1 - below - 0.132 / height)), done
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        done.append(_themed(text.getvalue(), name))


def _themed(svg: str, name: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"(font: (?:[\w.]+ )*[\d.]+px) [^;\"]+", r"\1 inherit", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    prefix = f"c{zlib.crc32(name.encode()):08x}"  # identifiers are unique within a chart only
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg).replace('href="#', f'href="#{prefix}-')
    svg = svg.replace("url(#", f"url(#{prefix}-")
    return Markup(re.sub(r"#0[0-9a-f]{5}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), svg))


def colour(index: int) -> str:
    """The page's colour of a series."""
    return f"#0102{index % NUM_COLOURS:02x}"


def _roc_lines(evaluation: Evaluation) -> Iterator[tuple[str, RocCurve, str]]:
    if evaluation.roc_macro:
        yield "macro average", evaluation.roc_macro, "-"
    if evaluation.roc_micro:
        yield "micro average", evaluation.roc_micro, "--"
    named = [(n, c) for n, c in zip(evaluation.class_names, evaluation.roc_classes, strict=True) if c]
    if len(named) > 10:
        named = sorted(named, key=lambda pair: pair[1].area)[:5]
    for i, (name, curve) in enumerate(named):
        yield plain(name), curve, "-" if i < NUM_COLOURS - 2 else "-."


def plain(name: str) -> str:
    """A label that matplotlib takes as it is: `$` would be mathematics, `_` in front would hide it."""
    short = name if len(name) <= 24 else f"{name[:23]}…"
    return short.replace("$", r"\$").lstrip("_") or "_"


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    if len(x) <= MAX_POINTS:
        return x, y
    pieces = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[piece].mean() for piece in pieces]), np.array([y[piece].mean() for piece in pieces])


def _pooled(shares: Array, most: int = 250) -> Array:
    """The maximum of each square, so that a rare confusion is not averaged away."""
    step = -(-len(shares) // most)
    size = -(-len(shares) // step) * step
    padded = np.zeros((size, size))
    padded[: len(shares), : len(shares)] = shares
    return padded.reshape(size // step, step, size // step, step).max(axis=(1, 3))
