"""What only a GPU can tell: `python -m tests.benchmarks.gpu` measures, on one of them, how much of its peak training
reaches, and whether it needs the memory that is planned.

Writes results/gpu.json beside this file, with the date and the GPU. `--miniature` tries it out on CPUs, and writes
nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.common.config import from_dict
from jobs.transformer.config import TransformerConfig
from jobs.transformer.plan import RESERVED, PlanConfig, plan, shape_of
from tests.benchmarks import results
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT

FOLDER = Path(__file__).parent / "results"
TITLE = "training on one GPU: its share of the peak, and memory against the plan"
NOTES = (
    "In processes of their own, steps of the job's own training on `stdlib` (pretraining) and `questions` (SFT): "
    "random weights, bf16, ddp, a BPE of at most 32,768 tokens, as many rows a pass as fit by the plan; with "
    "activation checkpointing only where fewer than 4 rows fit without. The first quarter of the steps does not count.",
    "MFU: by jobs/transformer/costs.py (6 N + 12 L H Q T, causal); with updates of low rank the weights that stay as "
    "they are count as if they were trained.",
    "Memory: `torch.cuda.max_memory_allocated` over the counted steps, and the plan's row for ddp.",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 40
    length: int = 2048
    vocab_size: int = 32768
    tokens: int = 131072
    """Of a step, at most."""
    most_rows: int = 32
    """Of a pass."""
    generate: str = "stdlib"
    chat: str = "questions"
    """Data, by task."""
    peak_tflops: float | None = None
    """Of the device, if it is not in the table of GPUs."""
    small: bool = False
    """Whether models are of one layer, none is compiled, and all run in this very process."""


MINIATURE = Settings(steps=2, length=64, vocab_size=300, tokens=256, most_rows=2, small=True)
CASES: dict[str, dict[str, Any]] = {
    "llama-124m, pretraining": {"task": "generate", "model": {"name": "llama-124m"}},
    "llama-124m, pretraining, compiled": {"task": "generate", "model": {"name": "llama-124m"},
                                          "hardware": {"compile": True}},
    "llama-1b, pretraining": {"task": "generate", "model": {"name": "llama-1b"}},
    "llama-1b, pretraining, compiled": {"task": "generate", "model": {"name": "llama-1b"},
                                        "hardware": {"compile": True}},
    "llama-1b, LoRA SFT": {"task": "chat", "model": {"name": "llama-1b", "lora_rank": 16, "lora_alpha": 32}},
}


def measure(settings: Settings, folder: Path, device: str, memory: float) -> Outcome:
    """device: `cuda` or `cpu`. memory: of the GPU, in bytes."""
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for number, (name, case) in enumerate(CASES.items()):
        if settings.small and "hardware" in case:
            continue
        values, asked = recipe(settings, case, f"case-{number}", memory, on_gpu=device != "cpu")
        found = (in_this_process if settings.small else apart)(values, folder, device)
        planned = plan(replace(asked, vocab_size=found["vocab_size"]))[0].total
        samples[name] = found | {"planned_bytes": planned, "config": values}
        figures.append(Figure(name=name, value=found["tokens_per_s"], unit="tokens/s"))
        if found["mfu"] is not None:
            figures.append(Figure(name=f"{name}: MFU", value=100 * found["mfu"], unit="%",
                                  aim_at_least=55.0 if case["task"] == "generate" else None))
        if found["peak_bytes"]:
            figures.append(Figure(name=f"{name}: memory, planned over held", value=planned / found["peak_bytes"],
                                  aim_at_least=1.0, aim_at_most=1.25))
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def recipe(settings: Settings, case: dict[str, Any], name: str, memory: float, *,
           on_gpu: bool) -> tuple[dict[str, Any], PlanConfig]:
    """A config of the job with as many rows a pass as fit, and what is asked of the plan for it."""
    model, compiled = dict(case["model"]), "hardware" in case
    if settings.small:
        model |= {"layers": 1, "heads": 2, "width": 32, **({"lora_rank": 4} if "lora_rank" in model else {})}
    values: dict[str, Any] = {
        "task": case["task"], "optim": {"lr": 3e-4}, "run": {"name": name, "gpus_per_worker": int(on_gpu)},
        "hardware": {"precision": "bf16", "compile": compiled, "peak_tflops": settings.peak_tflops},
        "data": {"uri": getattr(settings, case["task"]), "tokenizer": "bpe", "vocab_size": settings.vocab_size,
                 "max_length": settings.length}}
    for checkpointing in (False, True):
        values["model"] = model | {"activation_checkpointing": checkpointing}
        config = from_dict(TransformerConfig, values)
        asked = PlanConfig(model=config.model, hardware=config.hardware, task=config.task, gpus=1,
                           gpu_memory=memory / 1e9, sequence_length=settings.length,
                           rows_per_gpu=settings.most_rows, vocab_size=settings.vocab_size)
        shape = shape_of(asked)
        while plan(asked, shape)[0].total > memory - RESERVED and asked.rows_per_gpu > 1:
            asked = replace(asked, rows_per_gpu=asked.rows_per_gpu // 2)
        if asked.rows_per_gpu >= min(4, settings.most_rows):
            break
    rows = asked.rows_per_gpu
    batch = max(rows, settings.tokens // settings.length // rows * rows)
    values["train"] = {"global_batch_size": batch, "max_rows_per_pass": rows, "max_steps": settings.steps}
    return values, asked


def in_this_process(values: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    from tests.benchmarks.gpu.steps import carried_out

    return carried_out(values, folder, device)


def apart(values: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """In a process of its own, which leaves the GPU's memory to the next."""
    place = folder / f"{values['run']['name']}.json"
    place.write_text(json.dumps(values))
    subprocess.run([sys.executable, "-m", "tests.benchmarks.gpu.steps", str(place), str(folder), device], cwd=ROOT,
                   check=True)
    return json.loads((folder / values["run"]["name"] / "found.json").read_text())


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--miniature", action="store_true", help="tiny models on CPUs; writes nothing")
    asked = parser.parse_args()
    if not asked.miniature and not torch.cuda.is_available():
        print("error: PyTorch sees no GPU: run it where there is one, or try it out with --miniature", file=sys.stderr)
        return 2
    settings = MINIATURE if asked.miniature else Settings()
    device, gpu, memory = "cpu", "none", 24e9
    if not asked.miniature:
        about = torch.cuda.get_device_properties(0)
        device, gpu, memory = "cuda", about.name, float(about.total_memory)
    load, began = list(os.getloadavg()), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trainyard-gpu-") as folder:
        outcome = measure(settings, Path(folder), device, memory)
    about_it = asdict(settings) | {"gpu": gpu, "memory": memory, "cuda": torch.version.cuda}
    result = results.made("gpu", TITLE, about_it, outcome, load, began, folder=FOLDER)
    print(f"GPU: {gpu}\n{results.section(result)}")
    if not asked.miniature:
        result.save(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
