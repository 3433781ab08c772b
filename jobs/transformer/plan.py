"""Will it fit? The bytes that each strategy needs on a GPU, before there is one.

    python -m jobs.transformer.plan --model.name llama-8b --gpus 8 --gpu-memory 80

Needs no cluster and no GPU: parameters are counted on torch's meta device, the rest is arithmetic. What ZeRO spreads is
Rajbhandari et al. 2020, sections 3 and 5, with what DeepSpeed 0.19 holds beside it; activations are counted as
Korthikanti et al. 2022 do in section 4, for the layers that there are here.
tests/unit/test_plan.py holds both against tensors really kept.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cluster.core.errors import TrainyardError
from jobs.common.config import parse, require
from jobs.common.runs.console import fail
from jobs.transformer.config import EMBEDDED, HardwareConfig, ModelConfig, ScaleConfig, TransformerConfig
from jobs.transformer.costs import Shape, activation_bytes, shape_of_model
from jobs.transformer.presets import preset
from jobs.transformer.strategies.table import STRATEGIES
from jobs.transformer.text.config import Task, TextDataConfig

RESERVED = 2.0e9
"""Bytes of a GPU that CUDA's context, libraries and the allocator's fragments take: an allowance, not a formula."""
_BUCKET_ELEMENTS = ScaleConfig().bucket_mb * 1e6 / 4
_REUSE_ELEMENTS = 1e9
"""DeepSpeed's default of stage3_max_reuse_distance, and of sub_group_size."""
_NF4_BYTES = 0.5 + 4 / 64
"""Of a weight in 4 bits: 64 have a float32 in common."""
_STRATEGIES = (("ddp", "none"), ("zero1", "none"), ("zero2", "none"), ("zero3", "none"), ("zero1", "cpu"),
               ("zero2", "cpu"),
               ("zero3", "cpu"), ("zero3", "cpu, weights too"))
"""From the least that is sent and moved to the most."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Prints what each strategy needs on a GPU, and which of them fit."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="llama-8b"))
    hardware: HardwareConfig = field(default_factory=lambda: HardwareConfig(precision="bf16"))
    task: Task = "generate"
    """What the model is trained for."""
    gpus: int = 8
    """Number of GPUs, one a worker."""
    gpu_memory: float = 80.0
    """Memory of each, in 10^9 bytes."""
    sequence_length: int = 2048
    """Tokens of a row."""
    rows_per_gpu: int = 1
    """Rows in one forward pass on a GPU; to prefer, each is two conversations."""
    vocab_size: int | None = None
    """Tokens of a preset's vocabulary; by default as published, or 8192. Of a folder or hub name, its own counts."""

    def __post_init__(self) -> None:
        for name in ("gpus", "sequence_length", "rows_per_gpu"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.gpu_memory > 0, "gpu_memory", self.gpu_memory, "must be more than 0")
        require(self.vocab_size is None or self.vocab_size >= 1, "vocab_size", self.vocab_size, "must be at least 1")
        require(self.hardware.precision != "fp16", "hardware.precision", "fp16", "its plan is that of bf16: pass that")
        require(self.task == "classify" or self.model.name != "distilbert", "model.name", self.model.name,
                "it sees both sides of a token, so it cannot generate: pass --task classify")

    @property
    def tokens_per_pass(self) -> int:
        return self.rows_per_gpu * self.sequence_length * (2 if self.task == "prefer" else 1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Bytes on one GPU, and in its host's memory for each GPU."""

    strategy: str
    offload: str
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    """Buckets, and with zero3 weights that are gathered: in use while there are activations."""
    step: float
    """What the optimiser adds while it steps, when there are no activations."""
    host: float

    @property
    def total(self) -> float:
        """The most at a time."""
        return self.parameters + self.gradients + self.optimizer + max(self.activations + self.buffers, self.step)


# ── the model ──
def shape_of(config: PlanConfig) -> Shape:
    """Counts the model's tensors on torch's meta device, which holds none.

    Raises: ConfigError if there is no such model, or it takes no rows of that length.
    """
    from jobs.transformer.build import skeleton

    wanted = config.model
    published = preset(wanted.name, config.task).vocab_size if wanted.is_preset else 0
    details = {"vocab_size": config.vocab_size or published or 8192, "pad_id": 0, "start_id": 0, "end_id": None}
    data = TextDataConfig(uri=EMBEDDED.get(config.task, "pairs"))
    model = skeleton(TransformerConfig(task=config.task, data=data, model=wanted), details, ("a", "b"))
    most = getattr(model.config, "max_position_embeddings", None)
    require(most is None or config.sequence_length <= most, "sequence_length", config.sequence_length,
            f"{wanted.name} takes {most} tokens: pass {most} or less")
    return shape_of_model(model, wanted)


# ── strategies ──
def plan(config: PlanConfig, shape: Shape | None = None) -> list[Row]:
    """A row for each strategy and offload, the cheapest first.
    Raises: ConfigError for a model that is not to be had."""
    shape = shape or shape_of(config)
    return [_zero(config, shape, stage, offload) if (stage := STRATEGIES[name].zero_stage) else _ddp(config, shape)
            for name, offload in _STRATEGIES if config.model.lora_base is None or STRATEGIES[name].packs]


def _ddp(config: PlanConfig, shape: Shape) -> Row:
    """float32 weights, gradients and two moments: 16 bytes a parameter (Rajbhandari et al. 2020, section 3.1).

    Autocast adds a copy of the linear layers' weights, which is kept from the forward pass for the backward pass; but
    of packed ones, which are unpacked one at a time.
    """
    element = _element(config)
    copies = element * shape.cast if element < 4 else 0.0
    weights = 4.0 * (shape.parameters - shape.packed) + _NF4_BYTES * shape.packed
    return Row(strategy="ddp", offload="none", parameters=weights + copies,
               gradients=4.0 * shape.trained,
               optimizer=8.0 * shape.trained, activations=_activations(config, shape, residual=4),
               buffers=element * shape.largest if shape.packed else 0.0,
               step=0.0, host=0.0)


def _zero(config: PlanConfig, shape: Shape, stage: int, offload: str) -> Row:
    """DeepSpeed 0.19 holds weights and gradients in `precision`, and a float32 copy of the weights with two moments.

    That copy and the moments (12 bytes a trained parameter) are spread by all stages, gradients by 2 and 3, weights by
    3 (Rajbhandari et al. 2020, section 5, figure 1). Stage 1 holds whole gradients between the passes of a step;
    DeepSpeed's own estimate_zero2_model_states_mem_needs is the sum for stage 2, less AdamW's scratch in `step`.
    """
    e, n, trained = _element(config), config.gpus, shape.trained
    weights = e * shape.parameters / (n if stage == 3 else 1)
    gradients, optimizer = e * trained / (n if stage > 1 else 1), 12.0 * trained / n
    # the gradient in float32, and the root of the second moment
    step, host = 8.0 * min(trained / n, _REUSE_ELEMENTS), 0.0
    if offload != "none":
        host, optimizer, step = optimizer + _offloaded(shape, e, n, stage), 0.0, 0.0
        gradients = gradients if stage == 1 else 0.0
    if "weights" in offload:
        host, weights = host + weights, 0.0
    return Row(strategy=f"zero{stage}", offload=offload, parameters=weights, gradients=gradients, optimizer=optimizer,
               step=step,
               activations=_activations(config, shape, residual=e), buffers=_buffers(shape, e, stage, offload),
               host=host)


def _offloaded(shape: Shape, element: int, gpus: int, stage: int) -> float:
    """In the host's memory beside weights and moments: gradients in float32 and in `precision`; stages 1 and 2 copy the
    new weights there, stage 2 sums up the passes, and both have room for the largest gradient."""
    copies = {1: 1, 2: 2, 3: 1}[stage]
    return (4.0 + copies * element) * shape.trained / gpus + (element * shape.largest_trained if stage < 3 else 0.0)


def _buffers(shape: Shape, element: int, stage: int, offload: str) -> float:
    """Two buckets; the largest gradient before it is spread; and of stage 3 the weights that are gathered.

    Those are one module's and a bucket fetched ahead; but DeepSpeed lets none go that is used again within 10^9
    elements (stage3_max_reuse_distance), so that where forward turns into backward the last half of these are there.
    """
    whole = shape.largest_trained if stage > 1 or offload != "none" else 0
    gathered = min(shape.parameters, max(shape.largest, _REUSE_ELEMENTS / 2) + _BUCKET_ELEMENTS) if stage == 3 else 0.0
    return element * (2 * _BUCKET_ELEMENTS + whole + gathered)


def _element(config: PlanConfig) -> int:
    return 4 if config.hardware.precision == "fp32" else 2


def _activations(config: PlanConfig, shape: Shape, residual: int) -> float:
    return activation_bytes(shape, config.tokens_per_pass, element=_element(config),
                            residual=residual,
                            checkpointing=config.model.activation_checkpointing)


# ── for people ──
def table(config: PlanConfig, rows: Sequence[Row], shape: Shape) -> str:
    """10^9 bytes on one GPU, and what to use."""
    room = config.gpu_memory * 1e9 - RESERVED
    head = ("strategy", "offload", "weights", "gradients", "optimiser", "activations", "buffers", "step", "total",
            "host", "")
    lines = [head, *((r.strategy, r.offload, *(f"{value / 1e9:.2f}" for value in (
        r.parameters, r.gradients, r.optimizer, r.activations, r.buffers, r.step, r.total, r.host)),
        "fits" if r.total <= room else "too large") for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    cells = [[cell.ljust(w) if i in (0, 1, 10) else cell.rjust(w)
              for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
             for line in lines]
    text = "\n".join("  ".join(line).rstrip() for line in cells)
    title = (f"{config.model.origin}: {shape.parameters / 1e9:.3f} x 10^9 parameters, {config.hardware.precision}, "
             f"{config.gpus} GPUs of {config.gpu_memory:g} GB ({RESERVED / 1e9:g} GB kept free), "
             f"{config.tokens_per_pass // config.sequence_length} x {config.sequence_length} tokens a pass")
    legend = ("GB (10^9 bytes) on each GPU; total: weights, gradients, optimiser, and the larger of activations with "
              "buffers, and\nwhat a step of the optimiser adds; host: memory of the machine for each GPU:")
    return f"{title}\n{legend}\n{text}\n{advice(config, rows, room)}"


def advice(config: PlanConfig, rows: Sequence[Row], room: float) -> str:
    """One sentence: the first strategy that fits, or what to change. room: bytes of a GPU that may be used."""
    fitting = next((row for row in rows if row.total <= room), None)
    if fitting is not None:
        offload = "" if fitting.offload == "none" else " --scale.offload cpu" + (
            " --scale.offload-parameters" if "weights" in fitting.offload else "")
        return (f"use: --scale.strategy {fitting.strategy}{offload}: of what fits it sends and moves the least "
                f"({fitting.total / 1e9:.1f} of {room / 1e9:.1f} GB).")
    least = min(rows, key=lambda row: row.total)
    checkpointing = "" if config.model.activation_checkpointing else "--model.activation-checkpointing, "
    return (f"none fits: the smallest, {least.strategy} with offload {least.offload}, needs {least.total / 1e9:.1f} of "
            f"{room / 1e9:.1f} GB: try {checkpointing}a smaller --sequence-length, more --gpus, or --model.lora-rank.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the plan. Returns the exit code: 2 for a mistake of the user's."""
    try:
        config: PlanConfig = parse(cast(Any, PlanConfig), sys.argv[1:] if arguments is None else arguments,
                                   "python -m jobs.transformer.plan")
        _quieten_hub(config)
        shape = shape_of(config)
        print(table(config, plan(config, shape), shape))
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    return 0


def _quieten_hub(config: PlanConfig) -> None:
    """A hub that is not reached is one message of ours, not six of its own before it."""
    if not config.model.is_preset:
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
