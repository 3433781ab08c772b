"""What the workers predict for an evaluation split: each writes its share, the driver puts them together by row id."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.storage import Store

_FOLDER = "predictions"


@dataclass(frozen=True)
class Predictions:
    """Of one split, sorted by row id. row_ids, labels: (rows,). probabilities: (rows, classes), float32."""

    row_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


def write(store: Store, generation: str, split: str, rank: int, share: Predictions) -> None:
    """One worker's share."""
    buffer = io.BytesIO()
    np.savez(buffer, row_ids=share.row_ids, labels=share.labels, probabilities=share.probabilities)
    store.write_bytes(f"{_FOLDER}/{generation}/{split}-{rank:05d}.npz", buffer.getvalue(), durable=False)


def read(store: Store, generation: str, split: str) -> Predictions:
    """All shares of a split."""
    shares: list[dict[str, npt.NDArray[Any]]] = []
    for file in store.files(f"{_FOLDER}/{generation}"):
        if file.path.rpartition("/")[2].startswith(f"{split}-"):
            with np.load(io.BytesIO(store.read_bytes(file.path)), allow_pickle=False) as arrays:
                shares.append({name: arrays[name] for name in arrays.files})
    joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
    order = np.argsort(joined["row_ids"], kind="stable")
    return Predictions(**{name: column[order] for name, column in joined.items()})
