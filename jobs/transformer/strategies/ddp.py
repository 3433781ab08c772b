"""The strategy `ddp`: the whole model on each worker, gradients summed while the backward pass runs,
AdamW in one kernel."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from jobs.common.training.train_state import StepOutcome
from jobs.pytorch.gradients.buckets import GradientBuckets
from jobs.pytorch.optimizer import set_lr
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import compiled
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.shards import KINDS, WEIGHTS, TextFragment


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay; biases and norms without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [([p for p in trained if p.dim() > 1], weight_decay), ([p for p in trained if p.dim() <= 1], 0.0)]
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


class Ddp:
    """The model on one worker. Its passes may differ in number from those of the other workers."""

    lockstep = False
    sharded = False
    replicated = True

    def __init__(self, config: TransformerConfig, model: nn.Module, group: Group, device: torch.device) -> None:
        self._config, self._group, self._device = config, group, device
        self.model = model.to(device).train()
        self._named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        optim = config.optim
        self._optimizer = torch.optim.AdamW(parameter_groups(self.model, optim.weight_decay), lr=optim.highest_lr,
                                            betas=(0.9, optim.beta2), eps=optim.eps, fused=True)
        self._gradients = GradientBuckets(group, [p for _, p in self._named], config.scale.bucket_mb * 1e6,
                                          torch.bfloat16 if config.scale.gradients == "bf16" else None,
                                          in_order=config.run.exact == "any-workers")
        self.forward = compiled(self.model) if config.hardware.compile else self.model

    def passing(self) -> AbstractContextManager[object]:
        """Around a forward pass."""
        bf16 = self._config.hardware.precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16) if bf16 else nullcontext()

    def begin(self) -> None:
        """Before a step's first pass."""
        self._gradients.zero()

    def backward(self, loss: Tensor, *, last: bool, last_of_shard: bool) -> None:
        """Adds a pass's share of the global gradient. last: of this step; the sum over the workers begins with it, or
        with each shard's last."""
        in_order = self._gradients.in_order
        if last_of_shard if in_order else last:
            self._gradients.enable_sync()
        loss.backward()
        if in_order and last_of_shard:
            self._gradients.end_shard(last=last)
            if not last:
                self._gradients.zero()

    def step(self, lr: float) -> StepOutcome:
        """Takes the step, if the gradient is finite: the same answer on all workers. Raises: PeerLostError."""
        self._gradients.wait()
        norm, clip_norm = self._gradients.norm(), self._config.optim.clip_norm
        if not math.isfinite(norm):
            return "skipped"
        if clip_norm is not None and norm > clip_norm:
            self._gradients.scale(clip_norm / (norm + 1e-6))
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        return "taken"

    def abandon(self) -> StepOutcome:
        """Instead of `step`, where the loss was not finite."""
        self._gradients.wait()
        return "skipped"

    def weights(self) -> Iterator[TextFragment]:
        """The weights that the passes use."""
        for name, parameter in self._named:
            yield TextFragment(name, 0, {WEIGHTS: parameter.data.view(-1)})

    def fragments(self, steps: int) -> Iterator[TextFragment]:
        """Every parameter whole. steps: how many have been taken, for AdamW's own count of them."""
        for name, parameter in self._named:
            state = self._optimizer.state[parameter]
            if not state:
                state |= {kind: torch.zeros_like(parameter) for kind in KINDS[1:]}
            state["step"] = torch.tensor(float(steps), device=self._device)
            tensors = {WEIGHTS: parameter.detach(), **{kind: state[kind] for kind in KINDS[1:]}}
            yield TextFragment(name, 0, {kind: tensor.reshape(-1) for kind, tensor in tensors.items()})

    def close(self) -> None:
        """Nothing outlives the object."""
