"""A model that keeps up with its data: a new version begins with the champion, and takes its place if it is better.

    trainyard retrain digits --data.uri NEW --holdout HOLDOUT [-- --train.epochs 5]

    drift        is NEW unlike the rows that the champion was tested on? If not, nothing is done (--always: it is)
    training     the champion's job and config on NEW, beginning with its weights, as another attempt of its run
    gate         better than the champion on HOLDOUT, or the rules of --gates; else the exit code is 1
    promotion    in the registry, or with --port by an endpoint, whose canary may take it back

Whatever ends it, the same command goes on: an attempt that was not finished is.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from cluster.core.errors import ConfigError, GateError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.artifact.drift_reference import DRIFTED
from jobs.common.artifact.manifest import Description
from jobs.common.command_line import flags_of
from jobs.common.config import GATES_FOLDER, RunConfig
from jobs.common.execution.run_state import RUN_FILE
from jobs.common.predicting.evaluate import evaluate
from jobs.common.predicting.evaluate import parser as evaluation
from jobs.common.predicting.gate import gate
from jobs.common.registry.__main__ import parser as registry_commands
from jobs.common.registry.connection import open_registry
from jobs.common.registry.registry import CANDIDATE, CHAMPION, Registry
from jobs.common.runs.console import RunConsole, fail
from jobs.common.runs.run import main as train
from jobs.common.runs.run_folder import RESULT_FILE, newest_attempt, open_storage, read_record
from jobs.common.training.find_job import find_job

PROG = "trainyard retrain"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Returns the exit code: 0 also where nothing was to be done."""
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    own, flags = (given[: given.index("--")], given[given.index("--") + 1:]) if "--" in given else (given, [])
    options = parser(prog).parse_args(own)
    spare_loopback()
    try:
        return _retrain(options, flags)
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("name", help="of the registered model")
    add("--data.uri", dest="uri", required=True, metavar="NEW", help="rows to train on, which say what is right")
    add("--holdout", metavar="DATA", help="rows on which the new version must be better than the champion")
    add("--gates", metavar="FILE", help="or rules of your own: see `trainyard registry promote --help`")
    add("--drift", type=float, default=DRIFTED, metavar="PSI",
        help="population stability index of any feature above which a version is trained (default: %(default)s)")
    add("--always", action="store_true", help="train without asking for drift: by the calendar")
    add("--port", type=int, help="of an endpoint that serves the model: it promotes, and watches the new version")
    add("--model", help="what that endpoint calls it (default: its name)")
    add("--storage", default=RunConfig().storage, help="folder of the runs (default: %(default)s)")
    add("--tracking-uri", help="MLflow server; by default the SQLite file in the storage")
    add("--job", action="append", default=[], metavar="PACKAGE",
        help="a job outside Trainyard whose code may be imported for its models")
    return made


def _retrain(options: argparse.Namespace, flags: Sequence[str]) -> int:
    if not (options.holdout or options.gates):
        raise ConfigError("say what a new version must show: --holdout DATA, or --gates FILE")
    storage = open_storage(options.storage)
    registry = open_registry(options.tracking_uri, storage, options.name)
    champion = registry.resolve(f"models:/{options.name}@{CHAMPION}")
    about = open_artifact(champion.uri, champion.digest).manifest.description
    if not options.always and not _has_drifted(options, storage):
        return 0
    if code := _train(options, about, champion.digest, flags):
        return code
    _promote(options, registry)
    return 0


def _has_drifted(options: argparse.Namespace, storage: Store) -> bool:
    say = RunConsole().say
    out = storage.child(f"{GATES_FOLDER}/{options.name}-drift-{_now()}")
    [judged] = evaluate(evaluation().parse_args([
        "--model", f"models:/{options.name}@{CHAMPION}", "--data.uri", options.uri, "--out", out.location(),
        *_where(options)]), say)
    drift = judged.drift
    if not drift:
        raise ConfigError(f"models:/{options.name}@{CHAMPION} has no reference that drift is measured from: pass "
                          "--always")
    worst = drift[0]
    say(f"drift: {worst.feature} has moved most, PSI {worst.psi:.2f}; "
        + (f"above {options.drift:g}: a new version is trained" if worst.psi > options.drift
           else f"not above {options.drift:g}: nothing has to be done"))
    return worst.psi > options.drift


def _train(options: argparse.Namespace, about: Description, digest: str, flags: Sequence[str]) -> int:
    """As the champion was trained, on the new data and from its weights. digest: of the champion. Returns the exit
    code."""
    values: dict[str, Any] = {group: dict(fields) for group, fields in about.config.items()}
    newest = newest_attempt(open_storage(options.storage).child(options.name))
    begun = read_record(newest, RUN_FILE).get("config", {}).get("model", {}).get("init_digest") == digest
    done = not begun or read_record(newest, RESULT_FILE).get("status") == "done"
    values["run"] |= {"name": options.name, "storage": options.storage, "tracking_uri": options.tracking_uri,
                      "resume": "never" if done else "auto", "extend_from": None}
    values["data"] |= {"uri": options.uri, "val_uri": None, "test_uri": None}
    values["model"] |= {"init_from": f"models:/{options.name}@{CHAMPION}", "init_digest": None}
    if "extended_at" in values.get("optim", {}):
        values["optim"] |= {"extended_at": None}
    return train(find_job(about.job), [*flags_of("", values), *flags])


def _promote(options: argparse.Namespace, registry: Registry) -> None:
    """Raises: GateError where the new version does not show what it must."""
    version = registry.resolve(f"models:/{options.name}@{CANDIDATE}").version
    words = ["promote", options.name, version, *_where(options)]
    words += ["--if-better-on", options.holdout] if options.holdout else []
    words += ["--gates", options.gates] if options.gates else []
    report, page = gate(registry_commands().parse_args(words))
    print("\n".join(report.lines))
    print(f"gate: {page}")
    if not report.passed:
        raise GateError(f"version {version} of {options.name} was trained, and not promoted: see what it did not keep")
    if options.port is None:
        registry.promote(options.name, version, f"trainyard retrain; gate: {page}")
        print(f"models:/{options.name}@{CHAMPION} is version {version}")
        return
    from serving.__main__ import main as serve

    code = serve(["promote", options.model or options.name, version, "--port", str(options.port), *_where(options, "")])
    if code:
        raise GateError(f"version {version} of {options.name} has kept its gate, and the endpoint did not take it")


def _where(options: argparse.Namespace, job: str = "--job") -> list[str]:
    """Where runs and versions are, as other commands are told."""
    return ["--storage", options.storage, *(("--tracking-uri", options.tracking_uri) if options.tracking_uri else ()),
            *(word for each in options.job if job for word in (job, each))]


def _now() -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime())


if __name__ == "__main__":
    sys.exit(main())
