"""Will it fit? The bytes that each strategy needs on a GPU, before there is one.

    python -m jobs.transformer.plan --model.name llama-8b --gpus 8 --gpu-memory 80

Formulas: what ZeRO spreads is Rajbhandari et al. 2020, section 5; activations are Korthikanti et al. 2022, section 4, counted here
for a gated or plain MLP and for attention that keeps no matrix of scores. Needs no cluster and no GPU.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.errors import ConfigError, TrainyardError
from jobs.common.config import require
from jobs.transformer.config import HardwareConfig, ModelConfig, TransformerConfig
from jobs.transformer.presets import preset

RESERVED = 2.0e9
"""Bytes of a GPU that CUDA's context, libraries and the allocator's fragments take: an allowance, not a formula."""
_BUCKET_BYTES = 25e6
_STRATEGIES = (("ddp", "none"), ("zero1", "none"), ("zero2", "none"), ("zero3", "none"), ("zero1", "cpu"), ("zero2", "cpu"),
               ("zero3", "cpu"), ("zero3", "cpu, weights too"))
"""From the least that is sent and moved to the most."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Prints what each strategy needs on a GPU, and which of them fit."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="llama-8b"))
    hardware: HardwareConfig = field(default_factory=lambda: HardwareConfig(precision="bf16"))
    task: Literal["classify", "generate"] = "generate"
    """What the model is trained for."""
    gpus: int = 8
    """Number of GPUs, one a worker."""
    gpu_memory: float = 80.0
    """Memory of each, in 10^9 bytes."""
    sequence_length: int = 2048
    """Tokens of a row."""
    rows_per_gpu: int = 1
    """Rows in one forward pass on a GPU."""
    vocab_size: int | None = None
    """Tokens of the vocabulary; by default the model's own as published, or 8192."""

    def __post_init__(self) -> None:
        for name in ("gpus", "sequence_length", "rows_per_gpu"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.gpu_memory > 0, "gpu_memory", self.gpu_memory, "must be more than 0")


@dataclass(frozen=True)
class Shape:
    """What the formulas need of a model."""

    parameters: int
    trained: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    gated: bool
    fused: bool
    """Whether one matrix gives query, key and value: their rotated copies are kept beside it."""
    outputs: int
    """Logits a position (the vocabulary), or 0 where there is one row of logits a text."""
    dropouts: int
    """Dropouts a layer that keep a mask of (T, width) of one byte."""
    embeddings: int
    """Inputs of (T, width) that are kept before the first layer: an encoder normalises its embeddings."""
    largest: int
    """Parameters of the largest module, which zero3 gathers whole."""


@dataclass(frozen=True)
class Row:
    """Bytes on one GPU, and in its host's memory."""

    strategy: str
    offload: str
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    host: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers


def shape_of(config: PlanConfig) -> Shape:
    """Counts the model's tensors on torch's meta device, which holds none. Raises: ConfigError."""
    from jobs.transformer.model import skeleton

    wanted = config.model
    published = preset(wanted.name, config.task).vocab_size if wanted.is_preset else 0
    details = {"vocab_size": config.vocab_size or published or (8192 if wanted.is_preset else 1), "pad_id": 0, "start_id": 0}
    model = skeleton(TransformerConfig(task=config.task, data=_data(config.task), model=wanted), details, ("a", "b"))
    return shape_of_model(model, wanted.lora_rank)


def shape_of_model(model: Any, lora_rank: int | None = None) -> Shape:
    """Of a Hugging Face model, wherever its tensors are."""
    from torch import nn

    about = model.config
    total = sum(p.numel() for p in model.parameters())
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    mlp = getattr(about, "intermediate_size", None) or about.hidden_dim
    fused = any(m.out_features == 2 * mlp for m in linear)  # gate and up in one matrix, as query, key and value then are
    gated = fused or any(name.endswith("gate_proj") for name, _ in model.named_modules())
    low_rank = sum((m.in_features + m.out_features) * lora_rank for m in linear) if lora_rank else 0
    causal = "CausalLM" in type(model).__name__
    return Shape(
        parameters=total + low_rank, trained=low_rank or total, layers=about.num_hidden_layers, width=about.hidden_size,
        heads=about.num_attention_heads, kv_heads=getattr(about, "num_key_value_heads", None) or about.num_attention_heads,
        mlp_width=mlp, gated=gated, fused=fused, outputs=about.vocab_size if causal else 0,
        dropouts=0 if causal else 2 * bool(getattr(about, "dropout", getattr(about, "hidden_dropout_prob", 0.0))),
        embeddings=0 if causal else 2,
        largest=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()),
    )


def activation_bytes(shape: Shape, rows: int, length: int, *, element: int, checkpointing: bool) -> float:
    """What a forward pass keeps for its backward pass.

    Of a layer and token, in elements: two norms' inputs and outputs (4 w), the query, key and value and attention's output
    (2 w + 2 w kv/heads), and of the MLP its inner activations (4 m gated: gate, its SiLU, up, their product; 2 m plain). With
    checkpointing only each layer's input, and one layer as above while it is computed again. Logits and their softmax are float32.
    """
    w, tokens = shape.width, rows * length
    inner = (4 if shape.gated else 2) * shape.mlp_width
    attention = 2 * w + 2 * w * shape.kv_heads / shape.heads + 2 * w * shape.fused
    of_layer = element * (4 * w + attention + inner) + shape.dropouts * w
    layers = element * w * shape.layers + of_layer if checkpointing else of_layer * shape.layers
    return tokens * (layers + element * w * shape.embeddings + shape.outputs * (element + 4.0 + (4.0 if element < 4 else 0.0)))


def plan(config: PlanConfig, shape: Shape | None = None) -> list[Row]:
    """A row for each strategy and offload. Raises: ConfigError for a model that is not to be had."""
    shape = shape or shape_of(config)
    return [_row(config, shape, strategy, offload) for strategy, offload in _STRATEGIES]


def _row(config: PlanConfig, shape: Shape, strategy: str, offload: str) -> Row:
    """ddp computes from float32 weights, which autocast copies; DeepSpeed holds weights and gradients in `precision`.

    Moments (2 x 4 bytes a trained parameter) and, under ZeRO, the float32 copy of the weights are spread over the GPUs by all
    stages, gradients by zero2 and zero3, weights by zero3 (Rajbhandari et al. 2020, figure 1).
    """
    half = config.hardware.precision != "fp32"
    element, n, all_, trained = (2 if half else 4), config.gpus, shape.parameters, shape.trained
    stage = 0 if strategy == "ddp" else int(strategy[-1])
    kept = activation_bytes(shape, config.rows_per_gpu, config.sequence_length, element=element,
                            checkpointing=config.model.activation_checkpointing)
    if stage == 0:
        return Row(strategy, offload, 4.0 * all_ + (2.0 * all_ if half else 0.0), 4.0 * trained, 8.0 * trained, kept, 0.0, 0.0)
    weights = element * all_ / (n if stage == 3 else 1)
    gradients = element * trained / (n if stage >= 2 else 1)
    optimizer = 12.0 * trained / n
    buffers = 2 * _BUCKET_BYTES / 4 * element + (element * shape.largest if stage == 3 else 0.0)
    host = 0.0
    if offload != "none":
        host, optimizer = optimizer + 4.0 * trained / n, 0.0
        gradients = gradients if stage == 1 else 0.0
    if "weights" in offload:
        host, weights = host + weights, 0.0
    return Row(strategy, offload, weights, gradients, optimizer, kept, buffers, host)


def table(config: PlanConfig, rows: Sequence[Row], shape: Shape) -> str:
    """For people: 10^9 bytes on one GPU."""
    room = config.gpu_memory * 1e9 - RESERVED
    head = ("strategy", "offload", "weights", "gradients", "optimiser", "activations", "buffers", "total", "host", "")
    lines = [head, *((r.strategy, r.offload, *(f"{value / 1e9:.2f}" for value in (
        r.parameters, r.gradients, r.optimizer, r.activations, r.buffers, r.total, r.host)),
        "fits" if r.total <= room else "too large") for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    cells = [[cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
             for line in lines]
    text = "\n".join("  ".join(line).rstrip() for line in cells)
    title = (f"{config.model.name}: {shape.parameters / 1e9:.3f} x 10^9 parameters, {config.hardware.precision}, "
             f"{config.gpus} GPUs of {config.gpu_memory:g} GB ({RESERVED / 1e9:g} GB kept free), "
             f"{config.rows_per_gpu} x {config.sequence_length} tokens a pass")
    return f"{title}\nGB on each GPU, and of its host's memory:\n{text}\n{advice(config, rows, room)}"


def advice(config: PlanConfig, rows: Sequence[Row], room: float) -> str:
    """The first strategy that fits, or what to change."""
    fitting = next((row for row in rows if row.total <= room), None)
    if fitting is not None:
        offload = "" if fitting.offload == "none" else " --scale.offload cpu" + (
            " --scale.offload-parameters" if "weights" in fitting.offload else "")
        return f"use: --scale.strategy {fitting.strategy}{offload}"
    what = "a smaller --sequence-length, more --gpus, or --model.lora-rank"
    return "none fits: try " + (what if config.model.activation_checkpointing else f"--model.activation-checkpointing, {what}")


def _data(task: str) -> Any:
    from jobs.transformer.config import TextDataConfig

    return TextDataConfig(uri="stdlib" if task == "generate" else "languages")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the plan. Returns the exit code: 2 for a mistake of the user's."""
    import contextlib
    import io

    import tyro

    from jobs.common.progress import fail

    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            config = tyro.cli(PlanConfig, args=arguments, prog="python -m jobs.transformer.plan")
        if config.hardware.precision == "fp16":
            raise ConfigError("--hardware.precision fp16: its plan is that of bf16: pass that")
        shape = shape_of(config)
        print(table(config, plan(config, shape), shape))
    except SystemExit as stop:
        if stop.code:
            fail(" ".join(heard.getvalue().split()))
        return 2 if stop.code else 0
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
