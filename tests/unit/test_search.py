"""A search without Ray: what it decides, that it goes on as if it had never stopped,
and that its record cannot be altered."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import ConfigError, StorageError
from cluster.core.storage import Store
from jobs.common.config import parse
from jobs.mlp.config import MlpConfig
from tuning.journal import KEY_VARIABLE, Journal, Trial, state_key
from tuning.metrics import GAUGES, readings
from tuning.objective import Goal
from tuning.options import base_config, combined
from tuning.search import Search
from tuning.space import Space, Values

KEY = b"of this test alone"
EPOCHS = 9
SPACE = Space.from_dict({
    "optim.lr": {"log_uniform": [1e-4, 1e-1], "mutable": True},
    "optim.name": {"choice": ["adamw", "sgd"]},
    "optim.momentum": {"uniform": [0.0, 0.9], "when": {"optim.name": "sgd"}, "mutable": True},
})
REPORTED: Any = {"validation_accuracy": "max", "validation_loss": "min"}
TUNED = ["--num-trials", "12", "--train.epochs", str(EPOCHS)]


def open_search(folder: Path, *flags: str, objective: tuple[str, ...] = ("validation_accuracy",)) -> Search:
    options = parse(combined(MlpConfig), [*TUNED, *flags], "test")
    journal, store = Journal.open(Store.open(str(folder)), KEY), Store.open(str(folder))
    if not journal.about:
        journal.begin({})
    goal = Goal.of(REPORTED, objective, options.constraint)
    return Search(journal, store, options, base_config(options, MlpConfig), SPACE, {}, goal)


def row(values: Values, epoch: int) -> dict[str, Any]:
    """What a trial with these values reports: best at a rate of 0.01, and slower with SGD."""
    lacks = abs(math.log10(values["optim.lr"]) + 2) / 3 + (0.1 - values.get("optim.momentum", 0.1) / 10) + 0.3 / epoch
    return {"step": epoch * 10, "epoch": epoch, "validation_accuracy": 1 - lacks, "validation_loss": lacks,
            "parameters": 1000 * values["optim.lr"], "validation_ms_per_row": 1.0}


def carry_out(search: Search, most_evaluations: int = 10**6) -> int:
    """One trial at a time, until the search is over or is killed in the middle of one. Returns the evaluations made."""
    made = 0
    while not search.over:
        found = search.next()
        assert found is not None
        trial, until_epoch = found
        for epoch in range(1, until_epoch + 1):  # a trial that is started again reports from its first epoch
            new = epoch > trial.epoch
            decision = search.evaluated(trial.number, row(trial.values, epoch))
            made += new
            if made == most_evaluations:
                return made
            if decision != "continue":
                break
        search.on_trial_slot_free(trial.number)
    return made


def decisions(search: Search) -> list[tuple[Any, ...]]:
    """(trial, rung, decision) and what was drawn, without when."""
    return [(number, {key: value for key, value in event.items() if key != "at_s"})
            for number, event in search.journal.events()]


@pytest.mark.parametrize("flags", [
    ["--scheduler", "asha"], ["--scheduler", "asha", "--search", "random"], ["--scheduler", "median"],
    ["--scheduler", "none"],
], ids=" ".join)
def test_a_search_that_is_killed_again_and_again_decides_what_an_uninterrupted_one_does(flags: list[str],
                                                                                        tmp_path: Path) -> None:
    whole = open_search(tmp_path / "whole", *flags)
    carry_out(whole)
    for _ in range(60):
        search = open_search(tmp_path / "killed", *flags)
        carry_out(search, most_evaluations=3)
        if search.over:
            break
    assert decisions(search) == decisions(whole)
    assert len(whole.trials) == 12
    stopped = [trial for trial in whole.trials.values() if trial.status == "stopped"]
    assert bool(stopped) == ("none" not in flags)


# ── several at a time ──
def carry_out_at_once(search: Search, slots: int, epoch_s: Callable[[int], float], landing_s: float = 0.0,
                      at_begin: Callable[[Trial], None] = lambda _: None) -> None:
    """As many trials at a time as there are slots. epoch_s: what an epoch takes a trial. landing_s: from a trial's end
    until its slot is free. at_begin: is told of each trial that begins."""
    now, ends, due = 0.0, set[int](), dict[int, float]()
    while not search.over or due:
        while len(due) < slots and (found := search.next()) is not None:
            due[found[0].number] = now + epoch_s(found[0].number)
            at_begin(found[0])
        number = min(due, key=lambda each: (due[each], each))
        now, trial = due[number], search.trials[number]
        if number in ends:
            del due[number]
            search.on_trial_slot_free(number)
        elif search.evaluated(number, row(trial.values, trial.epoch + 1)) == "continue":
            due[number] += epoch_s(number)
        else:
            ends.add(number)
            due[number] += landing_s


def values_of(search: Search) -> list[Values]:
    return [search.trials[number].values for number in sorted(search.trials)]


def one_is_slow(number: int) -> float:
    return 3.1 if number % 3 == 0 else 1.0


def another_is_slow(number: int) -> float:
    return 3.1 if number % 3 == 1 else 1.0


@pytest.mark.parametrize("flags", [[], ["--scheduler", "none"]], ids=["asha", "none"])
def test_a_search_that_is_killed_with_several_trials_under_way_draws_what_it_would_have(flags: list[str],
                                                                                        tmp_path: Path) -> None:
    """At each moment at which a trial begins: some run, some have ended, and some of these have not landed yet."""
    search, compared = open_search(tmp_path / "search", "--num-trials", "18", *flags), list[int]()

    def compare(trial: Trial) -> None:
        shutil.copytree(tmp_path / "search", tmp_path / f"killed-{trial.number}")
        (tmp_path / f"killed-{trial.number}/journal/{trial.number:04d}.json").unlink()  # it was killed just before
        killed = open_search(tmp_path / f"killed-{trial.number}", "--num-trials", "18", *flags)
        while (found := killed.next()) is not None and found[0].number < trial.number:
            pass
        assert found is not None and found[0].values == trial.values
        compared.append(trial.number)

    carry_out_at_once(search, 3, one_is_slow, landing_s=1.5, at_begin=compare)
    assert compared == list(range(18))


def test_with_several_trials_at_a_time_what_tpe_draws_depends_on_which_of_them_have_ended(tmp_path: Path) -> None:
    """Nobody is killed. README.md promises what is equal here, and no more."""
    found: dict[str, list[list[Values]]] = {}
    for kind in ("optuna", "random"):
        for name, epoch_s in (("one", one_is_slow), ("another", another_is_slow)):
            search = open_search(tmp_path / kind / name, "--search", kind, "--num-trials", "18", "--scheduler", "none")
            carry_out_at_once(search, 2, epoch_s)
            found.setdefault(kind, []).append(values_of(search))
    (one, another), (chance, again) = found["optuna"], found["random"]
    assert one[:10] == another[:10], "TPE's first ten are drawn by chance"
    assert one[10:] != another[10:]
    assert chance == again


def test_asha_lets_the_best_third_of_a_rung_go_on(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    carry_out(search)
    assert {trial.epoch for trial in search.trials.values()} <= {1, 3, EPOCHS}
    assert search.epochs_done < 0.6 * 12 * EPOCHS
    best = search.goal.ranked(list(search.trials.values()))[0]
    assert (best.status, best.epoch) == ("completed", EPOCHS)


def test_a_trial_that_diverges_is_stopped_whatever_its_loss_is(tmp_path: Path) -> None:
    search = open_search(tmp_path, objective=("validation_loss",))
    for number, loss in enumerate([0.5, 0.4, math.nan]):
        trial, _ = search.next() or pytest.fail()
        decision = search.evaluated(number, row(trial.values, 1) | {"validation_loss": loss})
    assert decision == "stopped"
    assert search.goal.best_row(search.trials[2]) is None


def test_a_restarted_trial_reports_again_what_is_known_and_nothing_changes(tmp_path: Path) -> None:
    search = open_search(tmp_path, "--scheduler", "none")
    trial, _ = search.next() or pytest.fail()
    for _ in range(2):
        assert search.evaluated(0, row(trial.values, 1)) == "continue"
    assert len(search.trials[0].evaluations) == 1
    assert search.evaluated(0, row(trial.values, EPOCHS)) == "completed"
    assert search.evaluated(0, row(trial.values, EPOCHS)) == "stopped", "it is over for this trial"


def test_a_trial_is_tried_again_until_its_failures_are_spent(tmp_path: Path) -> None:
    search = open_search(tmp_path, "--run.max-failures", "2")
    search.next()
    assert [search.failed(0, f"failure {k}") for k in range(3)] == ["retry", "retry", "failed"]
    search.on_trial_slot_free(0)
    search.next()
    assert search.failed(1, "a batch larger than the data", fatal=True) == "failed"
    again = open_search(tmp_path, "--run.max-failures", "2")
    assert [again.trials[n].status for n in (0, 1)] == ["failed", "failed"]
    trial, _ = again.next() or pytest.fail()
    assert trial.number == 2, "the search goes on"


def test_a_grid_is_as_large_as_it_is(tmp_path: Path) -> None:
    options = parse(combined(MlpConfig), [*TUNED, "--search", "grid", "--scheduler", "none"], "test")
    journal = Journal.open(Store.open(str(tmp_path)), KEY)
    journal.begin({})
    space = Space.from_dict({"optim.lr": {"choice": [0.1, 0.01]}, "optim.name": {"choice": ["adamw", "sgd"]}})
    search = Search(journal, Store.open(str(tmp_path)), options, base_config(options, MlpConfig), space, {},
                    Goal.of(REPORTED, ("validation_accuracy",), ()))
    carry_out(search)
    assert [tuple(trial.values.values()) for trial in search.trials.values()] == [
        (0.1, "adamw"), (0.1, "sgd"), (0.01, "adamw"), (0.01, "sgd")]


def test_optuna_learns_and_chance_does_not(tmp_path: Path) -> None:
    """The benchmark `tuning_samplers` measures how much; here that it does at all."""
    late: dict[str, float] = {}
    for kind in ("optuna", "random"):
        search = open_search(tmp_path / kind, "--search", kind, "--scheduler", "none", "--num-trials", "40")
        carry_out(search)
        late[kind] = float(np.mean([abs(math.log10(search.trials[n].values["optim.lr"]) + 2) for n in range(25, 40)]))
    assert late["optuna"] < 0.6 * late["random"]


# ── several objectives, constraints ──
def test_the_pareto_front_holds_what_no_other_trial_beats(tmp_path: Path) -> None:
    search = open_search(tmp_path, "--scheduler", "none", objective=("validation_accuracy", "parameters"))
    carry_out(search)
    rows = {n: search.goal.best_row(t) or pytest.fail() for n, t in search.trials.items()}
    front = {trial.number for trial in search.goal.pareto(list(search.trials.values()))}
    assert front
    for number, mine in rows.items():
        better = [n for n, other in rows.items() if other["validation_accuracy"] >= mine["validation_accuracy"]
                  and other["parameters"] <= mine["parameters"] and other != mine]
        assert (number in front) == (not better)


def test_a_trial_beyond_a_constraint_is_never_the_best(tmp_path: Path) -> None:
    search = open_search(tmp_path, "--scheduler", "none", "--constraint", "parameters<=5")
    carry_out(search)
    ranked = search.goal.ranked(list(search.trials.values()))
    kept = [trial.values["optim.lr"] <= 5e-3 for trial in ranked]
    assert kept == sorted(kept, reverse=True)
    assert any(kept)
    assert not all(kept)


def test_a_constraint_on_what_is_no_number_is_not_kept_and_the_search_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        search = open_search(tmp_path, "--scheduler", "none", "--constraint", "validation_loss<=1")
    trial, _ = search.next() or pytest.fail()
    search.evaluated(0, row(trial.values, EPOCHS) | {"validation_loss": math.nan})
    search.on_trial_slot_free(0)
    again = open_search(tmp_path, "--scheduler", "none", "--constraint", "validation_loss<=1")
    assert not again.goal.feasible(again.trials[0].evaluations[0])


def test_a_trial_that_failed_is_not_the_best(tmp_path: Path) -> None:
    from tuning import results

    search = open_search(tmp_path, "--scheduler", "none")
    trial, _ = search.next() or pytest.fail()
    search.evaluated(0, row(trial.values, 1))
    search.failed(0, "diverged", fatal=True)
    assert results.best_trial(search) is None


@pytest.mark.parametrize(("objective", "constraint", "message"), [
    (("validation_acuracy",), (),
     "--objective validation_acuracy: the job does not report it: .*nearest is validation_accuracy"),
    (("validation_accuracy",), ("params<=3",),
     "--constraint params: the job does not report it: .*nearest is parameters"),
    (("validation_accuracy",), ("parameters=3",), "write METRIC<=NUMBER"),
    (("validation_accuracy",), ("parameters<=1e",), "write METRIC<=NUMBER"),
])
def test_a_metric_that_the_job_does_not_report_is_refused(objective: Any, constraint: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Goal.of(REPORTED, objective, constraint)


@pytest.mark.parametrize(("flags", "message"), [
    (["--num-trials", "0"], "--num-trials 0"),
    (["--time-budget", "soon"], "write 90s, 10m or 2h"),
    (["--epoch-budget", "0"], "--epoch-budget 0"),
    (["--scheduler", "pbt", "--search", "random", "--num-trials", "3"], "at least 4 members"),
    (["--scheduler", "pbt"], "pass --search random"),
    (["--objective", "validation_accuracy", "parameters"], "several objectives: pass --scheduler none"),
    (["--max-concurrent", "0"], "--max-concurrent 0"),
    (["--reduction-factor", "1"], "--reduction-factor 1"),
    (["--optim.lr", "-1"], "optim.lr"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_wrong_option_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(combined(MlpConfig), flags, "test")


# ── the record ──
@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    carry_out(open_search(folder), most_evaluations=12)
    return folder


def edit(change: Callable[[Any], None], path: str = "journal/0000.json") -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / path).read_text())
        change(document["content"])
        (folder / path).write_text(json.dumps(document))

    return apply


def swap(folder: Path) -> None:
    """Two files, each with a valid HMAC, change places."""
    one, other = folder / "journal/0000.json", folder / "journal/0001.json"
    texts = one.read_text(), other.read_text()
    one.write_text(texts[1])
    other.write_text(texts[0])


def take_from_another(folder: Path) -> None:
    """A file with the same key, of another search."""
    carry_out(open_search(folder / "other"), most_evaluations=12)
    (folder / "journal/0000.json").write_text((folder / "other/journal/0000.json").read_text())


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a better result": (edit(lambda c: c["events"][1]["row"].update(validation_accuracy=1.0)), "HMAC does not match"),
    "another space": (edit(lambda c: c.update(job="x"), "search.json"), "HMAC does not match"),
    "an event less": (edit(lambda c: c["events"].pop()), "HMAC does not match"),
    "swapped": (swap, "HMAC does not match"),
    "another search's": (take_from_another, "HMAC does not match"),
    "a pickle": (lambda folder: (folder / "journal/0000.json").write_bytes(b"\x80\x04K\x01.") and None, "is refused"),
    "cut off": (lambda folder: (folder / "journal/0000.json").write_text('{"hmac": "') and None, "is refused"),
    "no HMAC": (lambda folder: (folder / "journal/0000.json").write_text('{"content": {}}') and None, "is refused"),
    "a trial less": (lambda folder: (folder / "journal/0001.json").unlink(), "event .* of the search is missing"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_an_altered_record_is_refused(what: str, record: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(record, tmp_path / "search")
    assert len(open_search(tmp_path / "search").trials) > 2
    damage, message = DAMAGES[what]
    damage(tmp_path / "search")
    with pytest.raises(StorageError, match=message):
        open_search(tmp_path / "search")


def test_a_record_of_another_key_is_refused(record: Path) -> None:
    with pytest.raises(StorageError, match=KEY_VARIABLE):
        Journal.open(Store.open(str(record)), b"of somebody else's")


def test_the_key_is_the_environments_or_a_file_that_only_its_owner_reads(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    key = state_key()
    assert len(key) == 64
    assert state_key() == key
    assert (tmp_path / "home/state_key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match="has 5 characters: give it at least 16"):
        state_key()
    monkeypatch.setenv(KEY_VARIABLE, "x" * 32)
    assert state_key() == b"x" * 32


# ── what monitoring sees ──
def test_a_search_has_figures_of_its_trials_and_of_the_best_of_them(tmp_path: Path) -> None:
    search = open_search(tmp_path, "--scheduler", "none")
    assert "trainyard_tune_best" not in {name for name, _, _ in readings(search)}
    carry_out(search, 2 * EPOCHS + 3)
    search.failed(2, "worker lost")
    figures = {(name, own): figure for name, own, figure in readings(search)}
    assert {name for name, _ in figures} == set(GAUGES)
    assert {own: figure for (name, own), figure in figures.items() if name == "trainyard_tune_trials"} == {
        "completed": 2, "stopped": 0, "failed": 0, "running": 1}
    assert (figures["trainyard_tune_epochs", ""], figures["trainyard_tune_failures", ""]) == (2 * EPOCHS + 3, 1)
    assert (figures["trainyard_tune_running_trials", ""], figures["trainyard_tune_planned_trials", ""]) == (1, 12)
    best = max(row["validation_accuracy"] for trial in search.trials.values() for row in trial.evaluations)
    assert figures["trainyard_tune_best", "validation_accuracy"] == best
