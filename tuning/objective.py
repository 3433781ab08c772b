"""What a search looks for: metrics of a trial's evaluations, and constraints on them."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.core.errors import ConfigError
from jobs.common.declared_metrics import Direction
from tuning.journal import Trial

COSTS: dict[str, Direction] = {"parameters": "min", "validation_ms_per_row": "min"}
"""What every trial reports beside its job's own metrics."""


@dataclass(frozen=True)
class Constraint:
    """`metric <= bound`, or `metric >= bound`."""

    metric: str
    sign: int
    bound: float

    def excess(self, row: Mapping[str, float]) -> float:
        """How far an evaluation is beyond the bound; 0 or less where it is kept."""
        return self.sign * (float(row[self.metric]) - self.bound)

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if self.sign > 0 else '>='}{self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The metrics by name and direction, the first of which decides, and the constraints."""

    metrics: Mapping[str, Direction]
    constraints: tuple[Constraint, ...] = ()

    @staticmethod
    def of(reported: Mapping[str, Direction], names: Sequence[str], constraints: Sequence[str]) -> "Goal":
        """reported: what the job reports. Raises: ConfigError for a metric that it does not."""
        known: dict[str, Direction] = {**reported, **COSTS}
        for name in names:
            _require_known(name, known, "--objective")
        kept = tuple(_constraint(text, known) for text in constraints)
        return Goal(metrics={name: known[name] for name in names}, constraints=kept)

    @property
    def first(self) -> str:
        return next(iter(self.metrics))

    @property
    def sign(self) -> int:
        """1 where more of the first metric is better, else -1."""
        return 1 if self.metrics[self.first] == "max" else -1

    def check(self, row: Mapping[str, float]) -> None:
        """Raises: ConfigError for an evaluation without a metric that is looked for, as of numbers that are predicted
        where it is one of classes."""
        wanted = dict.fromkeys(self.metrics, "--objective") | {each.metric: "--constraint" for each in self.constraints}
        for name, option in wanted.items():
            if name not in row:
                there = ", ".join(key for key in row if key.startswith("validation_") or key in COSTS)
                raise ConfigError(f"{option} {name}: evaluations on this data report {there}: look for one of them")

    def score(self, row: Mapping[str, float]) -> float:
        """The first metric, such that more is better; far below everything where it is not finite."""
        value = float(row[self.first])
        return self.sign * value if math.isfinite(value) else -1e30

    def best_row(self, trial: Trial) -> Mapping[str, float] | None:
        """The evaluation that was best by the first metric, the earliest of equals;
        None if there was none that is finite."""
        finite = [row for row in trial.evaluations if all(math.isfinite(row[name]) for name in self.metrics)]
        return max(finite, key=self.score, default=None)

    def feasible(self, row: Mapping[str, float]) -> bool:
        return all(constraint.excess(row) <= 0 for constraint in self.constraints)

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best first: those that keep the constraints, then by the first metric, then the earlier;
        those that failed last."""
        def place(trial: Trial) -> tuple[int, float, int]:
            row = self.best_row(trial)
            if row is None:
                return (3, 0.0, trial.number)
            return (2 if trial.status == "failed" else int(not self.feasible(row)), -self.score(row), trial.number)

        return sorted(trials, key=place)

    def pareto(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that no other one beats in one metric and equals or beats in all; they keep the constraints."""
        rows = {t.number: row for t in trials
                if t.status != "failed" and (row := self.best_row(t)) is not None and self.feasible(row)}
        ways = {name: 1 if way == "max" else -1 for name, way in self.metrics.items()}
        points = {number: tuple(sign * row[name] for name, sign in ways.items()) for number, row in rows.items()}

        def beaten(mine: tuple[float, ...]) -> bool:
            return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True))
                       for other in points.values())

        return [trial for trial in trials if trial.number in points and not beaten(points[trial.number])]


def _constraint(text: str, known: Mapping[str, Direction]) -> Constraint:
    match = re.fullmatch(r"\s*([\w.]+)\s*(<=|>=)\s*([-+.\deE]+)\s*", text)
    try:
        if match is None:
            raise ValueError
        bound = float(match[3])
    except ValueError:
        raise ConfigError(f'--constraint "{text}": write METRIC<=NUMBER or METRIC>=NUMBER, in quotes') from None
    _require_known(match[1], known, "--constraint")
    return Constraint(match[1], 1 if match[2] == "<=" else -1, bound)


def _require_known(name: str, known: Mapping[str, Direction], flag: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{flag} {name}: the job does not report it: it reports {', '.join(known)}; the nearest is "
                          f"{near}")
