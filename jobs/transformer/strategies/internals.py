"""What the strategies use of DeepSpeed that is private or undocumented: global state, and the slices of ZeRO.

Read in DeepSpeed 0.19.8; tests/unit/test_internals.py holds each symbol.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportPrivateUsage=false

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from jobs.pytorch.process_group import Group
from jobs.transformer.strategies.shards import KINDS, WEIGHTS

_COLLECTIVES = ("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
                "all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single", "barrier")
GROUPS = ("_WORLD_GROUP", "_DATA_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP")


# ── the slices: DeepSpeed's own way to read them gathers each whole ──
class ZeroSlices:
    """The part of the model and of AdamW's state that a ZeRO optimiser keeps on this worker. stage: 1, 2 or 3."""

    def __init__(self, optimizer: Any, stage: int) -> None:
        self._zero, self._stage = optimizer, stage

    @property
    def overflow(self) -> bool:
        """Whether the last step was left out since the loss scale was too large."""
        return getattr(self._zero, "overflow", False)

    def weights(self, parameter: Any) -> tuple[int, Tensor] | None:
        """The first element and the values, in the precision of the passes, of this worker's slice;
        None if it has none."""
        if self._stage < 3:
            return 0, parameter.data.view(-1)
        start = _start(parameter)
        count = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)
        return (start, parameter.ds_tensor.data.view(-1)[:count]) if count > 0 else None

    def place(self, parameter: Any) -> tuple[int, int, int, int] | None:
        """(group, offset in its flat tensors, first element of the parameter, count)
        of the slice that this worker owns."""
        if self._stage < 3:
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is None:
                return None
            group = next(i for i, members in enumerate(self._zero.bit16_groups) if any(p is parameter for p in members))
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            return group, here.start, there.start, there.numel
        group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start = _start(parameter)
        count = min(size, parameter.ds_numel - start)
        return (group, offset, start, count) if count > 0 else None

    def tensors(self, group: int, steps: int) -> dict[str, Tensor]:
        """A group's flat tensors, fp32, as they are in memory."""
        partitions = (self._zero.single_partition_of_fp32_groups if self._stage < 3
                      else self._zero.fp32_partitioned_groups_flat)
        flat = partitions[group]
        state = self._zero.optimizer.state[flat]
        if "exp_avg" not in state:  # as AdamW makes them in its first step
            state |= {kind: torch.zeros_like(flat) for kind in KINDS[1:]}
        state["step"] = torch.tensor(float(steps))
        return {WEIGHTS: flat, **{kind: state[kind] for kind in KINDS[1:]}}

    def swapped(self, group: int) -> bool:
        """Whether its tensors are on disk between steps, where the state is swapped:
        those under 1 MiB stay in memory."""
        return self._zero._swappable_optimizer_subgroup(group)

    def copied(self, group: int, steps: int) -> dict[str, Tensor]:
        """Copies of the tensors of a group that is on disk."""
        self._zero._optimizer_states_and_gradient_swap_in(group)
        copies = {kind: tensor.detach().clone() for kind, tensor in self.tensors(group, steps).items()}
        self._zero._optimizer_states_and_gradient_swap_out(group)
        return copies

    def write_back(self, group: int, steps: int, copies: dict[str, Tensor]) -> None:
        """Puts such copies in the place of what is on disk."""
        self._zero._optimizer_states_and_gradient_swap_in(group)
        for kind, tensor in self.tensors(group, steps).items():
            tensor.detach().copy_(copies[kind])
        self._zero._optimizer_states_and_gradient_swap_out(group)


def _start(parameter: Any) -> int:
    return torch.distributed.get_rank() * parameter.ds_tensor.numel()


def file_access_compiles() -> bool:
    """Whether what DeepSpeed compiles to swap to files finds the library that it needs."""
    from deepspeed.ops.op_builder.async_io import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible()


# ── the engine ──
def initialize(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, object]) -> Any:
    """DeepSpeed's engine, which knows nothing of the generation before."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; the device is chosen already
    import deepspeed
    import deepspeed.ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # Its own all-reduce in shared memory needs a compiler, and waits for ever for a worker that is dead.
    cast(dict[str, bool], deepspeed.ops.__compatible_ops__)[ShareMemCommBuilder.NAME] = False
    # DeepSpeed 0.19 with torch 2.13
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    forget()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def time_waiting(group: Group) -> None:
    """What DeepSpeed's own collectives wait for other workers is told to the group:
    its backend object is new each time."""
    import deepspeed.comm.comm as comm

    backend: Any = comm.cdb
    for name in _COLLECTIVES:
        setattr(backend, name, _timed(getattr(backend, name), group))


def _timed(collective: Callable[..., object], group: Group) -> Callable[..., object]:
    def call(*args: object, **options: object) -> object:
        with group.waiting():
            work = collective(*args, **options)
        return _TimedWork(work, group) if hasattr(work, "wait") else work

    return call


class _TimedWork:
    """A collective under way."""

    def __init__(self, work: Any, group: Group) -> None:
        self._work, self._group = work, group

    def wait(self, *args: object, **options: object) -> object:
        with self._group.waiting():
            return self._work.wait(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def destroy_groups() -> None:
    """The process groups that DeepSpeed made beside the one it was given: each has threads of its own."""
    from deepspeed.utils import groups

    made = [getattr(groups, name) for name in GROUPS]
    for group in {id(group): group for group in made if group is not None
                  and group is not torch.distributed.group.WORLD}.values():
        torch.distributed.destroy_process_group(group)


def forget() -> None:
    """DeepSpeed 0.19 keeps the process groups of the generation before, and counts modules and parameters on from it.

    With zero3 the workers compare these counts:
    a survivor's would differ from those of a worker that was started again.
    """
    import deepspeed.comm.comm as comm
    from deepspeed.runtime.zero import parameter_offload, partition_parameters
    from deepspeed.utils import groups

    parameter_offload.FWD_MODULE_STACK.clear()
    partition_parameters.Init.param_id = 0
    # a list as a default argument
    count: Any = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    count[0][0] = 0
    comm.cdb = None
    for name in GROUPS:
        setattr(groups, name, None)
