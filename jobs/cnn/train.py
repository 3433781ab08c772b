"""The CNN's training loop, from the pipeline to the checkpoint. Run it with `python -m jobs.cnn`.

Data parallel under MultiWorkerMirroredStrategy, with a step of our own (`step.py`): `fit` does not work there (keras#20585). A
call of TensorFlow makes many steps. How many, rank 0 says beforehand: its wish is summed along with the gradients, so all ranks
read the same. As many as take a quarter of a second, and none beyond where a checkpoint or an evaluation is due; what is
computed does not depend on it.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from jobs.cnn.config import CnnConfig
from jobs.cnn.feeding import Feeding
from jobs.cnn.framework import tf
from jobs.cnn.group import Group, peers_needed
from jobs.cnn.model import new_model
from jobs.cnn.step import NOT_FINITE, Settings, Trainer
from jobs.common.data.dataset import Columns, SplitName
from jobs.common.training.predictions import Predictions
from jobs.common.training.session import Session
from jobs.common.training.train_state import Progress, learning_rate
from jobs.common.training.weight_digest import digest_of_arrays
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.robustness import Attack, predict_changed

CALL_S = 0.25
"""Seconds that a call of TensorFlow should take."""


def train(session: Session, config: CnnConfig) -> Literal["finished", "stopped"]:
    """One generation: from the checkpoint, if there is one, to the end, or to a stop that all ranks agree on."""
    # XLA has no deterministic gradient of max pooling for GPUs, and refuses it everywhere; on a CPU all of XLA is deterministic.
    with Group(session, config.run.cpus_per_worker, deterministic=not config.hardware.xla) as group:
        images = ImageFacts.of(session.dataset)
        feeding = Feeding(session.feed(), config, images)
        trainer = build_trainer(session, config, feeding, group)
        progress = restore(session, trainer)
        steps_per_epoch = feeding.feed.order.steps_per_epoch
        total_steps = min(config.train.epochs * steps_per_epoch, config.train.max_steps or 2**62)
        session.note(total_steps=total_steps, epochs=config.train.epochs, epoch=progress.epoch,
                     parameters=trainer.model.count_params())
        patience, calls = config.train.early_stopping_epochs, Calls(session, config)

        while ((progress.step < total_steps or progress.step_in_epoch) and not progress.out_of_patience(patience)
               and not session.rests(progress.epoch)):
            session.pace.start()
            done = progress.step - progress.step_in_epoch
            left_out = frozenset(step - done for step in session.excluded_steps)
            batches = iter(feeding.steps(progress.epoch, progress.step_in_epoch, left_out))
            while progress.step_in_epoch < steps_per_epoch and progress.step < total_steps:
                if progress.step in session.excluded_steps:
                    progress.skipped_in_a_row = []
                    progress.advance()
                    continue
                last = min(done + steps_per_epoch, total_steps)
                stop = calls.make(trainer, batches, progress, last, total_steps)
                if session.weights_due(progress.step):
                    session.compare_weights(progress.step, digest_of_arrays(trainer.weights()), group.total)
                if stop:
                    save(session, trainer, progress)
                    session.committed()
                    return "stopped"
                if session.checkpoint_due(progress.step):
                    save(session, trainer, progress)
                session.keep_promise(progress.step)
            finish_epoch(session, trainer, progress, group, config, total_steps)
        if session.rests(progress.epoch):
            return "stopped"
        predict_with_best(session, trainer, config)
    return "finished"


class Calls:
    """Makes calls of some steps each, and agrees with the other ranks on how many come next."""

    def __init__(self, session: Session, config: CnnConfig) -> None:
        self._session, self._config = session, config
        self._next, self._step_s = 1, 0.0

    def make(self, trainer: Trainer, batches: Any, progress: Progress, last: int, total_steps: int) -> bool:
        """Some steps, none beyond `last`. Returns whether any rank wants to stop.

        Raises: NonFiniteError after `train.max_skipped_steps` steps in a row that were not finite; PeerLostError.
        """
        session, train, began = self._session, self._config.train, time.perf_counter()
        count = self._count(progress.step, last)
        rates = np.zeros(train.most_steps_per_call, np.float32)  # one size: another would be compiled for anew
        rates[:count] = [rate(self._config, step, total_steps) for step in range(progress.step, progress.step + count)]
        wish = self._wish(progress.step + count) if session.rank == 0 else 0
        extra = np.array([session.stop_wanted, wish], np.float32)
        with peers_needed():
            made = trainer.steps(batches, tf.constant(count), tf.constant(rates), tf.constant(extra))
            losses, fates, sums, waited, rows = (found.numpy() for found in made)
        session.pace.waited(float(waited))
        self._step_s, self._next = (time.perf_counter() - began) / count, int(sums[1])
        if self._config.run.trace_rows:
            for step, ids in enumerate(rows, progress.step):
                session.trace(progress.epoch, step, dict(zip(session.shards, ids, strict=True)))
        for fate in fates:
            if fate == NOT_FINITE:
                progress.skip(train.max_skipped_steps)
            else:
                progress.skipped_in_a_row = []
            progress.advance()
        session.stepped(step=progress.step, epoch=progress.epoch, rows=train.global_batch_size, loss=losses.tolist(),
                        skipped=progress.skipped_steps)
        return bool(sums[0] > 0)

    def _count(self, step: int, last: int) -> int:
        before = [excluded for excluded in self._session.excluded_steps if excluded > step]
        return min(self._next, last - step, *(excluded - step for excluded in before))

    def _wish(self, step: int) -> int:
        """How many steps are to come after `step`."""
        fit = int(CALL_S / self._step_s) if self._step_s else 1
        return max(1, min(fit, self._config.train.most_steps_per_call, self._session.room(step)))


def rate(config: CnnConfig, step: int, total_steps: int) -> float:
    optim = config.optim
    return learning_rate(optim.lr, optim.schedule, optim.warmup_steps, step, total_steps)


# ── around the steps ──
def build_trainer(session: Session, config: CnnConfig, feeding: Feeding, group: Group) -> Trainer:
    dataset = session.dataset
    model = new_model(config, feeding.images, len(dataset.class_names))
    settings = Settings(
        passes=feeding.passes, rows_per_pass=feeding.rows_per_pass,
        class_weights=balanced(dataset.splits["train"].class_counts) if config.train.class_weights == "balanced" else None,
        attack=Attack.in_training(dataset, config))
    return Trainer(model, config, settings, group)


def balanced(class_counts: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """(K,): the weight of a row of each class, so that all classes weigh the same together, and rows 1 in the mean."""
    counts = np.asarray(class_counts, np.float64)
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def finish_epoch(session: Session, trainer: Trainer, progress: Progress, group: Group, config: CnnConfig,
                 total_steps: int) -> None:
    """Evaluates on the validation rows, remembers whether it was the best, and saves."""
    values = evaluate(session, trainer, group, "validation", config)
    metric = values["accuracy"] if config.eval.metric == "accuracy" else -values["loss"]
    progress.evaluated(metric)
    session.report("evaluation", step=progress.step, epoch=progress.epoch + 1,
                   learning_rate=rate(config, progress.step - 1, total_steps),
                   **{f"validation_{name}": value for name, value in values.items()})
    progress.next_epoch()
    save(session, trainer, progress, metric=metric)


def predict(session: Session, trainer: Trainer, split: SplitName, config: CnnConfig) -> Iterator[tuple[Columns, Any]]:
    """(rows, probabilities (m, K)) of this worker's share of a split, in batches."""
    share, reader = session.share_of(split), session.reader(split)
    for start in range(share.start, share.stop, config.eval.batch_size):
        rows = reader.rows(start, min(share.stop, start + config.eval.batch_size))
        yield rows, trainer.probabilities(rows["image"])
        session.tick()


def evaluate(session: Session, trainer: Trainer, group: Group, split: SplitName, config: CnnConfig) -> dict[str, float]:
    """Accuracy and loss over a whole split, on all workers: sums are added, every row counts once."""
    sums = np.zeros(3)
    for rows, found in predict(session, trainer, split, config):
        labels = rows["label"]
        likely = np.maximum(found[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
        sums += [len(labels), (found.argmax(1) == labels).sum(), -np.log(likely).sum(dtype=np.float64)]
    count, correct, loss = group.total(sums).tolist()
    return {"accuracy": correct / count, "loss": loss / count}


def predict_with_best(session: Session, trainer: Trainer, config: CnnConfig) -> None:
    """Predicts the validation and test rows with the best checkpoint, and changed ones; the driver judges them."""
    trainer.load({name: array for name, array in session.best_checkpoint().items() if name.startswith("model.")})
    for split in ("validation", "test"):
        done = [(rows["row_id"], rows["label"], found) for rows, found in predict(session, trainer, split, config)]
        if done:
            session.write_predictions(split, Predictions(*(np.concatenate(column) for column in zip(*done, strict=True))))
    predict_changed(session, config, trainer.probabilities, trainer.gradient_at)


# ── checkpoints: tensors by name, as NumPy arrays ──
def save(session: Session, trainer: Trainer, progress: Progress, metric: float | None = None) -> None:
    session.save(trainer.tensors, asdict(progress), step=progress.step, epoch=progress.epoch, metric=metric)


def restore(session: Session, trainer: Trainer) -> Progress:
    """Puts the checkpoint that this generation resumes from, if any, into model and optimiser."""
    loaded = session.load()
    if loaded is None:
        return Progress()
    tensors, state = loaded
    trainer.load(tensors)
    return Progress.restored(state)
