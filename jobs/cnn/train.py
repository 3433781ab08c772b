"""How the CNN is trained, from the pipeline to the answers. Run it with `python -m jobs.cnn`.

Data parallel under MultiWorkerMirroredStrategy, with a step of our own (`step.py`): Keras's `fit` does not work there
(keras#20585). A call of TensorFlow makes many steps, as many as the loop says (`step_batcher.py`);
what is computed does not depend on it.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jobs.cnn.config import CnnConfig
from jobs.cnn.framework import tf
from jobs.cnn.group import Group, peers_needed
from jobs.cnn.model import new_model
from jobs.cnn.pipeline import Batch, Pipeline
from jobs.cnn.profiler import TensorflowProfiler
from jobs.cnn.start import begin, freeze
from jobs.cnn.step import OUTCOMES, Settings, Trainer
from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns, SplitName
from jobs.common.declared_metrics import CLASSIFICATION, chosen
from jobs.common.evaluation.part_sums import PartSums, batches_of_parts
from jobs.common.start import check_labels, origin_of
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import Answers, Outcome, StepResult, Tensors, Wishes
from jobs.common.training.weight_digest import digest_of_arrays
from jobs.common.vision.build_info import BuildInfo
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.robustness import Attack, predict_changed


def train(context: TrainContext, config: CnnConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    # XLA has no deterministic gradient of max pooling for GPUs, and refuses it everywhere; on a CPU all of XLA is
    # deterministic.
    with Group(context, config.run.cpus_per_worker, deterministic=not config.hardware.xla) as group:
        pipeline = Pipeline(context.data_loader(), config, ImageFacts.of(context.dataset))
        return fit(context, CnnTraining(context, config, pipeline, group), pipeline,
                   metric=chosen(CLASSIFICATION, config.metric),
                   most_steps_per_call=config.train.most_steps_per_call, profiler=TensorflowProfiler)


class CnnTraining:
    """The network and its optimiser on one worker."""

    sharded = False

    def __init__(self, context: TrainContext, config: CnnConfig, pipeline: Pipeline, group: Group) -> None:
        self.context, self.config, self.group = context, config, group
        self.trainer = build_trainer(context, config, pipeline, group)

    @property
    def num_parameters(self) -> int:
        return self.trainer.model.count_params()

    def learning_rate(self, step: int, total_steps: int) -> float:
        return self.config.optim.learning_rate(step, total_steps)

    def step(self, batch: Iterator[Batch], state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        """batch: an iterator over the pipeline's elements, of which each step takes one."""
        # one size: another would be compiled for again
        padded = np.zeros(self.config.train.most_steps_per_call, np.float32)
        padded[: len(rates)] = rates
        extra = tf.constant(np.array(wishes(), np.float32))
        with peers_needed():
            made = self.trainer.steps(batch, tf.constant(len(rates)), tf.constant(padded), extra)
            losses, outcomes, agreed, waited, rows = (found.numpy() for found in made)
        self.trainer.finished.clear()
        self.context.count_waiting(float(waited))
        return self._result(losses, outcomes, agreed.tolist(), rows)

    def _result(self, losses: Array, outcomes: Sequence[int], agreed: list[float], rows: Sequence[Array]) -> StepResult:
        traced = [dict(zip(self.context.shards, ids, strict=True))
                  for ids in rows] if self.config.run.trace_rows else ()
        return StepResult(losses.tolist(), [OUTCOMES[outcome] for outcome in outcomes], agreed, traced)

    def undo_step(self) -> StepResult:
        """A step changes nothing before its one exchange; of a call that broke, the steps before it were made."""
        finished, self.trainer.finished = self.trainer.finished, []
        losses, outcomes, rows = zip(*finished, strict=True) if finished else ((), (), ())
        return self._result(np.array(losses), outcomes, [], rows)

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.group.total(values)

    def batches(self, split: SplitName) -> Iterator[tuple[int, Columns, npt.NDArray[np.float32]]]:
        """(part, rows, probabilities (m, K)) of this worker's share of a split."""
        for part, rows in batches_of_parts(self.context, split, self.config.eval.batch_size):
            yield part, rows, self.trainer.probabilities(rows["image"])
            self.context.heartbeat()

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """Accuracy and loss over a whole split, on all workers: sums are added, every row counts once."""
        sums = PartSums(self.context, 3)
        for part, rows, found in self.batches(split):
            labels = rows["label"]
            likely = np.maximum(found[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
            sums.add(part, [len(labels), (found.argmax(1) == labels).sum(), -np.log(likely).sum(dtype=np.float64)])
        count, correct, loss = sums.total(self.group.total).tolist()
        return {"accuracy": correct / count, "loss": loss / count}

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """Probabilities."""
        return ((rows["row_id"], rows["label"], found) for _, rows, found in self.batches(split))

    def predict_perturbed(self) -> None:
        """Rows as the world, and an adversary, change them."""
        predict_changed(self.context, self.config, self.trainer.probabilities, self.trainer.gradient_at)

    def weight_digest(self) -> int:
        return digest_of_arrays(self.trainer.weights())

    def state_dict(self, optimizer_steps: int) -> Tensors:
        return self.trainer.tensors()

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        self.trainer.load(next(parts))

    def load_weights(self, parts: Iterator[Tensors]) -> None:
        self.trainer.load({name: array for name, array in next(parts).items() if name.startswith("model.")})


def build_trainer(context: TrainContext, config: CnnConfig, pipeline: Pipeline, group: Group) -> Trainer:
    """Raises: ConfigError, ArtifactError for another model that it is to begin with."""
    dataset = context.dataset
    model = new_model(config, BuildInfo.of(dataset, config.model))
    if (opened := origin_of(config.model)) is not None:
        check_labels(config.model, opened, dataset.class_names)
        begin(model, config.model, opened)
    settings = Settings(
        passes=pipeline.passes, rows_per_pass=pipeline.rows_per_pass,
        class_weights=balanced(dataset.splits["train"].class_counts)
        if config.train.class_weights == "balanced" else None,
        attack=Attack.in_training(dataset, config), frozen=freeze(model, config.model))
    return Trainer(model, config, settings, group)


def balanced(class_counts: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """(K,): the weight of a row of each class, so that all classes weigh the same together, and rows 1 in the mean."""
    counts = np.asarray(class_counts, np.float64)
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
