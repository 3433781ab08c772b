"""The workers of one generation under MultiWorkerMirroredStrategy, and the one collective of a step.

TensorFlow forms a cluster once in a process's life. A survivor of a dead peer joins the next one all the same: it gives
up its whole TensorFlow context, with everything in it, and makes another. Tried with TensorFlow 2.21: a second of work,
where a new process needs that and its imports.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

import gc
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar, TypeVarTuple

import numpy as np
import numpy.typing as npt

from cluster.core.errors import ConfigError
from jobs.cnn.framework import tf
from jobs.cnn.internals import drop_context, has_context, set_determinism
from jobs.common.training.context import PeerLostError, TrainContext

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_WORDS = ("ollective ops is aborted", "onnection re", "RingReduce", "RingGather")
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


class Group:
    """All workers of a generation. With one worker nothing is sent, and no cluster is formed."""

    def __init__(self, context: TrainContext, threads: int, *, deterministic: bool = True) -> None:
        """threads: for one operation, as given to this worker: another number of them sums in another order."""
        self._context, self._threads, self._deterministic = context, threads, deterministic
        self.world_size, self.num_shards = context.world_size, context.num_shards
        self.strategy: tf.distribute.Strategy | None = None
        self._total: Callable[[tf.Tensor], tf.Tensor] | None = None

    def __enter__(self) -> "Group":
        _set_up(self._context.device, self._threads, deterministic=self._deterministic, anew=self.world_size > 1)
        if self.world_size > 1:
            self._connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.strategy = self._total = None

    def _connect(self) -> None:
        context = self._context
        try:
            addresses = context.all_gather("address", _address(context.host))
            resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec({"worker": addresses}), task_type="worker", task_id=context.rank, rpc_layer="grpc")
            gpu = context.device != "cpu"
            kind = tf.distribute.experimental.CommunicationImplementation
            options = tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if gpu else kind.RING)
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver,
                                                                      communication_options=options)
            self.total(np.zeros(1))
        except (tf.errors.OpError, OSError) as error:
            raise PeerLostError("the workers did not come together") from error

    def run(self, step: Callable[[*Ts], T], *args: *Ts) -> T:
        """Inside a `tf.function`: calls `step` in the replica context."""
        return self.strategy.run(step, args=args) if self.strategy else step(*args)

    def sum(self, vector: tf.Tensor) -> tf.Tensor:
        """In the replica context, of more workers than one: the sum over all of them."""
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector)

    def gather(self, tensor: tf.Tensor) -> tf.Tensor:
        """In the replica context, of more workers than one: (W, …), everyone's by rank."""
        return tf.distribute.get_replica_context().all_gather(tensor[None], 0)

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over all workers, of a few numbers. Raises: PeerLostError."""
        if not self.strategy:
            return values
        total = self._total = self._total or tf.function(self._sum_of_all, autograph=False)
        with peers_needed():
            return total(tf.constant(values)).numpy()

    def _sum_of_all(self, values: tf.Tensor) -> tf.Tensor:
        return self.run(self._sum_here, values)

    def _sum_here(self, mine: tf.Tensor) -> tf.Tensor:
        return self.sum(tf.identity(mine))  # an argument lies on no device, and the sum asks for it


@contextmanager
def peers_needed() -> Generator[None]:
    """Around collectives. Raises: PeerLostError where one fails because another worker is gone."""
    try:
        yield
    except tf.errors.OpError as error:
        if isinstance(error, _LOST) or any(word in str(error) for word in _WORDS):
            raise PeerLostError(str(error).strip().splitlines()[-1]) from error
        raise


def _set_up(device: str, threads: int, *, deterministic: bool, anew: bool) -> None:
    """A TensorFlow context with these threads: another number of them sums in another order.
    anew: not the one there is."""
    if has_context() and (anew or tf.config.threading.get_intra_op_parallelism_threads() != threads):
        # what an earlier generation has left, its pipeline's threads first of all, before the context that it is in
        gc.collect()
        drop_context()
    if not has_context():
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # two operations at a time would wait for each other's cores
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        elif not tf.config.list_physical_devices("GPU"):
            raise ConfigError("--run.gpus-per-worker 1: this TensorFlow sees no GPU: install tensorflow[and-cuda] and "
                              "a driver, or pass 0")
    set_determinism(deterministic)


def _address(host: str) -> str:
    """host:port, free now. TensorFlow wants to be told the port before it listens, so it is let go again in between."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
