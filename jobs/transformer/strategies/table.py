"""The strategies by name: how weights, gradients and moments are spread over the workers,
and what each way is able to do.

The table is known without torch, so that a config is checked against it. A new strategy is a class that is a
`Strategy`, and an entry here with what it is able to do; no other code asks for a strategy's name.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:  # torch takes seconds to import, and a config is parsed without it
    from torch import Tensor, nn

    from jobs.common.training.train_state import StepOutcome
    from jobs.transformer.strategies.shards import TextFragment

StrategyName = Literal["ddp", "zero1", "zero2", "zero3"]
Offload = Literal["none", "cpu", "nvme"]


class Strategy(Protocol):
    """A model under its strategy, on one worker."""

    model: "nn.Module"
    forward: Callable[..., Any]
    """The model as the passes call it."""
    lockstep: bool
    """Whether all workers must make the same number of passes."""
    sharded: bool
    """Whether each worker owns a part of the state, and writes it into a checkpoint."""
    replicated: bool
    """Whether each worker holds all the weights that its passes use."""

    def passing(self) -> AbstractContextManager[object]:
        """Returns the context of a forward pass."""
        ...

    def begin(self) -> None:
        """Is called before a step's first pass."""

    def backward(self, loss: "Tensor", *, last: bool, last_of_shard: bool) -> None:
        """Adds a pass's share of the global gradient. last: of this step. Raises: PeerLostError."""

    def step(self, lr: float) -> "StepOutcome":
        """Takes the step, with the same outcome on all workers. Raises: PeerLostError."""
        ...

    def abandon(self) -> "StepOutcome":
        """Is called instead of `step` where the loss was not finite."""
        ...

    def weights(self) -> "Iterator[TextFragment]":
        """Yields the weights that the passes use."""
        ...

    def fragments(self, steps: int) -> "Iterator[TextFragment]":
        """Yields what this worker owns of weights and moments.
        steps: how many have been taken, for AdamW's own count of them."""
        ...

    def close(self) -> None:
        """Lets go of everything, so that another strategy can be made in this process."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a strategy is, and what it is able to do."""

    implementation: str
    """The class, `module:name`."""
    sharded: bool = False
    """Whether each worker owns a part of the state."""
    zero_stage: int = 0
    """DeepSpeed's stage: it spreads, from 1 on, the optimiser's state; 2, gradients too; 3, weights too.
    0: without DeepSpeed."""
    offloads: tuple[Offload, ...] = ("none",)
    """Where the optimiser's state can be."""
    offloads_parameters: bool = False
    """Whether the weights can be in the host's memory too."""
    scales_loss: bool = False
    """Whether it scales the loss, as fp16 needs."""
    compiles: bool = False
    """Whether torch.compile is tried with it."""
    packs: bool = False
    """Whether layers that are not trained can be held in 4 bits, by `--model.lora-base`."""
    sends_bf16: bool = False
    """Whether gradients can be sent in bf16, by `--scale.gradients`."""
    any_workers: bool = False
    """Whether it can sum over the shards in their order, as `--run.exact any-workers` asks for."""


_ZERO = "jobs.transformer.strategies.zero:Zero"
STRATEGIES: Mapping[str, Capabilities] = {
    "ddp": Capabilities(implementation="jobs.transformer.strategies.ddp:Ddp", compiles=True, packs=True,
                        sends_bf16=True, any_workers=True),
    "zero1": Capabilities(implementation=_ZERO, sharded=True, zero_stage=1, offloads=("none", "cpu"), scales_loss=True),
    "zero2": Capabilities(implementation=_ZERO, sharded=True, zero_stage=2, offloads=("none", "cpu"), scales_loss=True),
    "zero3": Capabilities(implementation=_ZERO, sharded=True, zero_stage=3, offloads=("none", "cpu", "nvme"),
                          offloads_parameters=True, scales_loss=True),
}
assert set(STRATEGIES) == set(get_args(StrategyName))


def those_that(able: Callable[[Capabilities], bool]) -> str:
    """Returns the names of the strategies that are able to do something: `zero1, zero2 or zero3`."""
    *names, last = (name for name, each in STRATEGIES.items() if able(each))
    return f"{', '.join(names)} or {last}" if names else last
