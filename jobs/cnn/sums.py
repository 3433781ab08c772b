"""The sums of a step over all workers: of what each has computed, or of all shards in the order of their numbers.

Shapes: W workers, V shards, N numbers of a step: its loss, gradients and state, and some of the worker's own.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

import time
from collections.abc import Callable, Sequence
from typing import TypeVarTuple

from jobs.cnn.framework import tf
from jobs.cnn.group import Group

Tensor = tf.Tensor
Ts = TypeVarTuple("Ts")


def sum_of_workers(group: Group, tensors: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """In one all-reduce; and the seconds that it took, which are longest where the others are waited for."""
    if group.world_size == 1:
        return tensors, tf.constant(0.0, tf.float64)
    total, waited = _timed(group.sum, _flat(tensors))
    return _pieces(total, tensors), waited


def sum_in_order(group: Group, owned: int, of_shard: Callable[[Tensor], list[Tensor]],
                 like: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Over all shards in their order, whichever worker has computed which, so that the bits do not depend on W.

    Worker r owns the shards r, r + W, r + 2W, …, and sends all of them to all, in one go, for there are no collectives
    within a loop under a strategy; so each worker has room for V × N numbers.

    owned: how many shards this worker has; of_shard: what one of them, by its place, adds; like: tensors of its shapes.
    """
    workers, num_shards = group.world_size, group.num_shards
    zeros = tf.zeros([_size(like)])

    def computed(i: Tensor, rows: tf.TensorArray) -> tuple[Tensor, tf.TensorArray]:
        return i + 1, rows.write(i, _flat(of_shard(i)))

    # a loop even for a single shard, so that TensorFlow compiles the same of each, however many a worker has
    kept = tf.TensorArray(tf.float32, owned, element_shape=zeros.shape)
    mine = repeated(owned, computed, (kept,))[1].stack()
    if workers == num_shards == 2:
        total, waited = _timed(group.sum, mine[0])  # one addition, which commutes
        return _pieces(zeros + total, like), waited
    rows, waited = mine[None], tf.constant(0.0, tf.float64)
    if workers > 1:
        most = -(-num_shards // workers)
        rows, waited = _timed(group.gather, tf.pad(mine, [[0, most - owned], [0, 0]]))

    def added(shard: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        return shard + 1, total + rows[tf.math.floormod(shard, workers), shard // workers]

    return _pieces(repeated(num_shards, added, (zeros,))[1], like), waited


def repeated(count: Tensor | int, body: Callable[[Tensor, *Ts], tuple[Tensor, *Ts]],
             begin: tuple[*Ts]) -> tuple[Tensor, *Ts]:
    """`body` so often, one after the other; the first of what it takes and gives is how often it was already."""
    def more(i: Tensor, *_: object) -> Tensor:
        return i < count

    return tf.while_loop(more, body, (0, *begin), parallel_iterations=1)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.shape.num_elements() for tensor in tensors)


def _pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What `_flat` was made of, by tensors of the same shapes."""
    pieces = tf.split(flat, [_size([tensor]) for tensor in like])
    return [tf.reshape(piece, tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def _timed(collective: Callable[[Tensor], Tensor], mine: Tensor) -> tuple[Tensor, Tensor]:
    """What it makes of this worker's tensor and the others', and the seconds that it took."""
    with tf.control_dependencies([mine]):
        began = _clock()
    with tf.control_dependencies([began]):
        made = collective(tf.identity(mine))
    with tf.control_dependencies([made]):
        waited = _clock() - began
    return made, waited


def _clock() -> Tensor:
    """Seconds, from Python: TensorFlow's own `timestamp` refuses to run where operations are deterministic."""
    return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])
