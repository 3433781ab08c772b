"""`--run.exact any-workers`: the same bits whatever the number of workers, on real workers under the local binding."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cluster.core.errors import ConfigError
from jobs.common.config import from_dict, parse
from jobs.common.config_changes import differences
from jobs.common.training.job import require_any_workers
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB as MLP
from tests.unit.any_workers_loop import CASES, STEPS, WORKERS
from tests.unit.token_rows import config_of, run_group, token_rows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Of each case what 1, 2, 3 and 4 workers have computed: see any_workers_loop.every_number."""
    folder = tmp_path_factory.mktemp("any-workers") / "run"
    folder.mkdir()
    config = config_of(run={"workers": str(WORKERS), "name": "run", "hang_timeout_s": 120.0})
    run_group(folder, token_rows(folder.parent), config, "tests.unit.any_workers_loop:every_number", WORKERS,
              preload=["tests.unit.any_workers_loop", "torch._dynamo"])
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_weights_moments_losses_and_metrics_are_the_same_bits_on_any_number_of_workers(
        case: str, found: dict[str, list[dict[str, Any]]]) -> None:
    alone, *others = found[case]
    assert len(alone["losses"]) == STEPS and len({*alone["losses"]}) == STEPS
    assert len(others) == min(WORKERS, CASES[case].run.shards) - 1
    assert others == [alone] * len(others)


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
    with pytest.raises(ConfigError, match=r"--run.exact any-workers: DeepSpeed .* pass --scale.strategy ddp"):
        config_of(run={"exact": "any-workers"}, scale={"strategy": "zero1"})
    with pytest.raises(ConfigError, match=r"leave out --scale.gradients bf16"):
        config_of(run={"exact": "any-workers"}, scale={"gradients": "bf16"})
