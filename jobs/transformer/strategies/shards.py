"""Which slices of which parameters a worker holds, and how they travel into a checkpoint and out of one,
for any number of workers.

A *fragment* is a contiguous slice of one parameter, flattened, with AdamW's two moments of the same slice; the
strategies list the fragments that their worker owns. In a rank's safetensors file it is three tensors named
`weights/NAME@START`, `exp_avg/NAME@START` and `exp_avg_sq/NAME@START`, so the file's own JSON header is the map from
parameter to slices. Whoever resumes, on as many workers as may be, takes what it owns from the slices that are there.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cluster.core.errors import CheckpointError
from jobs.common.arrays import Array

WEIGHTS = "weights"
KINDS = (WEIGHTS, "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TextFragment:
    """Elements [start, start + n) of a flattened parameter, and its moments: flat float32 tensors (n,), live ones.

    written: called after they have been filled, where they are copies.
    """

    name: str
    start: int
    tensors: Mapping[str, Tensor]
    written: Callable[[], None] | None = None


@dataclass(frozen=True)
class Slice:
    """A slice in a file: elements [start, start + n) of a parameter's weights or of one of its moments."""

    kind: str
    name: str
    start: int

    @staticmethod
    def parse(key: str) -> "Slice":
        kind, _, rest = key.partition("/")
        name, _, start = rest.rpartition("@")
        return Slice(kind, name, int(start))

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}@{self.start}"


def to_arrays(fragments: Iterable[TextFragment]) -> dict[str, Array]:
    """What a checkpoint keeps of a worker's fragments; views of live tensors where they are on the CPU."""
    return {str(Slice(kind, fragment.name, fragment.start)): tensor.detach().cpu().numpy()
            for fragment in fragments for kind, tensor in fragment.tensors.items()}


def fill(fragments: Iterable[TextFragment], parts: Iterable[Mapping[str, Array]]) -> None:
    """Puts a checkpoint into a worker's fragments, one part in memory at a time.

    Raises: CheckpointError if a slice is in no part.
    """
    import torch

    wanted: dict[tuple[str, str], list[tuple[TextFragment, Tensor]]] = {}
    held = list(fragments)
    for fragment in held:
        for kind, tensor in fragment.tensors.items():
            wanted.setdefault((kind, fragment.name), []).append((fragment, tensor))
    missing = {(kind, f.name, f.start): t.numel() for (kind, _), owners in wanted.items() for f, t in owners}
    for part in parts:
        for key, array in part.items():
            piece = Slice.parse(key)
            for fragment, tensor in wanted.get((piece.kind, piece.name), ()):
                low = max(piece.start, fragment.start)
                high = min(piece.start + len(array), fragment.start + tensor.numel())
                if low < high:
                    values = torch.from_numpy(array[low - piece.start : high - piece.start])
                    tensor[low - fragment.start : high - fragment.start].copy_(values)
                    missing[piece.kind, fragment.name, fragment.start] -= high - low
    if lacking := [name for (_, name, _), count in missing.items() if count > 0]:
        raise CheckpointError(f"the checkpoint lacks slices of {lacking[0]} and {len(lacking) - 1} more: it is of "
                              "another model")
    for fragment in held:
        if fragment.written:
            fragment.written()


def gathered(parts: Iterable[Iterator[tuple[str, Array]]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Whole weights by name (float32), from all parts' (key, array)."""
    whole = {name: np.empty(int(np.prod(shape, dtype=np.int64)), np.float32) for name, shape in shapes.items()}
    for part in parts:
        for key, array in part:
            piece = Slice.parse(key)
            if piece.kind == WEIGHTS:
                whole[piece.name][piece.start : piece.start + len(array)] = array
    return {name: values.reshape(shapes[name]) for name, values in whole.items()}


def items(parts: Iterable[Mapping[str, Array]]) -> Generator[Iterator[tuple[str, Array]]]:
    """For `gathered`."""
    for part in parts:
        yield iter(part.items())
