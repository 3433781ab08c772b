"""Updates of low rank to a model's linear layers (LoRA, Hu et al. 2021): which layers have them, and how they begin.

The rest of the model stays as it is, but for a classifier's head, which is new and is learnt whole.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import warnings
from typing import Any

from torch import nn

from cluster.core.errors import ConfigError
from jobs.transformer.config import ModelConfig
from jobs.transformer.weights.four_bits import round_layers

_HEADS = ("classifier", "pre_classifier", "score")


def heads_of(model: nn.Module) -> list[str]:
    """The modules that are trained whole."""
    return [name for name, _ in model.named_children() if name in _HEADS]


def adapted_layers(model: nn.Module, wanted: ModelConfig) -> dict[str, nn.Linear]:
    """The layers that get updates, by name: those that `model.lora_layers` names, or all linear ones but the heads.

    Raises: ConfigError for a name that no layer has, and for a rank that is larger than a layer.
    """
    linear = {name: module for name, module in model.named_modules()
              if isinstance(module, nn.Linear) and not name.startswith((*_HEADS, "lm_head"))}
    kinds = {kind_of(name) for name in linear}
    if unknown := [each for each in wanted.lora_layers if each not in kinds]:
        raise ConfigError(f"--model.lora-layers {unknown[0]}: {wanted.origin} has no linear layers of that name: pass "
                          f"some of {' '.join(sorted(kinds))}")
    chosen = {name: layer for name, layer in linear.items() if kind_of(name) in (wanted.lora_layers or kinds)}
    _check_rank(chosen, wanted)
    return chosen


def kind_of(name: str) -> str:
    """What layers of one kind are called in each block: `q_proj` of `model.layers.0.self_attn.q_proj`."""
    return name.rpartition(".")[2]


def _check_rank(layers: dict[str, nn.Linear], wanted: ModelConfig) -> None:
    name, layer = min(layers.items(), key=lambda item: min(item[1].in_features, item[1].out_features))
    most = min(layer.in_features, layer.out_features)
    if (wanted.lora_rank or 0) > most:
        raise ConfigError(f"--model.lora-rank {wanted.lora_rank}: the layer {name} of {wanted.origin}, "
                          f"{layer.in_features} to {layer.out_features}, has rank {most} at most: pass {most} or "
                          "less, or name other layers with --model.lora-layers")


def with_lora(model: nn.Module, wanted: ModelConfig) -> Any:
    """The model with updates that are zero still (peft's), which alone are trained."""
    from peft import LoraConfig

    assert wanted.lora_rank, "without a rank there are no updates"
    layers = adapted_layers(model, wanted)
    alpha: Any = wanted.lora_alpha
    if wanted.lora_base:
        round_layers(layers.values())
    return put_on(model, LoraConfig(
        r=wanted.lora_rank, lora_alpha=int(alpha) if alpha == int(alpha) else alpha, lora_dropout=wanted.lora_dropout,
        use_rslora=wanted.rslora, use_dora=wanted.dora,
        target_modules=sorted({kind_of(name) for name in layers}),
        modules_to_save=heads_of(model) or None))


def put_on(model: Any, config: Any) -> Any:
    """The model with the updates of a peft config."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to go
        return get_peft_model(model, config)
