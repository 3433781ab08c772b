"""A worker's rows: the training rows of the shards that it owns, and its share of each evaluation split."""

from collections.abc import Mapping

import numpy as np

from cluster.core.errors import TrainyardError
from cluster.core.storage import Store
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset, SplitName
from jobs.common.data.length_bucketing import LengthGroups
from jobs.common.data.loader import DataLoader
from jobs.common.data.reader import Reader
from jobs.common.data.sampling import SamplingOrder, resolve_window_rows, shards_of
from jobs.common.training.rendezvous import Assignment


class WorkerData:
    """The data of one worker in one generation. What it opens, `close` closes."""

    def __init__(self, config: Config, dataset: Dataset, run_store: Store, assignment: Assignment) -> None:
        self._config, self._dataset, self._assignment = config, dataset, assignment
        self.shards = shards_of(assignment.rank, assignment.world_size, assignment.num_shards)
        exact = config.run.exact == "any-workers"
        self.num_parts = assignment.num_shards if exact else assignment.world_size
        """How many parts an evaluation split has, over all workers."""
        self.parts = _share(range(self.num_parts), assignment.rank, assignment.world_size)
        """Those that this worker evaluates."""
        self.loaders: list[DataLoader] = []
        self._readers: dict[SplitName, Reader] = {}
        self._trace = _Trace(run_store, assignment.generation, assignment.rank) if config.run.trace_rows else None

    def data_loader(self, length_group_steps: int = 1) -> DataLoader:
        """The training rows of the shards that this worker owns, in order.

        length_group_steps: more than 1 sorts the rows of that many steps by their column `length`.
        """
        config, dataset, num_shards = self._config, self._dataset, self._assignment.num_shards
        split = dataset.splits["train"]
        window = resolve_window_rows(config.data.shuffle_window_rows, num_shards, dataset.row_bytes, split.block_rows)
        order = SamplingOrder(num_rows=split.num_rows, num_shards=num_shards, block_rows=split.block_rows,
                              global_batch_size=config.train.global_batch_size, window_rows=window,
                              seed=config.run.seed)
        grouped = order if length_group_steps == 1 else LengthGroups(order, length_group_steps)
        loader = DataLoader(grouped, Reader.open(dataset, "train", config.data), self.shards)
        self.loaders.append(loader)
        return loader

    def reader(self, split: SplitName) -> Reader:
        """Rows of an evaluation split."""
        if split not in self._readers:
            self._readers[split] = Reader.open(self._dataset, split, self._config.data)
        return self._readers[split]

    def local_range(self, split: SplitName) -> range:
        """The rows of an evaluation split that this worker evaluates: each row belongs to one worker."""
        first, last = (self.part_range(split, part) for part in (self.parts[0], self.parts[-1]))
        return range(first.start, last.stop)

    def part_range(self, split: SplitName, part: int) -> range:
        """The rows of a part of an evaluation split."""
        return _share(range(self._dataset.splits[split].num_rows), part, self.num_parts)

    @property
    def traces_rows(self) -> bool:
        """Whether `--run.trace-rows` asks for `trace`."""
        return self._trace is not None

    def trace(self, epoch: int, step: int, rows: Mapping[int, np.ndarray]) -> None:
        """With `--run.trace-rows`: writes the ids of the rows of each shard's micro-batch at this step."""
        if self._trace:
            self._trace.write(epoch, step, rows)

    def close(self) -> None:
        for source in (*self.loaders, *self._readers.values()):
            source.close()
        if self._trace:
            self._trace.close()


def _share(whole: range, number: int, of: int) -> range:
    """One of some neighbouring shares, as equal as they can be."""
    return whole[len(whole) * number // of : len(whole) * (number + 1) // of]


class _Trace:
    """Row ids of each micro-batch as JSON Lines: logs/rows/<generation>-<rank>.jsonl (a local storage only)."""

    def __init__(self, run_store: Store, generation: str, rank: int) -> None:
        if not run_store.is_local:
            raise TrainyardError("--run.trace-rows writes line by line: it needs a local storage")
        path = run_store.local_path(f"logs/rows/{generation}-{rank}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")

    def write(self, epoch: int, step: int, rows: Mapping[int, np.ndarray]) -> None:
        for shard, ids in rows.items():
            self._file.write(f'{{"epoch": {epoch}, "step": {step}, "shard": {shard}, "rows": {ids.tolist()}}}\n')
        self._file.flush()

    def close(self) -> None:
        self._file.close()
