"""Charts of a search, drawn like those of a run's report (jobs/common/report/charts.py)."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from markupsafe import Markup

from jobs.common.arrays import Array
from jobs.common.formatting import shown
from jobs.common.report.charts import FAINT, INK, chart, colour, plain
from tuning.journal import Trial
from tuning.objective import Goal
from tuning.parameter import Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATES = {"completed": 0, "stopped": 7, "failed": 4, "running": 2}
_MAP = "viridis"
_MOST_CURVES = 200


def learning_curves(trials: Sequence[Trial], goal: Goal, best: Trial | None) -> Markup:
    """The first metric over epochs, a line a trial, the best one on top."""
    with chart(f"{goal.first} over epochs, a line for each trial") as (axes, done):
        named: set[str] = set()
        for trial in sorted(trials[:_MOST_CURVES], key=lambda t: t is best):
            if not trial.evaluations:
                continue
            x, y = [row["epoch"] for row in trial.evaluations], [row[goal.first] for row in trial.evaluations]
            kind = "the best" if trial is best else trial.status
            axes.plot(x, y, color=INK if trial is best else colour(_STATES[trial.status]),
                      linewidth=2.2 if trial is best else 0.9,
                      alpha=1.0 if trial is best else 0.6, marker="o" if len(x) == 1 else "", markersize=2.5,
                      label=None if kind in named else kind)
            named.add(kind)
        axes.set(xlabel="epoch", ylabel=plain(goal.first))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _clip(axes, [row[goal.first] for trial in trials for row in trial.evaluations], goal)
        axes.legend(loc="best")
    return done[0]


def progress(trials: Sequence[Trial], goal: Goal) -> Markup:
    """Each trial's best, and the best of all so far."""
    found = [(trial, row[goal.first]) for trial in trials if (row := goal.best_row(trial))]
    with chart("The best so far, over trials") as (axes, done):
        for status, index in _STATES.items():
            points = [(trial.number, value) for trial, value in found if trial.status == status]
            if points:
                axes.scatter(*zip(*points, strict=True), s=14, color=colour(index), label=status)
        best = (np.maximum if goal.sign > 0 else np.minimum).accumulate([value for _, value in found])
        axes.step([trial.number for trial, _ in found], best, where="post", color=INK, label="the best so far")
        axes.set(xlabel="trial", ylabel=plain(goal.first))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _clip(axes, [value for _, value in found], goal)
        axes.legend(loc="best")
    return done[0]


def importance(shares: Mapping[str, float]) -> Markup:
    """A bar for each field, the most important on top."""
    names = sorted(shares, key=lambda name: shares[name])
    with chart("Importance of each field", height=max(1.6, 0.7 + 0.27 * len(names))) as (axes, done):
        axes.barh(range(len(names)), [shares[name] for name in names], color=colour(0), height=0.65)
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.set_position([0.34, axes.get_position().y0, 0.62, axes.get_position().height])  # room for the names
        axes.set(xlabel="share of the importance (PED-ANOVA)")
    return done[0]


def slice_of(parameter: Parameter, trials: Sequence[Trial], goal: Goal) -> Markup:
    """Each trial's best over one field; earlier trials are paler."""
    found = [(trial, row[goal.first]) for trial in trials if parameter.name in trial.values
             and (row := goal.best_row(trial))]
    with chart(f"{goal.first} by {parameter.name}", height=2.6) as (axes, done):
        newest = max((trial.number for trial, _ in found), default=0) or 1
        x = [_place(parameter, trial.values[parameter.name]) for trial, _ in found]
        shades = [0.3 + 0.7 * trial.number / newest for trial, _ in found]
        axes.scatter(x, [value for _, value in found], s=16, color=colour(0), alpha=shades)
        _scale(axes, parameter)
        axes.set(ylabel=plain(goal.first))
        _clip(axes, [value for _, value in found], goal)
    return done[0]


def contour(first: Parameter, second: Parameter, trials: Sequence[Trial], goal: Goal) -> Markup:
    """The first metric over two fields, interpolated between the trials, which are dots."""
    rows = [(trial.values[first.name], trial.values[second.name], row[goal.first]) for trial in trials
            if first.name in trial.values and second.name in trial.values and (row := goal.best_row(trial))]
    x, y = (np.array([parameter.position(row[k]) for row in rows]) for k, parameter in enumerate((first, second)))
    z = _clipped(np.array([row[2] for row in rows], float), goal)
    with chart(f"{goal.first} by {first.name} and {second.name}", height=3.6) as (axes, done):
        if len({*zip(x.tolist(), y.tolist(), strict=True)}) >= 4 and min(np.ptp(x), np.ptp(y), np.ptp(z)) > 0:
            at, across = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60))
            filled = axes.contourf(at, across, _smoothed(x, y, z, at, across), levels=12, cmap=_MAP, alpha=0.85)
            where = axes.get_position()
            axes.set_position([where.x0, where.y0, where.width - 0.13, where.height])
            bar = axes.figure.colorbar(filled,
                                       cax=axes.figure.add_axes([where.x1 - 0.11, where.y0, 0.03, where.height]))
            bar.ax.tick_params(labelsize=7)
        axes.scatter(x, y, s=9, color="white", edgecolor="black", linewidth=0.5)
        for axis, parameter in ((axes.xaxis, first), (axes.yaxis, second)):
            ticks, labels = _ticks(parameter)
            axis.set_ticks(ticks, labels, fontsize=7)
        axes.set(xlabel=plain(first.name), ylabel=plain(second.name), xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.grid(visible=False)
    return done[0]


def parallel_coordinates(parameters: Sequence[Parameter], trials: Sequence[Trial], goal: Goal) -> Markup:
    """A line a trial through an axis for each field and the metric; bright lines are good ones."""
    found = sorted(((trial, row) for trial in trials if (row := goal.best_row(trial))),
                   key=lambda pair: goal.score(pair[1]))
    scores = _clipped(np.array([row[goal.first] for _, row in found], float), goal)
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    shades = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    from matplotlib import colormaps

    with chart("Values of all trials", width=9.6, height=3.6) as (axes, done):
        for (trial, _), shade in zip(found, shades, strict=True):
            at = [p.position(trial.values[p.name]) if p.name in trial.values else np.nan for p in parameters]
            goodness = shade if goal.sign > 0 else 1 - shade
            axes.plot(range(len(parameters) + 1), [*at, shade], color=colormaps[_MAP](0.05 + 0.85 * goodness),
                      alpha=0.3 + 0.7 * goodness, linewidth=0.8 + 1.2 * goodness)
        for k, parameter in enumerate(parameters):
            axes.axvline(k, color=FAINT, linewidth=1)
            for y, text in zip(*_ticks(parameter), strict=True):
                axes.text(k, y, f" {text}", fontsize=6.5, va="center")
        axes.axvline(len(parameters), color=FAINT, linewidth=1)
        for y, value in ((0, low), (1, high)):
            axes.text(len(parameters), y, f" {value:.3g}", fontsize=6.5, va="center")
        names = [*(parameter.name for parameter in parameters), goal.first]
        axes.set_xticks(range(len(names)), [plain(name.replace(".", ".\n", 1)) for name in names], fontsize=7)
        axes.set_yticks([])
        axes.set(xlim=(-0.1, len(parameters) + 0.4), ylim=(-0.05, 1.05))
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
    return done[0]


def pareto_front(trials: Sequence[Trial], front: Sequence[Trial], goal: Goal) -> Markup:
    """The first two metrics of all trials; those of the front are joined."""
    first, second = list(goal.metrics)[:2]
    with chart(f"{first} and {second} of all trials") as (axes, done):
        for kind, group, index in (("beaten", [t for t in trials if t not in front], 7), ("on the front", front, 0)):
            points = sorted((row[first], row[second]) for trial in group if (row := goal.best_row(trial)))
            if points:
                line = "-o" if index == 0 and len(goal.metrics) == 2 else "o"
                axes.plot(*zip(*points, strict=True), line, color=colour(index), label=kind, markersize=4, linewidth=1)
        values = [row[second] for trial in trials if (row := goal.best_row(trial))]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set(xlabel=plain(first), ylabel=plain(second))
        axes.legend(loc="best")
    return done[0]


def _place(parameter: Parameter, value: object) -> float:
    return parameter.position(value) if parameter.kind == "choice" else float(cast(float, value))


def _scale(axes: "Axes", parameter: Parameter) -> None:
    if parameter.kind == "choice":
        axes.xaxis.set_ticks(*_ticks(parameter), fontsize=7)
    elif "log" in parameter.kind:
        axes.set_xscale("log")


def _ticks(parameter: Parameter) -> tuple[list[float], list[str]]:
    """Positions from 0 to 1 and what is written there: choices, or the ends and the middle."""
    if parameter.kind == "choice":
        return ([parameter.position(value) for value in parameter.values],
                [plain(shown(value)) for value in parameter.values])
    low, high = parameter.values
    middle = (low * high) ** 0.5 if "log" in parameter.kind else (low + high) / 2
    return [0.0, 0.5, 1.0], [f"{value:.2g}" for value in (low, middle, high)]


def _smoothed(x: Array, y: Array, z: Array, at: Array, across: Array, width: float = 0.12) -> Array:
    """A mean of the trials' values at each point, those near it counting most (Nadaraya-Watson, Gaussian kernel)."""
    squares = (at[..., None] - x) ** 2 + (across[..., None] - y) ** 2
    weights = np.exp(-(squares - squares.min(axis=-1, keepdims=True)) / (2 * width**2))
    return (weights * z).sum(axis=-1) / weights.sum(axis=-1)


def _clipped(values: Array, goal: Goal) -> Array:
    """The worst quarter's outliers moved to where the others begin: one diverged trial would take all the colours."""
    if len(values) < 4:
        return values
    low, high = np.percentile(values, [25, 75])
    reach = 3 * (high - low) or abs(high) * 0.05
    return np.maximum(values, low - reach) if goal.sign > 0 else np.minimum(values, high + reach)


def _clip(axes: "Axes", values: Sequence[float], goal: Goal) -> None:
    """Leaves outliers on the bad side out of the picture."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) >= 4:
        kept = _clipped(finite, goal)
        margin = 0.05 * (np.ptp(kept) or 1e-3)
        axes.set_ylim(kept.min() - margin, kept.max() + margin)
