"""Searches as a user starts them, on a real Ray cluster of two CPUs: `python -m tuning.JOB`.
One cluster serves all tests."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cluster.core.errors import ConfigError
from cluster.local import cluster as local
from jobs.common.config import from_dict, parse
from jobs.common.registry.connection import open_registry
from jobs.common.runs.trial import run_trial
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from tests import kept, runs
from tuning.journal import KEY_VARIABLE
from tuning.run import main

# MLflow's, of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")
QUICK = ["--eval.bootstrap-samples", "100", "--eval.robustness-rows", "0", "--run.tracking-uri", "none"]
NARROW = "optim.lr: {log_uniform: [1e-3, 1e-2], mutable: true}\nmodel.dropout: {uniform: [0.0, 0.4], mutable: true}\n"
SMALL = ["--model.hidden", "64"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.LocalCluster]:
    with runs.cluster(tmp_path_factory.mktemp("home"), nodes=0, cpus_per_node=2) as made:
        yield made


def search(cluster: local.LocalCluster, folder: Path, *flags: str, job: str = "mlp", code: int = 0,
           quick: bool = True) -> str:
    """Runs a search to its end. Returns what it printed."""
    command = [*(QUICK if quick else []), "--run.storage", str(folder.parent), "--run.name", folder.name, *flags]
    with runs.python("tuning", job, *command, folder=folder, env=cluster.environment()) as started:
        assert started.wait(200) == code, started.text
        return started.text


def space(folder: Path, text: str = NARROW) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.yaml").write_text(text)
    return ["--space", str(folder / "space.yaml")]


def trials(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Events by trial."""
    found = (json.loads(path.read_text())["content"] for path in (folder / "journal").glob("*.json"))
    return {record["number"]: record["events"] for record in found}


def rows(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["row"] for event in events if event["kind"] == "evaluation"]


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return ({name: tensor.tobytes() for name, tensor in one.items()} == {name: tensor.tobytes()
                                                                         for name, tensor in other.items()})


# ── one trial ──
def test_a_trial_computes_what_a_run_does_and_rests_where_it_is_told_to(tmp_path: Path) -> None:
    config = from_dict(MlpConfig, {"run": {"storage": str(tmp_path), "name": "trial"}, "model": {"hidden": [64]},
                                   "train": {"epochs": 3}})
    told: list[dict[str, Any]] = []
    run_trial(JOB, config, told.append, until_epoch=1)
    assert [row["epoch"] for row in told] == [1]
    run_trial(JOB, config, told.append)
    assert [row["epoch"] for row in told] == [1, 1, 2, 3], "what an earlier start has done is told again"
    assert not (tmp_path / "trial/result.json").exists()
    assert not list((tmp_path / "trial").rglob("predictions*")), "test rows are not judged in a search"
    assert told[-1]["parameters"] == 28 * 28 * 64 + 64 + 64 * 10 + 10
    assert told[-1]["validation_ms_per_row"] > 0

    with runs.run(tmp_path / "run", *QUICK, *SMALL, "--train.epochs", "3", quick=False) as job:
        job.finished()
    whole = [row for row in runs.progress(tmp_path / "run")["history"] if row["kind"] == "evaluation"]
    shared = ("step", "epoch", "validation_accuracy", "validation_loss", "learning_rate")
    assert [[row[key] for key in shared] for row in told[1:]] == [[row[key] for key in shared] for row in whole]
    mine, theirs = runs.weights(tmp_path / "trial"), runs.weights(tmp_path / "run")
    assert same_bits(mine, theirs)


def test_a_trial_stops_after_a_checkpoint_when_it_is_told_to(tmp_path: Path) -> None:
    config = from_dict(MlpConfig, {"run": {"storage": str(tmp_path), "name": "trial"}, "model": {"hidden": [64]},
                                   "train": {"epochs": 400}})
    told: list[dict[str, Any]] = []
    run_trial(JOB, config, lambda row: told.append(row) or len(told) >= 2)
    assert 2 <= len(told) < 200
    assert runs.step_of(runs.manifests(tmp_path / "trial")[-1]) >= told[-1]["step"]


def test_a_trial_whose_workers_may_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.workers 1:2: a trial keeps the resources that it began with"):
        run_trial(JOB, from_dict(MlpConfig, {"run": {"storage": str(tmp_path), "workers": "1:2"}}), print)


# ── a whole search ──
@pytest.fixture(scope="module")
def searched(cluster: local.LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """6 trials of up to 3 epochs, then two final trainings, recorded in MLflow."""
    folder = tmp_path_factory.mktemp("storage") / "mine"
    flags = ["--num-trials", "6", "--train.epochs", "3", "--then-train", "2", *SMALL, "--fix", "model.hidden=[64]",
             *QUICK[:4]]
    return folder, search(cluster, folder, *flags, quick=False)


def test_a_search_leaves_a_leaderboard_a_best_config_a_report_and_a_registered_model(
    searched: tuple[Path, str]
) -> None:
    folder, text = searched
    result = runs.result(folder)
    assert (result["status"], result["exit_code"]) == ("done", 0)
    assert sum(result["trials"].values()) == 6
    assert result["trials"]["stopped"] >= 1
    assert result["epochs"] == sum(max(row["epoch"] for row in rows(events)) for events in trials(folder).values())
    assert len((folder / "leaderboard.csv").read_text().splitlines()) == 7
    best = parse(MlpConfig, ["--config", str(folder / "best.yaml")], "test")
    assert best.optim.lr == result["best"]["values"]["optim.lr"]
    assert list(best.model.hidden) == [64], "what was pinned"
    assert "Parallel coordinates" in (folder / "report.html").read_text()
    assert len(result["final"]) == 2
    assert text.splitlines()[-1] == f"artifact: {result['artifact']}"
    assert re.search(r"trials 6/6|trial 5 (completed|stopped)", text)


def test_every_trial_is_a_child_run_and_the_best_final_training_is_registered(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    from jobs.common.registry.mlflow_client import connect

    client: Any = connect(f"sqlite:///{folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("mlp")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = found.pop("mine")
    assert parent.info.status == "FINISHED"
    final = {f"mine-final-t{runs.result(folder)['best']['trial']:04d}-seed-{k}" for k in (0, 1)}
    assert set(found) == {f"mine-t{n:04d}" for n in range(6)} | final
    for number, events in trials(folder).items():
        child = found[f"mine-t{number:04d}"]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert float(child.data.params["optim.lr"]) == events[0]["values"]["optim.lr"]
        logged = client.get_metric_history(child.info.run_id, "validation_accuracy")
        assert [(m.step, m.value) for m in logged] == [(row["step"], row["validation_accuracy"])
                                                       for row in rows(events)]
    from cluster.core.storage import Store

    versions = open_registry(None, Store.open(str(folder.parent)), "mine").versions("mine")
    result = runs.result(folder)
    assert [version.version for version in versions] == [result["model_version"]]
    chosen = max(result["final"], key=lambda each: each["metrics"]["validation"]["accuracy"])
    assert versions[0].digest == chosen["digest"]


def test_what_the_registry_had_not_heard_of_a_trial_is_told_when_a_search_goes_on(
    searched: tuple[Path, str], tmp_path: Path
) -> None:
    """Its driver was killed before it had sent anything, and again when it had sent one evaluation."""
    from cluster.core.storage import Store
    from jobs.common.registry.mlflow_client import connect
    from tuning.journal import Trial
    from tuning.tracking import Tracking

    folder, _ = searched
    trial = Trial(0)
    for event in trials(folder)[0]:
        trial.apply(event)
    rest = list(trial.evaluations)
    trial.evaluations[1:], status, trial.status = [], trial.status, "running"
    for _ in range(3):  # the third time there is nothing left to tell
        store = Store.open(str(tmp_path / "again"))
        tracking = Tracking(open_registry(None, Store.open(str(tmp_path)), "again"), store, "again", "mlp")
        tracking.start({})
        tracking.catch_up(trial)
        tracking.finish({}, "done")
        assert tracking.problem is None
        trial.evaluations[:], trial.status = rest, status
    client: Any = connect(f"sqlite:///{tmp_path}/mlflow.db")
    found = {run.info.run_name: run
             for run in client.search_runs([client.get_experiment_by_name("again").experiment_id])}
    assert set(found) == {"again", "again-t0000"}
    child = found["again-t0000"].info
    assert child.status == "FINISHED"
    assert len(client.get_metric_history(child.run_id, "validation_accuracy")) == len(trial.evaluations)


def test_processes_are_used_again(searched: tuple[Path, str]) -> None:
    """6 trials, two at a time, in two processes: a framework is imported twice."""
    folder, _ = searched
    pids = {worker["pid"] for path in (folder / "trials").glob("*/logs/workers/*.json")
            for worker in json.loads(path.read_text()).values()}
    assert len(list((folder / "trials").glob("t*"))) == 6
    assert len(pids) == 2


def test_a_finished_search_says_so_and_goes_on_with_more_trials(
    cluster: local.LocalCluster, searched: tuple[Path, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(searched[0].parent, tmp_path / "storage") / searched[0].name
    before = trials(folder)
    flags = ["--train.epochs", "3", *SMALL, "--fix", "model.hidden=[64]"]
    text = search(cluster, folder, "--num-trials", "6", "--then-train", "2", *flags)
    assert "is done" in text
    assert trials(folder) == before
    search(cluster, folder, "--num-trials", "7", *flags)
    after = trials(folder)
    assert {number: after[number] for number in before} == before
    assert sorted(after) == list(range(7))


def test_a_search_of_an_earlier_version_goes_on(
    cluster: local.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept.storage(tmp_path / "storage") / "search"
    monkeypatch.setenv(KEY_VARIABLE, kept.SEARCH_KEY)
    before = trials(folder)
    search(cluster, folder, "--num-trials", "5", "--max-concurrent", "1", "--train.epochs", "1",
           "--optim.warmup-steps", "50", "--fix", "model.hidden=[16]")
    after = trials(folder)
    assert sorted(before) == [0, 1, 2, 3] and sorted(after) == [0, 1, 2, 3, 4]
    assert {number: after[number] for number in before} == before


def test_a_changed_space_or_config_is_refused_with_the_difference(
    cluster: local.LocalCluster, searched: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = searched
    where = ["--run.storage", str(folder.parent), "--run.name", folder.name, *QUICK, "--train.epochs", "3", *SMALL]
    assert main(JOB, [*where, "--fix", "model.hidden=[128]"]) == 2
    assert "pinned.model.hidden: [64] -> [128]" in capsys.readouterr().err
    assert main(JOB, [*where, "--fix", "model.hidden=[64]", "--train.early-stopping-epochs", "2"]) == 2
    assert "train.early_stopping_epochs: None -> 2" in capsys.readouterr().err
    assert main(JOB, [*where, "--fix", "model.hidden=[64]", "--reduction-factor", "2"]) == 2
    assert "options.reduction_factor: 3 -> 2" in capsys.readouterr().err
    assert main(JOB, [*where, "--fix", "model.hidden=[64]", "optim.lr=0.001"]) == 2
    assert "space.optim.lr.log_uniform: " in capsys.readouterr().err


# ── other kinds of search ──
def test_trials_of_several_workers_take_turns_where_there_is_room_for_one(cluster: local.LocalCluster,
                                                                          tmp_path: Path) -> None:
    """Each trial's group of two workers lies in the trial's own placement group,
    or the second trial would wait for ever."""
    folder = tmp_path / "groups"
    search(cluster, folder, "--run.workers", "2", "--num-trials", "2", "--train.epochs", "1", *SMALL, *space(tmp_path))
    assert runs.result(folder)["trials"]["completed"] == 2
    for path in (folder / "trials").glob("t*"):
        assert len(json.loads(next((path / "logs/workers").glob("*.json")).read_text())) == 2


def test_a_member_of_a_population_goes_on_from_the_others_weights(cluster: local.LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "population"
    search(cluster, folder, "--scheduler", "pbt", "--search", "random", "--num-trials", "4", "--perturb-every-epochs",
           "2",
           "--train.epochs", "4", "--run.keep-checkpoints", "9", *SMALL, *space(tmp_path))
    assert runs.result(folder)["trials"]["completed"] == 4
    moves = {number: event for number, events in trials(folder).items() for event in events if event["kind"] == "moved"}
    assert len(moves) == 1
    (member, move), = moves.items()
    step = move["step"]
    source = runs.weights(folder / "trials" / f"t{move['source']:04d}", step)
    copied = runs.weights(folder / "trials" / f"t{member:04d}-1", step)
    assert same_bits(copied, source)
    config = yaml.safe_load((folder / "trials" / f"t{member:04d}-1/config.yaml").read_text())
    assert config["optim"]["lr"] == move["values"]["optim.lr"]
    assert [row["epoch"] for row in rows(trials(folder)[member])] == [1, 2, 3, 4]


def test_the_cnn_is_searched_for_accuracy_and_size(cluster: local.LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "cnn"
    small = "model.width: {choice: [2, 4, 8]}\noptim.lr: {log_uniform: [1e-3, 1e-2]}\n"
    search(cluster, folder, "--num-trials", "4", "--train.epochs", "1", "--objective", "validation_accuracy",
           "parameters",
           "--scheduler", "none", "--constraint", "parameters<=10000", *space(tmp_path, small), job="cnn")
    result = runs.result(folder)
    sizes = {number: rows(events)[0]["parameters"] for number, events in trials(folder).items()}
    assert result["best"]["evaluation"]["parameters"] <= 10000
    assert {sizes[number] for number in result["pareto"]} <= {size for size in sizes.values() if size <= 10000}
    assert "Pareto front" in (folder / "report.html").read_text()


def test_the_transformer_is_searched_by_macro_f1(cluster: local.LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    tiny = ["--data.max-train-rows", "600", "--data.vocab-size", "300", "--model.layers", "1", "--model.width", "32",
            "--model.heads", "2", "--eval.batch-size", "512"]
    flags = ["--num-trials", "2", "--train.epochs", "1", "--objective", "validation_macro_f1", *tiny]
    search(cluster, folder, *flags, job="transformer")
    best = runs.result(folder)["best"]["evaluation"]
    assert 0 < best["validation_macro_f1"] < 1
    assert len(trials(folder)) == 2


def test_budgets_end_a_search_which_goes_on_with_a_larger_one(cluster: local.LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "budget"
    flags = ["--num-trials", "3", "--train.epochs", "4", "--scheduler", "none", *SMALL, *space(tmp_path)]
    text = search(cluster, folder, "--epoch-budget", "3", *flags)
    assert "--epoch-budget 3" in text
    first = runs.result(folder)
    assert 3 <= first["epochs"] < 12
    assert first["status"] == "done"
    assert "best" in text.splitlines()[-1]
    search(cluster, folder, *flags)
    assert runs.result(folder)["epochs"] == 12
    assert all([row["epoch"] for row in rows(events)] == [1, 2, 3, 4] for events in trials(folder).values())


def test_a_time_budget_ends_a_submitted_search_with_exit_code_0(cluster: local.LocalCluster, tmp_path: Path) -> None:
    """Started by `ray job submit`, from a folder of no importance, on the cluster's own Python."""
    folder = tmp_path / "submitted"
    flags = ["--num-trials", "500", "--time-budget", "15s", "--train.epochs", "1", "--scheduler", "none", *SMALL,
             *space(tmp_path)]
    program = ["python", "-m", "tuning", "mlp", *QUICK, "--run.storage", str(tmp_path), "--run.name", folder.name,
               *flags]
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", str(_empty(tmp_path)), "--",
              *program]
    done = subprocess.run(submit, env={**os.environ, **cluster.environment()}, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--time-budget 15s" in done.stdout
    result = runs.result(folder)
    assert result["status"] == "done"
    assert 1 <= sum(result["trials"].values()) < 500
    assert 15 <= result["wall_s"] < 90
    assert (folder / "report.html").exists()
    assert (folder / "best.yaml").exists()


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_what_can_never_be_is_refused_before_anything_is_written(
    cluster: local.LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = search(cluster, tmp_path / "gpu", "--run.gpus-per-worker", "1", code=2)
    assert ("needs 1 worker with 1 CPU and 1 GPU each, the cluster has no GPU and cannot grow: pass "
            "--run.gpus-per-worker 0") in text
    assert "Traceback" not in text
    assert not (tmp_path / "gpu").exists()
    for flags, message in (
        (["--run.workers", "1:2"], "a trial keeps the resources that it began with: pass --run.workers N"),
        (["--run.engine", "local"], "trials are carried out by Ray: leave it out"),
        (["--run.resume", "never"], "pass another --run.name"),
        (["--run.extend-from", "other"], "begin with its weights, --model.init-from"),
        (["--space", str(tmp_path / "none.yaml")], "cannot be read (No such file"),
        (["--fix", "model.hiden=3"], "the nearest it has is model.hidden"),
        (["--search", "grid"], "a grid has no end of values"),
        (["--objective", "validation_macro_f1"], "the job does not report it"),
        (["--num-trial", "3"], "--num-trials"),
        (["--scheduler", "pbt", "--search", "random", *space(tmp_path, "optim.lr: {uniform: [0.1, 0.2]}")],
         "no field of the"),
    ):
        assert main(JOB, ["--run.storage", str(tmp_path / "storage"), *QUICK, *flags]) == 2, flags
        assert message in capsys.readouterr().err, flags
    assert not (tmp_path / "storage").exists()


def test_a_time_budget_that_one_trial_does_not_fit_is_refused_by_the_pace_of_its_first_epochs(
    cluster: local.LocalCluster, tmp_path: Path
) -> None:
    flags = ["--num-trials", "2", "--train.epochs", "100000", "--scheduler", "none", *SMALL, *space(tmp_path)]
    text = search(cluster, tmp_path / "time", "--time-budget", "2m", *flags, code=2)
    assert re.search(r"--time-budget 2m: one trial of 100000 epochs takes about (\d+h\d\dm|\d+m\d\ds): pass a longer "
                     r"budget", text)
    assert (tmp_path / "time/report.html").exists()


def test_a_jobs_run_and_a_search_do_not_share_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_trial(JOB, from_dict(MlpConfig, {"run": {"storage": str(tmp_path), "name": "search"}, "model": {"hidden": [8]},
                                         "train": {"epochs": 1}}), print)
    flags = ["--run.storage", str(tmp_path), "--model.hidden", "8", "--train.epochs", "1", *QUICK[4:]]
    assert main(JOB, flags) == 2
    assert "is a job's run: pass another --run.name" in capsys.readouterr().err


def test_the_best_trials_folder_becomes_an_artifact_by_the_jobs_own_command(
    searched: tuple[Path, str], tmp_path: Path
) -> None:
    """A trial is a run that rests: its config.yaml is a --config, and what it trained is not trained again."""
    folder = shutil.copytree(searched[0].parent, tmp_path / "storage") / searched[0].name
    number = next(n for n, events in trials(folder).items() if rows(events)[-1]["epoch"] == 3)
    trained = folder / f"trials/t{number:04d}"
    place = yaml.safe_load((trained / "config.yaml").read_text())["run"]["storage"]
    storage = place.replace(str(searched[0].parent), str(folder.parent))
    with runs.python("jobs.mlp", "--config", str(trained / "config.yaml"), "--run.engine", "local", "--run.storage",
                     storage,
                     folder=trained) as job:
        result = job.finished()
    kept = load_file(trained / "artifact/model.safetensors")
    best = max(rows(trials(folder)[number]), key=lambda row: (row["validation_accuracy"], -row["step"]))
    assert result["metrics"]["validation"]["accuracy"] == pytest.approx(best["validation_accuracy"])
    assert all(np.isfinite(tensor).all() for tensor in kept.values())
