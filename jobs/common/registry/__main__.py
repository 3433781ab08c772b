"""`python -m jobs.common.registry`: see what is registered, promote a version, register a model after the fact."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.core.errors import GateError, RegistryError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common.artifact.artifact import MANIFEST, open_artifact
from jobs.common.artifact.delivery import delivered
from jobs.common.config import RunConfig
from jobs.common.formatting import columns
from jobs.common.registry.connection import (
    REGISTERED,
    existing_file,
    experiment_of,
    open_named,
    open_registry,
    versions_of,
)
from jobs.common.registry.registry import CHAMPION, ModelVersion, Registry

PROG = "python -m jobs.common.registry"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Ends the process with the exit code of the error tree."""
    options = parser(prog).parse_args(arguments)
    spare_loopback()
    try:
        options.run(options)
    except TrainyardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--tracking-uri", help="MLflow server; by default the SQLite file in the storage")
    place.add_argument("--storage", default=RunConfig().storage, help="folder of the runs (default: %(default)s)")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", parents=[place], help="versions of a model, or of all")
    command.add_argument("name", nargs="?")
    command.set_defaults(run=_list)
    command = commands.add_parser("promote", parents=[place], help=f"give a version the alias {CHAMPION}")
    command.add_argument("name")
    command.add_argument("version")
    command.add_argument("--why", default="", help="is recorded with it")
    gate = command.add_argument_group("gates", "what the version must show first, on rows that say what is right; else "
                                               "nothing is promoted, and the exit code is 1")
    gate.add_argument("--gates", metavar="FILE", type=Path, help="rules as YAML: jobs/common/predicting/gates.py")
    gate.add_argument("--if-better-on", metavar="DATA", help="a rule by itself: better than the champion on these rows")
    gate.add_argument("--by", metavar="METRIC", help="accuracy, log_loss, rmse or mae; by default the job's first")
    gate.add_argument("--at-least", type=float, default=0.0, metavar="D", help="so much better (default: %(default)s)")
    gate.add_argument("--confidence", type=float, default=0.95, metavar="SHARE", help="(default: %(default)s)")
    gate.add_argument("--data.label-column", dest="label_column", metavar="NAME", help="by default as in training")
    gate.add_argument("--out", metavar="FOLDER", help="of the gate's page (default: in the storage, under gates/)")
    gate.add_argument("--job", action="append", default=[], metavar="PACKAGE",
                      help="a job outside Trainyard whose code may be imported for its models")
    command.set_defaults(run=_promote)
    command = commands.add_parser("undo", parents=[place], help=f"make the version before the {CHAMPION} again")
    command.add_argument("name")
    command.set_defaults(run=_undo)
    command = commands.add_parser("history", parents=[place], help=f"who made which version the {CHAMPION}, and when")
    command.add_argument("name")
    command.set_defaults(run=_history)
    command = commands.add_parser("register", parents=[place], help="register an artifact as a new version")
    command.add_argument("name")
    command.add_argument("artifact")
    command.set_defaults(run=_register)
    command = commands.add_parser("download", parents=[place], help="a version's artifact, verified, as a folder here")
    command.add_argument("name", metavar="NAME[@ALIAS|/VERSION]", help=f"by default the {CHAMPION}")
    command.add_argument("--out", required=True, metavar="FOLDER")
    command.add_argument("--overwrite", action="store_true", help="replaces an artifact that is there")
    command.set_defaults(run=_download)
    return made


def _open(options: argparse.Namespace, name: str) -> Registry:
    return open_registry(options.tracking_uri, Store.open(options.storage), name)


def _list(options: argparse.Namespace) -> None:
    versions = versions_of(options.tracking_uri, Store.open(options.storage), options.name)
    if versions:
        print(columns([("MODEL", "VERSION", "ALIASES", "TEST METRIC", "DIGEST", "ARTIFACT"), *map(_row, versions)]))
    if not versions:
        print(f"no model {options.name} is registered" if options.name else "no model is registered")


def _row(version: ModelVersion) -> tuple[str, ...]:
    metric = version.tags.get("metric", "accuracy")  # the tag's name is younger than the first registries
    value = version.tags.get(f"test_{metric}")
    shown = f"{metric.replace('_', ' ')} {float(value):.4f}" if value else "-"
    return (version.name, version.version, ",".join(version.aliases) or "-", shown, version.digest[:12], version.uri)


def _promote(options: argparse.Namespace) -> None:
    existing_file(options.tracking_uri, Store.open(options.storage))
    why = options.why
    if options.gates or options.if_better_on:
        from jobs.common.predicting.gate import gate  # slow to import

        report, page = gate(options)
        print("\n".join(report.lines))
        print(f"gate: {page}")
        if not report.passed:
            raise GateError(f"version {options.version} of {options.name} was not promoted: see what it did not keep")
        why = f"{why}{'; ' if why else ''}gate: {page}"
    _promoted(_open(options, options.name), options.name, options.version, why)


def _undo(options: argparse.Namespace) -> None:
    existing_file(options.tracking_uri, Store.open(options.storage))
    registry = _open(options, options.name)
    last = next(reversed(registry.promotions(options.name)), None)
    if last is None or last.before is None:
        raise RegistryError(f"no version of {options.name} was the {CHAMPION} before the one that is: there is nothing "
                            "to undo")
    _promoted(registry, options.name, last.before, f"undoes the promotion of version {last.version}")


def _promoted(registry: Registry, name: str, version: str, why: str) -> None:
    before = registry.promote(name, version, why)
    print(f"models:/{name}@{CHAMPION} is version {version}{f' (was {before})' if before else ''}")


def _history(options: argparse.Namespace) -> None:
    existing_file(options.tracking_uri, Store.open(options.storage))
    promotions = _open(options, options.name).promotions(options.name)
    if not promotions:
        print(f"no version of {options.name} has been promoted")
        return
    print(columns([("WHEN (UTC)", "VERSION", "WAS", "BY", "WHY"),
                   *((time.strftime("%Y-%m-%d %H:%M", time.gmtime(each.at)), each.version, each.before or "-", each.by,
                      each.why or "-") for each in promotions)]))


def _register(options: argparse.Namespace) -> None:
    artifact = open_artifact(options.artifact)
    registry = open_registry(options.tracking_uri, Store.open(options.storage), options.name,
                             experiment_of(artifact.manifest.description))
    registry.start(f"{options.name} registered later", {}, {})
    version = registry.register(artifact)
    registry.finish("done" if version else "failed")
    if version is None:
        print(f"error: {registry.problem}", file=sys.stderr)
        sys.exit(2)
    print(f"models:/{options.name}/{version}")


def _download(options: argparse.Namespace) -> None:
    storage = Store.open(options.storage)
    existing_file(options.tracking_uri, storage)
    name = options.name.removeprefix(REGISTERED)
    named = name if "@" in name or "/" in name else f"{name}@{CHAMPION}"
    artifact, version = open_named(f"{REGISTERED}{named}", options.tracking_uri, storage)
    assert version is not None
    with delivered(options.out, overwrite=options.overwrite, mark=MANIFEST) as folder:
        artifact.copy_to(folder)
    print(f"{REGISTERED}{version.name}/{version.version}, digest {version.digest[:12]}: "
          f"{Store.open(options.out).location()}")


if __name__ == "__main__":
    main()
