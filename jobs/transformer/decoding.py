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

import numpy as np
import torch
from torch import Tensor

from cluster.core.errors import ArtifactError, InputError
from jobs.common.predictor.texts import CallRule, Scores
from jobs.transformer.chat.answers import Chat
from jobs.transformer.chat.constraint import Constraint, Constraints
from jobs.transformer.generation.cache import KeyValueCache
from jobs.transformer.generation.prefix_cache import BLOCK, PrefixCache
from jobs.transformer.generation.token_bytes import TokenBytes
from jobs.transformer.model import LanguageModel
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
    constraint: Constraint | None = None
    """What the text has to fit."""
    token: int = -1
    length: int = 0
    scores: Scores | None = None


class Decoder:
    """Used by one thread at a time, for all but `tokens` and `pieces`."""

    def __init__(self, model: LanguageModel, prefix_cache_bytes: int = 0) -> None:
        """prefix_cache_bytes: of keys and values of earlier prompts, which those that begin alike do not compute again;
        0: none are kept."""
        self._model = model.model
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._start_id, self._clean = model.start_id, model.clean
        self._tokenizer = backend_of(model.tokenizer.backend_tokenizer.to_str(), None)
        self.end_id = model.start_id if model.end_id is None else model.end_id
        self.vocab_size = int(self._model.config.vocab_size)
        self.max_tokens: int | None = getattr(self._model.config, "max_position_embeddings", None)
        """Of prompt and continuation together."""
        self.chat = Chat.of(model.tokenizer, self._tokenizer)
        self._bytes_of = TokenBytes(self._tokenizer)
        ends = {self.end_id, *(self.chat.ends if self.chat else ())}
        self._constraints = Constraints(model.tokenizer.backend_tokenizer.to_str(), self.vocab_size, ends)
        self.rows: list[Row] = []
        self._cache: KeyValueCache | None = None

    @property
    def prefix_bytes(self) -> int:
        """Of keys and values of earlier prompts."""
        return self._prefixes.bytes

    @property
    def prefix_tokens(self) -> int:
        """Of all prompts so far, those that were not computed again."""
        return self._prefixes.reused

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
    def constraint(self, held_to: str | CallRule) -> Constraint:
        """What a text has to fit: a schema, in JSON, or a rule of which calls there may be. Raises: InputError."""
        if isinstance(held_to, str):
            return self._constraints.constraint(held_to)
        if self.chat is None or self.chat.tool_calls is None:
            raise InputError("the model's chat template writes no calls that an answer can be held to")
        return self._constraints.calls(held_to, self.chat.tool_calls)

    def row(self, temperature: float, top_p: float, random: np.random.Generator, top: int | None = None,
            constraint: Constraint | None = None) -> Row:
        return Row(temperature=temperature, top_p=top_p, random=random, top=top,
                   constraint=constraint and constraint.copy())

    @torch.inference_mode()
    def join(self, prompt: Sequence[int], rows: Sequence[Row]) -> int:
        """Reads a prompt once, for all rows that continue it, from where it differs from earlier ones;
        each row has its first token then. Returns how many of the prompt's tokens were not computed again."""
        cache = self._prefixes.begun(prompt)
        known = cache.width
        logits = self._forward(torch.tensor([prompt[known:]]), None, torch.arange(known, len(prompt))[None], cache)
        self._prefixes.keep(prompt, cache)
        self._take(logits.expand(len(rows), -1), rows)
        for row in rows:
            row.length = len(prompt)
        cache.repeat(len(rows))
        if self._cache is None:
            self._cache = cache
        else:
            self._cache.add(cache)
        self.rows += rows
        return known

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for each row."""
        self._take(self._scores(), self.rows)
        for row in self.rows:
            row.length += 1

    def _take(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """The next token of each row. logits: (B, V)."""
        for place, (row, token) in enumerate(zip(rows, chosen(_fitting(logits, rows), rows), strict=True)):
            row.token = token
            if row.constraint is not None:
                row.constraint.take(token)
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
        elif self._cache is not None:
            self._cache.keep(torch.tensor(kept), max(row.length for row in self.rows))

    @torch.inference_mode()
    def check(self) -> None:
        """Raises: ArtifactError for a model whose rows are not the same beside others as alone, in a cache like this
        one, or after the kept beginning of another prompt."""
        long = min(2 * BLOCK, (self.max_tokens or 2 * BLOCK + 1) - 1)
        prompts = [[self._start_id, *(k % self.vocab_size for k in range(size))] for size in (7, 2, long - 1)]
        prompts.append(prompts[-1])  # its beginning is known by then
        for prompt in prompts:
            self.join(prompt, [self.row(0.0, 1.0, np.random.default_rng(0))])
        tokens = [[*prompt, row.token] for prompt, row in zip(prompts, self.rows, strict=True)]
        beside = self._scores()
        self.leave(list(self.rows))
        self._prefixes = PrefixCache(self._prefixes.max_bytes)
        here = "beside a longer one", "it cannot write several texts at a time"
        begun = "that begins as an earlier one", "pass --prefix-cache-mib 0"
        for found, row, (where, then) in zip(beside, tokens, (here, here, here, begun), strict=True):
            alone = self._model(input_ids=torch.tensor([row])).logits[0, -1]
            far = float((found - alone).abs().max())
            if not far <= _CLOSE * float(alone.abs().max()):
                raise ArtifactError(f"{type(self._model).__name__} gives other scores for a row {where} than for it "
                                    f"alone (they differ by {far:.3g}): {then}")

    def _forward(self, tokens: Tensor, mask: Tensor | None, places: Tensor, cache: object) -> Tensor:
        """(B, V) of the last token of each row. tokens, places: (B, new tokens); mask: (B, T)."""
        return self._model(input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache,
                           use_cache=True,
                           logits_to_keep=1).logits[:, -1]


def _fitting(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """(B, V) with -inf for what a row may not go on with."""
    if all(row.constraint is None for row in rows):
        return logits
    fitting = logits.clone()
    for place, row in enumerate(rows):
        if row.constraint is not None:
            fitting[place, torch.from_numpy(~row.constraint.allowed(logits.shape[1]))] = -torch.inf
    return fitting


def chosen(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row. logits: (B, V)."""
    warm = [place for place, row in enumerate(rows) if row.temperature > 0]
    found: list[int] = logits.argmax(1).tolist() if len(warm) < len(rows) else [-1] * len(rows)
    if not warm:
        return found
    heat = torch.tensor([rows[place].temperature for place in warm])[:, None]
    scores = (logits[warm] if len(warm) < len(rows) else logits).float()
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
