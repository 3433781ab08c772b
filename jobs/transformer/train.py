"""The Transformer's training loop, from a micro-batch of tokens to the optimiser. Run it with `python -m jobs.transformer`.

One loop for both tasks and all strategies. A step is the passes over the micro-batches of the shards that this worker owns; the
loss is a sum over rows (to classify) or target tokens (to generate), divided by their *global* number, never a mean of means.
How weights, gradients and moments are spread over the workers, and summed, is the strategy's: ddp.py or deepspeed.py.

Shapes: m rows of a micro-batch, T tokens, V words of the vocabulary, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal

import torch

from jobs.common.data.counter_rng import micro_batch_seed
from jobs.common.data.dataset import Columns
from jobs.common.data.loader import MicroBatches
from jobs.common.training.session import Session
from jobs.common.training.train_state import Progress, learning_rate
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import set_up_torch
from jobs.pytorch.weight_digest import compare_weights
from jobs.transformer.config import TransformerConfig
from jobs.transformer.evaluate import evaluate, predict_with_best
from jobs.transformer.flops import sizes_of
from jobs.transformer.model import attention_kernels, build_model
from jobs.transformer.shards import WEIGHTS, fill, to_arrays
from jobs.transformer.strategies import Strategy
from jobs.transformer.tasks import Batch, Task, task_of
from jobs.transformer.throughput import Throughput


def train(session: Session, config: TransformerConfig) -> Literal["finished", "stopped"]:
    """One generation: from the checkpoint, if there is one, to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(session, config.run.cpus_per_worker)
    even_alone = config.scale.capabilities.sharded
    with Group(session, device, even_alone=even_alone) as group, strategy(session, config, group) as model:
        task = task_of(session.dataset, config, device)
        progress = restore(session, model)
        feed = session.feed(config.data.length_group_steps if config.task == "classify" else 1)
        total_steps = min(config.train.epochs * feed.order.steps_per_epoch, config.train.max_steps or 2**62)
        session.note(total_steps=total_steps, epochs=config.train.epochs, epoch=progress.epoch,
                     parameters=sum(sizes_of(model.model)), passes=passes_of(session, lockstep=model.lockstep))
        throughput = Throughput.of(session, config, model.model, device)

        while ((progress.step < total_steps or progress.step_in_epoch) and not out_of_patience(progress, config)
               and not session.rests(progress.epoch)):
            session.pace.start()
            for step_in_epoch, micro_batches in feed.epoch(progress.epoch, progress.step_in_epoch):
                if progress.step == total_steps:
                    break
                if progress.step in session.excluded_steps:
                    progress.skipped_in_a_row = []
                    progress.advance()
                    continue
                session.trace(progress.epoch, progress.step, {s: b["row_id"] for s, b in micro_batches.items()})
                batches = list(passes(session, micro_batches, config, lockstep=model.lockstep))
                targets, tokens = group.total(task.sizes(batches)).tolist()
                model.begin()
                loss = 0.0
                for number, batch in enumerate(batches):
                    torch.manual_seed(micro_batch_seed(config.run.seed, progress.epoch, step_in_epoch, batch.shard, batch.part))
                    with model.passing():
                        share = task.loss(model.forward, batch.rows) * (batch.weight / targets)
                    model.backward(share, last=number == len(batches) - 1)
                    loss += float(share.detach())
                wishes = [loss, float(session.stop_wanted), float(session.checkpoint_due(progress.step + 1))]
                loss, stop, due = group.total(torch.tensor(wishes, dtype=torch.float64)).tolist()

                outcome = model.step(rate(config, progress.step, total_steps)) if math.isfinite(loss) else model.abandon()
                if outcome == "taken":
                    progress.skipped_in_a_row = []
                else:
                    progress.skip(config.train.max_skipped_steps if outcome == "skipped" else 1)
                progress.advance()
                throughput.step(session, tokens)
                session.stepped(step=progress.step, epoch=progress.epoch, loss=loss, rows=config.train.global_batch_size,
                                skipped=progress.skipped_steps)
                if model.replicated:
                    compare_weights(session, group, progress.step, lambda: (f.tensors[WEIGHTS] for f in model.weights()))
                if stop:
                    save(session, model, progress)
                    session.committed()
                    return "stopped"
                if evaluation_due(progress, config, feed.order.steps_per_epoch):
                    judge(session, model, task, group, config, progress, total_steps)
                    session.pace.start()
                elif due:
                    save(session, model, progress)
                session.keep_promise(progress.step)
            judge(session, model, task, group, config, progress, total_steps, epoch_done=True)
        if session.rests(progress.epoch):
            return "stopped"
        predict_with_best(session, model, task, config, group)
    return "finished"


# ── one step ──
def passes(session: Session, micro_batches: MicroBatches, config: TransformerConfig, *, lockstep: bool) -> Iterator[Batch]:
    """The forward passes of this worker's micro-batches, each cut where one may not take all its rows.

    lockstep: workers with fewer shards than others make as many passes, the surplus at zero weight.
    """
    for shard, columns in micro_batches.items():
        yield from cut(shard, columns, config.train.max_rows_per_pass)
    if lockstep:
        shard, columns = next(iter(micro_batches.items()))
        for _ in range(passes_of(session, lockstep=True) - len(micro_batches)):
            yield from cut(shard, columns, config.train.max_rows_per_pass, weight=0.0)


def passes_of(session: Session, *, lockstep: bool) -> int:
    """How many micro-batches this worker goes through in a step, those at zero weight included."""
    return -(-session.num_shards // session.world_size) if lockstep else len(session.shards)


def cut(shard: int, columns: Columns, max_rows: int | None, weight: float = 1.0) -> Iterator[Batch]:
    """One shard's micro-batch as passes of at most `max_rows` rows."""
    rows = len(columns["row_id"])
    for part, start in enumerate(range(0, rows, max_rows or rows)):
        yield Batch(shard, part, {name: column[start : start + (max_rows or rows)] for name, column in columns.items()}, weight)


def rate(config: TransformerConfig, step: int, total_steps: int) -> float:
    optim = config.optim
    return learning_rate(optim.lr, optim.schedule, optim.warmup_steps, step, total_steps, optim.final_lr)


# ── around the steps ──
@contextmanager
def strategy(session: Session, config: TransformerConfig, group: Group) -> Generator[Strategy]:
    """The model under its strategy, for as long as the block lasts."""
    if session.device == "cpu":  # else DeepSpeed, which transformers imports where it is installed, looks for a GPU, and says so
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model = build_model(config, session.dataset.details, session.dataset.class_names)
    spread = config.scale.capabilities.make(config, model, group, torch.device(session.device))
    if spread.sharded:
        session.shard_checkpoints()
    try:
        with attention_kernels(config, session.device):
            yield spread
    finally:
        spread.close()


def out_of_patience(progress: Progress, config: TransformerConfig) -> bool:
    return progress.out_of_patience(config.train.early_stopping_epochs)


def evaluation_due(progress: Progress, config: TransformerConfig, steps_per_epoch: int) -> bool:
    """In the middle of an epoch: at its end there is one anyway."""
    every = config.train.evaluate_every_steps
    return every is not None and progress.step % every == 0 and progress.step_in_epoch < steps_per_epoch


def judge(session: Session, model: Strategy, task: Task, group: Group, config: TransformerConfig, progress: Progress,
          total_steps: int, *, epoch_done: bool = False) -> None:
    """Evaluates on the validation rows, remembers whether it was the best, and saves."""
    values = evaluate(session, model, task, group, "validation", config)
    metric = values["accuracy"] if config.metric == "accuracy" else -values["loss"]
    progress.evaluated(metric)
    session.report("evaluation", step=progress.step, epoch=progress.epoch + epoch_done,
                   learning_rate=rate(config, progress.step - 1, total_steps),
                   **{f"validation_{name}": value for name, value in values.items()})
    if epoch_done:
        progress.next_epoch()
    save(session, model, progress, metric=metric)


# ── checkpoints: slices of parameters and of their moments, see shards.py ──
def save(session: Session, model: Strategy, progress: Progress, metric: float | None = None) -> None:
    steps = progress.step - progress.skipped_steps - len([s for s in session.excluded_steps if s < progress.step])
    session.save(lambda: to_arrays(model.fragments(steps)), {"progress": asdict(progress), "optimizer_steps": steps},
                 step=progress.step, epoch=progress.epoch, metric=metric)


def restore(session: Session, model: Strategy) -> Progress:
    """Puts the checkpoint that this generation resumes from, if any, into the model, whoever wrote it."""
    checkpoint = session.checkpoint
    if checkpoint is None:
        return Progress()
    fill([*model.weights(), *model.fragments(checkpoint.state["optimizer_steps"])], session.parts(checkpoint))
    return Progress.restored(checkpoint.state["progress"])

