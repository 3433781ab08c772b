"""Keys and values of prompts that came before: a prompt computes only what follows the tokens that it shares with them.

They are kept in blocks of BLOCK tokens. A block is known by its own tokens and all before them, so prompts that begin
alike share what they share, and each block is there once. Of blocks that no prompt had for the longest time the last go
first, down to `max_bytes`. Used by one thread; others may read `bytes` and `reused`.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

import numpy as np
import torch
from torch import Tensor

from jobs.transformer.generation.cache import KeyValueCache, States

BLOCK = 16
"""Tokens, as of a block of vLLM's."""


class PrefixCache:
    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of all keys and values that are kept; 0: none are."""
        self.max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()
        """Least recently used first: of each, keys and values of all layers, one after the other."""
        self._shapes: list[tuple[int, int]] = []
        """Heads and their size, of each layer's keys and its values."""
        self.bytes = 0
        self.reused = 0
        """Tokens of prompts that were not computed again."""

    def begun(self, prompt: Sequence[int]) -> KeyValueCache:
        """What is known of the prompt's first tokens, but not of its last: what follows that is to be computed."""
        known = list(takewhile(lambda key: key in self._blocks, _keys(prompt[:-1])))
        self.reused += BLOCK * len(known)
        return KeyValueCache(self._joined([self._blocks[key] for key in known]) if known else ())

    def keep(self, prompt: Sequence[int], cache: KeyValueCache) -> None:
        """Its whole blocks, as many of them as there may be. cache: of the prompt alone."""
        states = [one for layer in cache.states for one in layer]
        self._shapes = [(one.shape[1], one.shape[3]) for one in states]
        size = sum(one[:, :, :1].nbytes for one in states) * BLOCK
        keys = list(islice(_keys(prompt), self.max_bytes // size))
        # a block is of no use without those before it, so these are to go after it
        for place, key in reversed(list(enumerate(keys))):
            if key not in self._blocks:
                # a full cache writes into the memory of the block that goes: given back and asked for again between
                # the prompts' own tensors, it would become pieces that fit nothing, and the process would grow
                gone = self._blocks.popitem(last=False)[1] if self.bytes + size > self.max_bytes else None
                its = slice(BLOCK * place, BLOCK * (place + 1))
                self._blocks[key] = torch.cat([one[0, :, its].flatten() for one in states], out=gone)
                self.bytes += size if gone is None else 0
            self._blocks.move_to_end(key)

    def _joined(self, blocks: Sequence[Tensor]) -> States:
        """One after the other: (1, heads, T, size) of each layer's keys and values."""
        parts = torch.stack(list(blocks)).split([BLOCK * heads * size for heads, size in self._shapes], 1)
        made = [part.view(len(blocks), heads, BLOCK, size).transpose(0, 1).reshape(1, heads, -1, size)
                for part, (heads, size) in zip(parts, self._shapes, strict=True)]
        return list(zip(made[::2], made[1::2], strict=True))


def _keys(tokens: Sequence[int]) -> Iterator[bytes]:
    """Of each whole block: a digest of its tokens and all before them, which nobody finds a second text for."""
    digest = hashlib.sha256()
    whole = len(tokens) // BLOCK * BLOCK
    for block in np.array(tokens[:whole], np.int64).reshape(-1, BLOCK):
        digest.update(block.tobytes())
        yield digest.digest()
