"""What a data loader gives is what the order says, from any step, across window and epoch borders."""

from pathlib import Path

import numpy as np
import pytest

from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.data.loader import DataLoader
from jobs.common.data.reader import Reader
from jobs.common.data.sampling import SamplingOrder
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(ImageDataConfig(), Store.open(str(tmp_path_factory.mktemp("data"))), use_ray=False)


def loader_of(dataset: Dataset, order: SamplingOrder, shards: tuple[int, ...], cache: Path) -> DataLoader:
    return DataLoader(order, Reader.open(dataset, "train", ImageDataConfig(cache_dir=str(cache))), shards)


@pytest.mark.parametrize("start_step", [0, 5, 17])
def test_micro_batches_are_those_of_the_order_from_any_step(dataset: Dataset, tmp_path: Path, start_step: int) -> None:
    order = SamplingOrder(num_rows=dataset.splits["train"].num_rows, num_shards=3, global_batch_size=60, block_rows=50,
                          window_rows=120, seed=1)
    loader = loader_of(dataset, order, (0, 2), tmp_path)
    everything = Reader.open(dataset, "train", ImageDataConfig(cache_dir=str(tmp_path))).rows(0, order.num_rows)
    seen = 0
    for epoch in (0, 1):
        for step, batches in loader.epoch(epoch, start_step):
            assert sorted(batches) == [0, 2]
            for shard, rows in batches.items():
                positions = order.positions(epoch, step, shard)
                assert np.array_equal(rows["row_id"], everything["row_id"][positions])
                assert np.array_equal(rows["image"], everything["image"][positions])
                seen += len(positions)
    loader.close()
    assert seen == 2 * (order.steps_per_epoch - start_step) * 40


@pytest.mark.parametrize("start_step", [0, 5])
def test_several_steps_at_once_are_the_same_rows_one_after_the_other(dataset: Dataset, tmp_path: Path,
                                                                     start_step: int) -> None:
    order = SamplingOrder(num_rows=dataset.splits["train"].num_rows, num_shards=3, global_batch_size=60, block_rows=50,
                          window_rows=120, seed=1)
    singly, together = (loader_of(dataset, order, (0, 2), tmp_path) for _ in range(2))
    one = list(singly.epoch(1, start_step))
    seen = 0
    for first, batches in together.epoch(1, start_step, 4):
        assert first == start_step + seen
        steps = one[seen : seen + 4]
        for shard, rows in batches.items():
            assert np.array_equal(rows["image"], np.concatenate([of_step[shard]["image"] for _, of_step in steps]))
            assert np.array_equal(rows["row_id"], np.concatenate([of_step[shard]["row_id"] for _, of_step in steps]))
        seen += len(steps)
    assert seen == len(one) == order.steps_per_epoch - start_step
    singly.close()
    together.close()


def test_after_an_epochs_last_step_there_is_nothing_left_of_it(dataset: Dataset, tmp_path: Path) -> None:
    """As after a stop just then; here a shard ends with its last micro-batch, so no window holds the next row."""
    order = SamplingOrder(num_rows=1140, num_shards=3, global_batch_size=60, block_rows=50, window_rows=120, seed=1)
    loader = loader_of(dataset, order, (0, 1, 2), tmp_path)
    assert list(loader.epoch(0, order.steps_per_epoch)) == []
    assert next(iter(loader.epoch(1)))[0] == 0
    loader.close()


def test_micro_batches_inside_a_window_are_views_of_one_part_but_the_first(dataset: Dataset, tmp_path: Path) -> None:
    order = SamplingOrder(num_rows=dataset.splits["train"].num_rows, num_shards=1, global_batch_size=64,
                          block_rows=5000,
                  window_rows=5000, seed=1)
    loader = loader_of(dataset, order, (0,), tmp_path)
    batches = [rows[0]["image"] for _, rows in loader.epoch(0)]
    loader.close()
    assert all(batch.base is not None for batch in batches)
    assert len({id(batch.base) for batch in batches[1:]}) == 1
    assert len(batches[0].base) == 64


def test_closing_in_the_middle_leaves_no_thread(dataset: Dataset, tmp_path: Path) -> None:
    import threading

    order = SamplingOrder(num_rows=dataset.splits["train"].num_rows, num_shards=1, global_batch_size=64, block_rows=50,
                          window_rows=100, seed=1)
    loader = loader_of(dataset, order, (0,), tmp_path)
    next(iter(loader.epoch(0)))
    loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(("trainyard-loader", "prefetch"))]
