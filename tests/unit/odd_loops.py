"""The jobs' own training loops, in which one rank is slow, and later has other weights than the rest, or dies while the
ranks meet. Workers load them by name."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Literal
from unittest import mock

import psutil

from jobs.common.training.session import Session

ODD, DIVERGES_AFTER, SLOWER_S = 1, 12, 0.1
"""The rank, the step after which its weights change, and how much longer each of its steps takes."""

End = Literal["finished", "stopped"]


def mlp(session: Session, config: Any) -> End:
    """Before its backward pass the odd rank sleeps."""
    from jobs.mlp import train as loop

    backward = loop.backward

    def slow(*args: Any) -> float:
        _dawdle(session)
        return backward(*args)

    with (_corrupting(loop.MlpTraining, lambda training: training.model.parameters()),
          mock.patch.object(loop, "backward", slow)):
        return loop.train(session, config)


def transformer(session: Session, config: Any) -> End:
    """Before its forward passes the odd rank sleeps."""
    from jobs.transformer import train as loop

    passes = loop.passes

    def slow(*args: Any, **options: Any) -> Any:
        _dawdle(session)
        return passes(*args, **options)

    def weights(training: Any) -> Any:
        return (fragment.tensors["weights"] for fragment in training.model.weights())

    with _corrupting(loop.TransformerTraining, weights), mock.patch.object(loop, "passes", slow):
        return loop.train(session, config)


def _corrupting(kind: Any, weights: Callable[[Any], Iterable[Any]]) -> Any:
    """While it lasts, a job's step also changes the odd rank's weights, after it has updated them."""
    step = kind.step

    def corrupting(training: Any, batch: Any, state: Any, *rest: Any) -> Any:
        result = step(training, batch, state, *rest)
        if _odd(training.context, state.step + 1):
            _corrupt(next(iter(weights(training))))
        return result

    return mock.patch.object(kind, "step", corrupting)


def cnn(session: Session, config: Any) -> End:
    """The odd rank sleeps inside its compiled step, before its gradients are summed."""
    from jobs.cnn import step as steps
    from jobs.cnn import train as loop
    from jobs.cnn.framework import tf

    gradients, weights = steps.Trainer._over_micro_batches, steps.Trainer.weights

    def slow(trainer: Any, batch: Any, scale: Any) -> Any:
        def dawdle() -> Any:
            _dawdle(session)
            return 0.0

        with tf.control_dependencies([tf.py_function(dawdle, [], tf.float32)]):
            return gradients(trainer, {name: tf.identity(value) for name, value in batch.items()}, scale)

    def corrupting(trainer: Any) -> Any:
        if _odd(session, session.progress.step):
            variable = trainer.model.trainable_variables[0].value
            variable.assign_add(tf.fill(variable.shape, 1e-4))
        return weights(trainer)

    with mock.patch.object(steps.Trainer, "_over_micro_batches", slow), mock.patch.object(steps.Trainer, "weights",
                                                                                          corrupting):
        return loop.train(session, config)


def dies_meeting(session: Session, config: Any) -> End:
    """The MLP, whose first rank 0 dies when the others have found its store and wait there for its address."""
    from jobs.mlp import train as loop
    from jobs.pytorch import process_group as group

    def dies(*args: Any, store: Any, **options: Any) -> None:
        def connected() -> int:
            links = psutil.Process().net_connections()
            return sum(link.status == psutil.CONN_ESTABLISHED and link.laddr.port == store.port for link in links)

        while connected() < session.world_size:  # this rank's own connection among them
            time.sleep(0.02)
        os._exit(1)

    first = session.generation.startswith("000001-")
    with mock.patch.object(group.dist, "init_process_group", dies) if first and session.rank == 0 else nullcontext():
        return loop.train(session, config)


def _odd(session: Session, step: int) -> bool:
    return session.rank == ODD and step >= DIVERGES_AFTER


def _dawdle(session: Session) -> None:
    if session.rank == ODD:
        time.sleep(SLOWER_S)


def _corrupt(parameter: Any) -> None:
    """One weight, a little more each time."""
    parameter.data.view(-1)[3] += 1e-4
