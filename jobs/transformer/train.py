"""How the Transformer is trained, from a micro-batch of tokens to the optimiser.
Run it with `python -m jobs.transformer`.

The same for both tasks and all strategies. A step is the passes over the micro-batches of the shards that this worker
owns; the loss is a sum over rows (to classify) or target tokens (to generate), divided by their *global* number, never
a mean of means. How weights, gradients and moments are spread over the workers, and summed, is the strategy's:
strategies/ddp.py or zero.py.

Shapes: m rows of a micro-batch, T tokens, V words of the vocabulary, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from jobs.common.data.dataset import SplitName
from jobs.common.data.loader import MicroBatches, cut
from jobs.common.declared_metrics import chosen
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import Answers, Outcome, StepResult, Tensors, Wishes
from jobs.pytorch.draws import Draws
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import TorchProfiler, set_up_torch
from jobs.pytorch.weight_digest import digest_of
from jobs.transformer.config import TransformerConfig
from jobs.transformer.costs import sizes_of
from jobs.transformer.data import metrics
from jobs.transformer.evaluate import evaluate, predict, predict_perturbed
from jobs.transformer.preference.measures import warning_of
from jobs.transformer.preference.reference import FirstWeights, find_reference
from jobs.transformer.preference.task import Prefer
from jobs.transformer.strategies.shards import WEIGHTS, fill, to_arrays
from jobs.transformer.strategies.spread import strategy
from jobs.transformer.strategies.table import Strategy
from jobs.transformer.tasks import Batch, Task, task_of
from jobs.transformer.throughput import Throughput

_log = logging.getLogger(__name__)


def train(context: TrainContext, config: TransformerConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(context, config.run.cpus_per_worker)
    even_alone = config.scale.capabilities.sharded
    first = FirstWeights() if config.task == "prefer" else None
    with (Group(context, device, even_alone=even_alone) as group,
          strategy(context, config, group, first) as model):
        task = task_of(context.dataset, config, device) if first is None else Prefer(
            config.prefer, find_reference(context, config, group, model, first.digest), device)
        loader = context.data_loader(config.data.length_group_steps if config.task == "classify" else 1)
        return fit(context, TransformerTraining(context, config, group, model, task), loader,
                   metric=chosen(metrics(config), config.metric),
                   evaluate_every_steps=config.train.evaluate_every_steps, agree_on_checkpoints=True,
                   profiler=TorchProfiler)


class TransformerTraining:
    """The model under its strategy, and its task, on one worker."""

    def __init__(self, context: TrainContext, config: TransformerConfig, group: Group, model: Strategy,
                 task: Task) -> None:
        device = torch.device(context.device)
        self.context, self.config, self.group, self.model, self.task = context, config, group, model, task
        self.random = Draws(config.run.seed, device)
        self.throughput = Throughput.of(context, config, model.model, device)
        self.sharded = model.sharded
        context.update_status(passes=num_passes(context, lockstep=model.lockstep))

    @property
    def num_parameters(self) -> int:
        return sum(sizes_of(self.model.model))

    def learning_rate(self, step: int, total_steps: int) -> float:
        return self.config.optim.learning_rate(step, total_steps)

    def step(self, batch: MicroBatches, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        """One step."""
        model, task = self.model, self.task
        batches = list(passes(self.context, batch, self.config, lockstep=model.lockstep))
        targets, tokens = self.group.total(task.sizes(batches)).tolist()
        model.begin()
        in_order = self.config.run.exact == "any-workers"
        losses = [0.0] * (self.context.num_shards if in_order else 1)
        for number, rows in enumerate(batches):
            self.random.begin_pass(state.epoch, state.step_in_epoch, rows.shard, rows.part)
            with model.passing():
                share = task.loss(model.forward, rows.rows) * (rows.weight / targets)
            last = number == len(batches) - 1
            model.backward(share, last=last, last_of_shard=last or batches[number + 1].shard != rows.shard)
            losses[rows.shard if in_order else 0] += float(share.detach())
        summed = self.group.total(torch.tensor([*losses, *wishes()], dtype=torch.float64)).tolist()
        loss, agreed = sum(summed[: len(losses)]), summed[len(losses) :]
        outcome = model.step(rates[0]) if math.isfinite(loss) else model.abandon()
        self.throughput.step(self.context, tokens)
        return StepResult([loss], [outcome], agreed)

    def undo_step(self) -> StepResult | None:
        """Where each worker has the whole model, a step changes nothing before all that it waits for has come."""
        return StepResult([], [], []) if self.model.replicated and not self.model.sharded else None

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.group.total(torch.from_numpy(values)).numpy()

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """What the task measures."""
        values = evaluate(self.context, self.model, self.task, self.group, split, self.config)
        if isinstance(self.task, Prefer) and self.context.rank == 0 and (fall := warning_of(values)):
            _log.warning("WARNING: of the %s rows %s", split, fall)
        return values

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """What the task predicts."""
        found = predict(self.context, self.model, self.task, split, self.config)
        return ((rows["row_id"], labels, values) for _, (rows, labels, values, _) in found)

    def predict_perturbed(self) -> None:
        """Texts as people really type them, when classifying."""
        predict_perturbed(self.context, self.model, self.task, self.config)

    # ── checkpoints: slices of parameters and of their moments, see strategies/shards.py ──
    def weight_digest(self) -> int | None:
        return digest_of(f.tensors[WEIGHTS] for f in self.model.weights()) if self.model.replicated else None

    def state_dict(self, optimizer_steps: int) -> Tensors:
        return to_arrays(self.model.fragments(optimizer_steps))

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        fill([*self.model.weights(), *self.model.fragments(optimizer_steps)], parts)

    def load_weights(self, parts: Iterator[Tensors]) -> None:
        fill(list(self.model.weights()), parts)


# ── the passes of one step ──
def passes(context: TrainContext, micro_batches: MicroBatches, config: TransformerConfig, *,
           lockstep: bool) -> Iterator[Batch]:
    """The forward passes of this worker's micro-batches, each cut where one may not take all its rows.

    lockstep: workers with fewer shards than others make as many passes, the surplus at zero weight.
    """
    own = list(micro_batches.items())
    surplus = num_passes(context, lockstep=lockstep) - len(own)
    for place, (shard, columns) in enumerate(own + own[:1] * surplus):
        for part, rows in enumerate(cut(columns, config.train.max_rows_per_pass)):
            yield Batch(shard, part, rows, 1.0 if place < len(own) else 0.0)


def num_passes(context: TrainContext, *, lockstep: bool) -> int:
    """How many micro-batches this worker goes through in a step, those at zero weight included."""
    return -(-context.num_shards // context.world_size) if lockstep else len(context.shards)
