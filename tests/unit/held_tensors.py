"""The bytes that a worker of the Transformer really holds, by strategy: tests compare them with the plan."""

import gc
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from jobs.common.training.session import Session
from jobs.pytorch.process_group import Group
from jobs.transformer.config import TransformerConfig
from jobs.transformer.inputs import token_losses
from jobs.transformer.strategies.spread import strategy

SCALES: list[dict[str, Any]] = [
    {"strategy": "zero1"}, {"strategy": "zero2"}, {"strategy": "zero3"}, {"strategy": "zero1", "offload": "cpu"},
    {"strategy": "zero2", "offload": "cpu"}, {"strategy": "zero3", "offload": "cpu"},
    {"strategy": "zero3", "offload": "cpu", "offload_parameters": True},
]


def held(session: Session, config: TransformerConfig, group: Group) -> dict[str, int]:
    """Bytes of this worker's tensors between two passes of a step, by kind;
    `gathered`: of whole weights, before backward."""
    before = storages(tensors_alive())
    gathered = 0
    with strategy(session, config, group) as model:
        for last in (True, True, False):
            with model.passing():
                loss = token_losses(model.forward(input_ids=torch.ones(1, 8, dtype=torch.int64)).logits,
                                    torch.ones(1, 8, dtype=torch.int64)).mean()
            gathered = (sum(storages(p.data for p in model.model.parameters()).values())
                        if config.scale.strategy == "zero3" else 0)
            model.backward(loss, last=last, last_of_shard=last)
            del loss
            if last:
                assert model.step(1e-3) == "taken"
                session.heartbeat()
        kinds = {"weights": storages(t for f in model.weights() for t in f.tensors.values()),
                 "optimizer": storages(t for f in model.fragments(2) for t in f.tensors.values()),
                 "all": {place: size for place, size in storages(tensors_alive()).items() if place not in before}}
    sizes = {kind: sum(of.values()) for kind, of in kinds.items()} | {"gathered": gathered}
    return sizes | {"gradients": sizes["all"] - sizes["weights"] - sizes["optimizer"]}


def tensors_alive() -> list[torch.Tensor]:
    """All that Python knows of in this process, and their gradients."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects are proxies that warn when they are looked at
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        return [t for t in (*found, *(t.grad for t in found if t.is_leaf and t.grad is not None))
                if t.device.type == "cpu"]


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address, each storage once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
            if t.untyped_storage().nbytes()}
