"""What a version must show before it is promoted: rules in a file, or on the command line, measured on rows that say
what is right.

    data: s3://BUCKET/holdout.parquet       # none of it may be a row that the version was trained on
    champion: {metric: accuracy, at_least: 0.0, confidence: 0.95}   # better than the champion on the same rows
    figures: [{metric: accuracy, at_least: 0.9}, {metric: log_loss, at_most: 0.4}]
    slices: [{column: country, metric: accuracy, at_least: 0.8}]
    robustness: [{change: noise, metric: accuracy, at_least: 0.8}]    # of the same rows, changed as in a run's report
    most_size_mb: 50
    most_latency_ms: 20                     # of one row by itself, the 95th percentile

Better than the champion: the difference of the metric, of which more is better here, is at least `at_least`, and not
only on these rows by chance: in `confidence` of 4,000 draws of them (a paired bootstrap) it is too.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np

from cluster.core.documents import DocumentError, parse_json, parse_yaml
from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.declared_metrics import Values, figure, present
from jobs.common.paired import improvement
from jobs.common.predicting.judged import Judged, main_metric
from jobs.common.predicting.model import FoundModel
from jobs.common.predictor.find import load_predictor
from jobs.common.predictor.predictor import Changing
from jobs.common.report import html

GATE_FILE, GATE_PAGE = "gate.json", "gate.html"
_TIMED, _WARM = 100, 5


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Of a figure of the version."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class SliceBound(Bound):
    """Of the figure of each value of a column that enough rows have."""

    column: str
    fewest_rows: int = 30


@dataclass(frozen=True, kw_only=True)
class ChangeBound(Bound):
    """Of the figure of all rows, changed as the world changes them."""

    change: str


@dataclass(frozen=True, kw_only=True)
class AgainstChampion:
    metric: str | None = None
    """By default the one that says how good such a model is."""
    at_least: float = 0.0
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The rules of a file; what is not there is not asked for."""

    data: str
    label_column: str | None = None
    champion: AgainstChampion | None = None
    figures: tuple[Bound, ...] = ()
    slices: tuple[SliceBound, ...] = ()
    robustness: tuple[ChangeBound, ...] = ()
    most_size_mb: float | None = None
    most_latency_ms: float | None = None
    overlap: Literal["refuse", "report"] = "refuse"
    """What becomes of data of which rows were trained on."""

    @staticmethod
    def read(path: Path) -> "Gates":
        """Raises: ConfigError."""
        try:
            values = parse_yaml(path.read_text())
            gates = parse_json(json.dumps(values), Gates)
            _check_known(cast(Mapping[str, object], values), gates)
            return gates
        except OSError as error:
            raise ConfigError(f"--gates {path}: {error.strerror}: name a file of rules") from error
        except (DocumentError, TypeError) as error:
            raise ConfigError(f"--gates {path}: {error}: correct it; jobs/common/predicting/README.md shows what there "
                              "is") from error


def _check_known(values: Mapping[str, object], made: object, where: str = "") -> None:
    """Raises: DocumentError for a field that a rule does not have, such as a misspelt one."""
    if unknown := values.keys() - vars(made).keys():
        raise DocumentError(f"{where}{min(unknown)}: there is no such rule, but {', '.join(vars(made))}")
    for name, value in values.items():
        inner = vars(made)[name]
        parts = zip(value, inner, strict=True) if isinstance(value, list) else [(value, inner)]
        for given, part in parts:
            if isinstance(given, dict):
                _check_known(given, part, f"{where}{name}.")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A rule, and whether it is kept."""

    what: str
    found: str
    wanted: str
    kept: bool


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What was found of a version."""

    name: str
    champion: str
    """The version that it was compared with; empty where there is none."""
    data: str
    rows: int
    checked: tuple[Checked, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return all(each.kept for each in self.checked)

    @property
    def lines(self) -> list[str]:
        return [f"{'kept' if each.kept else 'NOT KEPT'}: {each.what}: {each.found}, wanted {each.wanted}"
                for each in self.checked]

    def write(self, store: Store) -> str:
        """Returns where the page is."""
        store.write_text(GATE_FILE, json.dumps({"passed": self.passed, **asdict(self)}, indent=1))
        store.write_text(GATE_PAGE, html.render("gate.html", "jobs.common.predicting", report=self))
        return store.location(GATE_PAGE)


def check(gates: Gates, version: Judged, champion: Judged | None, trained_on: int | None,
          changed: Mapping[str, Judged]) -> GateReport:
    """Puts a version to the rules. champion: None where nobody is the champion yet. trained_on: rows of the data that
    the version was trained on; None where nobody knows. changed: the version on changed rows, by `changes_of`. Raises:
    ConfigError for a metric or a column that there is not."""
    checked = [*_overlap(gates, version, trained_on), *_against(gates, version, champion),
               *(_bounded(bound.metric, version.metrics, bound, version) for bound in gates.figures),
               *(each for bound in gates.slices for each in _sliced(bound, version)),
               *(_bounded(f"{bound.metric} with {bound.change}", changed[bound.change].metrics, bound, version)
                 for bound in gates.robustness), *_size(gates, version),
               *_latency(gates, version)]
    return GateReport(name=version.model.name, champion=champion.model.name if champion else "", data=gates.data,
                      rows=len(version.true), checked=tuple(checked))


def _overlap(gates: Gates, version: Judged, trained_on: int | None) -> list[Checked]:
    found = ("nobody knows: the prepared data of its training is no more in the storage" if trained_on is None
             else f"{trained_on:,} of {len(version.true):,} rows")
    return [Checked(what="rows that it was trained on", found=found, wanted="0 rows",
                    kept=gates.overlap == "report" or not trained_on)]


def _against(gates: Gates, version: Judged, champion: Judged | None) -> list[Checked]:
    asked = gates.champion
    if asked is None or champion is None:
        return []
    metric = asked.metric or main_metric(version).name
    gap, bound = improvement(_errors(champion, metric), _errors(version, metric), confidence=asked.confidence,
                             root=metric == "rmse")
    kept = gap >= asked.at_least and bound >= asked.at_least and (gap > 0 or asked.at_least < 0)
    return [Checked(what=f"{metric.replace('_', ' ')} better than that of {champion.model.name}, the champion",
                    found=f"by {figure(gap)}, at least {figure(bound)} in {asked.confidence:.0%} of draws of the rows",
                    wanted=f"at least {figure(asked.at_least)} in as many", kept=kept)]


def _errors(judged: Judged, metric: str) -> Array:
    """(rows, columns): what a metric is a mean of, less being better."""
    rows = np.arange(len(judged.true))
    if judged.about.labels and metric == "accuracy":
        return (~judged.right)[:, None].astype(np.float64)
    if judged.about.labels and metric == "log_loss":
        likely = judged.predicted[rows, judged.true].astype(np.float64)
        return -np.log(np.clip(likely, 1e-12, None))[:, None]
    if not judged.about.labels and metric in ("rmse", "mae"):
        away = np.abs(judged.predicted.astype(np.float64) - judged.true)
        return away**2 if metric == "rmse" else away
    known = ("accuracy", "log_loss") if judged.about.labels else ("rmse", "mae")
    raise ConfigError(f"a version is compared with the champion by {' or '.join(known)}, not by {metric!r}, which is "
                      "no mean over rows")


def _bounded(what: str, figures: Values, bound: Bound, version: Judged) -> Checked:
    if bound.metric not in figures:
        known = ", ".join(metric.name for metric in present(version.declared, version.metrics))
        raise ConfigError(f"the gates ask for {bound.metric!r}, and there is {known}")
    if bound.at_least is None and bound.at_most is None:
        raise ConfigError(f"the gates bound {bound.metric} by nothing: give at_least or at_most")
    value = figures[bound.metric]
    wanted = [f"at least {figure(bound.at_least)}"] if bound.at_least is not None else []
    wanted += [f"at most {figure(bound.at_most)}"] if bound.at_most is not None else []
    kept = ((bound.at_least is None or value >= bound.at_least) and (bound.at_most is None or value <= bound.at_most))
    return Checked(what=what.replace("_", " "), found=figure(value), wanted=" and ".join(wanted), kept=kept)


def _sliced(bound: SliceBound, version: Judged) -> list[Checked]:
    if bound.column not in version.table.column_names:
        raise ConfigError(f"the gates ask for slices by {bound.column!r}, and the data has "
                          f"{', '.join(version.table.column_names)}")
    return [_bounded(f"{bound.metric} where {bound.column} is {each.value} ({each.rows:,} rows)", each.figures, bound,
                     version) for each in version.slices(bound.column) if each.rows >= bound.fewest_rows]


def _size(gates: Gates, version: Judged) -> list[Checked]:
    if gates.most_size_mb is None:
        return []
    size = sum(file.size for file in version.model.artifact.store.files()) / 1e6
    return [Checked(what="size", found=f"{size:.1f} MB", wanted=f"at most {gates.most_size_mb:g} MB",
                    kept=size <= gates.most_size_mb)]


def _latency(gates: Gates, version: Judged) -> list[Checked]:
    """In this process, of the artifact's own rows, one after the other."""
    if gates.most_latency_ms is None:
        return []
    predictor = load_predictor(version.model.artifact, version.model.jobs)
    inputs = version.model.artifact.probe().inputs
    rows = len(next(iter(inputs.values())))
    taken: list[float] = []
    for number in range(_WARM + _TIMED):
        one = {name: values[number % rows : number % rows + 1] for name, values in inputs.items()}
        began = time.perf_counter()
        predictor.encode(predictor.predict(predictor.decode(one)))
        taken.append(1000 * (time.perf_counter() - began))
    p95 = float(np.quantile(taken[_WARM:], 0.95))
    return [Checked(what="latency of one row, p95 here", found=f"{p95:.2f} ms",
                    wanted=f"at most {gates.most_latency_ms:g} ms", kept=p95 <= gates.most_latency_ms)]


def changes_of(gates: Gates, model: FoundModel) -> Sequence[str]:
    """Those by which robustness is measured. Raises: ConfigError for one that the model does not know."""
    names = [*dict.fromkeys(bound.change for bound in gates.robustness)]
    if not names:
        return []
    predictor = load_predictor(model.artifact, model.jobs)
    known = predictor.changes if isinstance(predictor, Changing) else ()
    if strange := [name for name in names if name not in known]:
        there = f"{', '.join(known)}; attacks need gradients, and are in the report of its run" if known else "none"
        raise ConfigError(f"the gates ask for robustness to {strange[0]!r}, and of the changes that a gate can make of "
                          f"what {model.name} takes there is {there}")
    return names


def columns_of(gates: Gates) -> Sequence[str]:
    """Those by which figures are sliced."""
    return [*dict.fromkeys(bound.column for bound in gates.slices)]
