"""Texts that are continued together, a token each a step,
by the model's own `forward` with its cache of keys and values.

A row may join and leave between any two steps. Rows of different lengths lie right-aligned in the cache, and what is to
the left of the shorter ones is masked. A row draws from a generator of its own, one number a token, so its text is the
same whoever shares its batch, as long as rounding does not decide:
the logits of a row differ by about 1e-6 with the rows beside it.

Shapes: B rows, T tokens in the cache, V words of the vocabulary.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from cluster.core.errors import ArtifactError
from jobs.common.predictor.texts import Scores
from jobs.transformer.chat.answers import Chat
from jobs.transformer.model import LanguageModel
from jobs.transformer.text.token_bytes import TokenBytes
from jobs.transformer.text.tokenizer import backend_of

_CLOSE = 1e-3
"""How far, of the largest score, rounding may move scores."""


@dataclass(kw_only=True, eq=False)
class Row:
    """One text that is continued.
    `token` is its last, which the cache does not have yet, after `length` that it has."""

    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that have this much of the probability together are drawn from."""
    random: np.random.Generator
    top: int | None = None
    """Likeliest tokens that are told of each; None: no scores."""
    token: int = -1
    length: int = 0
    scores: Scores | None = None


class Decoder:
    """Used by one thread at a time, for all but `tokens` and `pieces`."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model.model
        self._start_id, self._clean = model.start_id, model.clean
        self._tokenizer = backend_of(model.tokenizer.backend_tokenizer.to_str(), None)
        self.end_id = model.start_id if model.end_id is None else model.end_id
        self.vocab_size = int(self._model.config.vocab_size)
        self.max_tokens: int | None = getattr(self._model.config, "max_position_embeddings", None)
        """Of prompt and continuation together."""
        self.chat = Chat.of(model.tokenizer, self._tokenizer)
        self._bytes_of = TokenBytes(self._tokenizer)
        self.rows: list[Row] = []
        self._cache: Any = None

    # ── text ──
    def tokens(self, text: str) -> list[int]:
        """A prompt as the model was trained on it: the start of a document, and then the text."""
        # `encode` holds Python's lock, and `encode_batch` lets go of it
        (encoded,) = self._tokenizer.encode_batch([self._clean(text)], add_special_tokens=False)
        return [self._start_id, *encoded.ids]

    def pieces(self) -> Callable[[int], str]:
        """A function of a row's tokens, one after the other, to the text that each adds:
        none until a character is whole."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""

    # ── rows ──
    def row(self, temperature: float, top_p: float, random: np.random.Generator, top: int | None = None) -> Row:
        return Row(temperature=temperature, top_p=top_p, random=random, top=top)

    @torch.inference_mode()
    def join(self, prompt: Sequence[int], rows: Sequence[Row]) -> None:
        """Reads a prompt once, for all rows that continue it; each has its first token then."""
        from transformers import DynamicCache

        cache = DynamicCache()  # without a config, every layer keeps all tokens: rows can be put beside each other then
        logits = self._forward(torch.tensor([prompt]), None, torch.arange(len(prompt))[None], cache)
        self._take(logits.expand(len(rows), -1), rows)
        for row in rows:
            row.length = len(prompt)
        cache.batch_repeat_interleave(len(rows))
        self._cache = cache if self._cache is None else _beside(self._cache, cache)
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for each row."""
        self._take(self._scores(), self.rows)
        for row in self.rows:
            row.length += 1

    def _take(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """The next token of each row. logits: (B, V)."""
        for place, (row, token) in enumerate(zip(rows, chosen(logits, rows), strict=True)):
            row.token = token
            if row.top is not None:
                row.scores = self._told(logits[place], token, row.top)

    def _told(self, logits: Tensor, token: int, top: int) -> Scores:
        """logits: (V,)."""
        known = torch.log_softmax(logits.float(), 0)
        values, places = known.topk(min(top, len(known)))
        likeliest = [(self._bytes_of(place), value)
                     for place, value in zip(places.tolist(), values.tolist(), strict=True)]
        return Scores((self._bytes_of(token), float(known[token])), likeliest)

    def _scores(self) -> Tensor:
        """(B, V) of what follows each row's token, which the cache has then."""
        lengths = torch.tensor([row.length for row in self.rows])
        width = int(lengths.max())
        mask = None
        if int(lengths.min()) < width:
            mask = (torch.arange(width + 1) >= width - lengths[:, None]).long()
        return self._forward(torch.tensor([[row.token] for row in self.rows]), mask, lengths[:, None], self._cache)

    def leave(self, gone: Sequence[Row]) -> None:
        """Takes rows out, and what only they needed of the cache."""
        kept = [place for place, row in enumerate(self.rows) if row not in gone]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            self._cache = None
            return
        self._cache.batch_select_indices(torch.tensor(kept))
        width = max(row.length for row in self.rows)
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]

    @torch.inference_mode()
    def check(self) -> None:
        """Raises: ArtifactError for a model whose rows are not the same beside others as alone,
        in a cache like this one."""
        prompts = [[self._start_id, *(k % self.vocab_size for k in range(size))] for size in (7, 2)]
        for prompt in prompts:
            self.join(prompt, [self.row(0.0, 1.0, np.random.default_rng(0))])
        tokens = [[*prompt, row.token] for prompt, row in zip(prompts, self.rows, strict=True)]
        beside = self._scores()
        self.leave(list(self.rows))
        for found, row in zip(beside, tokens, strict=True):
            alone = self._model(input_ids=torch.tensor([row])).logits[0, -1]
            far = float((found - alone).abs().max())
            if not far <= _CLOSE * float(alone.abs().max()):
                raise ArtifactError(f"{type(self._model).__name__} gives other scores for a row beside a longer one "
                                    f"than for it alone (they differ by {far:.3g}): it cannot write several texts at a "
                                    "time")

    def _forward(self, tokens: Tensor, mask: Tensor | None, places: Tensor, cache: object) -> Tensor:
        """(B, V) of the last token of each row. tokens, places: (B, new tokens); mask: (B, T)."""
        return self._model(input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache,
                           use_cache=True,
                           logits_to_keep=1).logits[:, -1]


def _beside(first: Any, second: Any) -> Any:
    """The rows of two caches in one."""
    width = max(first.get_seq_length(), second.get_seq_length())
    for one, other in zip(first.layers, second.layers, strict=True):
        one.keys = torch.cat([_widened(one.keys, width), _widened(other.keys, width)])
        one.values = torch.cat([_widened(one.values, width), _widened(other.values, width)])
    return first


def _widened(states: Tensor, width: int) -> Tensor:
    """(B, heads, T, size) with T = width, zeros to the left."""
    return F.pad(states, (0, 0, width - states.shape[2], 0))


def chosen(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row. logits: (B, V)."""
    found = logits.argmax(1).tolist()
    warm = [place for place, row in enumerate(rows) if row.temperature > 0]
    if not warm:
        return found
    heat = torch.tensor([rows[place].temperature for place in warm])[:, None]
    scores = logits[warm].float()
    chances = torch.softmax((scores - scores.amax(1, keepdim=True)) / heat, 1)
    tops = torch.tensor([rows[place].top_p for place in warm])
    if float(tops.min()) < 1:
        chances = _nucleus(chances, tops)
    upto = chances.double().cumsum(1)
    drawn = torch.tensor([rows[place].random.random() for place in warm], dtype=torch.float64)
    tokens = torch.searchsorted(upto, (drawn * upto[:, -1])[:, None], right=True).clamp(max=logits.shape[1] - 1)
    for place, token in zip(warm, tokens[:, 0].tolist(), strict=True):
        found[place] = token
    return found


def _nucleus(chances: Tensor, tops: Tensor) -> Tensor:
    """(B, V) with zeros for all tokens beyond the smallest set that has `tops` of
    the probability (Holtzman et al. 2020)."""
    ordered, places = chances.sort(1, descending=True)
    beyond = ordered.cumsum(1) - ordered >= tops[:, None]
    return chances.masked_fill(torch.zeros_like(beyond).scatter(1, places, beyond), 0.0)
