"""The runs of a storage: what there is, on one page too, and an end of what nobody needs any more.

    trainyard runs list                                  # the newest first
    trainyard runs show first                            # all that is known of one
    trainyard runs page                                  # index.html in the storage, which a run's end writes as well
    trainyard runs prune --older-than 30d --keep 5       # says what would go; with --yes it goes
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence

from cluster.core.errors import ConfigError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common.config import RunConfig
from jobs.common.formatting import columns, size_shown
from jobs.common.registry.connection import versions_of
from jobs.common.runs.console import duration
from jobs.common.runs.index_page import registered, when, write_index
from jobs.common.runs.overview import Entry, Overview, overview
from jobs.common.runs.prune import DataSet, Limits, chosen, delete, named, unused_data
from jobs.common.runs.run_folder import open_storage

PROG = "python -m jobs.common.runs"
_SECONDS = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Returns the exit code."""
    options = parser(prog).parse_args(arguments)
    spare_loopback()
    try:
        options.run(options, open_storage(options.storage))
    except TrainyardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--storage", default=RunConfig().storage, help="folder of the runs (default: %(default)s)")
    place.add_argument("--tracking-uri", help="MLflow server, which knows the champions; by default the SQLite file "
                                              "in the storage, `none` for no registry")
    certain = argparse.ArgumentParser(add_help=False)
    certain.add_argument("--yes", action="store_true", help="delete; without it is only said what would go")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", parents=[place], help="all runs and searches, the newest first")
    command.add_argument("--job", help="only of this job")
    command.add_argument("--status", help="only those that are done, running, stopped, failed, invalid, interrupted or "
                                          "damaged")
    command.set_defaults(run=_list)
    command = commands.add_parser("show", parents=[place], help="all that is known of one")
    command.add_argument("name")
    command.set_defaults(run=_show)
    command = commands.add_parser("page", parents=[place], help="write index.html")
    command.set_defaults(run=_page)
    command = commands.add_parser("rm", parents=[place, certain], help="delete runs; never a champion's")
    command.add_argument("names", nargs="+", metavar="NAME")
    command.set_defaults(run=_remove)
    command = commands.add_parser("prune", parents=[place, certain],
                                  help="delete those that a limit names; never a champion's, nor one that is running")
    command.add_argument("--older-than", type=_seconds, metavar="AGE", help="since anything of it was written: 12h, "
                                                                            "30d, 8w")
    command.add_argument("--keep", type=int, metavar="N", help="all but the newest N of each job")
    command.add_argument("--to-size", type=_bytes, metavar="SIZE", help="the oldest, until all together have no more: "
                                                                        "500MB, 20GB")
    command.add_argument("--status", action="append", default=[], help="only runs with this status; may be repeated")
    command.add_argument("--data", action="store_true", help="prepared data, too, that no run needs any more")
    command.set_defaults(run=_prune)
    return made


def _seconds(text: str) -> float:
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write hours, days or weeks, such as 12h, 30d or 8w")
    return float(found[1]) * _SECONDS[found[2]]


def _bytes(text: str) -> int:
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([MGT]B)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write such as 500MB, 20GB or 1TB")
    return int(float(found[1]) * _BYTES[found[2]])


def _list(options: argparse.Namespace, storage: Store) -> None:
    entries = [entry for entry in overview(storage, registered(options.tracking_uri, storage)).entries
               if options.job in (None, entry.job) and options.status in (None, entry.status)]
    if not entries:
        print(f"no such run in {storage.location()}")
        return
    print(columns([("NAME", "KIND", "JOB", "STATUS", "BEGUN (UTC)", "SCORES", "SIZE", "REGISTERED"),
                   *((entry.name, entry.kind, entry.job or "-", entry.status, when(entry.created),
                      entry.shown_scores or "-", size_shown(entry.size), entry.registered or "-")
                     for entry in entries)]))


def _show(options: argparse.Namespace, storage: Store) -> None:
    found = overview(storage, registered(options.tracking_uri, storage))
    entry = found.entry(options.name)
    facts = [(entry.kind, f"{entry.name} ({entry.job or 'job unknown'})"),
             ("status", f"{entry.status}{f': {entry.why}' if entry.why else ''}"),
             ("begun", f"{when(entry.created)} UTC"),
             ("last written", f"{when(entry.touched)} UTC"),
             ("time", duration(entry.wall_s) if entry.wall_s else "-"),
             ("steps" if entry.kind == "run" else "trials", f"{entry.steps:,}" if entry.steps else "-"),
             *((label, f"{value:.4f}") for label, value in entry.scores),
             ("goodput", f"{entry.goodput:.0%}, {entry.restarts} restarts" if entry.goodput is not None else "-"),
             *([("cost", f"{entry.cost:,.2f}")] if entry.cost is not None else []),
             ("on disk", size_shown(entry.size)), ("registered", entry.registered or "-"),
             ("folder", storage.location(entry.name)),
             *((title, storage.location(path)) for title, path in entry.pages.items())]
    print(columns(facts))


def _page(options: argparse.Namespace, storage: Store) -> None:
    print(f"page: {write_index(storage, options.tracking_uri)}")


def _remove(options: argparse.Namespace, storage: Store) -> None:
    found = _with_champions(options, storage)
    _end(options, storage, found, named(found, options.names), [])


def _prune(options: argparse.Namespace, storage: Store) -> None:
    limits = Limits(older_than_s=options.older_than, keep=options.keep, to_size=options.to_size,
                    statuses=tuple(options.status))
    if limits == Limits() and not options.data:
        raise ConfigError("say which runs may go: --older-than 30d, --keep 5, --to-size 20GB, --status failed; or "
                          "--data for prepared data that no run needs")
    if limits.statuses and limits == Limits(statuses=limits.statuses):
        limits = Limits(statuses=limits.statuses, keep=0)
    found = _with_champions(options, storage)
    going = chosen(found, limits, time.time())
    _end(options, storage, found, going, unused_data(found, going, time.time()) if options.data else [])


def _with_champions(options: argparse.Namespace, storage: Store) -> Overview:
    """Raises: RegistryError, where nobody can say which versions are champions."""
    return overview(storage, versions_of(options.tracking_uri, storage))


def _end(options: argparse.Namespace, storage: Store, found: Overview, going: list[Entry],
         data: list[DataSet]) -> None:
    for entry in going:
        print(f"{entry.name}: {entry.status}, {size_shown(entry.size)}, last written {when(entry.touched)} UTC"
              + (f", registered as {entry.registered}" if entry.registered else ""))
    for each in data:
        print(f"prepared data {each.key}: {size_shown(each.size)}")
    freed = sum(entry.size for entry in going) + sum(each.size for each in data)
    left = sum(entry.size for entry in found.entries) + found.data_bytes - freed
    if not going and not data:
        print("nothing has to go")
    elif not options.yes:
        print(f"{size_shown(freed)} would be free, {size_shown(left)} would stay: nothing was deleted; add --yes")
    else:
        delete(storage, going, data)
        write_index(storage, options.tracking_uri)
        print(f"{size_shown(freed)} free, {size_shown(left)} stay")


if __name__ == "__main__":
    sys.exit(main())
