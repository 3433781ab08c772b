"""Each worker writes its share of the predictions; the driver puts them together by row id."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cluster.core.errors import StorageError
from cluster.core.storage import Store
from jobs.common.training import predictions
from jobs.common.training.predictions import Predictions


def share(rows: list[int]) -> Predictions:
    """Rows that can be told by their numbers."""
    ids = np.array(rows, np.int64)
    return Predictions(ids, ids % 7, np.stack([ids / 100, 1 - ids / 100], 1).astype(np.float32))


def test_shares_are_joined_and_sorted_by_row_id_whatever_the_ranks(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    ids = np.random.default_rng(0).permutation(60)
    for rank in range(12):
        predictions.write(store, "g1", "test", rank, share(ids[rank::12].tolist()))
    joined = predictions.read(store, "g1", "test")
    assert joined.row_ids.tolist() == list(range(60))
    assert joined.labels.tolist() == [row % 7 for row in range(60)]
    np.testing.assert_array_equal(joined.probabilities, share(list(range(60))).probabilities)
    assert joined.probabilities.dtype == np.float32


def test_splits_and_generations_are_kept_apart(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    predictions.write(store, "g1", "test", 0, share([9]))
    predictions.write(store, "g2", "validation", 0, share([1, 2]))
    predictions.write(store, "g2", "test", 0, share([3]))
    assert predictions.read(store, "g2", "test").row_ids.tolist() == [3]
    assert predictions.read(store, "g2", "validation").row_ids.tolist() == [1, 2]


def test_a_share_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    store, data = Store.open(str(tmp_path)), io.BytesIO()
    np.savez(data, row_ids=np.array([{"an": "object"}], dtype=object))
    store.write_bytes("predictions/g1/test-00000.npz", data.getvalue())
    with pytest.raises(StorageError, match="allow_pickle"):
        predictions.read(store, "g1", "test")


def test_a_damaged_share_is_named_and_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("row_ids.npy", bytes(16 << 20))
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<i8", "fortran_order": False, "shape": (1 << 50,)})
    wrong = io.BytesIO()
    with zipfile.ZipFile(wrong, "w") as archive:
        archive.writestr("row_ids.npy", huge.getvalue())
    for data in (b"", b"PK", bomb.getvalue(), wrong.getvalue()):
        store.write_bytes("predictions/g/test-00000.npz", data)
        with pytest.raises(StorageError, match=r"test-00000\.npz is damaged"):
            predictions.read(store, "g", "test")
