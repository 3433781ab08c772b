"""The model: built from a preset, a folder or a hub name; its losses; and loaded back from an artifact, without Ray.

    python -c "from jobs.transformer.model import load; print(load('PATH/TO/artifact').predict(['Where is the station?']))"

Shapes: B rows, T tokens, V words of the vocabulary, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cluster.core.auth import expanded
from cluster.core.documents import parse_json
from cluster.core.errors import ConfigError, TrainyardError
from jobs.common.artifact import artifact
from jobs.common.artifact.artifact import Artifact
from jobs.transformer.base_model import check_base, check_weights
from jobs.transformer.config import ModelConfig, TransformerConfig
from jobs.transformer.presets import preset

_PLAIN_ATTENTION_TOKENS = 128
IGNORED = -100
"""A target that does not count, as in torch.nn.functional.cross_entropy."""
_OF_WEIGHTS = (".safetensors", ".safetensors.index.json")
_log = logging.getLogger(__name__)


# ── building ──
def build_model(config: TransformerConfig, details: Mapping[str, Any], class_names: Sequence[str]) -> Any:
    """The model with its first weights: a function of `run.seed`, or the pretrained ones. details: `Dataset.details`.

    Raises: ConfigError if there is no such model, its weights are a pickle, or it does not fit the data.
    """
    torch.manual_seed(config.run.seed)
    architecture = _architecture(config, details, class_names)
    _check_fit(config, details, architecture)
    kind = _auto_class(config.task)
    if config.model.is_preset or not config.model.pretrained:
        model = kind.from_config(architecture)
    else:
        model = _pretrained(kind, config.model, architecture)
    if config.model.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return _with_lora(model, config.model) if config.model.lora_rank else model


def skeleton(config: TransformerConfig, details: Mapping[str, Any], class_names: Sequence[str]) -> Any:
    """The model's shapes and config, without weights (on torch's meta device) and without updates of low rank."""
    with torch.device("meta"):
        return _auto_class(config.task).from_config(_architecture(config, details, class_names))


def _auto_class(task: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if task == "classify" else AutoModelForCausalLM


def _architecture(config: TransformerConfig, details: Mapping[str, Any], class_names: Sequence[str]) -> Any:
    from transformers import AutoConfig

    wanted, task = config.model, config.task
    labels: dict[str, Any] = {"id2label": dict(enumerate(class_names)), "label2id": {n: i for i, n in enumerate(class_names)}}
    options: dict[str, Any] = {"attn_implementation": _attention(config), "use_cache": False, **(labels if class_names else {})}
    if wanted.is_preset:
        size = replace(preset(wanted.name, task).resized(wanted.layers, wanted.heads, wanted.width),
                       window=wanted.attention_window).options(task)
        ids: dict[str, Any] = {f"{kind}_token_id": details["start_id"] for kind in ("bos", "eos", "cls", "sep")}
        ids["pad_token_id"] = details["pad_id"]
        known: Any = AutoConfig.for_model(**size, vocab_size=details["vocab_size"], **ids, **options)
    else:
        check_base(wanted.name)
        auto: Any = AutoConfig
        known = _looking_for(wanted.name, lambda: auto.from_pretrained(wanted.name, trust_remote_code=False, **options))
    for name in _DROPOUTS:
        if wanted.dropout is not None and hasattr(known, name):
            setattr(known, name, wanted.dropout)
    return known


_DROPOUTS = ("dropout", "attention_dropout", "seq_classif_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
             "classifier_dropout", "embedding_dropout", "mlp_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def _attention(config: TransformerConfig) -> str:
    if config.model.attention != "auto":
        return config.model.attention
    usable = config.run.gpus_per_worker and config.hardware.precision != "fp32" and importlib.util.find_spec("flash_attn")
    return "flash_attention_2" if usable else "sdpa"


def attention_kernels(config: TransformerConfig, device: str) -> AbstractContextManager[Any]:
    """For as long as a model is trained: which of SDPA's kernels may be used.

    On a CPU the backward pass of the fused one takes about 20 µs a row and head in bfloat16, however short the rows are, ten
    times what the plain one takes for 16 tokens; for 128 it is about as fast (torch 2.13, tests/benchmarks/attention.py).
    """
    slow = device == "cpu" and config.hardware.precision == "bf16" and config.data.max_length <= _PLAIN_ATTENTION_TOKENS
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def _check_fit(config: TransformerConfig, details: Mapping[str, Any], architecture: Any) -> None:
    most = getattr(architecture, "max_position_embeddings", None)
    if most is not None and details["max_length"] > most:
        raise ConfigError(f"--data.max-length {details['max_length']}: {config.model.name} takes {most} tokens: pass {most} or "
                          "less")
    if details["vocab_size"] > architecture.vocab_size:
        raise ConfigError(f"the tokenizer has {details['vocab_size']} tokens, the embedding of {config.model.name} only "
                          f"{architecture.vocab_size}: use the model's own tokenizer (--data.tokenizer auto), or another model")


def _pretrained(kind: Any, wanted: ModelConfig, architecture: Any) -> Any:
    check_weights(wanted.name)
    folder = expanded(wanted.name)
    where = str(folder) if folder.is_dir() else wanted.name
    with _without_progress_bar():
        model, found = _looking_for(wanted.name, lambda: kind.from_pretrained(
            where, config=architecture, use_safetensors=True, dtype=torch.float32, trust_remote_code=False,
            output_loading_info=True))
    _check_missing(wanted.name, model, sorted(found["missing_keys"]))
    return model


def _check_missing(name: str, model: Any, missing: Sequence[str]) -> None:
    """A head for the task is new in each fine-tuning, as is a pooler, which not every pretraining has; anything else is damage."""
    body = [each for each in missing if each.startswith(f"{model.base_model_prefix}.") and ".pooler." not in each]
    if body:
        raise ConfigError(f"--model.name {name}: its weights lack {len(body)} of the model's tensors ({', '.join(body[:3])}): they "
                          "would be random: copy all of its files again, or train from nothing with --model.no-pretrained")
    if missing:
        _log.warning("%s has no %s: they begin with random values, and are learnt", name, ", ".join(missing))


@contextmanager
def _without_progress_bar() -> Generator[None]:
    """Reading weights takes a moment; the bar that transformers draws for it would stand between a run's own lines."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _looking_for(name: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--model.name {name}: is no preset, and not to be had as a folder or from the hub: {_first_lines(error)}. Looked for "
            "config.json, model.safetensors and tokenizer.json: where there is no network, copy a folder with these files here "
            "and pass its path") from error


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ")


def _with_lora(model: Any, wanted: ModelConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    kept = ["classifier", "pre_classifier", "score"]
    heads = [name for name in kept if any(module == name for module, _ in model.named_children())]
    layers = sorted({name.rpartition(".")[2] for name, module in model.named_modules()
                     if isinstance(module, nn.Linear) and not name.startswith((*kept, "lm_head"))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to go
        return get_peft_model(model, LoraConfig(r=wanted.lora_rank or 1, lora_alpha=int(wanted.lora_alpha), target_modules=layers,
                                                modules_to_save=heads or None))


# ── from token rows to losses ──
def inputs_of(tokens: npt.NDArray[Any], lengths: npt.NDArray[Any], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Rows to classify, cut to the longest. tokens: (B, T), -1 where there is none; lengths: (B,)."""
    longest = min(tokens.shape[1], -(-int(lengths.max()) // 8) * 8)
    cut = torch.from_numpy(np.ascontiguousarray(tokens[:, :longest])).to(device, torch.int64)
    there = cut >= 0
    return {"input_ids": cut.masked_fill(~there, pad_id), "attention_mask": there.long()}


def packed_inputs(tokens: npt.NDArray[Any], start_id: int, end_id: int | None,
                  device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Packed rows as (model inputs, targets (B, T)). tokens: (B, T + 1), -1 where there is none.

    Positions begin anew at each document, by which the model's own masks keep documents apart; a row without a second
    document needs none, and takes the fast causal path. The start of a document is no target where it does not end the one before.
    """
    rows = torch.from_numpy(np.ascontiguousarray(tokens)).to(device, torch.int64)
    inputs, targets = rows[:, :-1], rows[:, 1:].clone()
    targets[targets < 0] = IGNORED
    if end_id is not None:
        targets[targets == start_id] = IGNORED
    batch: dict[str, Tensor] = {"input_ids": inputs.clamp(min=0)}
    starts = (inputs == start_id) | (inputs < 0)
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


# ── an artifact, as an application sees it ──
@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What speaks for a prediction: `pieces` put together are the text, as far as it was read; an attribution each, in log-odds."""

    predicted: int
    pieces: list[str]
    attributions: list[float]
    difference: float
    """Log-odds of the class for this text, less those for the baseline: what the attributions sum to."""
    gap: float
    """How far they are from it."""


def _on_text(text: str, offsets: Sequence[tuple[int, int]], attributions: Sequence[float]) -> dict[str, Any]:
    pieces: list[str] = []
    values: list[float] = []
    done = 0
    for (start, stop), value in zip(offsets, attributions, strict=True):
        if stop > start:
            pieces.append(text[done:stop])
            values.append(value)
            done = stop
    return {"pieces": pieces, "attributions": values}


class Classifier:
    """A trained classifier with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str], max_length: int) -> None:
        self.model, self.tokenizer, self.labels, self.max_length = model.eval(), tokenizer, tuple(labels), max_length

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], batch_size: int = 64) -> npt.NDArray[np.float32]:
        """Probabilities (B, K)."""
        done = [torch.softmax(self.model(**self.encode(texts[i : i + batch_size])).logits.float(), 1).cpu().numpy()
                for i in range(0, len(texts), batch_size)]
        return np.concatenate(done) if done else np.empty((0, len(self.labels)), np.float32)

    def explain(self, texts: Sequence[str], steps: int = 50) -> list[Explanation]:
        """Which parts of each text speak for the class that is predicted (integrated gradients on the embeddings).

        Compared with a text of nothing but padding between the special tokens, at the same positions.
        """
        from jobs.pytorch.attribution import integrated_gradients

        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt",
                               return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        embed = self.model.get_input_embeddings()
        with torch.no_grad():
            target = self.model(input_ids=ids, attention_mask=mask).logits.argmax(1)
            blank = torch.where(batch["special_tokens_mask"].bool(), ids, torch.full_like(ids, self.tokenizer.pad_token_id))
            inputs, baselines = embed(ids), embed(blank)

        def forward(rows: Tensor, there: Tensor) -> Tensor:
            return self.model(inputs_embeds=rows, attention_mask=there).logits.float()

        found, gaps, differences = integrated_gradients(forward, inputs, baselines, target, steps, context=(mask,),
                                                        rows_per_pass=64)
        of_tokens = found.sum(2)
        return [Explanation(predicted=int(target[i]), gap=float(gaps[i]), difference=float(differences[i]),
                            **_on_text(text, batch["offset_mapping"][i].tolist(), of_tokens[i].tolist()))
                for i, text in enumerate(texts)]

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask (B, T), cut to what the model was trained on."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def of_tokens(self) -> "TokenClassifier":
        """The same without its tokenizer."""
        return TokenClassifier(self.model, self.tokenizer.pad_token_id or 0)


class TokenClassifier:
    """A trained classifier of rows that are tokens already, as they are prepared for training."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    @torch.inference_mode()
    def predict(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """tokens: (B, T), -1 where there is none. Returns probabilities (B, K)."""
        inputs = inputs_of(tokens, (tokens >= 0).sum(1), self.pad_id, self.model.device)
        return torch.softmax(self.model(**inputs).logits.float(), 1).cpu().numpy()


class LanguageModel:
    """A trained language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, start_id: int, end_id: int | None) -> None:
        self.model, self.tokenizer, self.start_id, self.end_id = model.eval(), tokenizer, start_id, end_id

    def generate(self, prompt: str, max_new_tokens: int = 100, temperature: float = 0.8, seed: int = 0) -> str:
        """A continuation of the prompt, up to the document's end."""
        ids = [self.start_id, *self.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        torch.manual_seed(seed)
        ends = self.start_id if self.end_id is None else self.end_id
        with torch.inference_mode():
            answer = self.model.generate(torch.tensor([ids]), max_new_tokens=max_new_tokens, do_sample=True, use_cache=True,
                                         temperature=temperature, eos_token_id=ends, pad_token_id=ends,
                                         attention_mask=torch.ones(1, len(ids), dtype=torch.int64))
        return self.tokenizer.decode(answer[0, len(ids):], skip_special_tokens=True)

    @torch.inference_mode()
    def negative_log_likelihood(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(B,) in nats, of packed rows (B, T + 1) as the artifact's probe has them."""
        batch, targets = packed_inputs(tokens, self.start_id, self.end_id, torch.device("cpu"))
        return token_losses(self.model(**batch).logits, targets).sum(1).numpy()


def load(where: artifact.Where | Artifact) -> Classifier | LanguageModel:
    """The model of an artifact on the CPU, of bytes that were verified.

    Raises: ArtifactError, also for one that lacks some of its weights.
    """
    opened = artifact.as_artifact(where)
    about = opened.manifest.description
    try:
        before = parse_json(json.dumps(dict(about.preprocessing)), _Preprocessing)
        model, tokenizer = _parts(opened, _auto_class("classify" if about.labels else "generate"))
    except TrainyardError:
        raise
    except Exception as error:  # whatever transformers raises for files that are not as it wants them
        raise artifact.refused(opened.uri, [f"model/ cannot be loaded ({_first_lines(error) or type(error).__name__})"]) from error
    if about.labels:
        return Classifier(model, tokenizer, about.labels, before.max_length)
    if before.start_id is None:
        raise artifact.refused(opened.uri, ["it writes text, and names no start_id to begin one with"])
    return LanguageModel(model, tokenizer, before.start_id, before.end_id)


@dataclass(frozen=True, kw_only=True)
class _Preprocessing:
    max_length: int
    start_id: int | None = None
    """None of a classifier without one."""
    end_id: int | None = None


def _parts(opened: Artifact, kind: Any) -> tuple[Any, Any]:
    """Model and tokenizer. What transformers opens is a private copy of the small files; the weights are given to it."""
    from transformers import AutoConfig, AutoTokenizer

    auto: Any = AutoConfig
    with tempfile.TemporaryDirectory(prefix="trainyard-model-") as folder, _without_progress_bar():
        _copy_small_files(opened, Path(folder))
        architecture = auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            expected = kind.from_config(architecture, trust_remote_code=False)
        weights = _weights(opened)
        _check_shapes(opened, expected, weights)
        model, found = type(expected).from_pretrained(None, config=architecture, state_dict=weights, dtype=torch.float32,
                                                      output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise artifact.refused(opened.uri, [f"its weights lack {len(missing)} of the model's tensors ({', '.join(missing[:3])})"])
    return model, tokenizer


def _copy_small_files(opened: Artifact, folder: Path) -> None:
    for path in opened.manifest.paths:
        if path.startswith("model/") and not path.endswith(_OF_WEIGHTS):
            copy = folder / path.removeprefix("model/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(opened.read(path))


def _weights(opened: Artifact) -> dict[str, Tensor]:
    """Those of all the artifact's files of weights; an index of them is not needed."""
    found: dict[str, Tensor] = {}
    for path in opened.manifest.paths:
        if path.startswith("model/") and path.endswith(".safetensors"):
            found |= {name: _tensor(values) for name, values in opened.tensors(path).items()}
    return found


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16) if values.dtype == np.uint16 else torch.from_numpy(values)


def _check_shapes(opened: Artifact, expected: Any, weights: Mapping[str, Tensor]) -> None:
    """Before memory is taken for what a config says. expected: the model on torch's meta device."""
    shapes = {name: parameter.shape for name, parameter in expected.named_parameters()}
    if wrong := [name for name, shape in shapes.items() if name in weights and weights[name].shape != shape]:
        raise artifact.refused(opened.uri, [f"weight {wrong[0]} has the shape {tuple(weights[wrong[0]].shape)}, and by config.json "
                                             f"{tuple(shapes[wrong[0]])}"])
    if missing := sorted(shapes.keys() - weights):
        raise artifact.refused(opened.uri, [f"its weights lack {len(missing)} of the model's tensors ({', '.join(missing[:3])})"])
