"""How good finished models are on new data that says what is right: `trainyard evaluate`.

    trainyard evaluate --model models:/digits@champion --data.uri NEW --slices country,year
    trainyard evaluate --model models:/digits@champion --model models:/digits@candidate --data.uri NEW

Each model is asked about every row, as `predict` does it; then its figures are those of a training run's report, of all
rows and of slices, with drift from the rows that it was tested on. Several models are compared on the same rows. It is
all in --out: a page for each model, evaluation.json, and the answers; an evaluation of a registered version is a run in
MLflow beside the one that made it.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from cluster.core.errors import TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common import declared_metrics
from jobs.common.artifact.drift_reference import DRIFTED, STABLE
from jobs.common.config import EvalConfig, require
from jobs.common.paired import Pair, holm, sentence
from jobs.common.predicting.columns import InputColumns, kind_of
from jobs.common.predicting.judged import Judged, Slice, main_metric
from jobs.common.predicting.model import FoundModel, find_model
from jobs.common.predicting.output import Output
from jobs.common.predicting.predict import add_data, add_pool, data_of, pool_of
from jobs.common.predicting.prediction import Prediction, Say, predict
from jobs.common.registry.connection import experiment_of, open_registry
from jobs.common.report import html
from jobs.common.report.html import Section
from jobs.common.report.run_report import REPORT_FILE, ReportContent, RunFacts, render
from jobs.common.runs.console import RunConsole, fail

PROG = "python -m jobs.common.predicting.evaluate"
EVALUATION_FILE = "evaluation.json"
SPLIT = "new"
"""What reports call the rows."""


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Carries out a command line. Returns the exit code; prints one message for an expected error."""
    asked = parser(prog).parse_args(arguments)
    spare_loopback()
    try:
        evaluate(asked, RunConsole().say)
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    return 0


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--model", action="append", required=True,
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or an artifact's path; give it again to compare")
    add("--data.label-column", dest="label_column", metavar="NAME",
        help="the column that says what is right; by default as in training, of pictures in folders the folder")
    add("--slices", default="", metavar="COLUMN,…", help="columns by whose values the figures are given, too")
    add("--out", default="evaluation", metavar="FOLDER", help="a path or URI (default: %(default)s)")
    add("--overwrite", action="store_true", help="deletes the answers that are there, and begins again")
    add("--top-k", type=int, default=EvalConfig.top_k, metavar="K")
    add("--bootstrap-samples", type=int, default=EvalConfig.bootstrap_samples, metavar="N")
    add_data(made)
    add_pool(made)
    return made


def evaluate(asked: argparse.Namespace, say: Say) -> list[Judged]:
    """Carries out what `parser` has read. Returns what was found of each model. Raises: TrainyardError."""
    require(asked.bootstrap_samples >= 100, "bootstrap-samples", asked.bootstrap_samples, "must be at least 100")
    began, out, columns = time.time(), Store.open(asked.out), _names(asked.slices)
    models = [find_model(where, asked.tracking_uri, Store.open(asked.storage), asked.job) for where in asked.model]
    judged = [judge(asked, model, out.child(f"answers-{place}.parquet"), say)
              for place, model in enumerate(models, 1)]
    pairs = _pairs(judged)
    written: list[dict[str, object]] = []
    for place, each in enumerate(judged, 1):
        slices = {column: each.slices(column) for column in columns}
        own = [pair for pair in pairs if each.model.name in (pair.first, pair.second)]
        page = _page(asked, each, slices, own, began)
        name = REPORT_FILE if place == 1 else REPORT_FILE.replace(".", f"-{place}.")
        out.write_text(name, page)
        written.append({"model": each.model.name, "digest": each.model.artifact.digest, "rows": len(each.true),
                        "metrics": each.metrics, "drift": [asdict(drift) for drift in each.drift],
                        "slices": {column: [asdict(of) for of in found] for column, found in slices.items()},
                        "report": name, "mlflow_run": _registered(asked, each, page)})
        _say(each, say)
    compared = [{**asdict(pair), "sentence": sentence(pair)} for pair in pairs]
    out.write_text(EVALUATION_FILE, json.dumps({"data": asked.uri, "models": written, "pairs": compared}, indent=1))
    for pair in pairs:
        say(sentence(pair))
    say(f"evaluation: {out.location(REPORT_FILE)}")
    return judged


def judge(asked: argparse.Namespace, model: FoundModel, answers: Store, say: Say, change: str = "") -> Judged:
    """One model's answers to all rows, compared with what is right. change: what becomes of each row first, as
    `Changing` of predictor/predictor.py has it. Raises: TrainyardError."""
    about = model.artifact.manifest.description
    pictures = InputColumns(about, asked.image_column).names if kind_of(about) == "image" else ()
    needed = (*([asked.label_column] if asked.label_column else ()), *_names(asked.slices))
    predict(Prediction(model=model, data=data_of(asked), out=answers, pool=pool_of(asked), watches=not change,
                       needed=needed, change=change,
                       image_column=asked.image_column, text_column=asked.text_column, batch_rows=asked.batch_rows,
                       drop=tuple(pictures), top_k=asked.top_k, most_failed=asked.most_failed,
                       overwrite=asked.overwrite), say)
    return Judged.of(model, Output(answers), asked.label_column, top_k=asked.top_k,
                     bootstrap_samples=asked.bootstrap_samples)


def _pairs(judged: Sequence[Judged]) -> list[Pair]:
    """Of several models, each two; the p-values are Holm's. Raises: DataError."""
    found = [first.against(second) for first, second in itertools.combinations(judged, 2)]
    return [replace(pair, p_value=p) for pair, p in zip(found, holm([pair.p_value for pair in found]), strict=True)]


def _say(judged: Judged, say: Say) -> None:
    metric = main_metric(judged)
    moved = [f"{drift.feature} {drift.psi:.2f}" for drift in judged.drift if drift.psi > DRIFTED]
    say(f"{judged.model.name}: {metric.label} {metric.shown(judged.metrics)} of {len(judged.true):,} rows"
        + (f"; DRIFT (PSI above {DRIFTED:g}): {', '.join(moved)}" if moved else ""))


# ── the page ──
def _page(asked: argparse.Namespace, judged: Judged, slices: Mapping[str, Sequence[Slice]], pairs: Sequence[Pair],
          began: float) -> str:
    evaluation = judged.evaluation
    return render(ReportContent(
        title=f"{judged.model.name} on new data",
        run=RunFacts(name=judged.model.name, status="evaluated", started=began, duration_s=time.time() - began,
                     trains=False),
        metrics={SPLIT: judged.metrics},
        declared=judged.declared, evaluations={SPLIT: evaluation} if evaluation else {},
        data={"data": asked.uri, "rows with an answer": len(judged.true)}, artifact=judged.model.artifact.uri,
        sections=[_since(judged), *_compared(pairs), *_drifted(judged),
                  *(_sliced(column, found, judged) for column, found in slices.items())]))


def _since(judged: Judged) -> Section:
    return html.section("Since it was trained", "The same figures of the test rows of its training.",
                        ["metric", "these rows", "test rows then"],
                        declared_metrics.rows(judged.declared, [judged.metrics, judged.when_trained]))


def _compared(pairs: Sequence[Pair]) -> list[Section]:
    return [html.section("Against other models", " · ".join(map(sentence, pairs)))] if pairs else []


def _sliced(column: str, slices: Sequence[Slice], judged: Judged) -> Section:
    shown = declared_metrics.present(judged.declared, judged.metrics)[: declared_metrics.MOST_HEADLINES]
    metric = main_metric(judged)
    rows = [(each.value, f"{each.rows:,}", *(declared_metrics.figure(each.figures.get(of.name)) for of in shown),
             declared_metrics.interval(metric, each.figures)) for each in slices]
    return html.section(f"By {column}", f"The {len(slices)} most frequent values.",
                        [column, "rows", *(of.label for of in shown), f"of the {metric.label}"], rows)


def _drifted(judged: Judged) -> list[Section]:
    if not judged.drift:
        return []
    return [html.section(
        "Drift", "Population stability index from the rows that the model was tested on when it was trained: by "
        f"custom, below {STABLE:g} nothing has changed, and above {DRIFTED:g} much has.",
        ["feature", "PSI", "in the mean, if nothing has changed"],
        [(each.feature, f"{each.psi:.3f}", f"{each.noise:.3f}") for each in judged.drift])]


# ── the registry ──
def _registered(asked: argparse.Namespace, judged: Judged, page: str) -> str | None:
    """The run in MLflow that says it; None for an artifact's path. Raises: RegistryError."""
    model = judged.model
    if not model.registered:
        return None
    registry = open_registry(asked.tracking_uri, Store.open(asked.storage), model.registered,
                             experiment_of(judged.about))
    run_id = registry.start(f"evaluation of {model.name}", {"data.uri": asked.uri, "rows": len(judged.true)},
                            {"evaluates": f"models:/{model.name}", "evaluated_run": model.run_id,
                             "manifest_digest": model.artifact.digest})
    drift = {f"drift_{each.feature}": each.psi for each in judged.drift}
    registry.log({**{f"{SPLIT}_{name}": value for name, value in judged.metrics.items()}, **drift}, 0)
    registry.attach(REPORT_FILE, page)
    registry.finish("done")
    return run_id


def _names(listed: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))


if __name__ == "__main__":
    sys.exit(main())
