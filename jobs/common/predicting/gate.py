"""A version of a registered model before it is promoted: it and the champion are evaluated on the same rows, and the
rules are put to what was found."""

import argparse
import time
from dataclasses import replace

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.config import GATES_FOLDER
from jobs.common.predicting.evaluate import evaluate, judge
from jobs.common.predicting.evaluate import parser as evaluation
from jobs.common.predicting.gates import AgainstChampion, GateReport, Gates, changes_of, check, columns_of
from jobs.common.predicting.judged import Judged
from jobs.common.predicting.model import find_model
from jobs.common.predicting.overlap import trained_on
from jobs.common.registry.connection import versions_of
from jobs.common.registry.registry import CHAMPION
from jobs.common.runs.console import RunConsole


def gate(options: argparse.Namespace) -> tuple[GateReport, str]:
    """Puts a version to its rules, as `registry promote` was asked. Returns what was found, and where the page is.
    Raises: TrainyardError."""
    storage, gates = Store.open(options.storage), _gates(options)
    known = versions_of(options.tracking_uri, storage, options.name)
    champion = next((each.version for each in known if CHAMPION in each.aliases), None)
    if champion == options.version:
        raise ConfigError(f"version {champion} of {options.name} is the champion already")
    out = Store.open(options.out) if options.out else storage.child(
        f"{GATES_FOLDER}/{options.name}-{options.version}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    models = [f"models:/{options.name}/{each}" for each in (options.version, champion) if each]
    asked = evaluation().parse_args([
        *(word for model in models for word in ("--model", model)), "--data.uri", gates.data, "--out", out.location(),
        "--storage", options.storage, "--slices", ",".join(columns_of(gates)),
        *(word for job in options.job for word in ("--job", job)),
        *(("--data.label-column", gates.label_column) if gates.label_column else ()),
        *(("--tracking-uri", options.tracking_uri) if options.tracking_uri else ())])
    say = RunConsole().say
    changes = changes_of(gates, find_model(models[0], options.tracking_uri, storage, options.job))
    version, *others = evaluate(asked, say)
    changed: dict[str, Judged] = {}
    for change in changes:
        changed[change] = judge(asked, version.model, out.child(f"answers-1-{change.replace(' ', '-')}.parquet"), say,
                                change)
    report = check(gates, version, others[0] if others else None,
                   trained_on(version.about, storage, gates.data, gates.label_column), changed)
    return report, report.write(out)


def _gates(options: argparse.Namespace) -> Gates:
    """The rules of the file, and that of the command line. Raises: ConfigError."""
    if not 0.5 <= options.confidence < 1:
        raise ConfigError(f"--confidence {options.confidence:g}: it must be from 0.5 to below 1")
    better = AgainstChampion(metric=options.by, at_least=options.at_least, confidence=options.confidence)
    gates = Gates.read(options.gates) if options.gates else Gates(data=options.if_better_on)
    if options.if_better_on:
        gates = replace(gates, data=options.if_better_on, champion=better)
    return replace(gates, label_column=options.label_column or gates.label_column)
