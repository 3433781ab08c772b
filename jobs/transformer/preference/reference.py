"""What the model gave the answers of each pair before the first step: the reference of preferences.

It is worked out once, before the first step of whichever run is first to need it, with the model that the run begins
with (of one with updates of low rank, the base, as those begin at nothing), and is kept with the prepared data: so
training holds one model, and a run that goes on reads the very numbers that it began with.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from cluster.core.errors import StorageError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.data.dataset import SPLITS, Columns, SplitName
from jobs.common.training.context import TrainContext
from jobs.pytorch.process_group import Group
from jobs.pytorch.weight_digest import digest_of
from jobs.transformer.config import TransformerConfig
from jobs.transformer.evaluate import judged
from jobs.transformer.preference.loss import log_probabilities
from jobs.transformer.strategies.table import Strategy
from jobs.transformer.tasks import Forward

_BATCHES_AT_ONCE = 256
"""Whose log-probabilities go into one file: what is worked out again after a stop."""


@dataclass(frozen=True)
class Reference:
    """Of all rows of all splits, sorted by row id."""

    row_ids: npt.NDArray[np.int64]
    """(n,)"""
    log_probabilities: npt.NDArray[np.float32]
    """(n, 2) in nats, of chosen and rejected answers."""

    @staticmethod
    def joined(parts: Sequence["Reference"]) -> "Reference":
        ids = np.concatenate([part.row_ids for part in parts])
        order = np.argsort(ids, kind="stable")
        return Reference(ids[order], np.concatenate([part.log_probabilities for part in parts])[order])

    def of(self, row_ids: Array) -> npt.NDArray[np.float32]:
        """(m, 2)"""
        return self.log_probabilities[np.searchsorted(self.row_ids, row_ids)]


class FirstWeights:
    """Is shown a model before its first step, and keeps the digest of its weights, without updates of low rank."""

    digest = 0

    def __call__(self, model: nn.Module) -> None:
        self.digest = digest_of(weights for name, weights in model.named_parameters() if ".lora_" not in name)


def find_reference(context: TrainContext, config: TransformerConfig, group: Group, model: Strategy,
                   weights: int) -> Reference:
    """Called on all workers, before the first weights change. weights: their digest (weight_digest.py).

    Batches are the same whoever works them out, so that no number depends on how many workers there are.
    Raises: PeerLostError; StorageError, StorageFullError.
    """
    store = context.dataset.store
    precision = config.hardware.precision
    if precision != "fp32" and config.scale.capabilities.sharded:
        precision += "-weights"  # DeepSpeed rounds the weights themselves
    key = context.broadcast("reference", lambda: f"{weights:013x}-{precision}")
    folder = f"{context.dataset.blocks}/reference/{key}"
    there = context.broadcast("references", lambda: [file.path for file in store.files(folder)])
    parts: list[Reference] = []
    for split, rows in _parts(context, config.eval.batch_size * _BATCHES_AT_ONCE):
        path = f"{folder}/{split}-{rows.start:010d}-{rows.stop:010d}.safetensors"
        if path in there:
            parts.append(_read(store, path))
            continue
        context.update_status(phase=f"reference of {split} rows: {rows.start:,} of "
                                    f"{context.dataset.splits[split].num_rows:,}")
        parts.append(_made(context, config.eval.batch_size, group, model, split, rows))
        if context.rank == 0:
            _write(store, path, parts[-1])
    context.update_status(phase=None)
    return Reference.joined(parts)


def _parts(context: TrainContext, size: int) -> Iterator[tuple[SplitName, range]]:
    for split in SPLITS:
        count = context.dataset.splits[split].num_rows
        for start in range(0, count, size):
            yield split, range(start, min(count, start + size))


def _made(context: TrainContext, size: int, group: Group, model: Strategy, split: SplitName, rows: range) -> Reference:
    """Each worker its share of the batches; all get all."""
    starts = rows[::size]
    mine = starts[context.rank :: context.world_size]
    reader = context.reader(split)
    batches = (reader.rows(start, min(rows.stop, start + size)) for start in mine)
    found = np.zeros((len(rows), 3))
    answers = judged(context, model, _Answers(torch.device(context.device)), batches,
                     -(-len(starts) // context.world_size))
    for start, (batch, _, values, _) in zip(mine, answers, strict=True):
        place = start - rows.start
        found[place : place + len(values)] = np.column_stack([batch["row_id"], values])
    found = group.total(torch.from_numpy(found)).numpy()
    return Reference(found[:, 0].astype(np.int64), found[:, 1:].astype(np.float32))


@dataclass(frozen=True)
class _Answers:
    """Predicts the log-probabilities of answers."""

    device: torch.device

    def predict(self, forward: Forward, rows: Columns) -> tuple[Array, Array, Tensor]:
        found = log_probabilities(forward, rows, self.device).float().cpu()
        return rows["row_id"], found.numpy(), torch.zeros(0)


def _write(store: Store, path: str, part: Reference) -> None:
    store.write_bytes(path, save({"row_ids": part.row_ids, "log_probabilities": part.log_probabilities}))


def _read(store: Store, path: str) -> Reference:
    try:
        arrays = load(store.read_bytes(path))
        return Reference(arrays["row_ids"], arrays["log_probabilities"])
    except (SafetensorError, KeyError) as error:
        raise StorageError(f"{store.location(path)} is damaged ({error}): delete it and run the same command "
                           "again") from error
