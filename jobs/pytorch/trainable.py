"""What every job has that keeps its whole model and optimiser on each worker: their tensors, in a checkpoint and out of
one, and a step.

Data parallel by hand: each worker sums the gradients of the shards that it owns, one all-reduce over one flat buffer
(whose layout depends on nothing but the model, so a restarted process sums in the same order) makes them global, and
every worker takes the same step. The loss is a sum over rows divided by the *global* rows, never a mean of means.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.config import EvalConfig, RunConfig, TrainConfig
from jobs.common.data.dataset import Columns, Dataset, SplitName
from jobs.common.data.loader import MicroBatches, cut
from jobs.common.evaluation.own_metrics import own_figures
from jobs.common.evaluation.part_sums import batches_of_parts
from jobs.common.own_code import OwnModel, called
from jobs.common.start import check_labels, origin_of
from jobs.common.start_config import StartConfig, start_of
from jobs.common.training.context import TrainContext
from jobs.common.training.optim_config import OptimConfig
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import Answers, StepResult, Tensors, Wishes
from jobs.pytorch.draws import Draws
from jobs.pytorch.gradients.ordered_sum import StepSums
from jobs.pytorch.optimizer import (
    build_optimizer,
    check_kept,
    initial_lr,
    own_optimizer,
    scale_lr,
    set_lr,
    settings_of,
    step_if_finite,
)
from jobs.pytorch.process_group import Group
from jobs.pytorch.running_statistics import RunningStatistics
from jobs.pytorch.start import begin, freeze
from jobs.pytorch.weight_digest import digest_of


class TorchTrainable:
    """The part of a `Trainable` that is the same for every `nn.Module` with one of PyTorch's optimisers."""

    sharded = False

    def __init__(self, context: TrainContext, group: Group, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.context, self.group, self.model, self.optimizer = context, group, model, optimizer
        self._settings = settings_of(optimizer)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over all workers. Raises: PeerLostError."""
        return self.group.total(torch.from_numpy(values)).numpy()

    def weight_digest(self) -> int:
        """A number that is the same on all workers that hold the same weights."""
        return digest_of(self.model.parameters())

    def state_dict(self, optimizer_steps: int) -> Tensors:
        """`model.<name>` and `optimizer.<index>.<key>`; views of the live tensors where they are on the CPU.

        Raises: ConfigError for an optimiser that keeps more than tensors.
        """
        check_kept(self.optimizer, self._settings)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        """Of the one part that there is."""
        tensors = next(parts)
        load_weights(self.model, tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = torch.from_numpy(array)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def load_weights(self, parts: Iterator[Tensors]) -> None:
        load_weights(self.model, next(parts))


class TorchConfig(Protocol):
    """The groups of a config that a step needs; a job's own has more."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def eval(self) -> EvalConfig: ...
    @property
    def optim(self) -> OptimConfig: ...


class TorchTraining(TorchTrainable, ABC):
    """A module and its optimiser on one worker: the steps, and the rows of a split with its answers. What one pass
    computes, `backward` and `answer`, a job says; shapes: m rows of a micro-batch."""

    draws = True
    """Whether a pass draws random numbers of PyTorch's: then each begins with a seed of its own."""
    within = ""
    """What the names of tensors begin with that a user does not write."""

    def __init__(self, context: TrainContext, config: TorchConfig, group: Group, device: torch.device,
                 model: nn.Module, own: OwnModel | None = None) -> None:
        """own: a user's, whose optimiser and schedule go before the config's.
        Raises: ConfigError, ArtifactError for another model that it is to begin with."""
        part, start = model.get_submodule(self.within.rstrip(".")), start_of(config)
        if (opened := origin_of(start)) is not None:
            self.check_origin(start, opened, context.dataset)
            begin(part, start, {name.removeprefix(self.within): each for name, each in opened.weights().items()})
        self._resting = freeze(part, start)
        super().__init__(context, group, model, own_optimizer(own, model) or build_optimizer(
            [each for each in model.parameters() if each.requires_grad], config.optim))
        self.config, self.device, self.random = config, device, Draws(config.run.seed, device)
        self.schedule = own.method("schedule") if own else None
        self.whole_loss = own.method("loss") if own else None
        """A user's, of the model and a batch: the mean over its rows."""
        self.own, self.evaluations = own, count()
        self.scales = own is not None and (own.method("optimizer") or self.schedule) is not None
        self.statistics = RunningStatistics(model, context.num_shards, self._resting)
        self.in_order = StepSums(group, [p for p in model.parameters() if p.requires_grad]) \
            if config.run.exact == "any-workers" else None
        self._rest()

    def check_origin(self, start: StartConfig, opened: Artifact, dataset: Dataset) -> None:
        """Raises: ConfigError where a model that it is to begin with means something else by its inputs or outputs."""
        check_labels(start, opened, dataset.class_names)

    def _rest(self) -> None:
        for part in self._resting:
            part.eval()

    @abstractmethod
    def backward(self, rows: Columns, epoch: int) -> float:
        """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""

    def lower(self, loss: Tensor, rows: int) -> float:
        """Adds the gradient of a mean loss over some rows, as their share of the global batch's. Returns that share."""
        global_rows = self.config.train.global_batch_size
        loss.backward(share_of_rows(rows, global_rows, self.device))  # pyright: ignore[reportUnknownMemberType]
        return loss.item() * rows / global_rows

    @abstractmethod
    def answer(self, rows: Columns) -> Tensor:
        """What the model gives for rows that it is judged on (m, …)."""

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Of the optimiser's first group, where the config's schedule or the user's own scales what each began with."""
        if self.schedule is not None:
            factor = float(called("its schedule", self.schedule, step, total_steps))
        elif self.scales:
            factor = self.config.optim.learning_rate(step, total_steps) / self.config.optim.lr
        else:
            return self.config.optim.learning_rate(step, total_steps)
        return factor * initial_lr(self.optimizer)

    def step(self, batch: MicroBatches, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        """One step."""
        (scale_lr if self.scales else set_lr)(self.optimizer, rates[0])
        self.optimizer.zero_grad(set_to_none=True)
        loss, config, statistics = 0.0, self.config, self.statistics
        statistics.begin_step()
        own = wishes() if self.in_order else []
        for shard, columns in batch.items():
            statistics.begin_shard()
            of_shard = 0.0
            for part, rows in enumerate(cut(columns, config.train.max_rows_per_pass)):
                if self.draws:
                    self.random.begin_pass(state.epoch, state.step_in_epoch, shard, part)
                of_shard += self.backward(rows, state.epoch)
            if self.in_order:
                self.in_order.add(shard, of_shard, statistics.of_shard(), own)
                own = [0.0] * len(own)
            else:
                statistics.end_shard()
            loss += of_shard
        loss, agreed = (self.in_order.finish(statistics.sums) if self.in_order else
                        self.group.reduce(self.model, loss, wishes(), statistics.sums))
        outcome = step_if_finite(self.optimizer, loss, config.optim.clip_norm)
        statistics.end_step(taken=outcome == "taken")
        return StepResult([loss], [outcome], agreed)

    def undo_step(self) -> StepResult:
        """A step changes weights and moments when all that it waits for has come; the module's statistics before."""
        self.statistics.undo_step()
        return StepResult([], [], [])

    def weight_digest(self) -> int:
        """A number that is the same on all workers that hold the same weights and buffers."""
        return digest_of([*self.model.parameters(), *self.statistics.buffers()])

    def own_figures(self, split: SplitName) -> dict[str, float]:
        """What a user's class declares as metrics. Raises: ConfigError, PeerLostError."""
        key = str(next(self.evaluations))
        return own_figures(self.context, self.own, key, lambda: self.predict(split)) if self.own else {}

    @abstractmethod
    def predict(self, split: SplitName) -> Iterator[Answers]:
        """This worker's share of a split, in batches."""

    def batches(self, split: SplitName) -> Iterator[tuple[int, Columns, Tensor]]:
        """(part, rows, answers (m, …) on the CPU) of this worker's share of a split."""
        self.model.eval()
        with torch.inference_mode(), self.statistics.kept():
            for part, rows in batches_of_parts(self.context, split, self.config.eval.batch_size):
                yield part, rows, self.answer(rows).cpu()
                self.context.heartbeat()
        self.model.train()
        self._rest()


@functools.cache
def share_of_rows(rows: int, global_batch_size: int, device: torch.device) -> Tensor:
    """What the mean loss over some rows counts for in the mean over the global batch."""
    return share_of_a_row(global_batch_size, device) * rows


@functools.cache
def share_of_a_row(global_batch_size: int, device: torch.device) -> Tensor:
    """What a row's loss counts for in the mean over the global batch."""
    return torch.tensor(1.0 / global_batch_size, device=device)


def load_weights(model: nn.Module, tensors: Mapping[str, Array]) -> None:
    """Puts a checkpoint's weights into the model, wherever it is."""
    model.load_state_dict({name.removeprefix("model."): torch.from_numpy(array) for name, array in tensors.items()
                           if name.startswith("model.")})
