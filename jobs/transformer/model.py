"""The model of an artifact, loaded back without Ray (build.py builds a new one).

    python -c "from jobs.transformer.model import load; print(load('PATH/TO/artifact').predict(['Where is it?']))"

Shapes: B rows, T tokens, V words of the vocabulary, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import TrainyardError
from jobs.common.arrays import Array
from jobs.common.artifact import artifact
from jobs.common.artifact.artifact import Artifact
from jobs.transformer.build import auto_class, first_lines, without_progress_bar
from jobs.transformer.chat.conversation import Conversation
from jobs.transformer.chat.encode import ChatEncoder
from jobs.transformer.inputs import inputs_of, marked_inputs, packed_inputs, token_losses
from jobs.transformer.text.text_rule import TextRule
from jobs.transformer.weights.stored import model_and_tokenizer


# ── an artifact, as an application sees it ──
@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What speaks for a prediction: `pieces` put together are the cleaned text, as far as it was read;
    an attribution each, in log-odds."""

    predicted: int
    pieces: list[str]
    attributions: list[float]
    difference: float
    """Log-odds of the class for this text, less those for the baseline: what the attributions sum to."""
    gap: float
    """How far they are from it."""


def _on_text(text: str, offsets: list[tuple[int, int]], attributions: list[float]) -> tuple[list[str], list[float]]:
    pieces: list[str] = []
    values: list[float] = []
    done = 0
    for (start, stop), value in zip(offsets, attributions, strict=True):
        if stop > start:
            pieces.append(text[done:stop])
            values.append(value)
            done = stop
    return pieces, values


class Classifier:
    """A trained classifier with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str], max_length: int,
                 rule: TextRule | None = None) -> None:
        """rule: by which texts are cleaned; None: they are not."""
        self.model, self.tokenizer, self.labels, self.max_length = model.eval(), tokenizer, tuple(labels), max_length
        self._clean = rule or TextRule()

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

        texts = list(map(self._clean, texts))
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length,
                               return_tensors="pt",
                               return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        embed = self.model.get_input_embeddings()
        with torch.no_grad():
            target = self.model(input_ids=ids, attention_mask=mask).logits.argmax(1)
            blank = torch.where(batch["special_tokens_mask"].bool(), ids,
                                torch.full_like(ids, self.tokenizer.pad_token_id))
            inputs, baselines = embed(ids), embed(blank)

        def forward(rows: Tensor, there: Tensor) -> Tensor:
            return self.model(inputs_embeds=rows, attention_mask=there).logits.float()

        found, gaps, differences = integrated_gradients(forward, inputs, baselines, target, steps, context=(mask,),
                                                        rows_per_pass=64)
        shown = map(_on_text, texts, batch["offset_mapping"].tolist(), found.sum(2).tolist())
        return [Explanation(predicted=int(target[i]), pieces=pieces, attributions=values, gap=float(gaps[i]),
                            difference=float(differences[i])) for i, (pieces, values) in enumerate(shown)]

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask (B, T), cut to what the model was trained on."""
        batch = self.tokenizer(list(map(self._clean, texts)), padding=True, truncation=True,
                               max_length=self.max_length, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def of_tokens(self) -> "TokenClassifier":
        """The same without its tokenizer."""
        return TokenClassifier(self.model, self.tokenizer.pad_token_id or 0)


class TokenClassifier:
    """A trained classifier of rows that are tokens already, as they are prepared for training."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    @torch.inference_mode()
    def predict(self, tokens: Array) -> npt.NDArray[np.float32]:
        """tokens: (B, T), -1 where there is none. Returns probabilities (B, K)."""
        inputs = inputs_of(tokens, (tokens >= 0).sum(1), self.pad_id, self.model.device)
        return torch.softmax(self.model(**inputs).logits.float(), 1).cpu().numpy()


class LanguageModel:
    """A trained language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, start_id: int, end_id: int | None,
                 rule: TextRule | None = None) -> None:
        """rule: by which prompts are cleaned; None: they are not."""
        self.model, self.tokenizer, self.start_id, self.end_id = model.eval(), tokenizer, start_id, end_id
        self.clean = rule or TextRule()

    def generate(self, prompt: str, max_new_tokens: int = 100, temperature: float = 0.8, seed: int = 0) -> str:
        """A continuation of the prompt, up to the document's end."""
        ids = [self.start_id, *self.tokenizer(self.clean(prompt), add_special_tokens=False)["input_ids"]]
        return self._continued([ids], max_new_tokens, temperature, seed)[0]

    def answer(self, messages: Sequence[JsonObject], max_new_tokens: int = 100, temperature: float = 0.0,
               seed: int = 0) -> str:
        """What the assistant says next. Raises: ChatTemplateError, also for a model without a chat template."""
        return self.answers([Conversation(tuple(messages))], max_new_tokens, temperature, seed)[0]

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int = 100,
                temperature: float = 0.0, seed: int = 0) -> list[str]:
        """What the assistant says next in each. Raises: ChatTemplateError, as `answer` does."""
        encoder = ChatEncoder.of(self.tokenizer)
        prompts = [encoder.prompt(conversation) for conversation in conversations]
        return self._continued(prompts, max_new_tokens, temperature, seed)

    def _continued(self, prompts: Sequence[Sequence[int]], most: int, temperature: float, seed: int) -> list[str]:
        """temperature: 0 for the likeliest tokens."""
        torch.manual_seed(seed)
        ends = self.start_id if self.end_id is None else self.end_id
        width = max(map(len, prompts))
        there = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        ids = torch.tensor([[ends] * (width - len(ids)) + [*ids] for ids in prompts])
        drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.inference_mode():
            written = self.model.generate(ids, max_new_tokens=most, use_cache=True, eos_token_id=ends,
                                          pad_token_id=ends, attention_mask=there, **drawn)
        return self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)

    @torch.inference_mode()
    def negative_log_likelihood(self, tokens: Array, marks: Array | None = None) -> npt.NDArray[np.float32]:
        """(B,) in nats, of packed rows (B, T + 1) as the artifact's probe has them; marks: of conversations."""
        cpu = torch.device("cpu")
        batch, targets = (packed_inputs(tokens, self.start_id, self.end_id, cpu) if marks is None
                          else marked_inputs(tokens, marks, cpu))
        # with a cache, transformers would let documents see each other
        return token_losses(self.model(**batch, use_cache=False).logits, targets).sum(1).numpy()


def load(where: artifact.Where | Artifact, base: str | None = None, *,
         merged: bool = True) -> Classifier | LanguageModel:
    """The model of an artifact on the CPU, of bytes that were verified.

    base: where the model is that an adapter's updates are of; None: where it was when they were trained. merged: adds
    the updates to its weights; else a base and the adapters of it that are loaded in a process share its weights.
    Raises: ArtifactError, also for one that lacks some of its weights, and for another base.
    """
    opened = artifact.as_artifact(where)
    return _loaded(opened, lambda kind: model_and_tokenizer(opened, kind, base, merged=merged))


def read_folder(opened: Artifact, folder: Path) -> Classifier | LanguageModel:
    """The same of a folder that was written of an artifact, by transformers alone. Raises: ArtifactError."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    def read(kind: Any) -> tuple[Any, Any]:
        local = {"trust_remote_code": False, "local_files_only": True}
        with without_progress_bar():
            return (kind.from_pretrained(folder, dtype=torch.float32, **local),
                    AutoTokenizer.from_pretrained(folder, **local))

    return _loaded(opened, read)


def _loaded(opened: Artifact, read: Callable[[Any], tuple[Any, Any]]) -> Classifier | LanguageModel:
    """read: gives model and tokenizer, of transformers' class for the task."""
    about = opened.manifest.description
    try:
        before = parse_json(json.dumps(dict(about.preprocessing)), _Preprocessing)
        model, tokenizer = read(auto_class("classify" if about.labels else "generate"))
    except TrainyardError:
        raise
    except Exception as error:  # whatever transformers raises for files that are not as it wants them
        raise artifact.refused(opened.uri,
                               [f"model/ cannot be loaded ({first_lines(error) or type(error).__name__})"]) from error
    if about.labels:
        return Classifier(model, tokenizer, about.labels, before.max_length, before.text)
    if before.start_id is None:
        raise artifact.refused(opened.uri, ["it writes text, and names no start_id to begin one with"])
    return LanguageModel(model, tokenizer, before.start_id, before.end_id, before.text)


@dataclass(frozen=True, kw_only=True)
class _Preprocessing:
    max_length: int
    start_id: int | None = None
    """None of a classifier without one."""
    end_id: int | None = None
    text: TextRule = field(default_factory=TextRule)
