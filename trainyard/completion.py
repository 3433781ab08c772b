"""`trainyard completion bash|zsh`: the script by which a shell completes commands, jobs and flags. It is tyro's own.

tyro completes what a type says, so the commands that argparse reads are told to it as dataclasses.
"""

import argparse
import sys
from dataclasses import field, make_dataclass
from functools import reduce
from typing import Annotated, Any, Literal

import tyro

from trainyard.internals import options_of, subcommands_of

Shell = Literal["bash", "zsh"]


def main(arguments: list[str]) -> int:
    """Prints the script. Returns 0, or 2 for another shell."""
    if arguments not in (["bash"], ["zsh"]):
        print("name the shell: `trainyard completion bash` or `trainyard completion zsh`; put `source <(trainyard "
              "completion bash)` into ~/.bashrc", file=sys.stderr)
        return 0 if {"-h", "--help"} & {*arguments} else 2
    try:
        tyro.cli(everything(), prog="trainyard", args=["--tyro-print-completion", *arguments])
    except SystemExit:
        return 0
    raise AssertionError("tyro ends the process when it has printed the script")


def everything() -> Any:
    """The type of the whole command line."""
    from cluster.__main__ import parser as cluster
    from jobs.common.compare import parser as compare
    from jobs.common.predicting.evaluate import parser as evaluate
    from jobs.common.predicting.export import parser as export
    from jobs.common.predicting.predict import parser as predict
    from jobs.common.registry.__main__ import parser as registry
    from jobs.common.runs.__main__ import parser as overview
    from jobs.common.training.house import house_config, house_names
    from serving.__main__ import parser as serving
    from trainyard.retrain import parser as retrain
    from tuning.options import combined

    configs = {name: config for name in house_names() if (config := house_config(name)) is not None}
    return _choice({
        "train": _group("train", configs), "data": _group("data", {"check": _group("check", configs)}),
        "tune": _group("tune", {name: combined(config) for name, config in configs.items()}),
        "compare": _of_parser("compare", compare()), "predict": _of_parser("predict", predict()),
        "evaluate": _of_parser("evaluate", evaluate()), "export": _of_parser("export", export()),
        "registry": _of_parser("registry", registry()),
        "runs": _of_parser("runs", overview()), "retrain": _of_parser("retrain", retrain()),
        "serve": _of_parser("serve", serving()),
        "completion": _group("completion", {"bash": _empty("bash"), "zsh": _empty("zsh")}),
        **{name: _of_parser(name, parser) for name, parser in subcommands_of(cluster()).items()},
    })


def _of_parser(name: str, parser: argparse.ArgumentParser) -> type:
    """A dataclass with the commands of a parser, or with its flags where it has none."""
    if commands := subcommands_of(parser):
        return _group(name, {each: _of_parser(each, below) for each, below in commands.items()})
    options = ((Annotated[bool if switch else str, tyro.conf.arg(name=flag)], field(default=False if switch else ""))
               for flag, switch in options_of(parser).items())
    return make_dataclass(name, [(f"option_{place}", *option) for place, option in enumerate(options)])


def _group(name: str, commands: dict[str, type]) -> type:
    return make_dataclass(name, [("command", tyro.conf.OmitSubcommandPrefixes[_choice(commands)])])


def _empty(name: str) -> type:
    return make_dataclass(name, [])


def _choice(commands: dict[str, type]) -> Any:
    kinds: list[Any] = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items()]
    return reduce(lambda some, one: some | one, kinds)
