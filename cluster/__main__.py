"""A Ray cluster on this machine, or the state of any.

    python -m cluster up [--nodes N] [--cpus-per-node C]     start a head and N worker nodes, local and closed
    python -m cluster status [--address HOST:PORT]           nodes, resources, versions, jobs, problems; 1 if there are any
    python -m cluster env                                    the variables that `ray job submit` and jobs need, for `eval`
    python -m cluster down                                   end all that `up` started, and nothing else
"""

import argparse
import sys

from cluster.errors import TrainyardError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from cluster import commands

    try:
        return {"up": commands.up, "status": commands.status, "env": commands.env, "down": commands.down}[options.command](options)
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="up | status | env | down")
    up = commands.add_parser("up", help="start a cluster on this machine")
    up.add_argument("--nodes", type=_count, default=0, metavar="N",
                    help="worker nodes beside the head; without any (the default) the head does the work")
    up.add_argument("--cpus-per-node", type=_count, default=None, metavar="C", help="by default the cores, divided among them")
    up.add_argument("--dashboard-host", default="127.0.0.1", metavar="HOST",
                    help="where the dashboard and job submission listen; anything but loopback opens them to the network")
    up.add_argument("--dashboard-port", type=_count, default=0, metavar="PORT", help="by default 8265 if free, else a free one")
    up.add_argument("--port", type=_count, default=0, metavar="PORT", help="of the control store; by default a free one")
    status = commands.add_parser("status", help="show a cluster's nodes, jobs and problems")
    status.add_argument("--address", default=None, metavar="HOST:PORT", help="by default RAY_ADDRESS, else what `up` started")
    commands.add_parser("env", help="print the variables that reach the cluster")
    commands.add_parser("down", help="end what `up` started")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
