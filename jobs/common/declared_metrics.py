"""What a job says of the numbers that its evaluations report: their names, which way is better, and which one counts.

    JOB = Job(…, metrics=lambda config: CLASSIFICATION)

Whatever shows a model's figures, or compares by them, knows no task but goes by this: the summary that ends a run, the
report, the registry's table, a search, the choice of the best checkpoint and of the best run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.core.errors import ConfigError

Direction = Literal["max", "min"]
Values = Mapping[str, float]
"""A split's figures by name; the ends of a figure's 95% interval are `<name>_low` and `<name>_high`."""
MOST_HEADLINES = 5
_INTERVAL = "95% interval "


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation."""

    name: str
    """As result.json, the artifact and the registry have it: `log_loss`."""
    direction: Direction
    title: str = ""
    """As people read it: `log loss`; by default the name."""
    unit: str = ""
    """`nats`, `years`; empty for a pure number."""
    primary: bool = False
    """Whether it is the one that says how good a model is; of each task one metric is."""
    while_training: str = ""
    """What the evaluations between epochs call it, where they report it: `loss`. Then it can choose the best
    checkpoint, and `validation_<this>` is what a search may look for."""

    @property
    def label(self) -> str:
        """The title, or else the name."""
        return self.title or self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.direction == "max" else -1

    def shown(self, values: Values) -> str:
        """The figure of a split with its unit, and its interval where it has one."""
        ends = interval(self, values)
        return f"{figure(values[self.name])}{f' {self.unit}' if self.unit else ''}{f' ({ends})' if ends else ''}"


CLASSIFICATION = (
    Metric("accuracy", "max", primary=True, while_training="accuracy"),
    Metric("macro_f1", "max", "macro-F1"),
    Metric("log_loss", "min", unit="nats", while_training="loss"),
    Metric("expected_calibration_error", "min", "calibration error"),
    Metric("balanced_accuracy", "max"),
    Metric("auc_macro", "max", "AUC, macro"),
    Metric("auc_micro", "max", "AUC, micro"),
)
"""Of a classifier: see evaluation/metrics.py."""


def classification(top_k: int) -> Sequence[Metric]:
    """The same with the top-k accuracy, which a classifier of more classes than that has."""
    return [*CLASSIFICATION[:3], Metric(f"top_{top_k}_accuracy", "max", f"top-{top_k} accuracy"), *CLASSIFICATION[3:]]


def figure(value: float | None) -> str:
    """Four decimals, or of a large number five digits; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.5g}" if abs(value) < 1e5 else f"{value:.4e}"


def primary_of(metrics: Sequence[Metric], values: Values) -> Metric:
    """The one that says how good a model is, of those of which a split has a figure."""
    return next(metric for metric in present(metrics, values) if metric.primary)


def searchable(metrics: Iterable[Metric]) -> dict[str, Direction]:
    """What a search may look for, and which way is better."""
    return {f"validation_{metric.while_training}": metric.direction for metric in metrics if metric.while_training}


def chosen(metrics: Sequence[Metric], name: str) -> Metric:
    """The metric that evaluations between epochs report under a name.
    Raises: ConfigError, with those that there are."""
    known = {metric.while_training: metric for metric in metrics if metric.while_training}
    if name not in known:
        raise ConfigError(f"--eval.metric {name}: this job's evaluations report {', '.join(known)}: use one of them")
    return known[name]


def reported(metric: Metric, values: Values) -> float:
    """Its value in an evaluation between epochs. Raises: ConfigError where that does not report it, as of numbers
    where classes are predicted."""
    if metric.while_training not in values:
        raise ConfigError(f"--eval.metric {metric.while_training}: evaluations on this data report "
                          f"{', '.join(values)}: use one of them (in a job of your own `evaluate` must report what "
                          "its metrics declare)")
    return values[metric.while_training]


def present(metrics: Iterable[Metric], values: Values) -> list[Metric]:
    """Those of which a split has a figure."""
    return [metric for metric in metrics if metric.name in values]


def headlines(metrics: Sequence[Metric], test: Values) -> list[tuple[str, str]]:
    """The first rows of the summary that ends a run: what, and how much."""
    found = [(metric.label, metric.shown(test)) for metric in present(metrics, test)[:MOST_HEADLINES]]
    return [(f"test {found[0][0]}", found[0][1]), *found[1:]] if found else []


def rows(metrics: Iterable[Metric], splits: Sequence[Values]) -> list[list[str]]:
    """A table's: each metric that a split has, and a row for its interval where it has one."""
    made: list[list[str]] = []
    for metric in metrics:
        if any(metric.name in values for values in splits):
            unit = f" ({metric.unit})" if metric.unit else ""
            made.append([f"{metric.label}{unit}", *(figure(values.get(metric.name)) for values in splits)])
        if any(f"{metric.name}_low" in values for values in splits):
            made.append(["… its 95% interval", *(interval(metric, values).removeprefix(_INTERVAL) or "–"
                                                 for values in splits)])
    return made


def interval(metric: Metric, values: Values) -> str:
    """`95% interval 0.9612 to 0.9811`; empty where there is none."""
    low, high = (values.get(f"{metric.name}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f"{_INTERVAL}{figure(low)} to {figure(high)}"
