"""Ray Tune's binding: a trial is the same run as the local binding's, inside the trial's own process."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from jobs.common.config import from_dict
from jobs.common.trial import run_trial
from jobs.mlp.config import MlpConfig
from jobs.mlp.data import JOB
from tests import runs

RATES = (0.001, 0.004)

SEARCH = """
import json, sys
from cluster.connect import connect, disconnect
from jobs.common.config import from_dict
from jobs.common.trial import run_trial
from jobs.mlp.config import MlpConfig
from jobs.mlp.data import JOB

storage, results, *rates = sys.argv[1:]

def trainable(space):
    run = {"storage": storage, "name": f"lr-{space['lr']:g}"}
    run_trial(JOB, from_dict(MlpConfig, {"run": run, "model": {"hidden": [64]}, "train": {"epochs": 2}, "optim": space}))

cluster = connect("local", num_cpus=2)
try:
    from ray import tune
    from ray.util.state import list_actors
    tuner = tune.Tuner(tune.with_resources(trainable, {"cpu": 1}), param_space={"lr": tune.grid_search([*map(float, rates)])},
                       run_config=tune.RunConfig(storage_path=f"{storage}/tune", verbose=0))
    trials = tuner.fit()
    rows = {str(t.config["lr"]): t.metrics_dataframe.to_dict("records") for t in trials if not t.error}
    actors = [actor.class_name for actor in list_actors(address=cluster.address, limit=1000)]
finally:
    disconnect()
with open(results, "w") as file:
    json.dump({"trials": rows, "actors": actors}, file)
"""


def search(folder: Path) -> dict[str, Any]:
    """A process of its own: Tune leaves files and pipes open that this one's warnings would find."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    results = folder / "results.json"
    done = subprocess.run([sys.executable, "-c", SEARCH, str(folder), str(results), *map(str, RATES)], cwd=runs.ROOT,
                          env=env | {"TRAINYARD_HOME": str(folder / "home")}, timeout=240, check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return json.loads(results.read_text())


def evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "progress.json").read_text())["history"]
    return [{key: value for key, value in row.items() if key != "kind"} for row in rows if row["kind"] == "evaluation"]


def run_locally(folder: Path) -> dict[str, Path]:
    """The same configs under the local binding: rate → run folder."""
    with ExitStack() as stack:
        jobs = {
            str(rate): stack.enter_context(runs.run(
                folder / f"lr-{rate:g}", "--model.hidden", "64", "--train.epochs", "2", "--optim.lr", str(rate),
                "--run.tracking-uri", "none", "--eval.bootstrap-samples", "100", quick=False,
            )) for rate in RATES
        }
        for job in jobs.values():
            job.finished()
        return {rate: job.folder for rate, job in jobs.items()}


def test_trials_report_what_the_local_binding_computes_and_start_no_worker_group(tmp_path: Path) -> None:
    found = search(tmp_path / "trials")
    assert sorted(found["trials"]) == [str(rate) for rate in RATES]
    assert found["actors"].count("ImplicitFunc") == len(RATES), found["actors"]
    assert not [name for name in found["actors"] if "Worker" in name or "Controller" in name or "Coordinator" in name]

    for rate, folder in run_locally(tmp_path / "local").items():
        expected = evaluations(folder)
        assert [row["epoch"] for row in expected] == [1, 2]
        reported = [{name: row[name] for name in expected[0]} for row in found["trials"][rate]]
        assert reported == expected, "bit for bit"
        mine, theirs = (runs.weights(each) for each in (tmp_path / "trials" / folder.name, folder))
        assert len(theirs) > 6
        assert {name: tensor.tobytes() for name, tensor in mine.items()} == {name: t.tobytes() for name, t in theirs.items()}


def test_a_trial_stops_when_it_is_told_to_and_continues_when_it_is_started_again(tmp_path: Path) -> None:
    config = from_dict(MlpConfig, {"run": {"storage": str(tmp_path), "name": "trial"}, "model": {"hidden": [64]},
                                   "train": {"epochs": 400}})
    told: list[dict[str, Any]] = []
    best = run_trial(JOB, config, report=lambda row: told.append(row) or len(told) >= 2)
    assert 2 <= len(told) < 200
    assert best == max(told, key=lambda row: row["validation_accuracy"])

    class Over(Exception):
        pass

    def raises(row: dict[str, Any]) -> None:
        told.append(row)
        raise Over

    before = len(told)
    with pytest.raises(Over):
        run_trial(JOB, config, report=raises)
    assert [row["epoch"] for row in told] == [*range(1, before + 2)]


def test_a_trial_on_more_than_one_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.workers 1:2: a trial trains on one worker"):
        run_trial(JOB, from_dict(MlpConfig, {"run": {"storage": str(tmp_path), "workers": "1:2"}}))
