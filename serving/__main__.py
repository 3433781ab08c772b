"""Endpoints for trained models.

    python -m serving up --model digits=models:/digits-mlp@champion      serve here, until Ctrl-C
    python -m serving status | down                                      what a running endpoint serves; end it
    python -m serving split digits --weights 3=90,4=10                   some requests to another version
    python -m serving promote digits 4 | rollback digits                 all of them, and back
    python -m serving shadow digits 4 --share 0.1                        asked too, compared, never answered with
    python -m serving config --model …                                   what `serve deploy` and a RayService take
    python -m serving optimize models:/digits-mlp@champion               smaller, faster variants, with what they lose
    python -m serving key NAME                                           a new API key
"""

import argparse
import sys
from collections.abc import Sequence

from cluster.core.errors import TrainyardError


def main(arguments: Sequence[str] | None = None, prog: str = "python -m serving") -> int:
    options = parser(prog).parse_args(arguments)
    from cluster.core.network import spare_loopback
    from serving.commands import manage
    from serving.commands import start as commands

    spare_loopback()
    try:
        return getattr(manage if hasattr(manage, options.command) else commands, options.command)(options)
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def parser(prog: str = "python -m serving") -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="serve on this machine, until Ctrl-C")
    _models(up)
    up.set_defaults(engine="own", accelerator=None)
    up.add_argument("--address", metavar="HOST:PORT",
                    help="of a Ray cluster; by default RAY_ADDRESS, else one of its own")
    _running(commands.add_parser("status", help="show what a running endpoint serves"))
    _running(commands.add_parser("down", help="end a running endpoint"))
    split = _running(commands.add_parser("split", help="give versions of a model shares of its requests"), model=True)
    split.add_argument("--weights", required=True, metavar="VERSION=WEIGHT,…", help="such as 3=90,4=10")
    _guarded(split)
    promote = _running(commands.add_parser("promote", help="make a version the champion, and give it all requests"),
                       model=True)
    promote.add_argument("version")
    _guarded(promote)
    _running(commands.add_parser("rollback", help="undo the last change of a model's versions"), model=True)
    shadow = _running(commands.add_parser("shadow", help="ask a version too, and compare what nobody gets"), model=True)
    shadow.add_argument("version")
    shadow.add_argument("--share", type=float, default=1.0, metavar="S", help="of the requests, 0 to 1; 0 ends it")
    config = commands.add_parser("config", help="print what `serve deploy` and a RayService take")
    _models(config)
    config.add_argument("--engine", choices=("own", "vllm"), default="own",
                        help="vllm: text on GPUs, by Ray's own application for vLLM, without keys and limits")
    config.add_argument("--accelerator", metavar="KIND",
                        help="of GPU that --engine vllm wants, as Ray names it, such as A100")
    optimize = commands.add_parser("optimize", aliases=["optimise"],
                                   help="make smaller and faster variants of a classifier, and say what they lose")
    optimize.set_defaults(command="optimize")
    _optimize(optimize)
    key = commands.add_parser("key", help="make an API key: it is printed once, with its line for the --keys file")
    key.add_argument("name", help="whose it is")
    return made


def _running(command: argparse.ArgumentParser, *, model: bool = False) -> argparse.ArgumentParser:
    """What commands for an endpoint that runs have in common."""
    if model:
        command.add_argument("model", help="by the name that callers use")
    command.add_argument("--port", type=int, default=8000, help="of the endpoint")
    command.add_argument("--storage", default="~/trainyard", metavar="URI",
                         help="where runs are kept, and their registry")
    command.add_argument("--tracking-uri", metavar="URI", help="of the registry; by default the one in --storage")
    return command


def _guarded(command: argparse.ArgumentParser) -> None:
    """When requests go back by themselves to the versions that had them."""
    add = command.add_argument
    add("--max-error-rate", type=float, default=0.05, metavar="R",
        help="a version that gets more requests may fail so many more of them than the others, as a share; 1: any "
             "number")
    add("--max-p95-ms", type=float, metavar="MS", help="its 95%% quantile may be so long; by default any")
    add("--min-requests", type=int, default=50, metavar="N", help="nothing is said of a version with fewer in a minute")


def _optimize(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("artifact", help="models:/MODEL@ALIAS, models:/MODEL/VERSION, or an artifact's path")
    _job(command)
    add("--variants", metavar="NAME,…", help="onnx, onnx-int8, compiled; by default all that the model's job offers")
    add("--max-loss", type=float, default=0.5, metavar="POINTS",
        help="of test accuracy (0.5): what loses more is refused")
    add("--output", metavar="FOLDER",
        help="gets a folder a variant; by default they go beside the artifact, as ARTIFACT-VARIANT")
    add("--register", action="store_true",
        help="make the variants versions of the same model, for `split` and `promote`")
    add("--storage", default="~/trainyard", metavar="URI",
        help="where runs are kept, their prepared data, and their registry")
    add("--tracking-uri", metavar="URI", help="of the registry; by default the one in --storage")
    add("--cpus-per-replica", type=float, default=1.0, metavar="C",
        help="threads to measure with, as of the endpoint's replicas")
    add("--seconds", type=float, default=2.0, metavar="S",
        help="spent on timing each model with one row, and with a batch")
    for name, kind in (("uri", ""), ("val-uri", "validation "), ("test-uri", "test ")):
        add(f"--data.{name}", dest=f"data_{name.replace('-', '_')}", metavar="URI",
            help=f"where the {kind}data is now, if not where it was when the model was trained")


def _job(command: argparse.ArgumentParser) -> None:
    command.add_argument("--job", action="append", default=[], metavar="PACKAGE",
                         help="a job outside Trainyard, such as my_package.churn, whose artifacts are taken too: its "
                              "predictor.py is imported, so name only code that you trust; give it again for more")


def _models(command: argparse.ArgumentParser) -> None:
    """What `up` and `config` have in common."""
    add = command.add_argument
    add("--model", action="append", required=True, metavar="NAME=WHICH",
        help="models:/MODEL@ALIAS, models:/MODEL/VERSION, or an artifact's path; give it again for more models")
    add("--adapter", action="append", default=[], metavar="NAME=WHICH",
        help="an adapter of one of the models, which shares its weights and is loaded when it is asked for; give it "
             "again for more")
    _job(command)
    add("--storage", default="~/trainyard", metavar="URI", help="where runs are kept, and their registry")
    add("--tracking-uri", metavar="URI", help="of the registry; by default the one in --storage")
    add("--host", default="127.0.0.1", help="where to listen; anything but loopback needs keys")
    add("--port", type=int, default=8000)
    add("--grpc-port", type=int, metavar="PORT", help="answer over gRPC too, at the same --host")
    add("--tls-cert", metavar="FILE",
        help="speak TLS, over HTTP and gRPC: the certificate in PEM, then those that vouch for it")
    add("--tls-key", metavar="FILE", help="the certificate's key in PEM, which others cannot read")
    add("--keys", metavar="FILE",
        help="lines NAME:SHA256, see `python -m serving key`; by default the variable TRAINYARD_API_KEYS")
    add("--no-auth", action="store_true", help="answer without a key, on loopback only, and no pages but its own")
    add("--cors-origin", action="append", default=[], metavar="URL",
        help="pages of this origin may ask from a browser, such as https://example.com; give it again for more")
    add("--root-path", default="", metavar="/PATH",
        help="what stands before every path, where a proxy gives it out under one")
    add("--min-replicas", type=int, default=1, metavar="N", help="of each model; 0: none while nobody asks")
    add("--max-replicas", type=int, default=1, metavar="N")
    add("--downscale-delay-s", type=float, default=60.0, metavar="S",
        help="of less to do, until there are fewer replicas")
    add("--cpus-per-replica", type=float, default=1.0, metavar="C")
    add("--gpus-per-replica", type=float, default=0.0, metavar="G", help="a fraction shares a GPU")
    add("--max-batch-rows", type=int, default=64, metavar="ROWS")
    add("--batch-wait-ms", type=float, default=0.0, metavar="MS",
        help="how long a batch that is not full waits for more")
    add("--prefix-cache-mib", type=float, default=256.0, metavar="MIB",
        help="memory of a replica that writes text for what it has computed of prompts: others that begin alike do not "
             "compute it again; 0: none")
    add("--timeout-s", type=float, default=30.0, metavar="S", help="the most that a request may take")
    add("--max-request-mib", type=float, default=16.0, metavar="MIB")
    add("--max-queued", type=int, default=1000, metavar="N", help="requests that may wait for a model")
    add("--requests-per-s", type=float, metavar="R", help="of one key; by default as many as it likes")
    add("--access-log", metavar="FILE",
        help="gets a line of JSON for each request, without what is in it; /dev/stderr works too")
    add("--ingress-replicas", type=int, default=1, metavar="N")
    add("--placement", choices=("auto", "ingress", "replicas", "shared"), default="auto",
        help="where models compute: in the ingress itself, which is fastest; in replicas of their own, which scale, "
             "end and fail by themselves; or, when they are many, in replicas that they share and that load them when "
             "they are asked for; auto: in the ingress if there is one model, without GPUs, that is never scaled to "
             "zero, else in replicas")
    add("--max-loaded", type=int, default=4, metavar="N",
        help="models of a shared replica; the least recently used one goes")


if __name__ == "__main__":
    sys.exit(main())
