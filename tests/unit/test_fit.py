"""The loop that every job is trained by, without a framework: what it owes the run it does, whatever a job does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.common.config import Config, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.declared_metrics import CLASSIFICATION, chosen
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.peers import Peers
from jobs.common.training.session import Session
from jobs.common.training.step_batcher import StepBatcher
from jobs.common.training.train_state import NonFiniteError, StepOutcome, TrainState
from jobs.common.training.trainable import Answers, Outcome, StepResult, Wishes
from tests import image_loops
from tests.image_loops import StopAfterEachStep

STEPS_PER_EPOCH = 3  # of 192 rows


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.odd(tmp_path_factory.mktemp("odd"))


class Counter:
    """A job whose weight counts the steps that it has taken. `log`: what the loop made it do."""

    sharded, num_parameters = False, 1

    def __init__(self, outcomes: Mapping[int, StepOutcome] | None = None) -> None:
        self.weight, self.outcomes, self.log = np.zeros(1), outcomes or {}, list[Any]()

    def learning_rate(self, step: int, total_steps: int) -> float:
        return float(total_steps - step)

    def step(self, batch: Any, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        outcomes = [self.outcomes.get(state.step + place, "taken") for place in range(len(rates))]
        self.weight += outcomes.count("taken")
        self.log.append(("step", state.step, list(rates)))
        return StepResult([1.0] * len(rates), outcomes, wishes())

    def total(self, values: Any) -> Any:
        return values

    def weight_digest(self) -> None:
        return None

    def evaluate(self, split: str) -> dict[str, float]:
        self.log.append(("evaluate", split))
        return {"accuracy": -abs(float(self.weight[0]) - 4), "loss": 10 - float(self.weight[0])}

    def predict(self, split: str) -> Iterator[Answers]:
        self.log.append(("predict", split, float(self.weight[0])))
        yield np.array([0]), np.array([0]), np.zeros((1, 2), np.float32)

    def predict_perturbed(self) -> None:
        self.log.append("predict perturbed")

    def state_dict(self, optimizer_steps: int) -> dict[str, Any]:
        self.log.append(("save", optimizer_steps))
        return {"weight": self.weight.copy()}

    def load_state_dict(self, parts: Iterator[Mapping[str, Any]], optimizer_steps: int) -> None:
        self.log.append(("load", optimizer_steps))
        self.load_weights(parts)

    def load_weights(self, parts: Iterator[Mapping[str, Any]]) -> None:
        self.weight = np.array(next(parts)["weight"])


def carried_out(job: Counter, folder: Path, dataset: Dataset, kind: type[Session] = Session, *,
                metric: str = "accuracy",
                run: dict[str, Any] | None = None, train: dict[str, Any] | None = None,
                **options: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    """One generation of two epochs of three steps, and the evaluations that it reported."""
    config = from_dict(Config, {"run": {"checkpoint_every_steps": 100, **(run or {})},
                                "train": {"epochs": 2, "global_batch_size": 64, **(train or {})}})

    def loop(context: TrainContext, _: Config) -> Outcome:
        return fit(context, job, context.data_loader(), metric=chosen(CLASSIFICATION, metric), **options)

    outcome, reported = image_loops.train(loop, folder, dataset, config, kind)
    assert outcome in ("finished", "stopped")
    return ("finished" if outcome == "finished" else "stopped"), reported


def leaving_out(*steps: int) -> type[Session]:
    class LeavingOut(Session):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**{**arguments, "assignment": replace(arguments["assignment"], excluded_steps=steps)})

    return LeavingOut


def steps_of(job: Counter) -> list[int]:
    return [entry[1] for entry in job.log if entry[0] == "step"]


def test_a_run_is_epochs_of_steps_each_evaluated_and_saved_then_predictions_with_the_best(odd: Dataset,
                                                                                          tmp_path: Path) -> None:
    job = Counter()
    outcome, evaluations = carried_out(job, tmp_path, odd)
    assert outcome == "finished"
    assert job.log == [
        ("step", 0, [6.0]), ("step", 1, [5.0]), ("step", 2, [4.0]), ("evaluate", "validation"), ("save", 3),
        ("step", 3, [3.0]), ("step", 4, [2.0]), ("step", 5, [1.0]), ("evaluate", "validation"), ("save", 6),
        ("predict", "validation", 3.0), ("predict", "test", 3.0), "predict perturbed"]
    assert [(row["step"], row["epoch"], row["learning_rate"]) for row in evaluations] == [(3, 1, 4.0), (6, 2, 1.0)]


def test_the_loss_chooses_the_best_where_it_is_asked_for(odd: Dataset, tmp_path: Path) -> None:
    job = Counter()
    carried_out(job, tmp_path, odd, metric="loss")
    assert ("predict", "test", 6.0) in job.log


def test_evaluations_in_the_middle_of_an_epoch_save_too_and_none_comes_twice_at_its_end(odd: Dataset,
                                                                                        tmp_path: Path) -> None:
    job = Counter()
    _, evaluations = carried_out(job, tmp_path, odd, evaluate_every_steps=2)
    assert [(row["step"], row["epoch"]) for row in evaluations] == [(2, 0), (3, 1), (4, 1), (6, 2)]
    assert [entry for entry in job.log if entry[0] == "save"] == [("save", 2), ("save", 3), ("save", 4), ("save", 6)]


def test_a_stop_between_a_step_and_its_evaluation_leaves_no_evaluation_out(odd: Dataset, tmp_path: Path) -> None:
    outcome, evaluated, made = "", dict[tuple[int, int], None](), 0
    while outcome != "finished":
        job = Counter()
        outcome, rows = carried_out(job, tmp_path, odd, StopAfterEachStep, evaluate_every_steps=2)
        evaluated |= {(row["step"], row["epoch"]): None for row in rows}  # a run that goes on reports some again
        made += job.log.count(("evaluate", "validation"))
    assert (list(evaluated), made) == ([(2, 0), (3, 1), (4, 1), (6, 2)], 4)


def test_a_checkpoint_is_taken_where_one_is_due(odd: Dataset, tmp_path: Path) -> None:
    for agree in (False, True):
        job = Counter()
        carried_out(job, tmp_path / str(agree), odd, run={"checkpoint_every_steps": 1}, agree_on_checkpoints=agree)
        assert [entry[1] for entry in job.log if entry[0] == "save"] == [1, 2, 3, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("options", [{}, {"agree_on_checkpoints": True}, {"most_steps_per_call": 1}])
def test_a_stop_is_saved_and_committed_and_what_is_left_is_done_when_it_continues(
    options: dict[str, Any], odd: Dataset, tmp_path: Path
) -> None:
    outcomes = []
    while not outcomes or outcomes[-1] != "finished":
        job = Counter()
        outcomes.append(carried_out(job, tmp_path, odd, StopAfterEachStep, **options)[0])
        assert len(outcomes) <= 7
    assert outcomes.count("stopped") == 6
    assert job.log[0] == ("load", 6)
    assert job.log[1:3] == [("evaluate", "validation"),
                            ("save", 6)], "stopped at an epoch's last step, it has yet to be evaluated"


def test_steps_that_are_left_out_count_but_are_not_made(odd: Dataset, tmp_path: Path) -> None:
    job = Counter()
    _, evaluations = carried_out(job, tmp_path, odd, leaving_out(1, 3))
    assert steps_of(job) == [0, 2, 4, 5]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert [entry[1] for entry in job.log if entry[0] == "save"] == [2, 4], "steps taken"


def test_a_call_of_many_steps_ends_where_something_is_due(odd: Dataset, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepBatcher, "_wish", lambda *_: 50)
    job = Counter()
    carried_out(job, tmp_path, odd, leaving_out(4), most_steps_per_call=50, train={"epochs": 3, "max_steps": 8})
    made = [(step, len(rates)) for name, step, rates in [entry for entry in job.log if entry[0] == "step"]]
    assert made == [(0, 1), (1, 2), (3, 1), (5, 1),
                    (6, 2)], "the first call is short; an epoch's end, a step left out, the last"
    job = Counter()
    carried_out(job, tmp_path / "evaluated", odd, most_steps_per_call=50, evaluate_every_steps=2)
    assert steps_of(job) == [0, 1, 2, 3, 4], "nor beyond an evaluation"


def test_a_call_makes_no_more_steps_than_a_checkpoint_that_is_due_allows(odd: Dataset, tmp_path: Path) -> None:
    job = Counter()
    carried_out(job, tmp_path, odd, most_steps_per_call=50, run={"checkpoint_every_steps": 2}, train={"epochs": 4})
    assert max(len(entry[2]) for entry in job.log if entry[0] == "step") <= 2


def test_skips_are_counted_and_too_many_in_a_row_end_the_generation(odd: Dataset, tmp_path: Path) -> None:
    job = Counter({1: "skipped", 3: "scaled down"})
    carried_out(job, tmp_path / "few", odd)
    assert [entry[1] for entry in job.log if entry[0] == "save"] == [2, 4]
    with pytest.raises(NonFiniteError) as caught:
        carried_out(Counter({1: "skipped", 2: "skipped"}), tmp_path / "many", odd, train={"max_skipped_steps": 2})
    assert caught.value.steps == (1, 2)
    with pytest.raises(NonFiniteError) as caught:
        carried_out(Counter({4: "corrupted"}), tmp_path / "corrupted", odd)
    assert caught.value.steps == (4,)


def test_rows_are_traced_before_a_step_is_made(odd: Dataset, tmp_path: Path) -> None:
    class Dying(Counter):
        def step(self, *args: Any) -> StepResult:
            raise OSError("as the test wants it")

    with pytest.raises(OSError, match="as the test wants it"):
        carried_out(Dying(), tmp_path, odd, run={"trace_rows": True})
    (path,) = (tmp_path / "logs/rows").glob("*.jsonl")
    assert path.read_text().startswith('{"epoch": 0, "step": 0, "shard": 0, "rows": [')


def test_a_trial_pauses_after_the_epochs_that_its_search_gives_it(odd: Dataset, tmp_path: Path) -> None:
    class OneEpoch(Session):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, until_epoch=1)

    job = Counter()
    assert carried_out(job, tmp_path, odd, OneEpoch)[0] == "stopped"
    assert steps_of(job) == [0, 1, 2] and job.log[-1] == ("save", 3)


def test_weights_are_compared_where_that_is_due(odd: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    monkeypatch.setattr(Peers, "weights_due", lambda _, step: step % 2 == 0)
    monkeypatch.setattr(Peers, "compare_weights", lambda _, step, digest, total: compared.append((step, digest)))

    class Weighed(Counter):
        def weight_digest(self) -> Any:
            return int(self.weight[0])

    carried_out(Weighed(), tmp_path / "weighed", odd)
    assert compared == [(2, 2), (4, 4), (6, 6)]
    carried_out(Counter(), tmp_path / "none alike", odd)
    assert len(compared) == 3, "a job may hold nothing that another worker holds, too"


OWN = {"step": 9, "epoch": 3, "step_in_epoch": 0, "best_metric": 0.5, "epochs_since_best": 1, "skipped_steps": 2,
       "skipped_in_a_row": [8]}


@pytest.mark.parametrize(("saved", "taken"), [
    (OWN, 7), ({"progress": OWN, "optimizer_steps": 6}, 6), ({**OWN, "optimizer_steps": 5}, 5)])
def test_the_state_of_earlier_versions_checkpoints_is_read(saved: dict[str, Any], taken: int) -> None:
    assert TrainState.saved(saved) == TrainState(**OWN, optimizer_steps=taken)
