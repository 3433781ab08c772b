"""Contract 1: one parser for recipes and flags; a wrong value is one clear message."""

from pathlib import Path

import pytest

from cluster.core.errors import ConfigError
from jobs.common import config as configs
from jobs.common.command_line import flatten
from jobs.common.config_changes import differences
from jobs.mlp.config import MlpConfig

TEXTBOOK = Path(__file__).parents[2] / "jobs" / "mlp" / "textbook.yaml"


def parse(*arguments: str) -> MlpConfig:
    return configs.parse(MlpConfig, arguments, "python -m jobs.mlp")


def test_flags_override_the_recipe_and_the_recipe_the_defaults() -> None:
    config = parse("--config", str(TEXTBOOK), "--optim.lr", "3e-4", "--run.workers", "1:4")
    assert config.model.hidden == (128,)
    assert config.optim.name == "sgd"
    assert config.optim.lr == 3e-4
    assert (config.run.min_workers, config.run.max_workers) == (1, 4)


def test_a_saved_config_is_a_valid_recipe(tmp_path: Path) -> None:
    config = parse("--run.workers", "1:3", "--optim.lr", "3e-4", "--model.hidden", "32", "16", "--hardware.compile",
                   "--optim.clip-norm", "None", "--run.checkpoint-every-steps", "7", "--data.image-shape", "28x28x1")
    path = tmp_path / "config.yaml"
    path.write_text(configs.to_yaml(config))
    assert parse("--config", str(path)) == config
    assert configs.from_dict(MlpConfig, configs.to_dict(config)) == config


def test_yaml_scalars_mean_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run:\n  workers: 1:4\n  name: on\noptim:\n  lr: 3e-4\nhardware:\n  compile: false\n")
    config = parse("--config", str(path))
    assert (config.run.workers, config.run.name, config.optim.lr, config.hardware.compile) == ("1:4", "on", 3e-4, False)


@pytest.mark.parametrize(("arguments", "says"), [
    (["--optim.lr", "0"], ["--optim.lr 0.0", "more than 0"]),
    (["--optim.lr", "-1"], ["optim.lr", "more than 0"]),
    (["--optim.learning-rate", "1"], ["--optim.learning-rate", "nearest known flag is --optim."]),
    (["--train.epoks", "3"], ["--train.epoks", "--train.epochs"]),
    (["--train.epochs", "many"], ["--train.epochs", "many"]),
    (["--run.name", "../up"], ["--run.name", "letters"]),
    *[(["--run.name", name], [f"--run.name {name}", "of its own under that name"])
      for name in ("data", "mlartifacts", "mlflow.db", "mlflow.db.lock", "mlflow.db-wal", "uses", "index.json")],
    (["--run.workers", "3:1"], ["--run.workers 3:1"]),
    (["--run.workers", "7"], ["--train.global-batch-size 60", "63"]),
    (["--run.checkpoint-every-steps", "0"], ["--run.checkpoint-every-steps 0"]),
    (["--data.image-shape", "28"], ["--data.image-shape", "HEIGHTxWIDTH"]),
    (["--config"], ["--config FILE"]),
    (["--config", "/nowhere.yaml"], ["/nowhere.yaml", "cannot be read"]),
])
def test_a_wrong_value_names_the_field_the_value_and_the_remedy(arguments: list[str], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["optim: [1, 2", "just words", "optim:\n  speed: 3\n"])
def test_a_recipe_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        parse("--config", str(path))


def test_differences_leave_out_what_does_not_decide_the_result() -> None:
    old = parse("--run.workers", "2")
    new = parse("--run.workers", "3", "--run.seed", "1", "--optim.lr", "0.1", "--data.cache-gb", "1")
    assert differences(configs.to_dict(old), configs.to_dict(new)) == ["optim.lr: 0.002 -> 0.1", "run.seed: 0 "
                                                                                                         "-> 1"]


def test_a_choice_that_an_older_record_did_not_have_was_left_alone() -> None:
    assert differences({"data": {}}, {"data": {"layout": "auto", "resize": None}}) == []
    assert differences({"data": {}}, {"data": {"layout": "one"}}) == ["data.layout: None -> one"]
    one, auto = {"data": {"layout": "one"}}, {"data": {"layout": "auto"}}
    assert differences(one, auto) == ["data.layout: one -> auto"]


def test_help_describes_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--optim.lr" in text
    assert "Highest learning rate" in text
    for name in flatten(configs.to_dict(MlpConfig())):
        assert name.rpartition(".")[2].replace("_", "-") in text
