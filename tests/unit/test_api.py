"""`import trainyard as ty`: a class of a user's trains from Python, with a loss, an optimiser, a schedule and metrics
of its own, exactly as the house's own jobs do; and what does not fit is one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainyard as ty
from cluster.core.errors import ConfigError
from cluster.core.job_command import command_of
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.own_code import OwnModel
from jobs.common.tables.prepare import prepare
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.train import train as image_loop
from jobs.tabular.config import TabularConfig
from jobs.tabular.train import train as loop
from tests import image_loops
from tests.unit.own_classes import Images, Rows
from tests.unit.test_tables import csv, rows_of


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return csv(tmp_path_factory.mktemp("rows"), rows_of(300))


@pytest.fixture(scope="module")
def table(uri: Path) -> Dataset:
    return prepare(config_of("Rows", uri).data, Store.open(str(uri.parent)), say=lambda _: None)


def config_of(name: str, uri: Path, settings: str | None = None, **groups: Any) -> TabularConfig:
    model = {"build": f"tests.unit.own_classes:{name}", "settings": settings}
    values = {"train": {"epochs": 2, "global_batch_size": 48}, "run": {"workers": "3"},
              "data": {"uri": str(uri), "label_column": "score"}}
    return from_dict(TabularConfig, {"model": model, **values, **groups})


# ── exact ──
def test_a_class_with_a_loss_and_an_optimiser_of_its_own_resumes_bit_for_bit(uri: Path, table: Dataset,
                                                                            tmp_path: Path) -> None:
    config = config_of("Rows", uri, eval={"metric": "worst_error"})
    outcome, evaluations = image_loops.train(loop, tmp_path / "at once", table, config, num_shards=3)
    assert outcome == "finished"
    assert image_loops.in_pieces(loop, tmp_path / "in pieces", table, config, num_shards=3) > 6
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    assert [row["learning_rate"] for row in evaluations] == pytest.approx([0.004 * (1 - 3 / 16), 0.004 * (1 - 7 / 16)])
    assert all(row["validation_worst_error"] > row["validation_rmse"] for row in evaluations)
    kept = image_loops.tensors(tmp_path / "at once")
    moved = {name: np.abs(kept[name]).max() for name in kept if name.endswith("exp_avg")}
    assert len(moved) == 9 and all(value > 0 for value in moved.values())


def test_a_class_for_images_is_judged_by_its_own_loss_and_metric(tmp_path: Path) -> None:
    odd = image_loops.odd(tmp_path)
    config = from_dict(PytorchConfig, {"model": {"build": "tests.unit.own_classes:Images"}, "run": {"workers": "3"},
                                       "train": {"epochs": 1, "global_batch_size": 48}, "optim": {"warmup": 2},
                                       "eval": {"metric": "certainty"}})
    outcome, (row,) = image_loops.train(image_loop, tmp_path / "run", odd, config, num_shards=3)
    assert outcome == "finished"
    assert 0.25 <= row["validation_certainty"] <= 1
    probabilities = np.load(next((tmp_path / "run").rglob("validation-*.npz")))["probabilities"]
    assert row["validation_certainty"] == pytest.approx(probabilities.max(axis=1).mean(), rel=1e-5)


def test_the_settings_of_an_instance_are_what_it_is_built_with() -> None:
    own = OwnModel.named("tests.unit.own_classes:Rows", '{"rates": [0.5, 0.25]}')
    groups = own.method("optimizer")(torch.nn.Linear(2, 2)).param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.25]
    assert OwnModel.named("tests.unit.own_classes:Rows").holder.rates == [0.004, 0.001]
    assert OwnModel.named("tests.unit.own_tables:normalised").method("loss") is None


@pytest.mark.parametrize(("name", "said"), [
    ("NoOptimizer", r"its optimizer gave list: it must return a torch\.optim\.Optimizer"),
    ("ForgetfulOptimizer", r"_Counting keeps steps.* in what is no tensor of its state, which a checkpoint would lose"),
    ("ForeignParameters", r"its optimizer changes tensors that are no parameters of the module"),
    ("Lbfgs", r"LBFGS needs more than a step's gradients: use another"),
    ("DetachedLoss", r"its loss: it does not depend on the module's parameters"),
    ("NotDeclared", r"`metrics` must be a dictionary: by name a function \(true, predicted\) and 'max' or 'min'"),
    ("WrongDirection", r"metric 'worst_error' has the direction 'down': it must be 'max' or 'min'"),
    ("NoNumber", r"metric pairs gives str: it must give a number"),
    ("NeedsAnArgument", r"TypeError: .*missing 1 required positional argument: 'needed'")])
def test_what_does_not_fit_is_refused_by_name(name: str, said: str, uri: Path, table: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        image_loops.train(loop, tmp_path, table, config_of(name, uri), num_shards=3)


@pytest.mark.parametrize(("settings", "said"), [("{", "is no JSON"), ("[1]", "must be a JSON object")])
def test_settings_that_are_none_are_refused(settings: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OwnModel.named("tests.unit.own_classes:Rows", settings)
    with pytest.raises(ConfigError, match=r"own_tables:normalised is no class with a method `build`"):
        OwnModel.named("tests.unit.own_tables:normalised", "{}")


def test_buffers_that_change_at_every_call_are_those_of_training_alone(uri: Path, table: Dataset,
                                                                         tmp_path: Path) -> None:
    """Neither judging, which each worker does on rows of its own, nor stops in between leave anything in them."""
    config = config_of("Drifting", uri)
    assert image_loops.train(loop, tmp_path / "at once", table, config, num_shards=3)[0] == "finished"
    assert image_loops.in_pieces(loop, tmp_path / "in pieces", table, config, num_shards=3) > 6
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    assert image_loops.tensors(tmp_path / "at once")["model.seen"] == 2 * 4 * 16, "a shard's rows, in 8 steps"


def test_a_metric_that_is_never_finite_costs_no_run(uri: Path, tmp_path: Path) -> None:
    from tests.unit.own_classes import Infinite

    run = ty.train(Infinite(), str(uri), target="score", epochs=1, engine="local", storage=str(tmp_path),
                   run={"tracking_uri": "none"}, eval={"bootstrap_samples": 100})
    assert "nothing" not in run.metrics["test"] and run.metrics["test"]["rmse"] > 0
    assert "validation_nothing" in (tmp_path / "infinite/progress.json").read_text()


def test_a_metric_that_chooses_and_is_never_finite_is_named_at_the_end(uri: Path, tmp_path: Path) -> None:
    from cluster.core.errors import TrainyardError
    from tests.unit.own_classes import Infinite

    with pytest.raises(TrainyardError, match=r"--eval\.metric was never a finite number"):
        ty.train(Infinite(), str(uri), target="score", epochs=1, engine="local", storage=str(tmp_path),
                 run={"tracking_uri": "none"}, eval={"bootstrap_samples": 100, "metric": "nothing"})


def test_an_instance_has_what_its_init_gives_and_then_its_settings() -> None:
    own = OwnModel.named("tests.unit.own_classes:Rows", '{"more": 1}')
    assert own.holder.rates == [0.004, 0.001] and own.holder.more == 1
    assert OwnModel.named("tests.unit.own_classes:NeedsAnArgument", '{"needed": 1}').holder.needed == 1


# ── ty.train ──
def test_a_line_of_python_trains_and_gives_the_run(uri: Path, tmp_path: Path) -> None:
    again = [ty.train(Rows([0.01, 0.01]), str(uri), target="score", workers=2, epochs=3, engine="local",
                      storage=str(tmp_path), run={"tracking_uri": "none"}, eval={"bootstrap_samples": 100})
             for _ in range(2)]
    run = again[0]
    assert again[1] == run, "it is done already"
    assert run.name == "rows" and run.folder == str(tmp_path / "rows")
    assert run.metrics["test"]["worst_error"] > run.metrics["test"]["rmse"] > 0
    assert "loss" not in run.metrics["test"], "what is lowered is the class's own, which no other process can compute"
    assert Path(run.report).is_file() and (Path(run.artifact) / "model.onnx").is_file()
    record = json.loads((tmp_path / "rows/run.json").read_text())
    assert record["config"]["model"]["settings"] == '{"rates": [0.01, 0.01]}'


@pytest.mark.parametrize(("data", "job"), [("rows.csv", "tabular"), ("diabetes", "tabular"), (None, "pytorch"),
                                           ("folder/of/images", "pytorch"), ("x.tsv.gz", "tabular"), (".", "tabular")])
def test_the_data_says_which_job_it_is(data: str | None, job: str, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    from trainyard.api import _job_of

    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "x.tsv.gz"):
        csv(tmp_path, rows_of(), name)
    assert _job_of(data) == job


def test_fields_of_data_and_model_are_given_as_dictionaries(uri: Path, tmp_path: Path) -> None:
    run = ty.train(None, {"uri": str(uri), "ignore": "size,since"}, target="score", name="few", epochs=1,
                   engine="local",
                   storage=str(tmp_path), model_options={"loss": "quantile", "width": 8}, run={"tracking_uri": "none"},
                   eval={"bootstrap_samples": 100})
    assert "coverage" in run.metrics["test"]
    inputs = json.loads((Path(run.artifact) / "manifest.json").read_text())["inputs"]
    assert [each["name"] for each in inputs] == ["age", "city"]


def test_parquet_with_images_is_of_the_job_for_images(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainyard.api import _job_of

    image_loops.odd(tmp_path)
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "table.parquet")
    assert _job_of(tmp_path / "odd.parquet") == "pytorch" and _job_of(tmp_path / "table.parquet") == "tabular"


class Here(Rows):
    def __init__(self, **attributes: object) -> None:
        super().__init__()
        vars(self).update(attributes)


def test_what_workers_could_not_import_or_the_run_not_keep_is_refused(uri: Path) -> None:
    def inner() -> type:
        class Inside(Rows):
            pass

        return Inside

    for model, said in ((inner()(), "is defined inside a function"), (Here(f=print), "are its settings, .*JSON"),
                        (Here(pair=(1, 2)), "some that are not the same then"), (3, "3 is no model"),
                        (torch.nn.Linear(1, 1), "is no model: give an instance of a class with a method")):
        with pytest.raises(ConfigError, match=said):
            ty.train(model, str(uri), target="score")
    with pytest.raises(ConfigError, match=r"optim must be a dictionary of fields"):
        ty.train(Images(), optim=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"optim\.lear"):
        ty.train(Images(), optim={"learning_rate": 1})


SCRIPT = """
import trainyard as ty
from tests.unit.own_classes import Rows

class Mine(Rows):
    pass

{guard}
    run = ty.train(Mine(), "{uri}", target="{target}", epochs=1, engine="local", storage="runs",
                   run={{"tracking_uri": "none"}}, eval={{"bootstrap_samples": 100, "importance_rows": 0}})
    print("done:", run.name, sorted(run.metrics["test"])[:2])
"""


@pytest.mark.parametrize(("guard", "target", "code", "said"), [
    ('if __name__ == "__main__":', "score", 0, r"done: mine \['mae', 'mae_high'\]"),
    ("if True:", "score", 2,
     r"error: ty\.train was called while a module was imported: put the call under if __name__"),
    ('if __name__ == "__main__":', "scores", 2, r"error: there is no column 'scores'.*--data\.label-column score$")])
def test_a_script_ends_as_the_command_does(guard: str, target: str, code: int, said: str, uri: Path,
                                           tmp_path: Path) -> None:
    """Its class is in __main__, which workers import by the file's name, from wherever it is run."""
    import re

    (tmp_path / "script_of_mine.py").write_text(SCRIPT.format(guard=guard, uri=uri, target=target))
    done = subprocess.run([sys.executable, str(tmp_path / "script_of_mine.py")], cwd=tmp_path, capture_output=True,
                          text=True, env=None, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stdout + done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_submit_takes_a_file_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("my_file.py", "deep/other.py", "my-file.py"):
        (tmp_path / name).write_text("")
    command = command_of(str(tmp_path / "my_file.py"))
    assert (command.module, command.folder) == ("my_file", tmp_path)
    deep = command_of(str(tmp_path / "deep/other.py"), str(tmp_path))
    assert (deep.module, deep.folder) == ("deep.other", tmp_path)
    for name, said in (("none.py", "there is no file"), ("my-file.py", "call it with letters, digits and _")):
        with pytest.raises(ConfigError, match=said):
            command_of(str(tmp_path / name))
