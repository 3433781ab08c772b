"""What the code of a job sees of where it runs: its place among the workers, its rows,
and how it says that it is alive.

What a training loop owes the run (checkpoints, stops, the step count, comparisons of weights) is not here:
`fit.py` meets that.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from jobs.common.data.dataset import Dataset, SplitName
from jobs.common.data.loader import DataLoader
from jobs.common.data.reader import Reader
from jobs.common.extras import Extras
from jobs.common.training.predictions import Predictions

T = TypeVar("T")


class PeerLostError(Exception):
    """A collective failed because another worker is gone: this worker joins again."""


class TrainContext(Protocol):
    """One worker of one generation, as its job sees it. `Session` is what is behind it."""

    @property
    def dataset(self) -> Dataset:
        """The prepared data."""
        ...

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """How many workers there are."""
        ...

    @property
    def num_shards(self) -> int:
        """How many shards the training rows are dealt to, over all workers."""
        ...

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that this worker owns."""
        ...

    @property
    def host(self) -> str:
        """An address of this worker that the other workers reach."""
        ...

    @property
    def device(self) -> str:
        """`cpu`, or `cuda:N`."""
        ...

    @property
    def median_step_s(self) -> float:
        """Median time of recent steps, in seconds; 0 before the first."""
        ...

    @property
    def extras(self) -> Extras:
        """The budget for what the report shows beyond the metrics: ask `begins` before each thing."""
        ...

    def data_loader(self, length_group_steps: int = 1) -> DataLoader:
        """The training rows of the shards that this worker owns, in order.

        length_group_steps: more than 1 sorts the rows of that many steps by their column `length`.
        """
        ...

    def reader(self, split: SplitName) -> Reader:
        """Reads rows of an evaluation split."""
        ...

    def local_range(self, split: SplitName) -> range:
        """The rows of an evaluation split that this worker evaluates: each row belongs to one worker."""
        ...

    @property
    def num_parts(self) -> int:
        """How many parts an evaluation split has, over all workers: one for each of them; or, with
        `--run.exact any-workers`, for each shard, so that batches and sums are the same on any number of workers."""
        ...

    @property
    def parts(self) -> range:
        """The parts that this worker evaluates; together they are its `local_range`."""
        ...

    def part_range(self, split: SplitName, part: int) -> range:
        """The rows of a part, which no batch reaches beyond."""
        ...

    def broadcast(self, key: str, make: Callable[[], T]) -> T:
        """Rank 0's value of `make()`, on every rank. Raises: PeerLostError if rank 0 never gives it."""
        ...

    def all_gather(self, key: str, value: T) -> list[T]:
        """Each rank's value, in their order, on every rank. Raises: PeerLostError if one never gives it."""
        ...

    def count_waiting(self, seconds: float) -> None:
        """Tells that this worker spent these seconds of the present step in collectives,
        where it waits for slower workers."""
        ...

    def update_status(self, **values: object) -> None:
        """Puts values into the next heartbeats of this worker: fields of `Heartbeat`, such as `phase` or `shown`.

        Raises: TypeError for another name.
        """
        ...

    def heartbeat(self) -> None:
        """Gives a sign of progress in what has no steps, such as an evaluation: else it would be taken for a hang.

        Raises: PeerLostError if this worker is to leave the generation.
        """
        ...

    def write_predictions(self, name: str, share: Predictions) -> None:
        """Writes this worker's share of the predictions of a split, or of rows under another name;
        the driver judges them."""
        ...
