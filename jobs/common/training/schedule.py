"""How a learning rate rises and falls."""

import math


def learning_rate(highest: float, schedule: str, warmup_steps: int, step: int, total_steps: int,
                  lowest: float = 0.0) -> float:
    """Linear warm-up, then `constant`, or down to `lowest` at the last step: `linear`,
    or half a `cosine` (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    if schedule == "constant":
        return highest
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lowest + (highest - lowest) * left
