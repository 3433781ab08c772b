"""SDPA on a CPU, forward and backward:
why jobs/transformer/model.py does without the fused kernel for short rows in bf16."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.transformer.build import _PLAIN_ATTENTION_TOKENS
from tests.benchmarks.results import Figure, Outcome

TITLE = "attention on a CPU: the plain kernel against the fused one, forward and backward"
SHAPES = ((128, 4, 16, 32), (16, 12, 64, 64), (8, 12, _PLAIN_ATTENTION_TOKENS, 64), (2, 12, 1024, 64))


@dataclass(frozen=True, kw_only=True)
class Settings:
    repetitions: int = 15


QUICK = Settings(repetitions=2)
NOTES = (
    "Rows × heads × tokens × width of a head, causal, one thread, by turns: how many times faster the plain kernel is, "
    "of medians.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    import torch

    torch.set_num_threads(1)
    samples: dict[str, list[list[float]]] = {}
    figures: list[Figure] = []
    for precision in ("bfloat16", "float32"):
        for shape in SHAPES:
            name = f"{precision}, {' × '.join(map(str, shape))}"
            samples[name] = [times(shape, precision) for _ in range(settings.repetitions + 1)][1:]
            fused, plain = (statistics.median(taken) for taken in zip(*samples[name], strict=True))
            used = precision == "bfloat16" and shape[2] <= _PLAIN_ATTENTION_TOKENS
            figures.append(Figure(name=name, value=fused / plain, at_least=1.0 if used else None))
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def times(shape: tuple[int, ...], precision: str) -> list[float]:
    """Seconds of the fused kernel and of the plain one."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    found: list[float] = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        tensors = [torch.randn(shape, dtype=getattr(torch, precision), requires_grad=True) for _ in range(3)]
        began = time.perf_counter()
        with sdpa_kernel(backend):
            scaled_dot_product_attention(*tensors, is_causal=True).sum().backward()
        found.append(time.perf_counter() - began)
    return found
