"""AdamW and SGD, each variable in one kernel: Keras's own make a dozen passes over memory, which a small network feels.

Keras's would also sum the gradients over the workers by themselves, once more;
here a step has summed them in one all-reduce.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from typing import Protocol

from jobs.cnn.framework import tf
from jobs.common.training.optim_config import OptimConfig

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000


class Optimizer(Protocol):
    """`variables`: its state by name, which a checkpoint keeps."""

    variables: dict[str, tf.Variable]

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """Inside a `tf.function`: takes a step. lr: scalar, float32."""
        ...


def build_optimizer(weights: Sequence[tf.Variable], paths: Sequence[str], config: OptimConfig) -> Optimizer:
    """weights: `tf.Variable`s; paths: their names."""
    return AdamW(weights, paths, config) if config.name == "adamw" else Sgd(weights, paths, config)


class AdamW:
    """Adam (Kingma & Ba 2015, algorithm 1, with epsilon as in the text below it) with decoupled weight decay
    (Loshchilov & Hutter 2019), of kernels only: not of biases and normalisations."""

    def __init__(self, weights: Sequence[tf.Variable], paths: Sequence[str], config: OptimConfig) -> None:
        self._weights, self._decay = weights, config.weight_decay
        self._first, self._second = _like(weights), _like(weights)
        self._taken = tf.Variable(tf.constant(0.0), trainable=False)
        self.variables = {
            "taken": self._taken, **{f"first.{p}": v for p, v in zip(paths, self._first, strict=True)},
            **{f"second.{p}": v for p, v in zip(paths, self._second, strict=True)}}

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        taken = self._taken.assign_add(1.0)
        powers = {"beta1_power": tf.pow(BETA_1, taken), "beta2_power": tf.pow(BETA_2, taken)}
        for weight, first, second, gradient in zip(self._weights, self._first, self._second, gradients, strict=True):
            if self._decay and len(weight.shape) > 1:
                weight.assign_sub(lr * self._decay * weight)
            tf.raw_ops.ResourceApplyAdam(var=weight.handle, m=first.handle, v=second.handle, lr=lr, beta1=BETA_1,
                                         beta2=BETA_2,
                                         epsilon=EPSILON, grad=gradient, **powers)


class Sgd:
    """Stochastic gradient descent with momentum; weight decay is an L2 term."""

    def __init__(self, weights: Sequence[tf.Variable], paths: Sequence[str], config: OptimConfig) -> None:
        self._weights, self._decay, self._momentum = weights, config.weight_decay, config.momentum
        self._moving = _like(weights) if config.momentum else []
        self.variables = {f"momentum.{p}": v for p, v in zip(paths, self._moving, strict=False)}

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        for place, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            slope = gradient + self._decay * weight if self._decay and len(weight.shape) > 1 else gradient
            if self._momentum:
                tf.raw_ops.ResourceApplyKerasMomentum(var=weight.handle, accum=self._moving[place].handle, lr=lr,
                                                      grad=slope,
                                                      momentum=self._momentum)
            else:
                tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=lr, delta=slope)


class LossScale:
    """Keeps gradients of half precision from vanishing: the loss is multiplied before the backward pass, and the scale
    halved when that was too much, doubled after 2,000 steps when it was not (Micikevicius et al. 2018).
    `active`: else it is 1."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self._scale = tf.Variable(tf.constant(FIRST_LOSS_SCALE), trainable=False)
        self._good = tf.Variable(tf.constant(0.0), trainable=False)
        self.variables = {"loss_scale": self._scale, "loss_scale_steps": self._good} if active else {}

    @property
    def value(self) -> tf.Tensor | float:
        return self._scale.read_value() if self.active else 1.0

    def taken(self) -> None:
        if self.active:
            good = self._good.assign_add(1.0)
            grows = good >= STEPS_TO_DOUBLE
            self._scale.assign(tf.where(grows, self._scale * 2, self._scale))
            self._good.assign(tf.where(grows, 0.0, good))

    def overflowed(self) -> None:
        if self.active:
            self._scale.assign(tf.maximum(self._scale / 2, 1.0))
            self._good.assign(0.0)


def _like(weights: Sequence[tf.Variable]) -> list[tf.Variable]:
    return [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in weights]
