"""The memory plan: published sizes, and formulas against the bytes of tensors that are really held (ZeRO: test_strategies.py)."""

from typing import Any

import pytest
import torch

from jobs.transformer.flops import counted_parameters, flops_per_token, peak_flops
from jobs.transformer.model import build_model, classification_loss, token_losses
from jobs.transformer.plan import PlanConfig, activation_bytes, main, plan, shape_of, shape_of_model
from tests.unit.token_rows import config_of


@pytest.mark.parametrize(("name", "task", "published"), [
    ("llama-8b", "generate", 8.03e9), ("llama-1b", "generate", 1.236e9), ("llama-124m", "generate", 1.24e8),
    ("distilbert", "classify", 6.7e7),
])
def test_presets_have_their_published_sizes(name: str, task: Any, published: float) -> None:
    from jobs.transformer.config import ModelConfig

    assert shape_of(PlanConfig(model=ModelConfig(name=name), task=task)).parameters == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", ["generate", "classify"])
def test_activations_are_those_that_are_really_kept(task: str, checkpointing: bool) -> None:
    groups: dict[str, Any] = {"data": {"uri": "stdlib"}} if task == "generate" else {"data": {"uri": "languages"}}
    model = {"layers": 6, "heads": 4, "width": 128, "dropout": 0.0, "activation_checkpointing": checkpointing}
    config = config_of(task=task, model=model, **groups)
    details = {"max_length": 256, "vocab_size": 512, "pad_id": 0, "start_id": 0, "end_id": None}
    built = build_model(config, details, ("a", "b") if task == "classify" else ()).train()
    tokens = torch.randint(1, 512, (8, 256))
    own = {p.untyped_storage().data_ptr() for p in built.parameters()} | {b.untyped_storage().data_ptr() for b in built.buffers()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.dtype == torch.float32:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = built(input_ids=tokens, **({"attention_mask": torch.ones_like(tokens)} if task == "classify" else {})).logits
        loss = token_losses(logits, tokens).sum() if task == "generate" else classification_loss(logits, tokens[:, 0] % 2)
    assert loss.requires_grad
    shape = shape_of_model(built)
    expected = activation_bytes(shape, 8, 256, element=4, checkpointing=checkpointing)
    if checkpointing:  # the layer that is computed again is not held at this moment
        of_layer = activation_bytes(shape, 8, 256, element=4, checkpointing=False) / shape.layers
        expected -= of_layer - (shape.outputs * 8.0 * 8 * 256) / shape.layers
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


def test_the_plan_says_what_fits_and_costs_no_more_than_it_must(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model.name", "llama-8b", "--gpus", "8", "--gpu-memory", "80"]) == 0
    shown = capsys.readouterr().out
    assert "use: --scale.strategy zero1" in shown and "zero3" in shown and "too large" in shown
    assert main(["--model.name", "llama-8b", "--gpus", "1", "--gpu-memory", "10"]) == 0
    assert "none fits" in capsys.readouterr().out
    assert main(["--gpus", "0"]) == 2
    rows = plan(PlanConfig(gpus=4))
    assert [row.total for row in rows[:4]] == sorted((row.total for row in rows[:4]), reverse=True)


def test_flops_are_the_published_formula_and_peaks_are_dense() -> None:
    model = build_model(config_of(), {"max_length": 32, "vocab_size": 64, "pad_id": 0, "start_id": 0}, ())
    count = counted_parameters(model)
    assert count == sum(p.numel() for p in model.parameters()), "the embedding is the output's too"
    assert flops_per_token(model.config, count, 32, causal=True) == 6 * count + 12 * 2 * 32 * 16
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L4") == 121e12 and peak_flops("NVIDIA L40S") == 362.05e12
    assert peak_flops("a toaster") is None
