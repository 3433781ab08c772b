"""What a search leaves for people: leaderboard, best config, report."""

import csv
import html
import io
import re
from pathlib import Path

import pytest

from cluster.core.storage import Store
from jobs.common.config import parse
from jobs.mlp.config import MlpConfig
from tests.unit.test_population import POPULATION, carry_out_population
from tests.unit.test_search import SPACE, carry_out, open_search
from tuning import results
from tuning.console import SearchConsole
from tuning.report import render
from tuning.search import Search
from tuning.space import Space

BASE = MlpConfig()


def rendered(search: Search, why: str = "all trials have ended") -> str:
    return render(search, BASE, SPACE, "done", why, {"python": "3.11.7", "torch": "2.13.0"})


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    found = open_search(tmp_path_factory.mktemp("search"), "--num-trials", "20")
    carry_out(found)
    return found


def test_the_report_shows_curves_importance_slices_contours_and_what_was_saved(search: Search) -> None:
    page = rendered(search)
    assert headings(page) == ["Summary", "Trials", "Which fields matter", "Parallel coordinates", "Slices", "Contours",
                              "Leaderboard", "How it was searched"]
    best = results.best_trial(search)
    assert best is not None
    assert f"trial {best.number}, epoch {search.goal.best_row(best)['epoch']}" in page  # type: ignore[index]
    saved = 1 - search.epochs_done / (20 * search.epochs)
    assert f"{100 * saved:.0f}%" in page
    labels = re.findall(r'aria-label="(.*?)"', page)
    for name in SPACE.parameters:
        assert f"validation_accuracy by {name}" in labels
    assert "Values of all trials" in labels
    assert sum(" and " in label for label in labels) == 3, "a contour for each pair of the three that matter most"


def test_the_field_that_decides_everything_is_found_to(tmp_path: Path) -> None:
    from tuning.report import importances

    found = open_search(tmp_path, "--num-trials", "40", "--search", "random", "--scheduler", "none")
    carry_out(found)
    shares = importances(found, list(found.trials.values()), SPACE)
    assert max(shares, key=lambda name: shares[name]) == "optim.lr"
    assert sum(shares.values()) == pytest.approx(1.0)


def test_two_objectives_have_a_front(tmp_path: Path) -> None:
    found = open_search(tmp_path, "--scheduler", "none", objective=("validation_accuracy", "parameters"))
    carry_out(found)
    page = rendered(found)
    assert headings(page)[1] == "Pareto front"
    section = page[page.index("<h2>Pareto front") : page.index("<h2>Trials")]
    listed = {int(number) for number in re.findall(r"<th scope=row>(\d+)</th>", section)}
    assert listed == {trial.number for trial in found.goal.pareto(list(found.trials.values()))}


def test_moves_and_failures_are_told(tmp_path: Path) -> None:
    found = open_search(tmp_path, *POPULATION)
    carry_out_population(tmp_path, found)
    found.journal.add(0, kind="failure", message="<script>out of memory</script>")
    page = rendered(found)
    assert "Moves in the population" in headings(page)
    assert html.escape("<script>out of memory") in page
    assert "<script>" not in page


def test_a_search_without_any_result_has_a_report(tmp_path: Path) -> None:
    found = open_search(tmp_path)
    found.next()
    page = rendered(found, "--time-budget 5s")
    assert "No trial has come to a result" in page
    results.write_leaderboard(Store.open(str(tmp_path)), found)
    assert results.write_best(Store.open(str(tmp_path)), BASE, found) is None
    assert not (tmp_path / results.BEST).exists()


def test_a_field_that_no_trial_has_is_left_out(tmp_path: Path) -> None:
    found = open_search(tmp_path)
    carry_out(found)
    unused = {"optim.label_smoothing": {"uniform": [0.0, 0.1], "when": {"optim.schedule": "constant"}}}
    space = Space.from_dict({**SPACE.to_dict(), **unused})
    page = render(found, BASE, space, "done", "all trials have ended", {})
    assert "validation_accuracy by optim.momentum" in page
    assert "validation_accuracy by optim.label_smoothing" not in page


def test_few_trials_say_nothing_about_importance(tmp_path: Path) -> None:
    found = open_search(tmp_path, "--num-trials", "3")
    carry_out(found)
    assert "Said from 8 trials on; there are 3." in rendered(found)


def test_the_leaderboard_has_a_line_for_each_trial_the_best_first(search: Search, tmp_path: Path) -> None:
    results.write_leaderboard(Store.open(str(tmp_path)), search)
    rows = list(csv.DictReader(io.StringIO((tmp_path / results.LEADERBOARD).read_text())))
    assert len(rows) == 20
    scores = [float(line["validation_accuracy"]) for line in rows]
    assert scores == sorted(scores, reverse=True)
    trial = search.trials[int(rows[0]["trial"])]
    assert float(rows[0]["optim.lr"]) == trial.values["optim.lr"]
    assert rows[0]["status"] == trial.status


def test_the_best_config_is_a_valid_config_with_the_best_values(search: Search, tmp_path: Path) -> None:
    best = results.write_best(Store.open(str(tmp_path)), BASE, search)
    assert best is not None
    config = parse(MlpConfig, ["--config", str(tmp_path / results.BEST)], "test")
    assert config.optim.lr == best.values["optim.lr"]
    assert config.optim.name == best.values["optim.name"]
    assert config.run.name != BASE.run.name


def test_a_terminal_sees_the_running_trials_and_the_best_of_the_others(tmp_path: Path) -> None:
    from rich.console import Console

    found = open_search(tmp_path)
    carry_out(found, most_evaluations=20)
    text = io.StringIO()
    Console(file=text, width=200).print(SearchConsole(found, plain=False).drawn())
    kinds = (" running ", " completed ", " stopped ")
    lines = [line.split() for line in text.getvalue().splitlines() if any(kind in line for kind in kinds)]
    assert lines[0][:3] == ["trials", f"{len(found.trials)}/12", "running"]
    assert lines[1][1] == "running", "those that run come first"
    scores = [float(line[3]) for line in lines[2:]]
    assert scores == sorted(scores, reverse=True)


def test_elsewhere_a_line_says_how_far_it_is(search: Search) -> None:
    best = results.best_trial(search)
    assert best is not None
    line = SearchConsole(search, plain=True).line()
    assert line.startswith("trials 20/20 running 0 stopped ")
    assert f"epochs {search.epochs_done} best validation_accuracy " in line
    assert f"(trial {best.number})" in line
