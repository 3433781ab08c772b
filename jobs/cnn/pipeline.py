"""The way of a row from the data loader's windows into TensorFlow: `tf.data` over the order of contract 2,
augmented in its graph.

The data loader hands out the micro-batches of some steps at a time, views of one shuffled window; they are copied once,
into a tensor, on a thread of the pipeline, then cut into steps, and warped by numbers that are a function of (seed,
epoch, row id).

Shapes: S shards of this worker, m rows of a micro-batch, P passes of each, H × W × C pixels.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from jobs.cnn.config import CnnConfig
from jobs.cnn.framework import tf
from jobs.common.arrays import Array
from jobs.common.data.counter_rng import micro_batch_seed
from jobs.common.data.loader import DataLoader
from jobs.common.vision.augmentation import warps
from jobs.common.vision.dataset import ImageFacts

STEPS_AT_ONCE, AHEAD = 16, 16
Element = dict[str, Array]
Batch = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Pipeline:
    """Makes the pipelines of a run's epochs."""

    loader: DataLoader
    config: CnnConfig
    images: ImageFacts

    @property
    def passes(self) -> int:
        """How many forward passes a micro-batch is cut into."""
        return -(-self.loader.order.micro_batch_size // self.rows_per_pass)

    @property
    def rows_per_pass(self) -> int:
        return min(self.config.train.max_rows_per_pass or self.loader.order.micro_batch_size,
                   self.loader.order.micro_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    def steps(self, epoch: int, start_step: int, left_out: frozenset[int]) -> Iterator[Iterator[Batch]]:
        """An item a call, always the same one: the iterator over `elements`,
        from which the call takes what its steps need."""
        return itertools.repeat(iter(self.elements(epoch, start_step, left_out)))

    def elements(self, epoch: int, start_step: int, left_out: frozenset[int]) -> "tf.data.Dataset[Batch]":
        """A `tf.data.Dataset` with an element a step, from one within the epoch to its end,
        without those in `left_out`.

        image (S, m, H, W, C), augmented ones float32; label, row_id (S, m) int64; seed (S · P,) int64.
        """
        data = tf.data.Dataset.from_generator(lambda: self._chunks(epoch, start_step, left_out),
                                              output_signature=self._signature())
        data = cast("tf.data.Dataset[Batch]", data.unbatch())
        if self.config.augment.active:
            data = data.map(tf.autograph.experimental.do_not_convert(self._warped))
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = 1  # a worker has so many cores, and steps need them
        return data.prefetch(AHEAD).with_options(options)

    def _chunks(self, epoch: int, start_step: int, left_out: frozenset[int]) -> Iterator[Element]:
        size = self.loader.order.micro_batch_size
        for first, shards in self.loader.epoch(epoch, start_step, STEPS_AT_ONCE):
            count = len(next(iter(shards.values()))["label"]) // size
            steps = [step for step in range(first, first + count) if step not in left_out]
            if steps:
                kept = np.array(steps) - first if len(steps) < count else slice(None)
                yield self._chunk(epoch, steps,
                                  {s: {k: v.reshape(count, size, *v.shape[1:])[kept] for k, v in rows.items()}
                                   for s, rows in shards.items()})

    def _chunk(self, epoch: int, steps: list[int], shards: dict[int, Element]) -> Element:
        """Of some steps, each array (steps, …) as `steps` says."""
        seed, names = self.config.run.seed, next(iter(shards.values()))
        element = {name: _stacked([rows[name] for rows in shards.values()]) for name in names}
        element["seed"] = np.array([[micro_batch_seed(seed, epoch, step, shard, part) for shard in shards
                                     for part in range(self.passes)] for step in steps])
        if self.config.augment.active:
            ids = element["row_id"]
            maps = _projections(warps(ids.reshape(-1), self.config.augment, seed, epoch), self.images.shape)
            element["warp"] = maps.reshape(*ids.shape, 8)
        return element

    def _signature(self) -> dict[str, tf.TensorSpec]:
        size, shards = self.loader.order.micro_batch_size, len(self.loader.shards)
        known = {"image": (self.images.dtype, (shards, size, *self.images.shape)), "label": ("int64", (shards, size)),
                 "row_id": ("int64", (shards, size)), "seed": ("int64", (shards * self.passes,)),
                 "warp": ("float32", (shards, size, 8))}
        if not self.config.augment.active:
            del known["warp"]
        return {name: tf.TensorSpec((None, *shape), dtype) for name, (dtype, shape) in known.items()}

    def _warped(self, element: Batch) -> Batch:
        """Bilinear; what comes from outside is 0."""
        shape = self.images.shape
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.reshape(tf.cast(element["image"], tf.float32), (-1, *shape)),
            transforms=tf.reshape(element["warp"], (-1, 8)),
            output_shape=shape[:2], interpolation="BILINEAR", fill_mode="CONSTANT", fill_value=0.0)
        rest = {name: value for name, value in element.items() if name != "warp"}
        return rest | {"image": tf.reshape(moved, (*element["label"].shape, *shape))}


def _stacked(arrays: list[Array]) -> Array:
    """(steps, S, …): of one shard a view."""
    return arrays[0][:, None] if len(arrays) == 1 else np.stack(arrays, 1)


def _projections(maps: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """(n, 8), as TensorFlow's transform wants them: of pixel indices, whose middle is at (side - 1) / 2."""
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    offset = maps[:, :, 2] + middle - maps[:, :, :2] @ middle
    full = np.concatenate([maps[:, :, :2], offset[:, :, None]], 2).reshape(-1, 6)
    return np.concatenate([full, np.zeros((len(maps), 2))], 1).astype(np.float32)
