"""Judging rows on all workers: every row once, and with a strategy in lockstep as many passes on each worker."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns, SplitName
from jobs.common.evaluation.part_sums import PartSums
from jobs.common.extras import of_changed_rows
from jobs.common.training.context import TrainContext
from jobs.common.training.predictions import Predictions
from jobs.common.training.trainable import Answers
from jobs.pytorch.process_group import Group
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.table import Strategy
from jobs.transformer.tasks import Predicts, Task
from jobs.transformer.text.dataset_files import load_tokenizer, sample
from jobs.transformer.text.robustness import PERTURBATIONS
from jobs.transformer.text.tokenizer import encode_rows

_SORTED_BATCHES = 16
Answered = tuple[Columns, Array, Array, Tensor]
"""Rows, their labels, what is predicted of them, and sums."""


def evaluate(context: TrainContext, model: Strategy, task: Task, group: Group, split: SplitName,
             config: TransformerConfig) -> dict[str, float]:
    """The task's metrics over a whole split: sums of all workers are added."""
    sums = PartSums(context, task.num_sums)
    for part, (_, _, _, figures) in predict(context, model, task, split, config):
        sums.add(part, figures.numpy())
    return task.metrics(sums.total(lambda values: group.total(torch.from_numpy(values)).numpy()).tolist())


def predict(context: TrainContext, model: Strategy, task: Task, split: SplitName,
            config: TransformerConfig) -> Iterator[tuple[int, Answered]]:
    """(part, (rows, labels, predictions, sums)) of this worker's share of a split, in batches of like lengths."""
    size = config.eval.batch_size
    for part in context.parts:
        batches = _batches(context, split, context.part_range(split, part), size)
        for answered in judged(context, model, task, batches, _most(context, split, size)):
            yield part, answered


def judged(context: TrainContext, model: Strategy, task: Predicts, batches: Iterator[Columns],
           num_batches: int) -> Iterator[Answered]:
    """The task's predictions of batches. num_batches: passes that each worker makes, where they go in lockstep."""
    made, some = 0, None
    model.model.eval()
    def found(rows: Columns) -> tuple[Array, Array, Tensor]:
        with torch.no_grad(), model.passing():
            return task.predict(model.forward, rows)

    for rows in batches:
        yield rows, *found(rows)
        made, some = made + 1, rows
        context.heartbeat()
    for _ in range(num_batches - made if model.lockstep else 0):
        found(some if some is not None else context.reader("train").rows(0, 1))
    model.model.train()


def _batches(context: TrainContext, split: SplitName, share: range, size: int) -> Iterator[Columns]:
    """Sorted by length some batches at a time, so that they hold little padding."""
    reader = context.reader(split)
    for start in range(share.start, share.stop, size * _SORTED_BATCHES):
        rows = reader.rows(start, min(share.stop, start + size * _SORTED_BATCHES))
        yield from sorted_batches(rows, size)


def sorted_batches(rows: Columns, size: int) -> Iterator[Columns]:
    """Batches of at most `size` rows, of like `length` where there is one."""
    order = np.argsort(rows["length"], kind="stable") if "length" in rows else np.arange(len(rows["row_id"]))
    for start in range(0, len(order), size):
        yield {name: column[order[start : start + size]] for name, column in rows.items()}


def _most(context: TrainContext, split: SplitName, size: int) -> int:
    """Batches of the worker that has most."""
    rows = context.dataset.splits[split].num_rows
    shares = [rows * (rank + 1) // context.world_size - rows * rank // context.world_size
              for rank in range(context.world_size)]
    return max(share // (size * _SORTED_BATCHES) * _SORTED_BATCHES + -(-(share % (size * _SORTED_BATCHES)) // size)
               for share in shares)


# ── at the end ──
def predict_perturbed(context: TrainContext, model: Strategy, task: Task, config: TransformerConfig) -> None:
    """Each worker its share of the sample's texts, perturbed in each of the ways, when classifying;
    the driver judges them."""
    if config.task != "classify" or not config.eval.robustness_rows:
        return
    tokenizer, size = load_tokenizer(context.dataset), config.eval.batch_size
    shown = sample(context.dataset)
    texts = shown.texts
    most = min(len(texts), config.eval.robustness_rows)
    passes = -(-len(range(0, most, context.num_parts)) // size)
    for name, perturb in {"untouched": None, **PERTURBATIONS}.items():
        if not context.extras.begins(of_changed_rows(name), 1):
            continue
        answers: list[Answers] = []
        for mine in (range(part, most, context.num_parts) for part in context.parts):
            perturbed = [perturb(texts[i], (config.run.seed, int(shown.row_ids[i]))) if perturb else texts[i]
                         for i in mine]
            rows = encode_rows(tokenizer, list(map(config.data.rule, perturbed)), config.data.max_length)
            rows |= {"label": shown.labels[mine], "row_id": shown.row_ids[mine]}
            found = judged(context, model, task, sorted_batches(rows, size), passes)
            answers += [(rows["row_id"], labels, values) for rows, labels, values, _ in found]
        if answers:
            context.write_predictions(of_changed_rows(name), Predictions.joined(answers))
