"""How much arithmetic a token costs, and what a device can do: for tokens a second as a part of the peak (MFU)."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import Iterator
from typing import Any

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
"""Dense bfloat16 peak of NVIDIA's GPUs in 10^12 FLOP/s (of V100 and T4, which have none, float16), with what the data sheet of the
product prints; by words of the device's name, of which the first that fit count."""


def peak_flops(device_name: str) -> float | None:
    """FLOP/s of a GPU by its name (torch.cuda.get_device_name); None if it is not in the table, or is a part of a GPU (MIG)."""
    words = set(re.split(r"[\s_-]+", device_name.upper()))
    if "MIG" in words:
        return None
    return next((tflops * 1e12 for name, tflops, _ in PEAK_TFLOPS if set(name.upper().split()) <= words), None)


def flops_per_token(config: Any, parameters: int, sequence_length: int, *, causal: bool) -> float:
    """Of a forward and backward pass: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    config: a Hugging Face configuration (L layers, H heads of Q, together the width). parameters: N, without the input embeddings
    (`counted_parameters`). Attention looks at T positions, on average at half of them where it is causal. What activation
    checkpointing computes again does not count; weights that LoRA leaves as they are count as if they were trained.
    """
    layers = config.num_hidden_layers
    width = config.hidden_size
    seen = sequence_length / 2 if causal else sequence_length
    return 6.0 * parameters + 12.0 * layers * width * seen


def counted_parameters(model: Any) -> int:
    """N: all parameters but the input embeddings; a matrix that is output embedding as well counts, as it is multiplied with."""
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = output is not None and output.weight is embedding
    total = sum(sizes_of(model))
    return total if tied else total - getattr(embedding, "ds_numel", embedding.numel())


def sizes_of(model: Any) -> Iterator[int]:
    """Of each parameter; of one that ZeRO-3 has cut up its whole size."""
    return (getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def mfu(tokens_per_s: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation, a fraction (Chowdhery et al. 2022, PaLM, appendix B).

    tokens_per_s: of all devices. flops_per_token: forward and backward. peak: of all devices together, in FLOP/s.
    """
    return tokens_per_s * flops_per_token / peak
