"""The strategies `zero1`, `zero2`, `zero3`: DeepSpeed's engine, its config built from typed fields,
and its slices named.

DeepSpeed insists on batch = micro × accumulation × workers and on mean gradients. Here a batch is what contract 2 says:
each pass is one micro-batch of DeepSpeed's, the loss is a pass's share of the global sum, multiplied by the number of
workers that DeepSpeed divides by, and the last pass of a step is named as such.
All workers must make the same number of passes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportPrivateUsage=false

import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cluster.core.auth import expanded
from cluster.core.documents import DocumentError, JsonObject, read_json
from cluster.core.errors import ConfigError
from jobs.common.training.train_state import StepOutcome
from jobs.pytorch.process_group import Group, peers_needed
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.ddp import parameter_groups
from jobs.transformer.strategies.internals import ZeroSlices, destroy_groups, forget, initialize, time_waiting
from jobs.transformer.strategies.shards import WEIGHTS, TextFragment
from jobs.transformer.strategies.swap import SwapFolder, require_compiler


# ── the config ──
def deepspeed_config(config: TransformerConfig, swap_folder: Path | None = None) -> JsonObject:
    """What DeepSpeed is told, with the fields of `--scale.deepspeed-json` added.
    swap_folder: of `--scale.offload nvme`.

    Raises: ConfigError if that file cannot be read, or says otherwise than an option here.
    """
    ours: JsonObject = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,  # the loop's own business, see above
        "zero_optimization": _zero(config, swap_folder), "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "gradient_clipping": config.optim.clip_norm or 0.0,
        "steps_per_print": 2**31,
        "bf16": {"enabled": config.hardware.precision == "bf16"},
        "fp16": {"enabled": config.hardware.precision == "fp16"},
    }
    path = config.scale.deepspeed_json
    return ours if path is None else merged(ours, _read(path), path)


def _zero(config: TransformerConfig, swap_folder: Path | None) -> JsonObject:
    scale, elements, stage = config.scale, int(config.scale.bucket_mb * 1e6 / 4), config.scale.capabilities.zero_stage
    zero: JsonObject = {"stage": stage, "reduce_bucket_size": elements, "allgather_bucket_size": elements,
                        "contiguous_gradients": True, "overlap_comm": config.run.gpus_per_worker > 0}
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": elements, "stage3_param_persistence_threshold": 0}
    place = {"device": scale.offload} | ({"nvme_path": str(swap_folder)} if swap_folder else {})
    if scale.offload != "none":
        zero["offload_optimizer"] = place
    if scale.offload_parameters:
        zero["offload_param"] = place
    return zero


def merged(ours: JsonObject, theirs: JsonObject, path: str, prefix: str = "") -> JsonObject:
    """Both together. Raises: ConfigError naming a field that both give, with another value."""
    both = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            both[key] = merged(ours[key], cast(JsonObject, value), path, f"{prefix}{key}.")
        elif key in ours and ours[key] != value:
            raise ConfigError(f"--scale.deepspeed-json {path}: {prefix}{key} is {value!r} there, and {ours[key]!r} by "
                              "the options of this job: leave it out of the file, and say it with an option (--scale, "
                              "--hardware, --optim)")
        else:
            both[key] = value
    return both


def _read(path: str) -> JsonObject:
    try:
        return read_json(expanded(path))
    except (OSError, DocumentError) as error:
        raise ConfigError(f"--scale.deepspeed-json {path}: cannot be read as JSON ({error}): it must hold one JSON "
                          "object, of DeepSpeed's own fields") from error


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
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        optim = config.optim
        optimizer = torch.optim.AdamW(parameter_groups(model, optim.weight_decay), lr=optim.highest_lr,
                                      betas=(0.9, optim.beta2),
                                      eps=optim.eps)
        with peers_needed():
            self._engine = initialize(model, optimizer, deepspeed_config(config, self._swap and self._swap.path))
        time_waiting(group)
        self.forward = self._engine
        self.model: nn.Module = self._engine.module
        self._slices = ZeroSlices(self._engine.optimizer, config.scale.capabilities.zero_stage)
        self.replicated = config.scale.capabilities.zero_stage < 3
        """Whether each worker holds all weights that its passes use. With zero1 and zero2 what it holds of the others'
        it has been sent, so a comparison finds what was corrupted on the way or after;
        with zero3 nobody else has what it holds."""

    def passing(self) -> AbstractContextManager[None]:
        """Around a forward pass. DeepSpeed holds the weights in the precision that is wanted;
        with zero3 it fetches them."""
        return peers_needed()

    def begin(self) -> None:
        """Before a step's first pass."""

    def backward(self, loss: Tensor, *, last: bool, last_of_shard: bool) -> None:
        """Adds a pass's share of the global gradient. last: of this step. Raises: PeerLostError."""
        self._engine.set_gradient_accumulation_boundary(last)
        with peers_needed():
            self._engine.backward(loss * self._group.world_size, scale_wrt_gas=False)

    def step(self, lr: float) -> StepOutcome:
        """Takes the step; `corrupted` if the gradient was not finite,
        `skipped` if only the loss scale was too large (fp16).

        Raises: PeerLostError.
        """
        for options in self._engine.optimizer.param_groups:
            options["lr"] = lr
        with peers_needed():
            self._engine.step()
        if self._slices.overflow:
            return "skipped"
        norm = self._engine.get_global_grad_norm()
        return "taken" if norm is None or math.isfinite(float(norm)) else "corrupted"

    def abandon(self) -> StepOutcome:
        """Instead of `step`, where the loss was not finite: what DeepSpeed has summed already cannot be taken back."""
        return "corrupted"

    def weights(self) -> Iterator[TextFragment]:
        """The weights that the passes use, in their own precision: whole, or with zero3 this worker's slices."""
        for parameter, name in self._names.items():
            if parameter.requires_grad and (held := self._slices.weights(parameter)) is not None:
                start, values = held
                yield TextFragment(name, start, {WEIGHTS: values})

    def fragments(self, steps: int) -> Iterator[TextFragment]:
        """The slices that this worker owns. steps: how many have been taken, for AdamW's own count of them."""
        copies: dict[int, dict[str, Tensor]] = {}
        for parameter, name in self._names.items():
            if parameter.requires_grad and (place := self._slices.place(parameter)) is not None:
                group, offset, start, count = place
                written = None
                if self._swap is None or not self._slices.swapped(group):
                    tensors = self._slices.tensors(group, steps)
                else:
                    if group not in copies:
                        copies[group] = self._slices.copied(group, steps)
                        written = functools.partial(self._slices.write_back, group, steps, copies[group])
                    tensors = copies[group]
                yield TextFragment(name, start,
                                   {kind: t.detach().narrow(0, offset, count) for kind, t in tensors.items()}, written)

    def close(self) -> None:
        """Lets go of what DeepSpeed keeps in global places, so that the next generation begins anew in this process."""
        self._engine.destroy()
        destroy_groups()
        forget()
        if self._swap is not None:
            self._swap.close()
