"""What a search may change: read from a file, checked against the job, drawn, laid out as a grid, and moved in."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.errors import ConfigError
from jobs.common.command_line import flatten
from jobs.common.config import to_dict
from jobs.common.training.find_job import beside, find_job
from jobs.common.training.house import house_names
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from tuning.__main__ import main
from tuning.parameter import label
from tuning.run import _space_file
from tuning.space import SPACE_FILE, Draws, Space, with_values

BASE = flatten(to_dict(MlpConfig()))
SPACE = Space.from_dict({
    "optim.lr": {"log_uniform": [1e-4, 1e-1], "mutable": True},
    "optim.name": {"choice": ["adamw", "sgd"]},
    "optim.momentum": {"uniform": [0.0, 0.9], "step": 0.3, "when": {"optim.name": "sgd"}, "mutable": True},
    "model.hidden": {"choice": [[64], [256, 256]]},
    "optim.warmup": {"integer": [10, 50], "step": 20, "mutable": True},
    "train.global_batch_size": {"log_integer": [16, 128]},
})
FILE = """
optim.lr: {log_uniform: [1e-4, 0.1], mutable: true}
optim.name: {choice: [adamw, sgd]}
optim.momentum: {uniform: [0, 0.9], step: 0.3, when: {optim.name: sgd}, mutable: true}
model.hidden: {choice: [[64], [256, 256]]}
optim.warmup: {integer: [10, 50], step: 20, mutable: true}
train.global_batch_size: {log_integer: [16, 128]}
"""


def test_a_file_is_the_same_space_as_one_in_python(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(FILE)
    read = Space.read(tmp_path / "space.yaml")
    assert read.to_dict() == SPACE.to_dict() == Space.from_dict(SPACE.to_dict()).to_dict()
    SPACE.check(MlpConfig())


@pytest.mark.parametrize("job", house_names())
def test_every_job_accepts_its_own_space(job: str) -> None:
    found = find_job(job)
    space = Space.read(beside(found, SPACE_FILE) or Path())
    space.check(found.config_type())
    assert any(parameter.mutable
               for parameter in space.parameters.values()), "else there is nothing for a population to change"


def test_what_is_perturbed_stays_below_the_greatest_where_no_step_ends_on_it() -> None:
    odd = Space.from_dict({"optim.warmup": {"integer": [16, 60], "step": 16, "mutable": True}})
    moved = [odd.perturb({"optim.warmup": 48}, np.random.default_rng(k), BASE, resample=0) for k in range(20)]
    assert {values["optim.warmup"] for values in moved} == {32, 48}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_what_is_drawn_or_perturbed_is_within_the_space_and_makes_a_config(seed: int) -> None:
    random = np.random.default_rng(seed)
    drawn = SPACE.suggest(Draws(random), BASE)
    moved = SPACE.perturb(drawn, random, BASE)
    for values in (drawn, moved):
        assert ("optim.momentum" in values) == (values["optim.name"] == "sgd")
        assert 1e-4 <= values["optim.lr"] <= 1e-1
        assert 16 <= values["train.global_batch_size"] <= 128
        assert values["optim.warmup"] in (10, 30, 50)
        assert round(values.get("optim.momentum", 0.0) / 0.3, 6) in (0, 1, 2, 3)
        config = with_values(MlpConfig(), values)
        assert list(config.model.hidden) == values["model.hidden"]
        assert all(0 <= SPACE.parameters[name].position(value) <= 1 for name, value in values.items())
    fixed = ("optim.name", "model.hidden", "train.global_batch_size")
    assert {name: moved[name] for name in fixed} == {name: drawn[name] for name in fixed}, "weights would not fit"


def test_a_grid_has_every_combination_once_and_no_value_for_what_does_not_count() -> None:
    space, pinned = SPACE.fixed(["optim.lr=3e-4", "train.global_batch_size=64"])
    assert pinned == {"optim.lr": 3e-4, "train.global_batch_size": 64}
    points = space.grid(BASE | pinned)
    assert len({label(sorted(point.items())) for point in points}) == len(points) == 2 * 3 * (1 + 4)
    with pytest.raises(ConfigError, match=r"optim\.lr: a grid has no end of values for log_uniform: use choice"):
        SPACE.grid(BASE)


def test_a_condition_may_be_on_what_is_not_searched() -> None:
    space, pinned = SPACE.fixed(["optim.name=sgd"])
    assert all("optim.momentum" in space.suggest(Draws(np.random.default_rng(k)), BASE | pinned) for k in range(5))


REFUSED: dict[str, tuple[str, str]] = {
    "no such field": ("optim.lrr: {uniform: [0.1, 0.2]}",
                      r"optim\.lrr: the job has no such field: the nearest is optim\.lr"),
    "outside the bounds": ("model.dropout: {uniform: [0, 1]}", r"model\.dropout: the job refuses 1\.0: .*less than 1"),
    "not a choice": ("optim.name: {choice: [adam, sgd]}", r"optim\.name: the job refuses 'adam'"),
    "a fraction for a number of rows": ("train.global_batch_size: {uniform: [16, 32]}", "global-batch-size"),
    "one point": ("optim.lr: {uniform: [0.1, 0.1]}\noptim.name: {choice: [sgd]}",
                  "it has one point, so there is nothing to"),
    "empty": ("{}", "it has one point"),
    "upside down": ("optim.lr: {uniform: [0.2, 0.1]}", "the least, 0.2, is more than the greatest, 0.1"),
    "logarithm of zero": ("optim.lr: {log_uniform: [0, 0.1]}", "a logarithmic scale begins above 0"),
    "no distribution": ("optim.lr: 0.1", "0.1 is no distribution: write for instance"),
    "two distributions": ("optim.lr: {uniform: [0, 1], choice: [1]}", "2 distributions: it takes one of uniform"),
    "a typing mistake": ("optim.lr: {uniform: [0, 1], setp: 0.1}", "unknown 'setp'"),
    "text for numbers": ("optim.lr: {uniform: [low, high]}", "give the least and the greatest number"),
    "a step that is none": ("optim.lr: {uniform: [0.1, 0.2], step: small}", "a step is a number above 0"),
    "a part of a step": ("optim.warmup: {integer: [1, 5], step: 0.5}", "its step is a whole number"),
    "a condition on what comes later": (
        "optim.lr: {uniform: [0.1, 0.2], when: {optim.name: sgd}}\noptim.name: {choice: [sgd, adamw]}",
        r"names optim\.name, which comes later"),
    "a condition on nothing": ("optim.lr: {uniform: [0.1, 0.2], when: {optim.nmae: sgd}}",
                               r"no field: the nearest is optim\.name"),
    "how a trial is carried out": ("run.workers: {choice: ['1', '2']}", "decides how a trial is carried out"),
    "how far a trial goes": ("train.epochs: {integer: [1, 5]}", r"pass --train\.epochs"),
    "other rows": ("data.split_seed: {integer: [0, 5]}", "judged on something else cannot be compared"),
    "no YAML": ("optim.lr: {", "is not valid YAML"),
    "no fields": ("- optim.lr", "must hold fields"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_space_is_refused_with_one_message(what: str, tmp_path: Path) -> None:
    text, message = REFUSED[what]
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Space.read(tmp_path / "space.yaml").check(MlpConfig())


@pytest.mark.parametrize(("pin", "message"), [
    ("optim.lr", "write FIELD=VALUE"),
    ("optim.lrr=1", r"the space has no optim\.lrr: the nearest it has is optim\.lr"),
    ("model.dropout=0.1", r"set by a flag: --model\.dropout 0\.1"),
])
def test_a_wrong_pin_is_refused(pin: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SPACE.fixed([pin])


def test_a_field_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        Space(SPACE.parameters["optim.lr"], SPACE.parameters["optim.lr"])


def test_a_search_is_of_a_job_of_trainyard_or_of_a_package_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_job("mlp") is find_job("jobs.mlp") is JOB
    for name in ("common", "json", "no_such", "no_such.job", "../mlp", ".mlp", "jobs.common", ""):
        assert main([name]) == 2
        said = capsys.readouterr().err
        assert name in said and "give one of cnn, mlp, pytorch, tabular, transformer, or a package of yours" in said
    assert main([]) == 2
    assert "python -m tuning JOB" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["tuning.mlp", "tuning.cnn", "tuning.transformer"])
def test_the_modules_of_before_search_the_same_job(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("tuning.__main__.main", lambda arguments: asked.append(arguments) or 0)
    monkeypatch.setattr("sys.argv", ["", "--num-trials", "3"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert (ended.value.code, asked) == (0, [[module.removeprefix("tuning."), "--num-trials", "3"]])


def test_a_job_without_a_space_of_its_own_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.run.beside", lambda job, name: None)
    with pytest.raises(ConfigError,
                       match=r"mlp has no search_space\.yaml beside its job\.py: write one, or pass --space"):
        _space_file(JOB, None)


def test_positions_follow_the_scale() -> None:
    places: dict[str, Any] = {"optim.lr": 10**-2.5, "model.hidden": [256, 256], "optim.warmup": 30}
    assert [SPACE.parameters[name].position(value) for name, value in places.items()] == pytest.approx([0.5, 1.0, 0.5])
