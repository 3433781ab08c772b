"""A small set of combinations in which every two values of two options occur together, where they may."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Combination = dict[str, Any]


def pairwise(options: Mapping[str, Sequence[Any]], allowed: Callable[[Combination], bool]) -> list[Combination]:
    """Greedy: each next combination is the one with most pairs that have not occurred yet. Deterministic."""
    every = [c for values in itertools.product(*options.values())
             if allowed(c := dict(zip(options, values, strict=True)))]
    left = {pair for combination in every for pair in _pairs(combination)}
    chosen: list[Combination] = []
    while left:
        best = max(every, key=lambda combination: len(left & _pairs(combination)))
        chosen.append(best)
        left -= _pairs(best)
    return chosen


def _pairs(combination: Combination) -> set[Any]:
    return set(itertools.combinations(sorted(combination.items(), key=lambda item: item[0]), 2))
