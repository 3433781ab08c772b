"""From rows of tokens to the model's inputs, targets and losses.

Shapes: B rows, T tokens, V words of the vocabulary, K classes.
"""
# pyright: reportUnknownMemberType=false

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.arrays import Array
from jobs.transformer.chat.packing import BEGINS, LEARNT

IGNORED = -100
"""A target that does not count, as in torch.nn.functional.cross_entropy."""


def inputs_of(tokens: Array, lengths: Array, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Rows to classify, cut to the longest. tokens: (B, T), -1 where there is none; lengths: (B,)."""
    longest = min(tokens.shape[1], -(-int(lengths.max()) // 8) * 8)
    cut = torch.from_numpy(np.ascontiguousarray(tokens[:, :longest])).to(device, torch.int64)
    there = cut >= 0
    return {"input_ids": cut.masked_fill(~there, pad_id), "attention_mask": there.long()}


def packed_inputs(tokens: Array, start_id: int, end_id: int | None,
                  device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Packed rows as (model inputs, targets (B, T)). tokens: (B, T + 1), -1 where there is none.

    Positions begin anew at each document, by which the model's own masks keep documents apart; a row without a second
    document needs none, and takes the fast causal path.
    The start of a document is no target where it does not end the one before.
    """
    begins = tokens == start_id
    return learnt_inputs(tokens, begins, tokens >= 0 if end_id is None else (tokens >= 0) & ~begins, device)


def marked_inputs(tokens: Array, marks: Array, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The same of conversations. marks: (B, T + 1), of what is learnt and where one begins (chat/packing.py)."""
    return learnt_inputs(tokens, (marks & BEGINS) > 0, (marks & LEARNT) > 0, device)


def learnt_inputs(tokens: Array, begins: Array, learnt: Array,
                  device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The same. begins, learnt: (B, T + 1), whether a token is the first of a document, and whether it is a target."""
    rows, first, counts = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (tokens, begins, learnt))
    inputs = rows[:, :-1].long()
    targets = rows[:, 1:].long().masked_fill(~counts[:, 1:], IGNORED)
    batch: dict[str, Tensor] = {"input_ids": inputs.clamp(min=0)}
    starts = first[:, :-1] | (inputs < 0)
    if bool(starts[:, 1:].any()):
        place = torch.arange(inputs.shape[1], device=device).expand_as(inputs)
        begun = torch.cummax(torch.where(starts, place, torch.zeros_like(place)), dim=1).values
        batch["position_ids"] = place - begun
    return batch, targets


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Summed over rows, in nats. logits: (B, K)."""
    return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T) in nats, 0 where a target is ignored. logits: (B, T, V)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(targets)
