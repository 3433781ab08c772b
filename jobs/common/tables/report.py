"""What artifact and report say of a model for tables: predictions against the truth, which columns it rests on, and a
baseline on the same rows."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from jobs.common import declared_metrics
from jobs.common.arrays import Array
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.config import to_dict
from jobs.common.data.dataset import SplitName
from jobs.common.declared_metrics import Values, primary_of
from jobs.common.evaluation.classification import judge_split
from jobs.common.report import charts, html
from jobs.common.report.html import Section
from jobs.common.tables.columns import Field
from jobs.common.tables.info import TableInfo
from jobs.common.tables.judging import lowered, metrics, number_metrics
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.common.training.predictions import Predictions

Predict = Callable[[Array, Array], Array]
"""From numbers (B, N) and categories (B, C) to probabilities (B, K), or numbers in their own units (B, K)."""
DRAWN_ROWS, SHUFFLES, MOST_COLUMNS = 2000, 5, 30
BASELINE_ROWS = 1_000_000
LIMITS = ("It knows only rows like those that it was trained on: beyond their range it answers all the same.",
          "That a column counts much for it does not mean that changing the column would change the world.")


def describe_table(trained: TrainingResult, verdict: EvaluationResult, *, how_to_load: str) -> Description:
    """The artifact's manifest."""
    dataset, info = trained.dataset, TableInfo.of(trained.dataset, trained.config.model)
    if info.class_names:
        outputs = [TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(info.class_names)))]
    else:
        outputs = [TensorSpec(name=name, datatype="FP64", shape=(-1, len(info.targets)))
                   for name in ("prediction", *(("low", "high") if len(info.quantiles) > 1 else ()))]
    what = (f"which of {len(info.class_names)} classes a row is of" if info.class_names
            else " and ".join(target.name for target in info.targets))
    return Description(
        job=trained.job, task="tabular-classification" if info.class_names else "tabular-regression",
        inputs=tuple(field.spec for field in info.schema.fields),
        outputs=(*outputs, TensorSpec(name="unseen_values", datatype="INT32", shape=(-1,))),
        labels=dataset.class_names,
        preprocessing={"fields": dataset.details["_fields"], "targets": dataset.details["targets"]},
        metrics=verdict.metrics, primary_metric=primary_of(metrics(trained.config), verdict.metrics["test"]).name,
        config=to_dict(trained.config), data=dataset.describe(),
        about=f"A model of {trained.config.model.build} that predicts {what} from {len(info.schema.fields)} columns.",
        limits=LIMITS, how_to_load=how_to_load)


def table_sections(trained: TrainingResult, verdict: EvaluationResult, predict: Predict) -> list[Section]:
    """Of the report. predict: by the model as it was handed over."""
    info = TableInfo.of(trained.dataset, trained.config.model)
    made = [_columns(info)]
    if not info.class_names:
        made.append(_numbers(info, trained.predictions("test")))
    if trained.config.eval.importance_rows and trained.extras.begins("which columns count"):
        made.append(_importance(trained, info, predict))
    if trained.config.eval.baseline and trained.extras.begins("gradient boosting"):
        made.append(_baseline(trained, info, verdict.metrics["test"]))
    return made


def _columns(info: TableInfo) -> Section:
    """What the model is told of each column."""
    def about(field: Field) -> str:
        if field.kind == "category":
            return f"{len(field.values):,} values: {', '.join(field.values[:5])}{' …' if len(field.values) > 5 else ''}"
        days = " days since 1970" if field.kind == "date" else ""
        return f"mean {declared_metrics.figure(field.mean)}, deviation {declared_metrics.figure(field.std)}{days}"

    shown = info.schema.fields[:MOST_COLUMNS]
    more = f" The first {MOST_COLUMNS} of {len(info.schema.fields)}." if len(shown) < len(info.schema.fields) else ""
    return html.section("Columns", f"As the training rows have them.{more}",
                        ["column", "kind", "of the training rows", "may be missing"],
                        [(field.name, field.kind, about(field), "yes" if field.misses else "no") for field in shown])


# ── predictions against the truth ──
def _numbers(info: TableInfo, test: Predictions) -> Section:
    """Each target's predictions and residuals, of at most 2,000 rows spread evenly over the split."""
    rows = np.unique(np.linspace(0, len(test.labels) - 1, min(DRAWN_ROWS, len(test.labels))).astype(np.int64))
    true, predicted = test.labels[rows], info.middle(test.probabilities[rows])
    figures: list[tuple[str, Markup]] = []
    for place, target in enumerate(info.targets):
        pair = true[:, place], predicted[:, place]
        figures += [(f"{target.name}: predicted against true", _scatter(*pair, target.name)),
                    (f"{target.name}: residuals", _residuals(*pair, target.name))]
    return html.figures("Predictions (test)", f"Of {len(rows):,} of {len(test.labels):,} test rows.", figures)


def _scatter(true: Array, predicted: Array, name: str) -> Markup:
    with charts.chart(f"{name}: predicted against true values") as (axes, done):
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        axes.plot(ends, ends, ":", color=charts.INK, label="what is right")
        axes.plot(true, predicted, "o", color=charts.colour(0), markersize=3, alpha=0.5, label="test rows")
        axes.set(xlabel="true", ylabel="predicted")
        axes.legend(loc="best")
    return done[0]


def _residuals(true: Array, predicted: Array, name: str) -> Markup:
    with charts.chart(f"{name}: residuals by predicted value") as (axes, done):
        axes.plot(predicted, predicted - true, "o", color=charts.colour(0), markersize=3, alpha=0.5)
        axes.axhline(0, linestyle=":", color=charts.INK)
        axes.set(xlabel="predicted", ylabel="predicted less true")
    return done[0]


# ── which columns count ──
class Importance(NamedTuple):
    """How much worse the model does where a column's values are shuffled among the rows: medians and extremes."""

    column: str
    median: float
    low: float
    high: float


def importance(info: TableInfo, numbers: Array, categories: Array, targets: Array, predict: Predict,
               seed: int = 0) -> list[Importance]:
    """Of each column, the most important first: permutation importance (Breiman 2001), by the loss that is lowered.

    numbers: (rows, N). categories: (rows, C). targets: codes (rows,), or numbers (rows, T).
    """
    rng = np.random.default_rng(seed)

    def loss(numbers: Array, categories: Array) -> float:
        share = Predictions(np.arange(len(targets)), targets, predict(numbers, categories))
        return _log_loss(share) if info.class_names else lowered(info, share)

    base, found = loss(numbers, categories), list[Importance]()
    for name, of_numbers, of_categories in _places(info):
        worse: list[float] = []
        for _ in range(SHUFFLES):
            order, mixed = rng.permutation(len(targets)), (numbers.copy(), categories.copy())
            mixed[0][:, of_numbers], mixed[1][:, of_categories] = (numbers[order][:, of_numbers],
                                                                   categories[order][:, of_categories])
            worse.append(loss(*mixed) - base)
        found.append(Importance(name, float(np.median(worse)), min(worse), max(worse)))
    return sorted(found, key=lambda each: -each.median)


def _log_loss(share: Predictions) -> float:
    chosen = share.probabilities[np.arange(len(share.labels)), share.labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def _places(info: TableInfo) -> Iterator[tuple[str, slice, slice]]:
    """Of each column its numbers and its categories, among those of the model."""
    number = category = 0
    for field in info.schema.fields:
        ends = number + len(field.numbers), category + len(field.cardinalities)
        yield field.name, slice(number, ends[0]), slice(category, ends[1])
        number, category = ends


def _importance(trained: TrainingResult, info: TableInfo, predict: Predict) -> Section:
    rows = trained.dataset.splits["test"].num_rows
    positions = np.unique(np.linspace(0, rows - 1, min(trained.config.eval.importance_rows, rows)).astype(np.int64))
    columns = trained.rows("test", positions)
    found = importance(info, *info.inputs(columns), columns["label" if info.class_names else "target"], predict)
    shown = found[:MOST_COLUMNS]
    with charts.chart("Importance of the columns", height=0.6 + 0.22 * len(shown), width=7.2) as (axes, done):
        places = np.arange(len(shown))[::-1]
        medians = np.array([each.median for each in shown])
        spread = np.array([[each.median - each.low, each.high - each.median] for each in shown]).T
        axes.barh(places, medians, color=charts.colour(0), xerr=np.maximum(spread, 0), ecolor=charts.INK)
        axes.set_yticks(places, [charts.plain(each.column) for each in shown])
    intro = (f"How much the loss of {len(positions):,} test rows grows where the values of one column are shuffled "
             f"among them: the median of {SHUFFLES} shuffles, and the least and most. Of columns that say the same, "
             "each counts little." + (f" The first {MOST_COLUMNS} of {len(found)} columns." if len(found) > len(shown)
                                      else ""))
    return html.figures("What it rests on", intro, [("Loss with the column shuffled, less the loss", done[0])])


# ── the baseline ──
def baseline(trained: TrainingResult, info: TableInfo) -> Values:
    """The test figures of scikit-learn's gradient boosting of histograms (after Ke et al. 2017), with its defaults,
    fitted to at most the first million training rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    few = [size <= 255 for size in info.cardinalities]  # more it does not take as categories
    kinds: Any = np.array([False] * info.num_numbers + few)  # its stub knows only a string
    known, targets, _ = _table(trained, info, "train", BASELINE_ROWS)
    rows, labels, ids = _table(trained, info, "test", trained.dataset.splits["test"].num_rows)
    if info.class_names:
        model = HistGradientBoostingClassifier(categorical_features=kinds, random_state=0).fit(known, targets)
        answers = np.zeros((len(rows), len(info.class_names)), np.float32)
        answers[:, model.classes_] = model.predict_proba(rows)
        return judge_split(trained, Predictions(ids, labels, answers)).scalars()
    fitted = [HistGradientBoostingRegressor(categorical_features=kinds, random_state=0).fit(known, targets[:, place])
              for place in range(len(info.targets))]
    predicted = np.stack([model.predict(rows) for model in fitted for _ in info.quantiles], axis=1)
    found = number_metrics(info, Predictions(ids, labels, predicted), trained.config.eval.bootstrap_samples)
    return {name: value for name, value in found.items() if name not in ("loss", "coverage")}


def _table(trained: TrainingResult, info: TableInfo, split: SplitName, most: int) \
        -> tuple[npt.NDArray[np.float64], Array, Array]:
    """Inputs (rows, N + C), targets, and row ids."""
    columns = trained.rows(split, np.arange(min(most, trained.dataset.splits[split].num_rows)))
    inputs = np.concatenate([np.asarray(each, np.float64) for each in info.inputs(columns)], axis=1)
    return inputs, columns["label" if info.class_names else "target"], columns["row_id"]


def _baseline(trained: TrainingResult, info: TableInfo, test: Values) -> Section:
    try:
        other = baseline(trained, info)
    except ValueError as error:  # such as a class with too few rows for its own split
        return html.section("Against gradient boosting", f"It could not be fitted to these rows: {error}")
    rows = declared_metrics.rows([each for each in metrics(trained.config) if each.name in other], [test, other])
    return html.section("Against gradient boosting",
                        "The same test rows, judged by this model and by scikit-learn's HistGradientBoosting with its "
                        "defaults, fitted to the same training rows.", ["metric", "this model", "gradient boosting"],
                        rows)
