"""What the workers predict for an evaluation split: each writes its share, the driver puts them together by row id; and
what became of the budget for things beyond the metrics."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cluster.core.documents import load_json
from cluster.core.errors import StorageError
from cluster.core.storage import Store
from jobs.common.archives import expansion_refusal
from jobs.common.arrays import Array
from jobs.common.extras import ExtrasAccount

_FOLDER, _EXTRAS = "predictions", "extras.json"


@dataclass(frozen=True)
class Predictions:
    """Of one split, sorted by row id. row_ids: (rows,). labels: the classes (rows,), or the numbers that are predicted
    (rows, targets). probabilities: (rows, classes) float32, or the predicted numbers (rows, …)."""

    row_ids: npt.NDArray[np.int64]
    labels: Array
    probabilities: Array

    @staticmethod
    def joined(parts: Sequence[tuple[Array, Array, Array]]) -> "Predictions":
        """One after the other, each as (row_ids, labels, probabilities); there is at least one."""
        return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def write(store: Store, generation: str, split: str, rank: int, share: Predictions) -> None:
    """One worker's share."""
    buffer = io.BytesIO()
    np.savez(buffer, row_ids=share.row_ids, labels=share.labels, probabilities=share.probabilities)
    store.write_bytes(f"{_FOLDER}/{generation}/{split}-{rank:05d}.npz", buffer.getvalue(), durable=False)


def read(store: Store, generation: str, split: str) -> Predictions:
    """All shares of a split. Raises: StorageError, naming a share that is damaged."""
    paths = [file.path for file in store.files(f"{_FOLDER}/{generation}")]
    shares = [_share(store, path) for path in paths if path.rpartition("/")[2].startswith(f"{split}-")]
    joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
    order = np.argsort(joined["row_ids"], kind="stable")
    return Predictions(**{name: column[order] for name, column in joined.items()})


def _share(store: Store, path: str) -> dict[str, Array]:
    data = store.read_bytes(path)
    try:
        if why := expansion_refusal(zipfile.ZipFile(io.BytesIO(data)), len(data)):
            raise ValueError(f"it {why}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("row_ids", "labels", "probabilities")}
    except (ValueError, KeyError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise StorageError(f"{store.location(path)} is damaged ({error}): delete it and run the same command "
                           "again") from error


def write_extras(store: Store, generation: str, account: ExtrasAccount) -> None:
    store.write_text(f"{_FOLDER}/{generation}/{_EXTRAS}", json.dumps(asdict(account)), durable=False)


def read_extras(store: Store, generation: str) -> ExtrasAccount:
    """Where an earlier version trained there is none: it left nothing out. Raises: DocumentError."""
    path = f"{_FOLDER}/{generation}/{_EXTRAS}"
    return load_json(store, path, ExtrasAccount) if store.exists(path) else ExtrasAccount()
