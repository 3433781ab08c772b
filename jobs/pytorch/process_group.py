"""The process group of one generation, and the one all-reduce of a step."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.common.training.context import PeerLostError, TrainContext
from jobs.pytorch.internals import count_groups_from_zero

_FOREVER = timedelta(hours=12)  # hangs are found by the controller, which knows how long a step takes
_LOST = ("gloo", "NCCL", "nccl", "onnection", "ocket", "eer")


def _listen(host: str) -> tuple[int, int]:
    """(port, descriptor) of a socket that listens on this address only;
    a TCPStore's own would listen on all of the machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family)
    return listening.getsockname()[1], listening.detach()


class Group:
    """All workers of a generation. With one worker nothing is sent.

    Every collective raises PeerLostError when another worker is gone.
    """

    def __init__(self, context: TrainContext, device: torch.device, *, even_alone: bool = False) -> None:
        """even_alone: forms the process group with one worker, too, for a library that wants one."""
        self._context, self._device, self._even_alone = context, device, even_alone
        self.rank, self.world_size, self.num_shards = context.rank, context.world_size, context.num_shards
        self._alone = context.world_size == 1
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []

    def __enter__(self) -> "Group":
        if not self._alone or self._even_alone:
            self._connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def _connect(self) -> None:
        context = self._context
        try:
            if context.rank == 0:
                port, listening = _listen(context.host)
                store = dist.TCPStore(context.host, port, context.world_size, is_master=True, wait_for_workers=False,
                                      master_listen_fd=listening)
                context.broadcast("rendezvous", lambda: (context.host, store.port))
            else:
                host, port = context.broadcast("rendezvous", lambda: ("", 0))
                store = dist.TCPStore(host, port, context.world_size, is_master=False, timeout=timedelta(seconds=60))
            backend = "nccl" if self._device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=context.rank, world_size=context.world_size,
                                    timeout=_FOREVER)
            self.total(torch.zeros(1))
        except (RuntimeError, OSError, PeerLostError) as error:
            if dist.is_initialized():  # `with` does not leave what it has not entered
                dist.destroy_process_group()
            count_groups_from_zero()
            raise PeerLostError("the process group did not form") from error

    def reduce(self, model: nn.Module, loss: float, wishes: Sequence[float],
               statistics: Sequence[Tensor] = ()) -> tuple[float, Sequence[float]]:
        """Makes the gradients, and the statistics, the sums over all workers.
        Returns the global loss, and the sums of the ranks' wishes, always as many.
        """
        if self._alone:
            return loss, wishes
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self._flat is None:
            self._lay_out([*parameters, *statistics], 1 + len(wishes))
        assert self._flat is not None
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        tail = torch.tensor([loss, *wishes], device=self._device)
        torch.cat([*(values.reshape(-1) for values in (*gradients, *statistics)), tail], out=self._flat)
        self._all_reduce(self._flat)
        with self.waiting():  # on a GPU it is this that waits
            loss, *agreed = self._flat[-len(tail) :].tolist()
        for parameter, view in zip(parameters, self._views, strict=False):
            parameter.grad = view
        for values, view in zip(statistics, self._views[len(parameters):], strict=True):
            values.copy_(view)
        return loss, agreed

    def total(self, values: Tensor) -> Tensor:
        """The sum over all workers."""
        if self._alone:
            return values
        values = values.to(self._device)
        self._all_reduce(values)
        with self.waiting():
            return values.cpu()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Around what may wait for other workers, whose time is not this one's own.
        Raises: PeerLostError as `peers_needed`."""
        began = time.perf_counter()
        with peers_needed():
            yield
        self._context.count_waiting(time.perf_counter() - began)

    def _lay_out(self, tensors: list[Tensor], size_of_tail: int) -> None:
        """One buffer: the gradients in the parameters' order, the statistics, then the loss and the wishes."""
        sizes = [each.numel() for each in tensors]
        self._flat = torch.empty(sum(sizes) + size_of_tail, device=self._device)
        pieces = self._flat[:-size_of_tail].split(sizes)
        self._views = [piece.view_as(p) for piece, p in zip(pieces, tensors, strict=True)]

    def _all_reduce(self, values: Tensor) -> None:
        with self.waiting():
            dist.all_reduce(values)  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def peers_needed() -> Generator[None]:
    """Around collectives. Raises: PeerLostError where one fails because another worker is gone."""
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error) for word in _LOST):
            raise PeerLostError(str(error)) from error
        raise
