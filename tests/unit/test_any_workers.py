"""`--run.exact any-workers`: the same bits whatever the number of workers, on real workers under the local binding."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import ConfigError
from jobs.common.config import from_dict, parse
from jobs.common.config_changes import differences
from jobs.common.training.job import require_any_workers
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB as MLP
from tests.unit.any_workers_loop import CASES
from tests.unit.fewer_workers import STEPS, WORKERS
from tests.unit.token_rows import config_of, run_group, token_rows


def trained(folder: Path, module: str, *preload: str) -> dict[str, list[dict[str, Any]]]:
    """Of each case what 1, 2, 3 and 4 workers have computed: see `every_number` of the module."""
    (folder / "run").mkdir()
    config = config_of(run={"workers": str(WORKERS), "name": "run", "hang_timeout_s": 120.0})
    run_group(folder / "run", token_rows(folder), config, f"{module}:every_number", WORKERS, preload=[module, *preload])
    return json.loads((folder / "run/found.json").read_text())


def same_bits(found: list[dict[str, Any]], num_shards: int) -> None:
    alone, *others = found
    assert len(alone["losses"]) == STEPS and len({*alone["losses"]}) == STEPS
    assert len(others) == min(WORKERS, num_shards) - 1
    assert others == [alone] * len(others)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return trained(tmp_path_factory.mktemp("any-workers"), "tests.unit.any_workers_loop", "torch._dynamo")


@pytest.mark.parametrize("case", CASES)
def test_weights_moments_losses_and_metrics_are_the_same_bits_on_any_number_of_workers(
        case: str, found: dict[str, list[dict[str, Any]]]) -> None:
    same_bits(found[case], CASES[case].run.shards)


def test_so_they_are_of_the_cnn(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs TensorFlow (pip install 'trainyard[tensorflow]')")
    found = trained(tmp_path, "tests.unit.any_workers_cnn")
    same_bits(found["cnn"], 5)
    same_bits(found["cnn on two shards"], 2)


def test_a_run_on_two_workers_may_be_made_for_six() -> None:
    config = parse(MlpConfig, ["--run.workers", "2", "--run.num-shards", "6", "--run.exact", "any-workers"], "mlp")
    assert (config.run.max_workers, config.run.shards) == (2, 6)
    with pytest.raises(ConfigError, match=r"--run.num-shards 3: must be at least the most workers \(4\)"):
        parse(MlpConfig, ["--run.workers", "2:4", "--run.num-shards", "3"], "mlp")
    with pytest.raises(ConfigError, match=r"multiple of the number of shards \(7\): the nearest is 63"):
        parse(MlpConfig, ["--run.workers", "2", "--run.num-shards", "7"], "mlp")


def test_a_run_goes_on_only_with_the_promise_that_it_began_with() -> None:
    plain, exact = ({"run": {"seed": 1, "workers": workers, "exact": each}}
                    for workers, each in (("2", "same-workers"), ("3", "any-workers")))
    assert differences(plain, exact) == ["run.exact: same-workers -> any-workers"]
    assert differences({"run": {"seed": 1}}, plain) == [], "a run of an earlier version"


def test_what_does_not_sum_shards_in_their_order_is_refused() -> None:
    exact = from_dict(MlpConfig, {"run": {"exact": "any-workers"}})
    require_any_workers(MLP, exact)
    with pytest.raises(ConfigError, match=r"any-workers: my_package.churn adds up .* leave the option out"):
        require_any_workers(replace(MLP, package="my_package.churn", any_workers=False), exact)
    for strategy in ("zero1", "zero2", "zero3"):
        with pytest.raises(ConfigError, match=r"--run.exact any-workers: DeepSpeed .* pass --scale.strategy ddp"):
            config_of(run={"exact": "any-workers"}, scale={"strategy": strategy})
    with pytest.raises(ConfigError, match=r"leave out --scale.gradients bf16"):
        config_of(run={"exact": "any-workers"}, scale={"gradients": "bf16"})
