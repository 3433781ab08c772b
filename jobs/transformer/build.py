"""Builds the model from a preset, a folder or a hub name, with random weights or pretrained ones."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import importlib.util
import logging
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cluster.core.auth import expanded
from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from jobs.common.artifact.artifact import Artifact
from jobs.common.start import check_labels, origin_of, taken
from jobs.pytorch.start import freeze
from jobs.transformer.config import TransformerConfig
from jobs.transformer.presets import preset
from jobs.transformer.text.config import OF_CONVERSATIONS
from jobs.transformer.weights.base import folder_of, of_artifact
from jobs.transformer.weights.lora import heads_of, with_lora
from jobs.transformer.weights.pretrained import check_base, check_weights

_PLAIN_ATTENTION_TOKENS = 128
T = TypeVar("T")
_log = logging.getLogger(__name__)


def build_model(config: TransformerConfig, details: JsonObject, class_names: Sequence[str]) -> Any:
    """The model with its first weights: a function of `run.seed`, or the pretrained ones. details: `Dataset.details`.

    Raises: ConfigError if there is no such model, its weights are a pickle, or it does not fit the data.
    """
    torch.manual_seed(config.run.seed)
    architecture = _architecture(config, details, class_names)
    _check_fit(config, details, architecture)
    kind = auto_class(config.task)
    if not config.model.starts_pretrained:
        model = kind.from_config(architecture)
    elif (origin := origin_of(config.model)) is not None:
        model = _begun(kind, config, architecture, origin)
        check_labels(config.model, origin, class_names)
    else:
        model = _pretrained(kind, config, architecture)
    freeze(model, config.model)
    if config.model.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return with_lora(model, config.model) if config.model.lora_rank else model


def skeleton(config: TransformerConfig, details: JsonObject, class_names: Sequence[str]) -> Any:
    """The model's shapes and config, without weights (on torch's meta device) and without updates of low rank."""
    with torch.device("meta"):
        return auto_class(config.task).from_config(_architecture(config, details, class_names))


def auto_class(task: str) -> Any:
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if task == "classify" else AutoModelForCausalLM


def _architecture(config: TransformerConfig, details: JsonObject, class_names: Sequence[str]) -> Any:
    from transformers.models.auto.configuration_auto import AutoConfig

    auto: Any = AutoConfig
    wanted, task = config.model, config.task
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {n: i for i, n in enumerate(class_names)}}
    options = {"attn_implementation": _attention(config), "use_cache": False, **(labels if class_names else {})}
    if wanted.is_preset:
        size = replace(preset(wanted.name, task).resized(wanted.layers, wanted.heads, wanted.width),
                       window=wanted.attention_window).options(task)
        ids = {f"{kind}_token_id": details["start_id"] for kind in ("bos", "eos", "cls", "sep")}
        ids["pad_token_id"] = details["pad_id"]
        if task in OF_CONVERSATIONS and details["end_id"] is not None:
            ids["eos_token_id"] = details["end_id"]
        known = auto.for_model(**size, vocab_size=details["vocab_size"], **ids, **options)
    else:
        folder = folder_of(wanted)
        check_base(folder)
        known = _looking_for(folder, lambda: auto.from_pretrained(folder, trust_remote_code=False, **options))
    for name in _DROPOUTS:
        if wanted.dropout is not None and hasattr(known, name):
            setattr(known, name, wanted.dropout)
    return known


_DROPOUTS = ("dropout", "attention_dropout", "seq_classif_dropout", "hidden_dropout_prob",
             "attention_probs_dropout_prob",
             "classifier_dropout", "embedding_dropout", "mlp_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def _attention(config: TransformerConfig) -> str:
    if config.model.attention != "auto":
        return config.model.attention
    usable = (config.run.gpus_per_worker and config.hardware.precision != "fp32"
              and importlib.util.find_spec("flash_attn"))
    return "flash_attention_2" if usable else "sdpa"


def attention_kernels(config: TransformerConfig, device: str) -> AbstractContextManager[object]:
    """For as long as a model is trained: which of SDPA's kernels may be used.

    On a CPU the backward pass of the fused one takes about 20 µs a row and head in bfloat16, however short the rows
    are, ten times what the plain one takes for 16 tokens;
    for 128 it is about as fast (torch 2.13, tests/benchmarks/attention.py).
    """
    slow = device == "cpu" and config.hardware.precision == "bf16" and config.data.max_length <= _PLAIN_ATTENTION_TOKENS
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def _check_fit(config: TransformerConfig, details: JsonObject, architecture: Any) -> None:
    most = getattr(architecture, "max_position_embeddings", None)
    if most is not None and details["max_length"] > most:
        raise ConfigError(f"--data.max-length {details['max_length']}: {config.model.origin} takes {most} tokens: pass "
                          f"{most} or less")
    if details["vocab_size"] > architecture.vocab_size:
        raise ConfigError(f"the tokenizer has {details['vocab_size']} tokens, the embedding of {config.model.origin} "
                          f"only {architecture.vocab_size}: use the model's own tokenizer (--data.tokenizer auto), or "
                          "another model")
    if config.export.embeddings is not None and architecture.model_type not in _encoders():
        raise ConfigError(f"--export.embeddings {config.export.embeddings}: {config.model.name} is a "
                          f"{architecture.model_type}, whose tokens do not see what follows them: leave the option "
                          "out, or train an encoder")


def _encoders() -> Collection[str]:
    """The kinds of models that fill in hidden tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _pretrained(kind: Any, config: TransformerConfig, architecture: object) -> Any:
    wanted = config.model
    check_weights(wanted.name)
    folder = expanded(wanted.name)
    where = str(folder) if folder.is_dir() else wanted.name
    with without_progress_bar():
        model, found = _looking_for(wanted.name, lambda: kind.from_pretrained(
            where, config=architecture, use_safetensors=True, dtype=torch.float32, trust_remote_code=False,
            output_loading_info=True))
    missing = sorted(found["missing_keys"])
    _check_missing(wanted.name, model.base_model_prefix, missing)
    _check_learnt(config, model, missing)
    return model


def _begun(kind: Any, config: TransformerConfig, architecture: object, origin: Artifact) -> Any:
    """The model with an artifact's tensors, all of which fit, but for those of layers that begin anew."""
    given = of_artifact(origin).tensors()
    with torch.device("meta"):
        expected = kind.from_config(architecture)
    shapes = {name: tuple(parameter.shape) for name, parameter in expected.named_parameters()}
    names = taken(config.model, shapes, {name: values.shape for name, values in given.items()})
    with without_progress_bar():
        model = type(expected).from_pretrained(
            None, config=architecture, dtype=torch.float32,
            state_dict={name: torch.from_numpy(given[name]) for name in names})
    _check_learnt(config, model, sorted(shapes.keys() - names))
    return model


def _check_learnt(config: TransformerConfig, model: Any, missing: Sequence[str]) -> None:
    """Raises: ConfigError where updates of low rank leave as they are what an adapter's artifact would not have."""
    if config.exports_adapter and (lacking := [each for each in missing if each.split(".")[0] not in heads_of(model)]):
        raise ConfigError(f"{config.model.origin} has no {', '.join(lacking[:3])}, which begin with random values and "
                          "which updates of low rank leave as they are: pass --export.merge, so that the artifact has "
                          "them")


def _check_missing(name: str, prefix: str, missing: Sequence[str]) -> None:
    """A head for the task is new in each fine-tuning, as is a pooler, which not every pretraining has;
    anything else is damage."""
    body = [each for each in missing if each.startswith(f"{prefix}.") and ".pooler." not in each]
    if body:
        raise ConfigError(f"--model.name {name}: its weights lack {len(body)} of the model's tensors "
                          f"({', '.join(body[:3])}): they would be random: copy all of its files again, or train from "
                          "nothing with --model.no-pretrained")
    if missing:
        _log.warning("%s has no %s: they begin with random values, and are learnt", name, ", ".join(missing))


@contextmanager
def without_progress_bar() -> Generator[None]:
    """Reading weights takes a moment; the bar that transformers draws for it would stand between a run's own lines."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _looking_for(name: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--model.name {name}: is no preset, and not to be had as a folder or from the hub: {first_lines(error)}. "
            "Looked for config.json, model.safetensors and tokenizer.json: where there is no network, copy a folder "
            "with these files here and pass its path") from error


def first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ")
