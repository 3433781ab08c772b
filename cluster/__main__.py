"""A Ray cluster on this machine, jobs on any, and the state of any.

    python -m cluster up [--nodes N] [--cpus-per-node C]     start a head and N worker nodes, local and closed
    python -m cluster submit JOB [-- FLAGS]                  run a job (mlp, …, tuning.mlp) there; ends with its code
    python -m cluster submit JOB --kubernetes --image IMAGE [-- FLAGS]    the same as a RayJob, or from --template FILE
    python -m cluster status [--address HOST:PORT]           nodes, resources, versions, jobs, problems (then code 1)
    python -m cluster status --kubernetes [NAME]             RayJobs, RayClusters, RayServices, and why one is stuck
    python -m cluster watch [--once] [--prometheus URL]      runs, endpoints, nodes and alerts, as they change
    python -m cluster env                                    the variables that `ray job submit` and jobs need
    python -m cluster down                                   end all that `up` started, and nothing else
"""

import argparse
import sys

from cluster.core.errors import TrainyardError


def main(arguments: list[str] | None = None, prog: str = "python -m cluster") -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    mine = given[: given.index("--")] if "--" in given else given
    options = parser(prog).parse_args(mine)
    options.flags = given[len(mine) + 1:]
    if options.flags and options.command != "submit":
        print(f"`--` and what follows it is for `submit`, not for `{options.command}`", file=sys.stderr)
        return 2
    from cluster import commands
    from cluster.core.network import spare_loopback

    spare_loopback()
    try:
        return {"up": commands.up, "submit": commands.submit, "status": commands.status, "watch": commands.watch,
                "env": commands.env, "down": commands.down}[options.command](options)
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def parser(prog: str = "python -m cluster") -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True, metavar="up | submit | status | watch | env | down")
    up = commands.add_parser("up", help="start a cluster on this machine")
    up.add_argument("--nodes", type=_count, default=0, metavar="N",
                    help="worker nodes beside the head; without any (the default) the head does the work")
    up.add_argument("--cpus-per-node", type=_count, default=None, metavar="C",
                    help="by default the cores, divided among them")
    up.add_argument("--dashboard-host", default="127.0.0.1", metavar="HOST",
                    help="where the dashboard and job submission listen; anything but loopback opens them to the "
                         "network")
    up.add_argument("--dashboard-port", type=_count, default=0, metavar="PORT",
                    help="by default 8265 if free, else a free one")
    up.add_argument("--port", type=_count, default=0, metavar="PORT",
                    help="of the control store; by default a free one")
    up.add_argument("--start-timeout-s", type=_seconds, default=90.0, metavar="S",
                    help="how long a node that starts may get no further, for busy machines (default: %(default)g)")
    _add_submit(commands.add_parser("submit", help="run a job on a cluster",
                                    usage="%(prog)s JOB [options] [-- FLAGS OF THE JOB]"))
    status = commands.add_parser("status", help="show a cluster's nodes, jobs and problems")
    status.add_argument("--address", default=None, metavar="HOST:PORT",
                        help="by default RAY_ADDRESS, else what `up` started")
    status.add_argument("--kubernetes", nargs="?", const="", default=None, metavar="NAME",
                        help="show the RayJobs, RayClusters and RayServices of a namespace, or the one of this name")
    _add_kubernetes(status)
    watch = commands.add_parser("watch", help="show runs, endpoints, nodes and alerts, again and again")
    watch.add_argument("--address", default=None, metavar="HOST:PORT",
                       help="by default RAY_ADDRESS, else what `up` started")
    watch.add_argument("--once", action="store_true", help="show it once; the exit code is 1 if there are alerts")
    watch.add_argument("--every", type=_seconds, default=3.0, metavar="S",
                       help="seconds between two looks (default: %(default)g)")
    watch.add_argument("--prometheus", default=None, metavar="URL",
                       help="a Prometheus whose firing alerts are shown too")
    commands.add_parser("env", help="print the variables that reach the cluster")
    commands.add_parser("down", help="end what `up` started")
    return made


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("job", metavar="JOB", help="mlp, transformer, cnn, a package of yours such as "
                        "my_package.churn, or a search of one: tuning.mlp, …")
    submit.add_argument("--working-dir", default=None, metavar="FOLDER",
                        help="goes to the cluster with the job; by default the current folder, if it holds the job or "
                             "Trainyard")
    submit.add_argument("--no-wait", action="store_true",
                        help="end once it is submitted; by default its log is followed to its end")
    submit.add_argument("--address", default=None, metavar="URL",
                        help="of the dashboard (http://HEAD:8265), or HOST:PORT of the control store; by default "
                             "RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or what `up` started")
    submit.add_argument("--submission-id", default=None, metavar="ID",
                        help="its name on the Ray cluster; by default a random one")
    submit.add_argument("--kubernetes", action="store_true",
                        help="as a RayJob, for which KubeRay makes a Ray cluster of its own")
    _add_kubernetes(submit)
    submit.add_argument("--name", default=None, help="of the RayJob; by default the job's with the time")
    submit.add_argument("--template", default=None, metavar="FILE",
                        help="YAML of a RayJob that gets the command (- reads standard input)")
    submit.add_argument("--image", default=None, help="of Ray's containers: this repository and its packages")
    submit.add_argument("--workers", type=_count, default=None, metavar="N",
                        help="without a template: worker pods (default: 1)")
    submit.add_argument("--cpus", type=_count, default=None, metavar="C", help="of each worker pod (default: 2)")
    submit.add_argument("--memory", default=None, metavar="Q", help="of each worker pod (default: 4Gi)")
    submit.add_argument("--gpus", type=_count, default=None, metavar="G", help="of each worker pod (default: 0)")


def _add_kubernetes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", default=None, metavar="N", help="by default that of the kubeconfig's context")
    parser.add_argument("--context", default=None, metavar="NAME",
                        help="of the kubeconfig file; by default its current one")


def _seconds(text: str) -> float:
    value = float(text)
    if value < 0.5:
        raise argparse.ArgumentTypeError(f"{text} is too little: give 0.5 or more seconds")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
