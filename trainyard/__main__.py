"""Everything that Trainyard does, by one name. `trainyard COMMAND --help` says more of each.

    trainyard train JOB [--config FILE] [FLAGS]      train a job: mlp, cnn, pytorch, tabular, transformer, or your own
    trainyard data check JOB [FLAGS]                 what its data is, and what is wrong with it; begins no run
    trainyard new NAME [--from JOB]                  a folder with a job of your own, that trains at once
    trainyard tune JOB [FLAGS]                       search its hyperparameters
    trainyard compare RUN RUN …                      finished runs on one page, and whether they differ
    trainyard predict --model … --data.uri … --out … answers of a model for new data, as Parquet
    trainyard evaluate --model … --data.uri …        how good models are on new data, by slices, and its drift
    trainyard export MODEL --format … --out PATH     a model as ONNX, a Hugging Face folder, .keras or .pt2
    trainyard runs list | show | page | rm | prune   all runs of a storage, on one page too
    trainyard retrain NAME --data.uri NEW …          a new version from the champion, promoted if it is better
    trainyard registry list | promote | download | … versions of models
    trainyard serve up | status | split | promote …  endpoints for models
    trainyard submit JOB [-- FLAGS]                  the same on a Ray cluster, or on Kubernetes
    trainyard status | watch                         what runs there, and what is wrong
    trainyard up | env | down                        a Ray cluster on this machine
    trainyard completion bash | zsh                  lines for a shell's start file, so that Tab completes all this

`train JOB` is `python -m jobs.JOB`, `tune` is `python -m tuning`, `serve` is `python -m serving`, and so on:
both ways stay.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

WITHOUT_A_JOB = {"compare": "jobs.common.compare", "evaluate": "jobs.common.predicting.evaluate",
                 "export": "jobs.common.predicting.export", "predict": "jobs.common.predicting.predict",
                 "registry": "jobs.common.registry.__main__", "retrain": "trainyard.retrain",
                 "runs": "jobs.common.runs.__main__", "serve": "serving.__main__"}
"""Command -> the module whose `main` carries it out."""
OF_A_CLUSTER = ("submit", "status", "watch", "up", "env", "down")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line. Returns the exit code of the command that it names; 2 for one that is not there."""
    if arguments is None:
        _as_python_m()
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if command == "train":
        return _train(rest)
    if command == "data":
        return _check_data(rest)
    if command == "tune":
        return import_module("tuning.__main__").main(rest, "trainyard tune")
    if command in WITHOUT_A_JOB:
        return import_module(WITHOUT_A_JOB[command]).main(rest, f"trainyard {command}") or 0
    if command in OF_A_CLUSTER:
        return import_module("cluster.__main__").main([command, *rest], "trainyard")
    if command == "new":
        return import_module("trainyard.new").main(rest)
    if command == "completion":
        return import_module("trainyard.completion").main(rest)
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    print(f"there is no command {command!r}: see `trainyard --help`" if command else __doc__, file=sys.stderr)
    return 2


def _as_python_m() -> None:
    """Has the current folder go first, as `python -m` does: it may hold a job, or Trainyard itself."""
    here = Path.cwd()
    if (here / "trainyard/__init__.py").is_file() and here.resolve() != Path(__file__).resolve().parents[1]:
        os.execv(sys.executable, [sys.executable, "-m", "trainyard", *sys.argv[1:]])  # all of it, in all processes
    if "" not in sys.path[:1]:
        sys.path.insert(0, "")


def _check_data(arguments: list[str]) -> int:
    if arguments[:1] != ["check"]:
        print("trainyard data check JOB [FLAGS]: say what is to be done with the data", file=sys.stderr)
        return 2
    return _train([*arguments[1:], "--data.check"] if arguments[1:] else [])


def _train(arguments: list[str]) -> int:
    from cluster.core.errors import TrainyardError
    from jobs.common.config import answer_help
    from jobs.common.training.house import house_config

    if not arguments or arguments[0].startswith("-"):
        print("trainyard train JOB [--config FILE] [FLAGS]: name a job first; `trainyard train mlp --help` lists its "
              "flags",
              file=sys.stderr)
        return 0 if {"-h", "--help"} & {*arguments} else 2
    name, *flags = arguments
    if (config := house_config(name)) is not None:
        answer_help(config, f"trainyard train {name}", flags)
    from jobs.common.runs.console import fail
    from jobs.common.runs.run import main as train  # after the help, which so takes half the time
    from jobs.common.training.find_job import find_job

    try:
        job = find_job(name)
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    return train(job, flags)


if __name__ == "__main__":
    sys.exit(main())
