"""How much arithmetic a token costs, and what a device can do: for tokens a second as a part of the peak (MFU)."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from typing import Any

PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.4, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "A100": 312.0, "L40S": 362.05,
    "L40": 181.05, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A30": 165.0, "V100": 125.0, "T4": 65.0,
}
"""Dense bfloat16 peak (V100, T4: float16) in 10^12 FLOP/s, without sparsity, by a part of the device's name; the first that
fits counts. From NVIDIA's data sheets of each product, which print twice as much where they count sparsity."""


def peak_flops(device_name: str) -> float | None:
    """FLOP/s of a GPU by its name (torch.cuda.get_device_name); None if it is not in the table."""
    return next((tflops * 1e12 for part, tflops in PEAK_TFLOPS.items() if all(word in device_name for word in part.split())), None)


def flops_per_token(config: Any, parameters: int, sequence_length: int, *, causal: bool) -> float:
    """Of a forward and backward pass: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    config: a Hugging Face configuration. parameters: N, without the input embeddings. Attention looks at T positions, on average
    at half of them where it is causal. What activation checkpointing computes again does not count.
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
    total = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    return total if tied else total - getattr(embedding, "ds_numel", embedding.numel())
