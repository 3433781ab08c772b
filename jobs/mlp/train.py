"""The MLP's training loop, from a micro-batch to the optimiser. Run it with `python -m jobs.mlp`.

Data parallel by hand: each worker sums the gradients of the shards that it owns, one all-reduce over one flat buffer
(whose layout depends on nothing but the model, so a restarted process sums in the same order) makes them global, and
every worker takes the same step. The loss is a sum over rows divided by the *global* rows, never a mean of means.

Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.data.counter_rng import micro_batch_seed
from jobs.common.data.dataset import Columns, SplitName
from jobs.common.training.predictions import Predictions
from jobs.common.training.session import Session
from jobs.common.training.train_state import Progress, learning_rate
from jobs.common.vision.config import OptimConfig
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.job import normalisation
from jobs.common.vision.robustness import Attack, predict_changed, projected_gradient
from jobs.mlp.augment import augment
from jobs.mlp.config import MlpConfig
from jobs.mlp.model import Mlp
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import compiled, light, set_lr, set_up_torch
from jobs.pytorch.weight_digest import compare_weights


def train(session: Session, config: MlpConfig) -> Literal["finished", "stopped"]:
    """One generation: from the checkpoint, if there is one, to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(session, config.run.cpus_per_worker)
    with Group(session, device) as group:
        model = build_model(session, config).to(device)
        optimizer = build_optimizer(model, config.optim)
        progress = restore(session, model, optimizer)
        feed = session.feed()
        total_steps = min(config.train.epochs * feed.order.steps_per_epoch, config.train.max_steps or 2**62)
        session.note(total_steps=total_steps, epochs=config.train.epochs, epoch=progress.epoch,
                     parameters=sum(p.numel() for p in model.parameters()))
        patience = config.train.early_stopping_epochs
        forward = compiled(model) if config.hardware.compile else model
        attack = Attack.in_training(session.dataset, config)

        while ((progress.step < total_steps or progress.step_in_epoch) and not progress.out_of_patience(patience)
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
                set_lr(optimizer, rate(config.optim, progress.step, total_steps))
                optimizer.zero_grad(set_to_none=True)
                loss = 0.0
                for shard, batch in micro_batches.items():
                    for part, rows in enumerate(passes(batch, config.train.max_rows_per_pass)):
                        if config.model.dropout or attack:
                            torch.manual_seed(micro_batch_seed(config.run.seed, progress.epoch, step_in_epoch, shard, part))
                        loss += backward(forward, rows, config, progress.epoch, device, attack)
                loss, stop = group.reduce(model, loss, session.stop_wanted)

                step_or_skip(model, optimizer, config, progress, loss)
                progress.advance()
                session.stepped(step=progress.step, epoch=progress.epoch, loss=loss, rows=config.train.global_batch_size,
                                skipped=progress.skipped_steps)
                compare_weights(session, group, progress.step, model.parameters)
                if stop:
                    save(session, model, optimizer, progress)
                    session.committed()
                    return "stopped"
                if session.checkpoint_due(progress.step):
                    save(session, model, optimizer, progress)
                session.keep_promise(progress.step)
            finish_epoch(session, model, optimizer, progress, group, config, total_steps)
        if session.rests(progress.epoch):
            return "stopped"
        predict_with_best(session, model, config, device)
    return "finished"


# ── one micro-batch, one step ──
def passes(batch: Columns, max_rows: int | None) -> Iterator[Columns]:
    """A micro-batch, cut where one forward pass may not take all its rows."""
    rows = len(batch["label"])
    size = max_rows or rows
    for start in range(0, rows, size):
        yield {name: column[start : start + size] for name, column in batch.items()}


def backward(forward: Callable[[Tensor], Tensor], rows: Columns, config: MlpConfig, epoch: int, device: torch.device,
             attack: Attack | None = None) -> float:
    """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""
    images = torch.from_numpy(rows["image"]).to(device, non_blocking=True)
    labels = torch.from_numpy(rows["label"]).to(device, non_blocking=True)
    if config.augment.active:
        images = augment(images, rows["row_id"], config.augment, config.run.seed, epoch)
    if attack:
        images = attacked(forward, images.float(), labels, attack)
    with torch.autocast(device.type, torch.bfloat16) if config.hardware.precision == "bf16" else nullcontext():
        logits = forward(images)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=config.optim.label_smoothing)
    loss.backward(share_of_a_row(config.train.global_batch_size, device))  # pyright: ignore[reportUnknownMemberType]
    return loss.item() / config.train.global_batch_size


def attacked(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, attack: Attack) -> Tensor:
    """The images as they deceive the model most (PGD)."""
    start = torch.rand_like(images) * 2 - 1
    return projected_gradient(images, lambda x: gradient_of_loss(forward, x, labels), attack, sign=torch.sign,
                              clip=torch.clamp, start=start)


def gradient_of_loss(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Of each row's cross entropy, with respect to its pixels (B, H, W, C); the parameters' own gradients stay as they are."""
    pixels = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(forward(pixels).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, pixels)[0]


@functools.cache
def share_of_a_row(global_batch_size: int, device: torch.device) -> Tensor:
    """What a row's loss counts for in the mean over the global batch."""
    return torch.tensor(1.0 / global_batch_size, device=device)


def step_or_skip(model: Mlp, optimizer: torch.optim.Optimizer, config: MlpConfig, progress: Progress, loss: float) -> None:
    """Takes the step if loss and gradient are finite.

    Raises: NonFiniteError after `train.max_skipped_steps` skips in a row. All ranks decide alike: they see the same sums.
    """
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    clip_norm = config.optim.clip_norm
    # Where nothing is clipped a sum will do, at a third of the cost: with one value that is not finite it is not either.
    size = sum_of(gradients) if clip_norm is None else torch.nn.utils.get_total_norm(gradients)
    if math.isfinite(loss) and math.isfinite(size.item()):
        if clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, size)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        progress.skipped_in_a_row = []
    else:
        progress.skip(config.train.max_skipped_steps)


def sum_of(tensors: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [tensor.sum() for tensor in tensors])


def rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    return learning_rate(optim.lr, optim.schedule, optim.warmup_steps, step, total_steps)


# ── around the steps ──
def build_model(session: Session, config: MlpConfig) -> Mlp:
    torch.manual_seed(config.run.seed)
    images = ImageFacts.of(session.dataset)
    mean, std = normalisation(images, config.model.normalise)
    return Mlp(images.shape, len(session.dataset.class_names), config.model.hidden, config.model.dropout, mean, std)


def build_optimizer(model: Mlp, optim: OptimConfig) -> torch.optim.Optimizer:
    if optim.name == "adamw":
        return light(torch.optim.AdamW)(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    return light(torch.optim.SGD)(model.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay,
                                  fused=True)


def finish_epoch(session: Session, model: Mlp, optimizer: torch.optim.Optimizer, progress: Progress, group: Group,
                 config: MlpConfig, total_steps: int) -> None:
    """Evaluates on the validation rows, remembers whether it was the best, and saves."""
    values = evaluate(session, model, group, "validation", config)
    metric = values["accuracy"] if config.eval.metric == "accuracy" else -values["loss"]
    progress.evaluated(metric)
    session.report("evaluation", step=progress.step, epoch=progress.epoch + 1,
                   learning_rate=rate(config.optim, progress.step - 1, total_steps),
                   **{f"validation_{name}": value for name, value in values.items()})
    progress.next_epoch()
    save(session, model, optimizer, progress, metric=metric)


def predict(session: Session, model: Mlp, split: SplitName, config: MlpConfig) -> Iterator[tuple[Columns, Tensor]]:
    """(rows, logits (m, K)) of this worker's share of a split, in batches."""
    share = session.share_of(split)
    device = torch.device(session.device)
    reader = session.reader(split)
    model.eval()
    with torch.inference_mode():
        for start in range(share.start, share.stop, config.eval.batch_size):
            rows = reader.rows(start, min(share.stop, start + config.eval.batch_size))
            yield rows, model(torch.from_numpy(rows["image"]).to(device)).float().cpu()
            session.tick()
    model.train()


def evaluate(session: Session, model: Mlp, group: Group, split: SplitName, config: MlpConfig) -> dict[str, float]:
    """Accuracy and loss over a whole split, on all workers: sums are added, every row counts once."""
    sums = torch.zeros(3, dtype=torch.float64)
    for rows, logits in predict(session, model, split, config):
        labels = torch.from_numpy(rows["label"])
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.tensor([len(labels), (logits.argmax(1) == labels).sum(), loss], dtype=torch.float64)
    count, correct, loss = group.total(sums).tolist()
    return {"accuracy": correct / count, "loss": loss / count}


def predict_with_best(session: Session, model: Mlp, config: MlpConfig, device: torch.device) -> None:
    """Predicts the validation and test rows with the best checkpoint, and changed ones; the driver judges them."""
    best = session.best_checkpoint()
    load_weights(model, best, device)
    for split in ("validation", "test"):
        done = [(rows["row_id"], rows["label"], torch.softmax(logits, 1).numpy())
                for rows, logits in predict(session, model, split, config)]
        if done:
            session.write_predictions(split, Predictions(*(np.concatenate(column) for column in zip(*done, strict=True))))
    model.eval()

    def probabilities(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return torch.softmax(model(torch.from_numpy(images).to(device)), 1).cpu().numpy()

    def gradient(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        pixels = torch.from_numpy(images.astype(np.float32, copy=False)).to(device)
        return gradient_of_loss(model, pixels, torch.from_numpy(labels).to(device)).cpu().numpy()

    predict_changed(session, config, probabilities, gradient)


# ── checkpoints: tensors by name, as NumPy arrays ──
def save(session: Session, model: Mlp, optimizer: torch.optim.Optimizer, progress: Progress,
         metric: float | None = None) -> None:
    session.save(lambda: tensors_of(model, optimizer), asdict(progress), step=progress.step, epoch=progress.epoch, metric=metric)


def tensors_of(model: Mlp, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray[Any, Any]]:
    """`model.<name>` and `optimizer.<index>.<key>`; views of the live tensors where they are on the CPU."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def restore(session: Session, model: Mlp, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts the checkpoint that this generation resumes from, if any, into model and optimiser."""
    loaded = session.load()
    if loaded is None:
        return Progress()
    tensors, state = loaded
    load_weights(model, tensors, torch.device(session.device))
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    for name, array in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            optimizer_state.setdefault(int(index), {})[key] = torch.from_numpy(array)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": optimizer_state})
    return Progress.restored(state)


def load_weights(model: Mlp, tensors: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> None:
    weights = {name.removeprefix("model."): torch.from_numpy(array).to(device)
               for name, array in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights)
