"""Tokens a second and MFU, shown live: what part of the device's peak the model's own arithmetic reaches."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from jobs.common.training.context import TrainContext
from jobs.transformer.config import TransformerConfig
from jobs.transformer.costs import counted_parameters, flops_per_token, mfu, peak_flops

_WARMUP_STEPS = 5


@dataclass
class Throughput:
    """Of all workers, over the steps since the first few."""

    flops_per_token: float
    peak_flops: float | None
    """Of all workers' devices together; None where it is not known."""
    tokens: float = 0.0
    seconds: float = 0.0
    _count: int = 0
    _last: float = field(default_factory=time.perf_counter)

    @staticmethod
    def of(context: TrainContext, config: TransformerConfig, model: Any, device: torch.device) -> "Throughput":
        known = config.hardware.peak_tflops
        peak = (known * 1e12 if known else peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda"
                else None)
        flops = flops_per_token(model.config, counted_parameters(model), config.data.max_length,
                                causal=config.task != "classify")
        return Throughput(flops, peak * context.world_size if peak else None)

    def step(self, context: TrainContext, tokens: float) -> None:
        """tokens: real ones of the global step."""
        now = time.perf_counter()
        taken, self._last = now - self._last, now
        self._count += 1
        if self._count <= _WARMUP_STEPS or taken > 10 * max(1e-9, context.median_step_s):  # an evaluation lay between
            return
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + taken
        rate = self.tokens / self.seconds
        shown = {"tokens/s": f"{rate:,.0f}"}
        if self.peak_flops:
            shown["MFU"] = f"{mfu(rate, self.flops_per_token, self.peak_flops):.1%}"
        context.update_status(shown=shown)
