"""Many training steps in one call of TensorFlow: forward and backward passes, one all-reduce, one update,
again and again.

The model is called without side effects (`stateless_call`): its weights and its state (moving statistics) go in as
tensors, and what the state would become comes out. So a step can decide what it takes of that: the mean over all
micro-batches of the global batch, which is the same whoever owns which, and nothing of a step that is not finite.

Shapes: S shards of this worker, m rows of a micro-batch, P passes of each, H × W × C pixels, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from jobs.cnn.config import CnnConfig
from jobs.cnn.framework import keras, tf
from jobs.cnn.group import Group
from jobs.cnn.model import is_seed
from jobs.cnn.optimizer import LossScale, build_optimizer
from jobs.cnn.pipeline import Batch
from jobs.cnn.sums import repeated, sum_in_order, sum_of_workers
from jobs.common.arrays import Array
from jobs.common.training.train_state import StepOutcome
from jobs.common.vision.robustness import Attack, projected_gradient

Tensor = tf.Tensor
OUTCOMES: tuple[StepOutcome, ...] = ("taken", "skipped", "scaled down")
"""What may become of a step; inside TensorFlow it is the place in this tuple."""
TAKEN, NOT_FINITE, SCALED_DOWN = range(3)


@dataclass(frozen=True)
class Settings:
    """What a step needs to know beside the config."""

    passes: int
    rows_per_pass: int
    class_weights: npt.NDArray[np.float32] | None
    """(K,); None: each row counts the same."""
    attack: Attack | None
    frozen: frozenset[str] = frozenset()
    """The paths of variables that stay as they are."""


class Trainer:
    """A model, its optimiser, and the compiled function that makes steps.
    `variables`: what a checkpoint keeps, by name."""

    def __init__(self, model: keras.Model, config: CnnConfig, settings: Settings, group: Group) -> None:
        self.model, self._config, self._settings, self._group = model, config, settings, group
        self._weights = [variable.value for variable in model.trainable_variables]
        self._state = [variable.value for variable in model.non_trainable_variables if self._follows_rows(variable)]
        self._optimizer = build_optimizer(self._weights, [v.path for v in model.trainable_variables], config.optim)
        self._scale = LossScale(config.hardware.precision == "fp16")
        self.variables: dict[str, tf.Variable] = {
            **{f"model.{v.path}": v.value for v in model.variables if not is_seed(v)},
            **{f"optimizer.{name}": v for name, v in {**self._optimizer.variables, **self._scale.variables}.items()}}
        self.finished: list[tuple[float, int, Array]] = []
        """Of a call that goes on among several workers, of each step that it has made: the loss, what became of it, and
        the row ids (S, m) where they are wanted."""
        self.steps = tf.function(self._steps, autograph=False)  # AutoGraph takes most of the time until the first step
        compiled = tf.function(self._gradients, autograph=False,
                               jit_compile=True) if config.hardware.xla else self._gradients
        self._gradients_of = compiled
        pixels, labels = tf.TensorSpec((None, *model.input.shape[1:]), tf.float32), tf.TensorSpec((None,), tf.int64)
        self._answers = tf.function(self._answer, [pixels], autograph=False)
        self._slopes = tf.function(self.gradient, [pixels, labels], autograph=False)

    def _steps(self, batches: Iterator[Batch], count: Tensor, rates: Tensor, extra: Tensor) -> tuple[Tensor, ...]:
        """batches: an iterator over `Pipeline.elements`, of which `count` are made. rates: (n,) float32, n at least
        count, the learning rate of each step.
        extra: (e,) float32, this worker's own numbers, which are summed over the workers with the gradients.

        Returns the losses (count,), what became of each step (count,), the sums (e,), the seconds spent waiting in
        all-reduces, and where they are wanted the row ids (count, S, m).
        """
        def one(i: Tensor, losses: tf.TensorArray, outcomes: tf.TensorArray, rows: tf.TensorArray, sums: Tensor,
                waited: Tensor):
            batch = next(batches)
            loss, outcome, sums, more = self._group.run(self._step, batch, rates[i], extra)
            ids = batch["row_id"] if self._config.run.trace_rows else tf.constant(0, tf.int64)
            if self._config.run.trace_rows:
                rows = rows.write(i, ids)
            if self._group.world_size > 1:
                with tf.control_dependencies([outcome]):  # when its update was made
                    tf.numpy_function(self._finish, [loss, outcome, ids], tf.int32)
            return i + 1, losses.write(i, loss), outcomes.write(i, outcome), rows, sums, waited + more

        kept = (tf.TensorArray(tf.float32, count), tf.TensorArray(tf.int32, count), tf.TensorArray(tf.int64, count))
        begin = (*kept, tf.zeros_like(extra), tf.constant(0.0, tf.float64))
        _, losses, outcomes, rows, sums, waited = repeated(count, one, begin)
        return (losses.stack(), outcomes.stack(), sums, waited,
                rows.stack() if self._config.run.trace_rows else tf.constant(0))

    def _finish(self, loss: float, outcome: int, rows: Array) -> np.int32:
        self.finished.append((loss, outcome, rows))
        return np.int32(len(self.finished))

    def _step(self, batch: Batch, lr: Tensor, extra: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = self._scale.value
        in_order = self._config.run.exact == "any-workers"
        (loss, *rest), waited = (self._over_shards if in_order else self._over_workers)(batch, scale, extra)
        gradients, state, sums = rest[: len(self._weights)], rest[len(self._weights) : -1], rest[-1]
        if self._scale.active:
            gradients = [gradient / scale for gradient in gradients]
        clip_norm = self._config.optim.clip_norm
        # Where nothing is clipped a sum will do, at a fraction of the cost: with one value that is not finite it is not
        # either.
        size = tf.add_n([tf.reduce_sum(g)
                         for g in gradients]) if clip_norm is None else tf.linalg.global_norm(gradients)
        if clip_norm is not None:
            share = tf.minimum(1.0, clip_norm / (size + 1e-6))
            gradients = [gradient * share for gradient in gradients]
        outcome = tf.cond(tf.math.is_finite(loss) & tf.math.is_finite(size), lambda: self._take(gradients, state, lr),
                          lambda: self._skip(loss))
        return loss, outcome, sums, waited

    def _over_workers(self, batch: Batch, scale: Tensor | float, extra: Tensor) -> tuple[list[Tensor], Tensor]:
        """Loss, gradients, state and `extra`, summed over all workers; and the seconds that it took."""
        loss, gradients, state = self._over_micro_batches(batch, scale)
        return sum_of_workers(self._group, [loss, *gradients, *state, extra])

    def _over_shards(self, batch: Batch, scale: Tensor | float, extra: Tensor) -> tuple[list[Tensor], Tensor]:
        """The same, summed in the shards' order. What each computes is the same whoever owns it."""
        def of_shard(i: Tensor) -> list[Tensor]:
            own: Batch = {}
            for name, rows in batch.items():
                count = self._settings.passes if name == "seed" else 1
                own[name] = tf.ensure_shape(rows[i * count : (i + 1) * count], (count, *rows.shape[1:]))
            loss, gradients, state = self._over_micro_batches(own, scale)
            return [loss, *gradients, *state, tf.where(tf.equal(i, 0), extra, tf.zeros_like(extra))]

        like = [tf.constant(0.0), *self._weights, *self._state, extra]
        return sum_in_order(self._group, cast(int, batch["image"].shape[0]), of_shard, like)

    def _take(self, gradients: Sequence[Tensor], state: Sequence[Tensor], lr: Tensor) -> Tensor:
        self._optimizer.apply(gradients, lr)
        for variable, value in zip(self._state, state, strict=True):
            variable.assign(value)
        self._scale.taken()
        return tf.constant(TAKEN)

    def _skip(self, loss: Tensor) -> Tensor:
        if not self._scale.active:
            return tf.constant(NOT_FINITE)
        mild = tf.math.is_finite(loss) & (self._scale.value > 1.0)
        self._scale.overflowed()
        return tf.where(mild, SCALED_DOWN, NOT_FINITE)

    # ── checkpoints, and answers ──
    def tensors(self) -> dict[str, Array]:
        """What a checkpoint keeps, by name."""
        return {name: variable.numpy() for name, variable in self.variables.items()}

    def weights(self) -> Iterator[Array]:
        """The model's own, and its state: what is the same on all workers."""
        return (variable.numpy() for name, variable in self.variables.items() if name.startswith("model."))

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Puts tensors of a checkpoint in their places."""
        for name, array in tensors.items():
            self.variables[name].assign(array)

    def probabilities(self, images: Array) -> npt.NDArray[np.float32]:
        """(B, H, W, C) -> (B, K), as the model answers."""
        return self._answers(tf.constant(images, tf.float32)).numpy()

    def _answer(self, images: Tensor) -> Tensor:
        return tf.nn.softmax(tf.cast(self.model(images, training=False), tf.float32))

    def gradient_at(self, images: Array, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """`gradient`, of arrays."""
        return self._slopes(tf.constant(images, tf.float32), tf.constant(labels)).numpy()

    # ── the passes of one step ──
    def _over_micro_batches(self, batch: Batch, scale: Tensor | float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """This worker's share of the global batch's loss, gradients and state: sums over its passes."""
        settings, images, labels = self._settings, batch["image"], batch["label"]
        count = cast(int, images.shape[0]) * settings.passes
        if count == 1:
            return self._gradients_of(images[0], labels[0], batch["seed"][0], scale)
        zeros = tf.constant(0.0), [tf.zeros_like(v) for v in self._weights], [tf.zeros_like(v) for v in self._state]

        def one(i: Tensor, loss: Tensor, gradients: list[Tensor], state: list[Tensor]):
            shard, first = i // settings.passes, tf.math.floormod(i, settings.passes) * settings.rows_per_pass
            part = slice(first, first + settings.rows_per_pass)
            more, added, became = self._gradients_of(images[shard][part], labels[shard][part], batch["seed"][i], scale)
            return (i + 1, loss + more, [a + b for a, b in zip(gradients, added, strict=True)],
                    [a + b for a, b in zip(state, became, strict=True)])

        _, loss, gradients, state = repeated(count, one, zeros)
        return loss, gradients, state

    def _gradients(self, images: Tensor, labels: Tensor, seed: Tensor,
                   scale: Tensor | float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Of one pass: its rows' share of the global loss, its gradient (times `scale`),
        and of what the state becomes."""
        images = tf.cast(images, tf.float32)
        weights = [tf.convert_to_tensor(weight) for weight in self._weights]
        attack = self._settings.attack
        if attack:
            start = tf.random.stateless_uniform(tf.shape(images), tf.stack([seed, -1]), -1.0, 1.0)
            images = tf.stop_gradient(projected_gradient(
                images, lambda x: self.gradient(x, labels), attack, sign=tf.sign, clip=tf.clip_by_value, start=start))
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, state = self._called(weights, images, seed)
            loss = self._loss(logits, labels) / self._config.train.global_batch_size
            scaled = loss * scale
        found = tape.gradient(scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        share = tf.cast(tf.shape(labels)[0], tf.float32) / self._config.train.global_batch_size
        return loss, [tf.convert_to_tensor(g) for g in found], [value * share for value in state]

    def _called(self, weights: Sequence[Tensor], images: Tensor, seed: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of a training pass, and the state after it.
        What layers draw comes from `seed` and their place in the model."""
        model = self.model
        given = [tf.stack([seed, tf.constant(place, tf.int64)]) if is_seed(v) else tf.convert_to_tensor(v.value)
                 for place, v in enumerate(model.non_trainable_variables)]
        logits, after = model.stateless_call(list(weights), given, images, training=True)[:2]
        return logits, [value for v, value in zip(model.non_trainable_variables, after, strict=True)
                        if self._follows_rows(v)]

    def _follows_rows(self, variable: keras.Variable) -> bool:
        """Whether it is state, which becomes the mean of what it is after each micro-batch."""
        return not is_seed(variable) and variable.path not in self._settings.frozen

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed cross entropy of rows, in nats."""
        smoothing = self._config.optim.label_smoothing
        logits = tf.cast(logits, tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        if smoothing:  # as much of the target, spread over all classes
            even = tf.reduce_logsumexp(logits, 1) - tf.reduce_mean(logits, 1)
            losses = (1 - smoothing) * losses + smoothing * even
        if self._settings.class_weights is not None:
            losses *= tf.gather(self._settings.class_weights, labels)
        return tf.reduce_sum(losses)

    def gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of each row's cross entropy with respect to its pixels (B, H, W, C), for an attack:
        the model as it answers."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = tf.cast(self.model(images, training=False), tf.float32)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tf.convert_to_tensor(tape.gradient(loss, images))
