"""What a network's answer rests on: integrated gradients (Sundararajan et al.
2017), checked by what they must add up to.

Shapes: B rows, K classes; a row is of any shape, such as (H, W, C) pixels or (T, D) embeddings.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def integrated_gradients(forward: Callable[..., Tensor], inputs: Tensor, baselines: Tensor, target: Tensor,
                         steps: int = 50, *,
                         context: Sequence[Tensor] = (), rows_per_pass: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """How much each input moves the log odds of the target class,
    on the straight way from the baseline (their equation 1).

    forward: (rows, *context) -> logits (B, K), differentiable in the rows, without dropout. inputs: (B, …). baselines:
    (B, …), or (1, …) for all rows. target: (B,) class indices. context: tensors (B, …) that belong to the rows and are
    not explained, such as an attention mask. steps: points of the Gauss-Legendre sum.
    rows_per_pass: rows that go through the network at a time.

    Returns the attributions (B, …), float32, and of each row (B,) the completeness gap, |Σ attributions - (f(x) -
    f(baseline))|, which the sum over finitely many steps leaves of their proposition 1, and f(x) - f(baseline) itself.
    Raises: ValueError if the shapes disagree.
    """
    inputs, baselines, target = _checked(inputs, baselines, target, context)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    size = max(1, rows_per_pass // steps)
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        found.append(_explained(forward, inputs[part], baselines[part], (target[part], *(c[part] for c in context)),
                                steps))
    if not found:
        return torch.zeros_like(inputs), inputs.new_zeros(0), inputs.new_zeros(0)
    attributions, gaps, differences = map(torch.cat, zip(*found, strict=True))
    return attributions, gaps, differences


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """ln(p / (1 - p)) of each row's target class, exact also where p is almost 1.

    logits: (B, K). target: (B,). Returns (B,), float32. Of a single class, which has no odds: its logit. Unlike a logit
    it does not change when all logits of a row rise together, which leaves the probabilities as they are.
    """
    logits, at = logits.float(), target[:, None]
    mine = logits.gather(1, at)[:, 0]
    return mine if logits.shape[1] == 1 else mine - logits.scatter(1, at, -torch.inf).logsumexp(1)


def _explained(forward: Callable[..., Tensor], inputs: Tensor, baselines: Tensor, context: tuple[Tensor, ...],
               steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `integrated_gradients`, of rows that go through the network together.
    context: the target, and what else there is."""
    from captum.attr import IntegratedGradients

    def function(rows: Tensor, target: Tensor, *others: Tensor) -> Tensor:
        return log_odds(forward(rows, *others), target)

    explainer = IntegratedGradients(function, multiply_by_inputs=True)
    attributions, delta = explainer.attribute(inputs, baselines, additional_forward_args=context, n_steps=steps,
                                              return_convergence_delta=True)
    attributions, delta = attributions.detach(), delta.detach()
    return attributions.float(), delta.abs().float(), (attributions.flatten(1).sum(1) - delta).float()


def _checked(inputs: Tensor, baselines: Tensor, target: Tensor,
             context: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    if target.shape != inputs.shape[:1] or any(len(c) != len(inputs) for c in context):
        others = [len(c) for c in context]
        raise ValueError(f"{len(inputs)} rows, a target of shape {tuple(target.shape)}, context of {others} rows: one "
                         "for each row")
    if baselines.shape[1:] != inputs.shape[1:] or len(baselines) not in (1, len(inputs)):
        raise ValueError(f"baselines of {tuple(baselines.shape)} for inputs of {tuple(inputs.shape)}: one, or one for "
                         "each row")
    inputs = inputs.detach().float()
    return inputs, baselines.detach().float().expand_as(inputs), target.long()
