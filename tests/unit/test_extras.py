"""The budget for what a report shows beyond the metrics: what is begun, and that what is left out is named."""

import json
from pathlib import Path

import pytest

from cluster.core.errors import ConfigError
from jobs.common.config import EvalConfig
from jobs.common.config_changes import differences
from jobs.common.extras import Extras, ExtrasAccount
from jobs.common.runs.run import main
from jobs.common.vision.robustness import ATTACKS, CHANGES
from jobs.mlp.job import JOB


class Clock:
    """Goes on when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_thing_is_begun_where_all_that_it_is_likely_to_take_fits_in() -> None:
    clock = Clock()
    extras = Extras(60.0, clock=clock)
    assert extras.begins("small", 1)
    clock.now += 4  # 4 s a unit of work
    assert extras.begins("large", 10)
    clock.now += 40
    assert not extras.begins("large again", 10), "40 more, and 44 are spent"
    assert extras.begins("middle", 4)
    clock.now += 17
    assert not extras.begins("unknown"), "nothing is begun when all is spent"
    assert extras.account == ExtrasAccount(61.0, ("large again", "unknown"))


def test_who_goes_on_has_what_is_left() -> None:
    clock = Clock()
    before = ExtrasAccount(59.0, ("robustness PGD 0.1",))
    extras = Extras(60.0, before, clock=clock)
    clock.now += 100
    assert extras.account == before, "time counts from the first thing on"
    assert extras.begins("explanations") and not extras.has("robustness PGD 0.1") and extras.has("explanations")
    clock.now += 2
    assert not extras.begins("baseline")
    assert extras.account == ExtrasAccount(61.0, ("robustness PGD 0.1", "baseline"))


def test_all_ranks_do_as_rank_0_finds() -> None:
    found: dict[str, bool] = {}
    clocks = Clock(), Clock()
    first = Extras(10.0, agree=lambda key, find: found.setdefault(key, find()), clock=clocks[0])
    other = Extras(10.0, agree=lambda key, find: found[key], clock=clocks[1])
    for name in ("a", "b", "c"):
        assert first.begins(name) == other.begins(name)
        clocks[0].now += 6
    assert found == {"extra: a": True, "extra: b": True, "extra: c": False}
    assert first.account.left_out == other.account.left_out == ("c",)


@pytest.mark.parametrize("text", ["60", "1d", "-5s", "soon", ""])
def test_a_budget_is_a_duration(text: str) -> None:
    assert EvalConfig(extras_budget="1.5m").extras_budget_s == 90.0 and EvalConfig().extras_budget_s == 60.0
    with pytest.raises(ConfigError, match=r"--eval.extras-budget .*: write 90s, 10m or 2h"):
        EvalConfig(extras_budget=text)


def test_a_run_may_go_on_with_another_budget() -> None:
    assert differences({"eval": {"top_k": 3}}, {"eval": {"top_k": 3, "extras_budget": "5m"}}) == []


def test_what_a_run_leaves_out_is_in_its_report_its_result_and_its_output(tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.engine", "local", "--run.tracking-uri", "none", "--train.max-steps", "3", "--model.hidden", "8",
             "--eval.bootstrap-samples", "100", "--eval.robustness-rows", "20", "--run.storage", str(tmp_path)]
    found = {}
    for budget in ("0s", "10m"):
        assert main(JOB, [*flags, "--run.name", f"in-{budget}", "--eval.extras-budget", budget]) == 0
        found[budget] = json.loads((tmp_path / f"in-{budget}/result.json").read_text())
    order = [*(f"robustness {name}" for name in ("untouched", *CHANGES, *sorted(ATTACKS))), "what answers rest on"]
    assert found["0s"]["extras"]["left_out"] == order
    assert (found["10m"]["extras"]["left_out"], found["10m"]["extras"]["budget_s"]) == ([], 600.0)
    assert found["0s"]["metrics"] == found["10m"]["metrics"]
    lines = capsys.readouterr().out.splitlines()
    said = [line.split(maxsplit=2)[2] for line in lines if line.startswith("  left out ")]
    assert said == [f"{', '.join(order)} (--eval.extras-budget)"]
    pages = {budget: (tmp_path / f"in-{budget}/report.html").read_text() for budget in found}
    assert f"For want of time: {', '.join(order)}." in pages["0s"] and "PGD 0.03:" not in pages["0s"]
    assert "For want of time" not in pages["10m"] and "PGD 0.03:" in pages["10m"]
