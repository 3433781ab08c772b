"""From pairs of conversations to the model's inputs, the log-probabilities of their answers, and their losses.

Shapes: m pairs, T tokens.
"""
# pyright: reportUnknownMemberType=false

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns
from jobs.transformer.chat.packing import LEARNT
from jobs.transformer.inputs import IGNORED, token_losses
from jobs.transformer.preference.config import PreferConfig
from jobs.transformer.tasks import Forward


def pair_inputs(rows: Columns, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the model reads, and targets, both (2m, T), the chosen sides before the rejected ones, cut to the longest.

    Padding follows what is real, and a causal model does not see what follows: it needs no mask.
    """
    tokens, learnt = _flat(rows["tokens"]), (_flat(rows["marks"]) & LEARNT) > 0
    longest = -(-int((tokens >= 0).sum(1).max() - 1) // 8) * 8 + 1
    ids, counts = (torch.from_numpy(np.ascontiguousarray(each[:, :longest])).to(device) for each in (tokens, learnt))
    return ids[:, :-1].long().clamp(min=0), ids[:, 1:].long().masked_fill(~counts[:, 1:], IGNORED)


def _flat(sides: Array) -> Array:
    """(m, 2, T) as (2m, T)."""
    return sides.swapaxes(0, 1).reshape(-1, sides.shape[2])


def answer_counts(rows: Columns) -> Array:
    """(m, 2): tokens of the answers."""
    return (rows["marks"][:, :, 1:] & LEARNT > 0).sum(2)


def log_probabilities(forward: Forward, rows: Columns, device: torch.device) -> Tensor:
    """(m, 2) in nats: of the chosen and the rejected answer, given what comes before."""
    ids, targets = pair_inputs(rows, device)
    return -token_losses(forward(input_ids=ids).logits, targets).sum(1).view(2, -1).T


def pair_losses(gained: Tensor, counts: Tensor, rule: PreferConfig) -> Tensor:
    """(m,), as `measures.losses_of`. gained: (m, 2), how much more likely each answer is than by the reference."""
    if rule.loss == "ipo":
        means = gained / counts
        return (means[:, 0] - means[:, 1] - 1 / (2 * rule.beta)) ** 2
    ratio = rule.beta * (gained[:, 0] - gained[:, 1])
    return -F.logsigmoid(ratio) * (1 - rule.label_smoothing) - F.logsigmoid(-ratio) * rule.label_smoothing
