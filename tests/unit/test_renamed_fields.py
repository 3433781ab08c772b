"""A field that has another name now: what users typed and kept under the old one means the same."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common import config as configs
from jobs.common.command_line import flatten
from jobs.common.config import Config, from_dict, to_dict
from jobs.common.config_changes import differences
from jobs.common.runs.run import Run
from jobs.common.runs.run_folder import RunFolder
from jobs.common.training.optim_config import OptimConfig
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from jobs.transformer.config import TransformerConfig
from tests import kept
from tuning.journal import Journal
from tuning.space import Space

FIELDS = flatten(to_dict(MlpConfig()))
SPACE = {"optim.warmup_steps": {"integer": [10, 50]}, "optim.lr": {"choice": [0.1], "when": {"optim.warmup_steps": 10}}}


@pytest.mark.parametrize("flags", [["--optim.warmup-steps", "30"], ["--optim.warmup_steps=30"],
                                   ["--optim.warmup", "30"]])
def test_a_flag_is_known_by_its_old_name(flags: list[str]) -> None:
    assert configs.parse(MlpConfig, flags, "test").optim.warmup == 30


def test_the_config_of_an_old_run_is_read_and_compared(tmp_path: Path) -> None:
    path = kept.FIXTURES / "storage/mlp/config.yaml"
    assert "warmup_steps: 50" in path.read_text()
    now = configs.parse(MlpConfig, ["--config", str(path)], "test")
    assert now.optim.warmup == 50
    old = RunFolder.find(configs.parse(MlpConfig, ["--config", str(path), "--run.storage", str(path.parents[1])], ""))
    assert old.record["config"]["optim"]["warmup_steps"] == 50, "and it was not refused"
    assert from_dict(MlpConfig, old.record["config"]).optim.warmup == 50
    assert differences(old.record["config"], now) == []
    default = from_dict(MlpConfig, {**to_dict(now), "optim": {**to_dict(now)["optim"], "warmup": 0.05}})
    assert differences(old.record["config"], default) == ["optim.warmup: 50 -> 0.05"]


@dataclass(frozen=True, kw_only=True)
class _OwnOptim:
    warmup_steps: int = 3


@dataclass(frozen=True, kw_only=True)
class _OwnConfig(Config):
    """Of a job with a field of its own under that name."""

    optim: _OwnOptim = field(default_factory=_OwnOptim)


def test_a_job_whose_own_field_has_an_old_name_keeps_it() -> None:
    config = configs.parse(_OwnConfig, ["--optim.warmup-steps", "7"], "test")
    assert config.optim.warmup_steps == 7
    assert differences(to_dict(config), _OwnConfig()) == ["optim.warmup_steps: 7 -> 3"]


def test_a_space_a_pin_and_the_record_of_a_search_are_read_by_the_old_name(tmp_path: Path) -> None:
    space = Space.from_dict(SPACE).renamed(FIELDS)
    assert list(space.parameters) == ["optim.warmup", "optim.lr"]
    assert space.parameters["optim.lr"].when == {"optim.warmup": 10}
    assert space.fixed(["optim.warmup_steps=20"])[1] == {"optim.warmup": 20}
    store = Store.open(str(tmp_path))
    before = Journal.open(store, b"a key of this test")
    before.begin({"space": SPACE})
    before.add(0, kind="begun", values={"optim.warmup_steps": 20, "optim.lr": 0.1})
    assert Journal.open(store, b"a key of this test", FIELDS).trials[0].values == {"optim.warmup": 20, "optim.lr": 0.1}


# ── what the field means now ──
def test_warm_up_is_a_share_of_the_steps_or_their_number() -> None:
    share, number = OptimConfig(lr=1.0, warmup=0.1), OptimConfig(lr=1.0, warmup=10)
    for optim in (share, number):
        assert [optim.learning_rate(step, 100) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    assert share.learning_rate(0, 1000) == pytest.approx(0.01)
    assert TransformerConfig().optim.learning_rate(0, 1000) == pytest.approx(1e-3 / 50)
    assert OptimConfig(lr=1.0, warmup=0).learning_rate(0, 100) == 1


@pytest.mark.parametrize("config_type", [MlpConfig, TransformerConfig])
@pytest.mark.parametrize("value", ["-0.1", "1.5", "inf", "nan"])
def test_what_is_no_share_and_no_number_of_steps_is_refused(config_type: Any, value: str) -> None:
    with pytest.raises(ConfigError, match=r"--optim.warmup \S+: must be a share of the run's steps, .* whole number"):
        configs.parse(config_type, [f"--optim.warmup={value}"], "test")


@pytest.mark.parametrize(("warmup", "warns"), [("500", True), ("10", True), ("9", False), ("0.9", False)])
def test_a_fixed_warm_up_of_half_the_run_is_said_when_the_run_is_created(warmup: str, warns: bool,
                                                                         tmp_path: Path) -> None:
    config = configs.parse(MlpConfig, ["--run.storage", str(tmp_path), "--optim.warmup", warmup, "--train.epochs", "2",
                                       "--train.global-batch-size", "10"], "test")
    run, said = Run(JOB, config), []
    run.display.say = said.append  # type: ignore[method-assign]
    dataset: Any = SimpleNamespace(splits={"train": SimpleNamespace(num_rows=109)}, describe=dict)
    folder, _ = run._create(RunFolder.find(config), dataset)
    assert [line for line in said if line.startswith("warning:")] == [
        f"warning: the learning rate rises in the first {warmup} steps, and the run has 20: for a share of the steps "
        "pass --optim.warmup 0.05"] * warns
    run._create(folder, dataset)
    assert sum("warning" in line for line in said) == warns, "once, not again when it goes on"
