"""What a job gives the training loop (`fit.py`): its mathematics, and nothing of a loop's obligations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.common.data.dataset import SplitName
from jobs.common.training.train_state import StepOutcome, TrainState

Tensors = Mapping[str, Array]
"""By name."""
Answers = tuple[Array, Array, Array]
"""Of some rows: their ids (m,), their labels (m,), and what is predicted of them (m, …)."""
Wishes = Callable[[], list[float]]
"""This rank's own wishes, such as to stop: a few numbers that a step adds up over all ranks.
They are asked for once a step."""
Outcome = Literal["finished", "stopped"]
"""How a loop ends, if it does not fail."""


class StepResult(NamedTuple):
    """What one call of `Trainable.step` gives: of each step that it made the global loss, and what became of it."""

    losses: Sequence[float]
    outcomes: Sequence[StepOutcome]
    wishes: Sequence[float]
    """The wishes of all ranks, added up: the same on every rank."""
    row_ids: Sequence[Mapping[int, Array]] = ()
    """With `--run.trace-rows`, where the loop has not seen the rows itself:
    of each step the ids of the rows, by shard."""


class Batches(Protocol):
    """Where the batches of an epoch come from: a `DataLoader`, or a framework's own pipeline over one."""

    @property
    def steps_per_epoch(self) -> int: ...

    def steps(self, epoch: int, start_step: int, left_out: frozenset[int]) -> Iterator[Any]:
        """What `Trainable.step` is given, from a step within the epoch to its end;
        the steps in `left_out` are passed over.

        Micro-batches by shard, one item a step; or, of a job that makes many steps a call, an item a call.
        """
        ...


@runtime_checkable
class Undoable(Protocol):
    """A `Trainable` whose weights and moments survive a step that another worker's death ended."""

    def undo_step(self) -> "StepResult | None":
        """Takes back what a step that was begun and not finished has changed, if there is one, so that all is as after
        the last step that was finished. Returns those that the broken call had finished, without wishes, mostly none;
        None: it cannot be taken back."""
        ...


class Trainable(Protocol):
    """A job's model and optimiser on one worker. Every rank calls the same methods in the same order."""

    @property
    def sharded(self) -> bool:
        """Whether each rank writes a part of its own into a checkpoint; else rank 0 writes all of it."""
        ...

    @property
    def num_parameters(self) -> int: ...

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        ...

    def step(self, batch: Any, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        """Makes as many steps as there are learning rates, the first of them after `state.step` steps: forward and
        backward passes over this worker's micro-batches, the sum over all workers,
        and an update where loss and gradient are finite.

        What it draws is a function of (seed, `state.epoch`, `state.step_in_epoch`, shard, pass). Raises: PeerLostError.
        """
        ...

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over all workers. Raises: PeerLostError."""
        ...

    def weight_digest(self) -> int | None:
        """A number that is the same on all workers that hold the same weights; None: no two hold the same."""
        ...

    def evaluate(self, split: SplitName) -> Mapping[str, float]:
        """`loss`, and what else the task measures, over the whole split: sums of all workers, each row counted once."""
        ...

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """This worker's share of a split, in batches."""
        ...

    def predict_perturbed(self) -> None:
        """Predicts what else the report shows, such as rows that an adversary has changed, each where the context's
        `extras` begin it; none is an answer, too."""
        ...

    def state_dict(self, optimizer_steps: int) -> Tensors:
        """This worker's part of a checkpoint. optimizer_steps: taken so far, for an optimiser that counts them."""
        ...

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        """Takes what this worker needs from the parts that the ranks wrote, however many there were."""
        ...

    def load_weights(self, parts: Iterator[Tensors]) -> None:
        """The same, of the model alone: what is left of training is to predict."""
        ...
