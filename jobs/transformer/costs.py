"""What a model costs: the arithmetic of a token, beside what a device can do (MFU);
and the bytes that it keeps, by its shape."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.transformer.config import ModelConfig

PEAK_TFLOPS: tuple[tuple[str, float, str], ...] = (
    ("GB200", 2500.0, "GB200 NVL72 data sheet: 360 x 10^15 with sparsity for 72 GPUs"),
    ("B200", 2250.0, "HGX B200 data sheet: 36 x 10^15 with sparsity for 8 GPUs"),
    ("GH200", 989.4, "GH200 data sheet: 1,979 with sparsity"),
    ("H200 NVL", 835.5, "H200 data sheet: 1,671 with sparsity"),
    ("H200", 989.4, "H200 data sheet: 1,979 with sparsity"),
    ("H100 PCIe", 756.0, "H100 data sheet: 1,513 with sparsity"),
    ("H100 NVL", 835.5, "H100 data sheet: 1,671 with sparsity"),
    ("H100", 989.4, "H100 data sheet, SXM: 1,979 with sparsity; the architecture's white paper: 989.4 without"),
    ("A100", 312.0, "A100 data sheet: 312, 624 with sparsity"),
    ("A40", 149.7, "A40 data sheet: 149.7, 299.4 with sparsity"),
    ("A30", 165.0, "A30 data sheet: 165, 330 with sparsity"),
    ("A10G", 70.0, "A10G data sheet: 70, 140 with sparsity"),
    ("A10", 125.0, "A10 data sheet: 125, 250 with sparsity"),
    ("L40S", 362.05, "L40S data sheet: 362.05, 733 with sparsity"),
    ("L40", 181.05, "L40 data sheet: 181.05, 362.1 with sparsity"),
    ("L4", 121.0, "L4 data sheet: 242 with sparsity"),
    ("V100S", 130.0, "V100 data sheet, V100S PCIe: float16"),
    ("V100 PCIE", 112.0, "V100 data sheet, PCIe: float16"),
    ("V100", 125.0, "V100 data sheet, SXM2: float16"),
    ("T4", 65.0, "T4 data sheet: float16"),
)
"""Dense bfloat16 peak of NVIDIA's GPUs in 10^12 FLOP/s (of V100 and T4, which have none, float16), with what the data
sheet of the product prints; by words of the device's name, of which the first that fit count."""


def peak_flops(device_name: str) -> float | None:
    """FLOP/s of a GPU by its name (torch.cuda.get_device_name);
    None if it is not in the table, or is a part of a GPU (MIG)."""
    words = set(re.split(r"[\s_-]+", device_name.upper()))
    if "MIG" in words:
        return None
    return next((tflops * 1e12 for name, tflops, _ in PEAK_TFLOPS if set(name.upper().split()) <= words), None)


def flops_per_token(config: Any, parameters: int, sequence_length: int, *, causal: bool) -> float:
    """Of a forward and backward pass: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    config: a Hugging Face configuration (L layers, H heads of Q, together the width). parameters: N, without the input
    embeddings (`counted_parameters`). Attention looks at T positions, on average at half of them where it is causal.
    What activation checkpointing computes again does not count;
    weights that LoRA leaves as they are count as if they were trained.
    """
    layers = config.num_hidden_layers
    width = config.hidden_size
    seen = sequence_length / 2 if causal else sequence_length
    return 6.0 * parameters + 12.0 * layers * width * seen


def counted_parameters(model: Any) -> int:
    """N: all parameters but the input embeddings;
    a matrix that is output embedding as well counts, as it is multiplied with."""
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = output is not None and output.weight is embedding
    total = sum(sizes_of(model))
    return total if tied else total - getattr(embedding, "ds_numel", embedding.numel())


def sizes_of(model: Any) -> Iterator[int]:
    """Of each parameter; of one that ZeRO-3 has cut up its whole size; and of each module what it has in 4 bits."""
    yield from (getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    yield from (getattr(module, "packed_weights", 0) for module in model.modules())


def mfu(tokens_per_s: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation, a fraction (Chowdhery et al. 2022, PaLM, appendix B).

    tokens_per_s: of all devices. flops_per_token: forward and backward. peak: of all devices together, in FLOP/s.
    """
    return tokens_per_s * flops_per_token / peak


# ── bytes ──
@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the formulas need of a model. Numbers of parameters are of elements; a tied matrix counts once."""

    parameters: int
    trained: int
    cast: int
    """Of linear layers: what autocast copies."""
    packed: int = 0
    """Of layers that are held in 4 bits."""
    largest: int
    """Of the largest module, which zero3 gathers whole."""
    largest_trained: int
    """Of the largest single parameter that is trained: its gradient is whole before it is spread."""
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    gated: bool
    fused: bool
    """Whether one matrix gives query, key and value: their rotated copies are kept beside it."""
    rms_norm: bool
    """Whether its norms are RMSNorm, which Hugging Face computes in float32 and in two kept steps; else LayerNorm."""
    projections: int
    """Linear layers of a layer that read a norm's output."""
    outputs: int
    """Logits a position (the vocabulary), or 0 where there is one row of logits a text."""
    masked: int
    """Elements of a layer and token under a dropout, of whose mask a byte each is kept."""


def shape_of_model(model: Any, wanted: ModelConfig | None = None) -> Shape:
    """Of a Hugging Face model, wherever its tensors are. wanted: which updates of low rank it is still to get."""
    from torch import nn

    about = model.config
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    in_layers = [m for name, m in linear.items() if re.search(r"\.\d+\.", name)]
    mlp = getattr(about, "intermediate_size", None) or about.hidden_dim
    # gate and up in one matrix, as query, key and value then are
    fused = any(m.out_features == 2 * mlp for m in in_layers)
    causal = "CausalLM" in type(model).__name__
    heads, layers = about.num_attention_heads, about.num_hidden_layers
    return Shape(
        **_counts(model, linear, wanted), layers=layers, width=about.hidden_size, heads=heads,
        kv_heads=getattr(about, "num_key_value_heads", None) or heads, mlp_width=mlp, fused=fused,
        gated=fused or any(name.endswith("gate_proj") for name in linear),
        rms_norm=any("RMSNorm" in type(m).__name__ for m in model.modules()),
        # attention's output is one as well
        projections=sum(m.in_features == about.hidden_size for m in in_layers) // layers - 1,
        outputs=about.vocab_size if causal else 0, masked=0 if causal else _masked(about, mlp),
    )


def _counts(model: Any, linear: dict[str, Any], wanted: ModelConfig | None) -> dict[str, int]:
    """Numbers of parameters, with the updates of low rank and the copies of heads that weights/lora.py adds."""
    from jobs.transformer.weights.lora import adapted_layers, heads_of

    total = sum(p.numel() for p in model.parameters())
    whole = [p.numel() for p in model.parameters() if p.requires_grad]
    updates: list[int] = []
    lengths = copied = packed = 0
    if wanted is not None and wanted.lora_rank:
        adapted = adapted_layers(model, wanted).values()
        copied = sum(p.numel() for name in heads_of(model) for p in model.get_submodule(name).parameters())
        updates = [size * wanted.lora_rank for m in adapted for size in (m.in_features, m.out_features)]
        lengths = sum(m.out_features for m in adapted) if wanted.dora else 0
        whole = [*updates, copied, lengths]
        packed = sum(m.weight.numel() for m in adapted) if wanted.lora_base else 0
    cast_ = {p: p.numel() for m in linear.values() for p in m.parameters()}
    return {
        "parameters": total + sum(updates) + copied + lengths, "trained": sum(whole),
        "cast": sum(cast_.values()) + sum(updates) - packed, "packed": packed,
        "largest": max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()),
        "largest_trained": max(whole),
    }


def _masked(about: Any, mlp: int) -> int:
    """DistilBERT has a dropout after the MLP, ModernBERT inside it,
    BERT and its kin after the MLP and after attention."""
    if getattr(about, "mlp_dropout", 0.0):
        return mlp
    return about.hidden_size * (bool(getattr(about, "dropout", 0.0))
                                + 2 * bool(getattr(about, "hidden_dropout_prob", 0.0)))


def layer_bytes(shape: Shape, *, element: int, residual: int) -> float:
    """What one layer keeps of one token for the backward pass.

    Korthikanti et al. 2022, section 4.1, count 34 bytes a unit of width, for GPT with 2-byte elements and dropout, and
    a matrix of scores; here attention keeps none (Dao et al. 2022), key and value have their own number of heads, and
    the MLP may be gated. element: bytes of what is multiplied. residual: bytes between layers, which is 4 under
    autocast, where each linear layer keeps its own copy of its input.
    """
    w = shape.width
    inputs = (2 if residual == element else shape.projections) * element * w
    # query, output; key, value; before
    attention = element * (2 * w + 2 * w * shape.kv_heads / shape.heads + 2 * w * shape.fused)
    # gate, its SiLU, up, their product; or before and after GELU
    mlp = element * (4 if shape.gated else 2) * shape.mlp_width
    return 2 * _norm_bytes(shape, residual) + inputs + attention + mlp + shape.masked


def _norm_bytes(shape: Shape, residual: int) -> float:
    """LayerNorm keeps its input; RMSNorm that in float32, and the normalised before it is scaled."""
    return shape.width * (4 + residual if shape.rms_norm else residual)


def kept_bytes(shape: Shape, tokens: int, *, element: int, residual: int, checkpointing: bool) -> float:
    """What a forward pass keeps up to the last layer; with checkpointing each layer's input only."""
    outside = _norm_bytes(shape, residual) + element * shape.width
    of_layer = residual * shape.width if checkpointing else layer_bytes(shape, element=element, residual=residual)
    return tokens * (of_layer * shape.layers + outside)


def activation_bytes(shape: Shape, tokens: int, *, element: int, residual: int, checkpointing: bool) -> float:
    """The most at a time: as the loss is computed or, with checkpointing, as a layer is computed again.

    Logits are there in `element` bytes, in float32, and as logarithms of probabilities (Korthikanti et al.
    2022, section 4.3).
    """
    loss = tokens * shape.outputs * (8.0 + (element if element < 4 else 0.0))
    again = tokens * layer_bytes(shape, element=element, residual=residual) if checkpointing else 0.0
    kept = kept_bytes(shape, tokens, element=element, residual=residual, checkpointing=checkpointing)
    return kept + max(loss, again)
