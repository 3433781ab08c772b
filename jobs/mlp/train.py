"""How the MLP is trained, from a micro-batch to the optimiser. Run it with `python -m jobs.mlp`.

Data parallel by hand: each worker sums the gradients of the shards that it owns, one all-reduce over one flat buffer
(whose layout depends on nothing but the model, so a restarted process sums in the same order) makes them global, and
every worker takes the same step. The loss is a sum over rows divided by the *global* rows, never a mean of means.

Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.data.counter_rng import micro_batch_seed
from jobs.common.data.dataset import Columns, SplitName
from jobs.common.data.loader import MicroBatches, cut
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import Answers, Outcome, StepResult, Wishes
from jobs.common.vision.robustness import Attack
from jobs.mlp.adversary import attacked, predict_changed_rows
from jobs.mlp.augment import augment
from jobs.mlp.config import MlpConfig
from jobs.mlp.model import new_model
from jobs.pytorch.optimizer import build_optimizer, set_lr, step_if_finite
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import compiled, set_up_torch
from jobs.pytorch.trainable import TorchTrainable


def train(context: TrainContext, config: MlpConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(context, config.run.cpus_per_worker)
    with Group(context, device) as group:
        return fit(context, MlpTraining(context, config, group, device), context.data_loader(), metric=config.eval.metric)


class MlpTraining(TorchTrainable):
    """The perceptron and its optimiser on one worker."""

    def __init__(self, context: TrainContext, config: MlpConfig, group: Group, device: torch.device) -> None:
        model = new_model(config, context.dataset).to(device)
        super().__init__(context, group, model, build_optimizer(model.parameters(), config.optim))
        self.config, self.device = config, device
        self.forward = compiled(model) if config.hardware.compile else model
        self.attack = Attack.in_training(context.dataset, config)

    def learning_rate(self, step: int, total_steps: int) -> float:
        return self.config.optim.learning_rate(step, total_steps)

    def step(self, batch: MicroBatches, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        """One step."""
        set_lr(self.optimizer, rates[0])
        self.optimizer.zero_grad(set_to_none=True)
        loss, config = 0.0, self.config
        for shard, columns in batch.items():
            for part, rows in enumerate(cut(columns, config.train.max_rows_per_pass)):
                if config.model.dropout or self.attack:
                    torch.manual_seed(micro_batch_seed(config.run.seed, state.epoch, state.step_in_epoch, shard, part))
                loss += backward(self.forward, rows, config, state.epoch, self.device, self.attack)
        loss, agreed = self.group.reduce(self.model, loss, wishes())
        return StepResult([loss], [step_if_finite(self.optimizer, loss, config.optim.clip_norm)], agreed)

    def batches(self, split: SplitName) -> Iterator[tuple[Columns, Tensor]]:
        """(rows, logits (m, K)) of this worker's share of a split."""
        share, reader, size = self.context.local_range(split), self.context.reader(split), self.config.eval.batch_size
        self.model.eval()
        with torch.inference_mode():
            for start in range(share.start, share.stop, size):
                rows = reader.rows(start, min(share.stop, start + size))
                yield rows, self.model(torch.from_numpy(rows["image"]).to(self.device)).float().cpu()
                self.context.heartbeat()
        self.model.train()

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """Accuracy and loss over a whole split, on all workers: sums are added, every row counts once."""
        sums = torch.zeros(3, dtype=torch.float64)
        for rows, logits in self.batches(split):
            labels = torch.from_numpy(rows["label"])
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.tensor([len(labels), (logits.argmax(1) == labels).sum(), loss], dtype=torch.float64)
        count, correct, loss = self.group.total(sums).tolist()
        return {"accuracy": correct / count, "loss": loss / count}

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """Probabilities."""
        return ((rows["row_id"], rows["label"], torch.softmax(logits, 1).numpy()) for rows, logits in self.batches(split))

    def predict_perturbed(self) -> None:
        """Rows as the world, and an adversary, change them."""
        predict_changed_rows(self.context, self.model.eval(), self.config, self.device)


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


@functools.cache
def share_of_a_row(global_batch_size: int, device: torch.device) -> Tensor:
    """What a row's loss counts for in the mean over the global batch."""
    return torch.tensor(1.0 / global_batch_size, device=device)
