"""Reads what a prepared set of texts keeps beside its blocks: the tokenizer, and some test texts."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from jobs.common.data.dataset import Dataset
from jobs.transformer.text.tokenizer import from_files

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Sample:
    """Test rows, at most 2,000, in an order that has nothing to do with the source's: the first of them stand for all.

    positions: in the test split. All of one length.
    """

    positions: npt.NDArray[np.int64]
    row_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    texts: list[str]


def sample(dataset: Dataset) -> Sample:
    """What `prepare` has kept as text: to generate, nothing."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(dataset.store.read_bytes(f"{dataset.blocks}/sample.parquet")))
    positions, row_ids, labels = (table.column(name).to_numpy().astype(np.int64)
                                  for name in ("position", "row_id", "label"))
    return Sample(positions, row_ids, labels, table.column("text").to_pylist())


def tokenizer_files(dataset: Dataset) -> dict[str, bytes]:
    """By name: tokenizer.json and what goes with it."""
    folder = f"{dataset.blocks}/tokenizer"
    return {f.path.rpartition("/")[2]: dataset.store.read_bytes(f.path) for f in dataset.store.files(folder)}


def load_tokenizer(dataset: Dataset) -> "PreTrainedTokenizerFast":
    """The tokenizer that a set was made with."""
    return from_files(tokenizer_files(dataset))
