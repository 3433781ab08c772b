"""`python -m jobs.common.registry`: see what is registered, promote a version, register a model after the fact."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.core.errors import RegistryError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.config import RunConfig
from jobs.common.registry.connection import experiment_of, open_registry
from jobs.common.registry.mlflow_client import sqlite_file, tracking_address
from jobs.common.registry.registry import CHAMPION, ModelVersion, Registry
from jobs.common.registry.sqlite_versions import read_versions

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
    command.set_defaults(run=_promote)
    command = commands.add_parser("register", parents=[place], help="register an artifact as a new version")
    command.add_argument("name")
    command.add_argument("artifact")
    command.set_defaults(run=_register)
    return made


def _open(options: argparse.Namespace, name: str) -> Registry:
    return open_registry(options.tracking_uri, Store.open(options.storage), name)


def _existing_file(options: argparse.Namespace) -> Path | None:
    """Returns the file of an SQLite registry; None for another kind.

    Raises: RegistryError if it is not there: looking does not make a new, empty database.
    """
    address = tracking_address(options.tracking_uri, Store.open(options.storage))
    file = sqlite_file(address)
    if file is not None and not file.exists():
        raise RegistryError(f"no registry at {address}: pass --storage FOLDER of the runs, or --tracking-uri "
                            "http://SERVER")
    return file


def _list(options: argparse.Namespace) -> None:
    file = _existing_file(options)
    versions = read_versions(file, options.name) if file else None
    if versions is None:
        versions = _open(options, options.name or "").versions(options.name)
    rows = [("MODEL", "VERSION", "ALIASES", "TEST METRIC", "DIGEST", "ARTIFACT"), *map(_row, versions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if versions else ():
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not versions:
        print(f"no model {options.name} is registered" if options.name else "no model is registered")


def _row(version: ModelVersion) -> tuple[str, ...]:
    metric = version.tags.get("metric", "accuracy")  # the tag's name is younger than the first registries
    value = version.tags.get(f"test_{metric}")
    shown = f"{metric.replace('_', ' ')} {float(value):.4f}" if value else "-"
    return (version.name, version.version, ",".join(version.aliases) or "-", shown, version.digest[:12], version.uri)


def _promote(options: argparse.Namespace) -> None:
    _existing_file(options)
    before = _open(options, options.name).promote(options.name, options.version)
    print(f"models:/{options.name}@{CHAMPION} is version {options.version}{f' (was {before})' if before else ''}")


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


if __name__ == "__main__":
    main()
