"""The model under the strategy that `--scale.strategy` names: how its state is spread over the workers."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from jobs.common.own_code import load_object
from jobs.common.training.context import TrainContext
from jobs.pytorch.process_group import Group
from jobs.transformer.build import attention_kernels, build_model
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.table import Strategy
from jobs.transformer.weights.four_bits import pack


@contextmanager
def strategy(context: TrainContext, config: TransformerConfig, group: Group,
             look: Callable[[nn.Module], None] | None = None) -> Generator[Strategy]:
    """The model under its strategy, for as long as the block lasts. look: is shown the whole model before that."""
    # else DeepSpeed, which transformers imports where it is installed, looks for a GPU, and says so
    if context.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model = build_model(config, context.dataset.details, context.dataset.class_names)
    if look is not None:
        look(model)
    if config.model.lora_base:
        pack(model)
    make = load_object(config.scale.capabilities.implementation)
    spread: Strategy = make(config, model, group, torch.device(context.device))
    try:
        with attention_kernels(config, context.device):
            yield spread
    finally:
        spread.close()
