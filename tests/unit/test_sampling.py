"""Contract 2's order: every row once an epoch, whatever the number of workers, reached directly, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.common.data.counter_rng import Permutation, Purpose, micro_batch_seed, raw_bits, row_uniforms
from jobs.common.data.sampling import SamplingOrder, resolve_window_rows, shards_of


@st.composite
def orders(draw: st.DrawFn) -> SamplingOrder:
    shards = draw(st.integers(1, 16))
    return SamplingOrder(
        num_rows=draw(st.integers(shards, 3000)),
        num_shards=shards,
        global_batch_size=shards * draw(st.integers(1, 20)),
        block_rows=draw(st.integers(1, 400)),
        window_rows=draw(st.integers(1, 1500)),
        seed=draw(st.integers(0, 2**40)),
    )


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 1000))
def test_every_row_is_seen_once_an_epoch_but_for_the_last_partial_batch(order: SamplingOrder, epoch: int) -> None:
    seen = [order.positions(epoch, t, s) for t in range(order.steps_per_epoch) for s in range(order.num_shards)]
    rows = np.concatenate(seen) if seen else np.empty(0, dtype=np.int64)
    assert len(rows) == order.num_rows // order.global_batch_size * order.global_batch_size
    assert len(np.unique(rows)) == len(rows)
    assert not len(rows) or (rows.min() >= 0 and rows.max() < order.num_rows)


@settings(max_examples=100, deadline=None)
@given(orders(), st.integers(0, 50))
def test_a_shards_whole_stream_is_its_own_rows_and_shards_are_equal_within_one_row(order: SamplingOrder,
                                                                                   epoch: int) -> None:
    sizes = [order.num_rows * (s + 1) // order.num_shards - order.num_rows * s // order.num_shards
             for s in range(order.num_shards)]
    streams = [order.slice(epoch, s, 0, size) for s, size in enumerate(sizes)]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(streams).tolist()) == list(range(order.num_rows))
    again = [set(order.slice(epoch + 1, s, 0, size).tolist()) for s, size in enumerate(sizes)]
    assert again == [set(stream.tolist()) for stream in streams]


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 20), st.data())
def test_any_step_is_reached_directly(order: SamplingOrder, epoch: int, data: st.DataObject) -> None:
    if not order.steps_per_epoch:
        return
    shard = data.draw(st.integers(0, order.num_shards - 1))
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    m = order.micro_batch_size
    stream = order.slice(epoch, shard, 0, order.steps_per_epoch * m)
    assert np.array_equal(order.positions(epoch, step, shard), stream[step * m : (step + 1) * m])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64))
def test_every_shard_has_one_owner_whatever_the_number_of_workers(workers: int, shards: int) -> None:
    owned = [shards_of(rank, workers, shards) for rank in range(workers)]
    assert sorted(s for mine in owned for s in mine) == list(range(shards))
    assert max(len(mine) for mine in owned) == -(-shards // workers)


def test_the_same_micro_batches_at_every_step_for_1_to_64_workers() -> None:
    order = SamplingOrder(num_rows=5000, num_shards=12, global_batch_size=96, block_rows=130, window_rows=300, seed=3)
    for step in (0, 17, 51):
        reference = {s: order.positions(1, step, s).tolist() for s in range(12)}
        for workers in range(1, 65):
            seen = {s: order.positions(1, step, s).tolist() for r in range(workers) for s in shards_of(r, workers, 12)}
            assert seen == reference


def test_epochs_and_seeds_differ() -> None:
    order = SamplingOrder(num_rows=1000, num_shards=2, global_batch_size=20, block_rows=50, window_rows=200, seed=0)
    other = SamplingOrder(num_rows=1000, num_shards=2, global_batch_size=20, block_rows=50, window_rows=200, seed=1)
    assert not np.array_equal(order.positions(0, 0, 0), order.positions(1, 0, 0))
    assert not np.array_equal(order.positions(0, 0, 0), other.positions(0, 0, 0))


def test_rows_of_a_window_are_well_mixed() -> None:
    order = SamplingOrder(num_rows=40_000, num_shards=1, global_batch_size=100, block_rows=1000, window_rows=8000,
                          seed=0)
    blocks_per_batch = [len(np.unique(order.positions(0, t, 0) // 1000)) for t in range(order.steps_per_epoch)]
    assert np.median(blocks_per_batch) == 8


def test_memory_is_that_of_a_window_at_ten_billion_rows() -> None:
    order = SamplingOrder(num_rows=10**10, num_shards=7, global_batch_size=7 * 512, block_rows=5000, window_rows=50_000,
                          seed=0)
    order.positions(0, 0, 0)
    tracemalloc.start()
    late = order.positions(3, order.steps_per_epoch - 1, 6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(late)) == 512
    assert peak < 50_000 * 8 * 10


def test_golden_values() -> None:
    """NumPy may change its shuffles, never these: a run that is resumed next year must see the same rows."""
    order = SamplingOrder(num_rows=1000, num_shards=3, global_batch_size=30, block_rows=64, window_rows=128, seed=7)
    assert raw_bits(Purpose.ROWS, 7, 1, 2, 3, 2).tolist() == GOLDEN_BITS
    assert order.positions(2, 5, 1).tolist() == GOLDEN_POSITIONS
    assert Permutation.of(10, Purpose.DEAL, 7).forward(np.arange(10)).tolist() == GOLDEN_PERMUTATION
    assert micro_batch_seed(7, 2, 5, 1) == GOLDEN_SEED
    uniforms = row_uniforms(Purpose.AUGMENT, 7, 2, np.array([0, 5]), 2)
    assert uniforms.ravel().tolist() == pytest.approx(GOLDEN_UNIFORMS, abs=1e-15)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**60))
def test_a_permutation_is_one_and_its_inverse_undoes_it(size: int, seed: int) -> None:
    permutation = Permutation.of(size, Purpose.DEAL, seed)
    places = permutation.forward(np.arange(size))
    assert sorted(places.tolist()) == list(range(size))
    assert np.array_equal(permutation.inverse(places), np.arange(size))


def test_the_window_is_bounded_in_bytes_by_the_shards_and_never_less_than_a_block() -> None:
    assert resolve_window_rows(65536, 1, 784, 5000) == 65536
    assert resolve_window_rows(65536, 64, 784, 1000) == (128 << 20) // 64 // 784
    assert resolve_window_rows(100, 1, 784, 5000) == 5000

GOLDEN_BITS = [1217714636452751185, 18179022806728900939]
GOLDEN_POSITIONS = [313, 283, 316, 711, 303, 747, 256, 267, 722, 709]
GOLDEN_PERMUTATION = [6, 0, 3, 1, 9, 2, 5, 7, 8, 4]
GOLDEN_SEED = 3404214123480460353
GOLDEN_UNIFORMS = [0.6849747546558477, 0.7018493045290544, 0.9460512175855669, 0.6708573790617831]
