"""The strategies `zero1`, `zero2`, `zero3`: DeepSpeed's engine, its config built from typed fields, and its slices named.

DeepSpeed insists on batch = micro × accumulation × workers and on mean gradients. Here a batch is what contract 2 says: each
pass is one micro-batch of DeepSpeed's, the loss is a pass's share of the global sum, multiplied by the number of workers that
DeepSpeed divides by, and the last pass of a step is named as such. All workers must make the same number of passes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportPrivateUsage=false

import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cluster.core.auth import expanded
from cluster.core.documents import DocumentError, read_json
from cluster.core.errors import ConfigError
from jobs.common.training.train_state import StepOutcome
from jobs.pytorch.process_group import Group, peers_needed
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.ddp import parameter_groups
from jobs.transformer.strategies.shards import KINDS, WEIGHTS, TextFragment
from jobs.transformer.strategies.swap import SwapFolder, require_compiler


# ── the config ──
def deepspeed_config(config: TransformerConfig, swap_folder: Path | None = None) -> dict[str, Any]:
    """What DeepSpeed is told, with the fields of `--scale.deepspeed-json` added. swap_folder: of `--scale.offload nvme`.

    Raises: ConfigError if that file cannot be read, or says otherwise than an option here.
    """
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,  # the loop's own business, see above
        "zero_optimization": _zero(config, swap_folder), "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "gradient_clipping": config.optim.clip_norm or 0.0, "steps_per_print": 2**31,
        "bf16": {"enabled": config.hardware.precision == "bf16"}, "fp16": {"enabled": config.hardware.precision == "fp16"},
    }
    path = config.scale.deepspeed_json
    return ours if path is None else merged(ours, _read(path), path)


def _zero(config: TransformerConfig, swap_folder: Path | None) -> dict[str, Any]:
    scale, elements, stage = config.scale, int(config.scale.bucket_mb * 1e6 / 4), config.scale.capabilities.zero_stage
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": elements, "allgather_bucket_size": elements,
                            "contiguous_gradients": True, "overlap_comm": config.run.gpus_per_worker > 0}
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": elements, "stage3_param_persistence_threshold": 0}
    place = {"device": scale.offload} | ({"nvme_path": str(swap_folder)} if swap_folder else {})
    if scale.offload != "none":
        zero["offload_optimizer"] = place
    if scale.offload_parameters:
        zero["offload_param"] = place
    return zero


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """Both together. Raises: ConfigError naming a field that both give, with another value."""
    both = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            both[key] = merged(ours[key], cast(dict[str, Any], value), path, f"{prefix}{key}.")
        elif key in ours and ours[key] != value:
            raise ConfigError(f"--scale.deepspeed-json {path}: {prefix}{key} is {value!r} there, and {ours[key]!r} by the options "
                              "of this job: leave it out of the file, and say it with an option (--scale, --hardware, --optim)")
        else:
            both[key] = value
    return both


def _read(path: str) -> dict[str, Any]:
    try:
        return read_json(expanded(path))
    except (OSError, DocumentError) as error:
        raise ConfigError(f"--scale.deepspeed-json {path}: cannot be read as JSON ({error}): it must hold one JSON object, of "
                          "DeepSpeed's own fields") from error


# ── the engine ──
class Zero:
    """The model on one worker, spread by DeepSpeed. All workers make the same passes."""

    lockstep = True
    sharded = True

    def __init__(self, config: TransformerConfig, model: nn.Module, group: Group, device: torch.device) -> None:
        self._group = group
        self._swap: SwapFolder | None = None
        if config.scale.offload_path is not None:
            require_compiler()
            self._swap = SwapFolder(config.scale.offload_path)
        self._names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
        optim = config.optim
        optimizer = torch.optim.AdamW(parameter_groups(model, optim.weight_decay), lr=optim.lr, betas=(0.9, optim.beta2),
                                      eps=optim.eps)
        with peers_needed():
            self._engine = _initialize(model, optimizer, deepspeed_config(config, self._swap and self._swap.path))
        _time_waiting(group)
        self.forward = self._engine
        self.model: nn.Module = self._engine.module
        self._zero: Any = self._engine.optimizer
        self._stage = config.scale.capabilities.zero_stage
        self.replicated = self._stage < 3
        """Whether each worker holds all weights that its passes use. With zero1 and zero2 what it holds of the others' it has been
        sent, so a comparison finds what was corrupted on the way or after; with zero3 nobody else has what it holds."""

    def passing(self) -> Any:
        """Around a forward pass. DeepSpeed holds the weights in the precision that is wanted; with zero3 it fetches them."""
        return peers_needed()

    def begin(self) -> None:
        """Before a step's first pass."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds a pass's share of the global gradient. last: of this step. Raises: PeerLostError."""
        self._engine.set_gradient_accumulation_boundary(last)
        with peers_needed():
            self._engine.backward(loss * self._group.world_size, scale_wrt_gas=False)

    def step(self, lr: float) -> StepOutcome:
        """Takes the step; `corrupted` if the gradient was not finite, `skipped` if only the loss scale was too large (fp16).

        Raises: PeerLostError.
        """
        for options in self._zero.param_groups:
            options["lr"] = lr
        with peers_needed():
            self._engine.step()
        if getattr(self._zero, "overflow", False):
            return "skipped"
        norm = self._engine.get_global_grad_norm()
        return "taken" if norm is None or math.isfinite(float(norm)) else "corrupted"

    def abandon(self) -> StepOutcome:
        """Instead of `step`, where the loss was not finite: what DeepSpeed has summed already cannot be taken back."""
        return "corrupted"

    def weights(self) -> Iterator[TextFragment]:
        """The weights that the passes use, in their own precision: whole, or with zero3 this worker's slices."""
        for parameter, name in self._names.items():
            if not parameter.requires_grad:
                continue
            if self._stage < 3:
                yield TextFragment(name, 0, {WEIGHTS: parameter.data.view(-1)})
            elif (count := min(parameter.ds_tensor.numel(), parameter.ds_numel - self._start(parameter))) > 0:
                yield TextFragment(name, self._start(parameter), {WEIGHTS: parameter.ds_tensor.data.view(-1)[:count]})

    def _start(self, parameter: Any) -> int:
        return torch.distributed.get_rank() * parameter.ds_tensor.numel()

    def fragments(self, steps: int) -> Iterator[TextFragment]:
        """The slices that this worker owns. steps: how many have been taken, for AdamW's own count of them."""
        copies: dict[int, dict[str, Tensor]] = {}
        for parameter, name in self._names.items():
            if parameter.requires_grad and (place := self._place(parameter)) is not None:
                group, offset, start, count = place
                written = None
                if not self._swapped(group):
                    tensors = self._tensors(group, steps)
                else:
                    if group not in copies:
                        copies[group] = self._copied(group, steps)
                        written = functools.partial(self._write_back, group, steps, copies[group])
                    tensors = copies[group]
                yield TextFragment(name, start, {kind: t.detach().narrow(0, offset, count) for kind, t in tensors.items()}, written)

    def _place(self, parameter: Any) -> tuple[int, int, int, int] | None:
        """(group, offset in its flat tensors, first element of the parameter, count) of the slice that this worker owns."""
        if self._stage < 3:
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is None:
                return None
            group = next(i for i, members in enumerate(self._zero.bit16_groups) if any(p is parameter for p in members))
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            return group, here.start, there.start, there.numel
        group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start = self._start(parameter)
        count = min(size, parameter.ds_numel - start)
        return (group, offset, start, count) if count > 0 else None

    def _tensors(self, group: int, steps: int) -> dict[str, Tensor]:
        """A group's flat tensors, fp32, as they are in memory."""
        partitions = self._zero.single_partition_of_fp32_groups if self._stage < 3 else self._zero.fp32_partitioned_groups_flat
        flat = partitions[group]
        state = self._zero.optimizer.state[flat]
        if "exp_avg" not in state:  # as AdamW makes them in its first step
            state |= {kind: torch.zeros_like(flat) for kind in KINDS[1:]}
        state["step"] = torch.tensor(float(steps))
        return {WEIGHTS: flat, **{kind: state[kind] for kind in KINDS[1:]}}

    def _swapped(self, group: int) -> bool:
        """Whether its tensors are on disk between steps: DeepSpeed leaves those under 1 MiB in memory."""
        return self._swap is not None and self._zero._swappable_optimizer_subgroup(group)

    def _copied(self, group: int, steps: int) -> dict[str, Tensor]:
        self._zero._optimizer_states_and_gradient_swap_in(group)
        copies = {kind: tensor.detach().clone() for kind, tensor in self._tensors(group, steps).items()}
        self._zero._optimizer_states_and_gradient_swap_out(group)
        return copies

    def _write_back(self, group: int, steps: int, copies: dict[str, Tensor]) -> None:
        self._zero._optimizer_states_and_gradient_swap_in(group)
        for kind, tensor in self._tensors(group, steps).items():
            tensor.detach().copy_(copies[kind])
        self._zero._optimizer_states_and_gradient_swap_out(group)

    def close(self) -> None:
        """Lets go of what DeepSpeed keeps in global places, so that the next generation begins anew in this process."""
        self._engine.destroy()
        _destroy_groups()
        _forget()
        if self._swap is not None:
            self._swap.close()


def _initialize(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; the device is chosen already
    import deepspeed
    import deepspeed.ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # Its own all-reduce in shared memory needs a compiler, and waits for ever for a worker that is dead.
    cast(dict[str, bool], deepspeed.ops.__compatible_ops__)[ShareMemCommBuilder.NAME] = False
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed 0.19 with torch 2.13
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _forget()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


_COLLECTIVES = ("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
                "all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single", "barrier")


def _time_waiting(group: Group) -> None:
    """What DeepSpeed's own collectives wait for other workers is told to the group: its backend object is new each time."""
    import deepspeed.comm.comm as comm

    backend: Any = comm.cdb
    for name in _COLLECTIVES:
        setattr(backend, name, _timed(getattr(backend, name), group))


def _timed(collective: Callable[..., Any], group: Group) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        with group.waiting():
            work = collective(*args, **options)
        return _TimedWork(work, group) if hasattr(work, "wait") else work

    return call


class _TimedWork:
    """A collective under way."""

    def __init__(self, work: Any, group: Group) -> None:
        self._work, self._group = work, group

    def wait(self, *args: Any, **options: Any) -> Any:
        with self._group.waiting():
            return self._work.wait(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


_GROUPS = ("_WORLD_GROUP", "_DATA_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP")


def _destroy_groups() -> None:
    """The process groups that DeepSpeed made beside the one it was given: each has threads of its own."""
    from deepspeed.utils import groups

    made: list[Any] = [getattr(groups, name) for name in _GROUPS]
    for group in {id(group): group for group in made if group is not None and group is not torch.distributed.group.WORLD}.values():
        torch.distributed.destroy_process_group(group)


def _forget() -> None:
    """DeepSpeed 0.19 keeps the process groups of the generation before, and counts modules and parameters on from it.

    With zero3 the workers compare these counts: a survivor's would differ from those of a worker that was started again.
    """
    import deepspeed.comm.comm as comm
    from deepspeed.runtime.zero import parameter_offload, partition_parameters
    from deepspeed.utils import groups

    parameter_offload.FWD_MODULE_STACK.clear()
    partition_parameters.Init.param_id = 0
    count: Any = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__  # a list as a default argument
    count[0][0] = 0
    comm.cdb = None
    for name in _GROUPS:
        setattr(groups, name, None)
