"""The memory plan: published sizes, and formulas against the bytes of tensors that are really held.

What DeepSpeed holds is in test_strategies.py.
"""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.common.config import parse
from jobs.transformer.build import build_model
from jobs.transformer.config import HardwareConfig, ModelConfig, TransformerConfig
from jobs.transformer.costs import (
    Shape,
    counted_parameters,
    flops_per_token,
    kept_bytes,
    mfu,
    peak_flops,
    shape_of_model,
)
from jobs.transformer.inputs import classification_loss, token_losses
from jobs.transformer.plan import RESERVED, PlanConfig, main, plan, shape_of
from tests.runs import ROOT
from tests.unit.held_tensors import storages
from tests.unit.token_rows import config_of


# ── parameters ──
@pytest.mark.parametrize(("name", "task", "exactly", "published"), [
    ("llama-8b", "generate", 8_030_261_248, 8.03e9), ("llama-1b", "generate", 1_235_814_400, 1.236e9),
    ("llama-124m", "generate", None, 1.24e8), ("distilbert", "classify", 66_955_010, 6.7e7),
])
def test_presets_have_their_published_sizes(name: str, task: Any, exactly: int | None, published: float) -> None:
    found = shape_of(PlanConfig(model=ModelConfig(name=name), task=task, sequence_length=512)).parameters
    assert found == pytest.approx(published, rel=5e-3)
    assert exactly is None or found == exactly, "Llama 3's, and distilbert-base-uncased's with a head for two classes"


MODELS = [("tiny", "generate"), ("tiny", "classify"), ("distilbert", "classify")]


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4}, {"lora_rank": 4, "dora": True},
                                  {"lora_rank": 4, "lora_base": "nf4"}])
@pytest.mark.parametrize(("name", "task"), MODELS)
def test_parameters_are_counted_as_they_are_built(name: str, task: str, lora: dict[str, Any]) -> None:
    config, built = small(name, task, **lora)
    bare = small(name, task)[1]
    shape = shape_of_model(bare, config.model)
    assert shape.parameters == sum(p.numel() for p in built.parameters())
    assert shape.trained == sum(p.numel() for p in built.parameters() if p.requires_grad)


def small(name: str, task: str, **model: Any) -> tuple[TransformerConfig, Any]:
    config = config_of(task=task, data={"uri": "stdlib" if task == "generate" else "languages"}, model={
        "name": name, "layers": 6, "heads": 4, "width": 128, "dropout": 0.0, **model})
    details = {"max_length": 256, "vocab_size": 640, "pad_id": 0, "start_id": 0, "end_id": None}
    return config, build_model(config, details, ("a", "b") if task == "classify" else ()).train()


# ── activations ──
ARITHMETIC = {"fp32": (4, 4), "bf16": (2, 2), "autocast": (2, 4)}
"""Bytes of an element that is multiplied, and of one between layers: DeepSpeed's bf16 has no autocast, ddp's has."""


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize(("name", "task"), MODELS)
def test_activations_are_those_that_are_really_kept(name: str, task: str, arithmetic: str, checkpointing: bool) -> None:
    built = small(name, task, activation_checkpointing=checkpointing)[1]
    shape = shape_of_model(built)
    found = kept_by_autograd(built.to(torch.bfloat16) if arithmetic == "bf16" else built, task,
                             autocast=arithmetic == "autocast")
    element, residual = ARITHMETIC[arithmetic]
    expected = kept_bytes(shape, 8 * 256, element=element, residual=residual, checkpointing=checkpointing)
    expected += 4.0 * shape.outputs * 8 * 256  # logarithms of probabilities; the logits themselves are let go
    print(f"{name} {task} {arithmetic} {checkpointing=}: kept {found}, planned {expected:.0f} ({expected / found:.3f})")
    assert expected == pytest.approx(found, rel=0.1)


def kept_by_autograd(model: Any, task: str, *, autocast: bool) -> int:
    """Bytes of activations that a forward pass of 8 rows of 256 tokens keeps: without weights,
    and autocast's copies of them."""
    own = storages([*model.parameters(), *model.buffers()])
    copies = {shape for p in model.parameters() for shape in (p.shape, p.t().shape if p.dim() == 2 else p.shape)}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in copies:
            kept.append(tensor)
        return tensor

    tokens = torch.randint(1, 640, (8, 256))
    with (torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
          torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()):
        logits = model(input_ids=tokens,
                       **({"attention_mask": torch.ones_like(tokens)} if task == "classify" else {})).logits
        loss = (token_losses(logits, tokens).sum() if task == "generate"
                else classification_loss(logits, tokens[:, 0] % 2))
    assert loss.requires_grad
    return sum(size for place, size in storages(kept).items() if place not in own)


# ── strategies ──
def test_ddp_holds_weights_gradients_and_two_moments() -> None:
    config, built = small("tiny", "generate")
    optimizer = torch.optim.AdamW(built.parameters())
    built(input_ids=torch.ones(1, 8, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    row = plan(PlanConfig(model=config.model, hardware=HardwareConfig(precision="fp32")), shape_of_model(built))[0]
    assert row.parameters == sum(p.nbytes for p in built.parameters())
    assert row.gradients == sum(p.grad.nbytes for p in built.parameters())
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert row.optimizer == pytest.approx(moments, rel=1e-3), "and a count of steps for each parameter"


def test_zero2_is_what_deepspeed_estimates() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    config = PlanConfig(model=ModelConfig(name="llama-1b"), sequence_length=512)
    shape = shape_of(config)
    row = next(row for row in plan(config, shape) if (row.strategy, row.offload) == ("zero2", "none"))
    _, estimate = estimate_zero2_model_states_mem_needs(shape.parameters, num_gpus_per_node=8, cpu_offload=False)
    assert row.parameters + row.gradients + row.optimizer + row.step / 2 == pytest.approx(estimate)


def test_zero3_keeps_what_is_used_again_soon() -> None:
    def gathered(parameters: int, largest: int) -> float:
        shape = replace(TOY, parameters=parameters, trained=parameters, largest=largest, largest_trained=largest)
        rows = {row.strategy: row for row in plan(PlanConfig(sequence_length=8), shape) if row.offload == "none"}
        return (rows["zero3"].buffers - rows["zero2"].buffers) / 2

    assert gathered(10**8, 10**7) == 1e8, "a small model is there whole"
    assert gathered(10**10, 10**7) == pytest.approx(5e8, rel=0.02)
    assert gathered(10**10, 8 * 10**8) == pytest.approx(8e8, rel=0.02), "the largest module is more"


TOY = Shape(parameters=1, trained=1, cast=1, largest=1, largest_trained=1, layers=2, width=8, heads=2, kv_heads=2,
            mlp_width=16,
            gated=True, fused=False, rms_norm=True, projections=5, outputs=32, masked=0)


# ── the command ──
def test_the_plan_says_what_fits_and_costs_no_more_than_it_must(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model.name", "llama-8b", "--gpus", "8", "--gpu-memory", "80"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line.split("  ")[0]: line.split()[-1] for line in lines if line.split()[1:2] == ["none"]}
    assert verdicts == {"ddp": "large", "zero1": "fits", "zero2": "fits", "zero3": "fits"}
    assert lines[-1].startswith("use: --scale.strategy zero1: ")
    assert main(["--model.name", "llama-8b", "--gpus", "2", "--gpu-memory", "24",
                 "--model.activation-checkpointing"]) == 0
    assert "use: --scale.strategy zero2 --scale.offload cpu: " in capsys.readouterr().out
    rows = plan(PlanConfig(gpus=4))
    assert [row.total for row in rows[:4]] == sorted((row.total for row in rows[:4]), reverse=True)


def test_where_none_fits_the_plan_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model.name", "llama-8b", "--gpus", "1", "--gpu-memory", "10"]) == 0
    assert "none fits: the smallest, zero3 with offload cpu, weights too, needs" in (shown := capsys.readouterr().out)
    assert "try --model.activation-checkpointing, a smaller --sequence-length" in shown


@pytest.mark.parametrize(("arguments", "message"), [
    (["--model.name", "no-such-model"], "--model.name no-such-model: is no preset"),
    (["--model.name", "distilbert"], "pass --task classify"),
    (["--model.name", "distilbert", "--task", "classify"], "distilbert takes 512 tokens"),
    (["--gpus", "0"], "--gpus 0: must be at least 1"), (["--hardware.precision", "fp16"], "pass that"),
    (["--gpsu", "3"], "--gpus"),
])
def test_a_mistake_is_one_message(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(arguments) == 2
    out, shown = capfd.readouterr()
    assert not out and shown.startswith("error: ") and shown.count("error: ") == 1
    assert message in shown and "Traceback" not in shown


# ── arithmetic ──
def test_flops_are_the_published_formula() -> None:
    model = build_model(config_of(), {"max_length": 32, "vocab_size": 64, "pad_id": 0, "start_id": 0}, ())
    count = counted_parameters(model)
    assert count == sum(p.numel() for p in model.parameters()), "the embedding is the output's too"
    assert flops_per_token(model.config, count, 32, causal=True) == 6 * count + 12 * 2 * 32 * 16
    assert flops_per_token(model.config, count, 32, causal=False) == 6 * count + 12 * 2 * 32 * 32
    assert mfu(1e4, 6e9, 312e12) == pytest.approx(0.1923, abs=1e-4)


@pytest.mark.parametrize(("name", "tflops"), [
    ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H100 NVL", 835.5), ("NVIDIA H200", 989.4),
    ("NVIDIA B200", 2250.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A100 80GB PCIe", 312.0), ("NVIDIA A10G", 70.0),
    ("NVIDIA L4", 121.0), ("NVIDIA L40S", 362.05), ("Tesla T4", 65.0), ("Tesla V100-SXM2-16GB", 125.0),
    ("Tesla V100-PCIE-16GB", 112.0), ("NVIDIA RTX A1000", None), ("NVIDIA T400 4GB", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
])
def test_peaks_are_dense_and_of_the_very_device(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (tflops and pytest.approx(tflops * 1e12))


# ── recipes ──
LLAMA = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
         "max_position_embeddings": 131072}
QWEN = {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 32768}


@pytest.mark.parametrize(("architecture", "parameters"), [(LLAMA, 1.236e9), (QWEN, 1.54e9)])
@pytest.mark.parametrize("gpus", [1, 2])
def test_the_recipe_of_conversations_fits_24_gb(architecture: dict[str, Any], parameters: float, gpus: int,
                                                tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    config = parse(TransformerConfig, ["--config", str(ROOT / "jobs/transformer/chat_lora.yaml"), "--model.name",
                                       str(tmp_path), "--run.workers", str(gpus), "--run.gpus-per-worker", "1"], "")
    assert config.task == "chat" and config.exports_adapter and config.optim.highest_lr == 2e-4
    planned = PlanConfig(model=config.model, hardware=config.hardware, task=config.task, gpus=gpus, gpu_memory=24,
                         sequence_length=config.data.max_length, rows_per_gpu=config.train.max_rows_per_pass or 1)
    shape = shape_of(planned)
    assert shape.parameters - shape.trained == pytest.approx(parameters, rel=5e-3)
    (row,) = (row for row in plan(planned, shape) if (row.strategy, row.offload) == (config.scale.strategy, "none"))
    print(f"{architecture['model_type']}, {gpus} GPUs: {row.total / 1e9:.1f} GB")
    assert row.total <= 24e9 - RESERVED


def test_every_task_can_be_planned_and_a_pair_is_two_rows() -> None:
    needs = {task: plan(PlanConfig(task=task, model=ModelConfig(name="tiny"), gpus=2))[0]
             for task in ("generate", "chat", "prefer")}
    assert needs["chat"] == needs["generate"]
    assert needs["prefer"].activations == pytest.approx(2 * needs["chat"].activations)
    assert needs["prefer"].parameters == needs["chat"].parameters
