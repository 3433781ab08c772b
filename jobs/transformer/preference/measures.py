"""How well a model tells chosen from rejected answers, from what it and its reference give them. NumPy only.

Shapes: n pairs. Log-probabilities are in nats and of whole answers: values (n, 4) are the model's of chosen and
rejected, then the reference's.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.transformer.preference.config import PreferConfig

Floats = npt.NDArray[np.float64]
SUMS = ("pairs", "loss", "accuracy", "margin", "kl", "logps_chosen", "logps_rejected", "reference_logps_chosen",
        "reference_logps_rejected")
_FALL_NATS, _FALL_SHARE = 1.0, 0.1
"""How much less likely chosen answers become before it is warned about: both, the share of what they were."""


def sums_of(values: Array, counts: Array, rule: PreferConfig) -> Floats:
    """Of each of SUMS. counts: (n, 2), tokens of the answers."""
    model, reference = values.astype(np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
    gained = model - reference
    rewards = rule.beta * gained
    each = [np.ones(len(gained)), losses_of(gained, counts, rule), rewards[:, 0] > rewards[:, 1],
            rewards[:, 0] - rewards[:, 1], -gained.mean(axis=1), *model.T, *reference.T]
    return np.array([np.sum(column) for column in each], np.float64)


def losses_of(gained: Floats, counts: Array, rule: PreferConfig) -> Floats:
    """(n,). gained: (n, 2), how much more likely each answer is than by the reference."""
    if rule.loss == "ipo":
        chosen, rejected = (gained / counts).T
        return (chosen - rejected - 1 / (2 * rule.beta)) ** 2
    ratio = rule.beta * (gained[:, 0] - gained[:, 1])
    return np.logaddexp(0, -ratio) * (1 - rule.label_smoothing) + np.logaddexp(0, ratio) * rule.label_smoothing


def metrics_of(sums: Sequence[float]) -> dict[str, float]:
    """Means over pairs.

    accuracy: how often the implicit reward, beta times what an answer has gained, is higher for the chosen one; margin:
    by how much. kl: KL(reference ‖ model) in nats an answer, by the mean of reference less model over both answers
    (Schulman's k1), which is unbiased where the answers were drawn from the reference.
    """
    pairs, *rest = sums
    return {name: value / pairs for name, value in zip(SUMS[1:], rest, strict=True)}


def warning_of(metrics: Mapping[str, float]) -> str:
    """What to say where chosen answers have become much less likely, as they may while the margin grows; else
    nothing."""
    before, now = metrics["reference_logps_chosen"], metrics["logps_chosen"]
    if before - now <= max(_FALL_NATS, -before * _FALL_SHARE):
        return ""
    return (f"the chosen answers have become less likely, with a mean log-probability of {now:.1f}, which is "
            f"{before:.1f} by the reference: the margin grows as the rejected ones fall further. Lower --optim.lr, "
            "raise --prefer.beta, or stop sooner")
