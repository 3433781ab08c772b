"""How a PyTorch module that tells images apart is trained, but for what is done in one pass, which its job says.

Data parallel by hand: each worker sums the gradients of the shards that it owns, one all-reduce over one flat buffer
(whose layout depends on nothing but the model, so a restarted process sums in the same order) makes them global, and
every worker takes the same step. The loss is a sum over rows divided by the *global* rows, never a mean of means.

Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn

from jobs.common.data.counter_rng import micro_batch_seed
from jobs.common.data.dataset import Columns, SplitName
from jobs.common.data.loader import MicroBatches, cut
from jobs.common.training.context import TrainContext
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import Answers, StepResult, Wishes
from jobs.common.vision.config import ImageConfig
from jobs.pytorch.images.adversary import predict_changed_rows
from jobs.pytorch.optimizer import build_optimizer, set_lr, step_if_finite
from jobs.pytorch.process_group import Group
from jobs.pytorch.running_statistics import RunningStatistics
from jobs.pytorch.trainable import TorchTrainable

Loss = Callable[[Tensor, Tensor], Tensor]
"""What is lowered: from logits (m, K) and labels (m,) to the mean over the rows, a scalar."""


class ImageTraining(TorchTrainable):
    """A module from pixels (m, H, W, C) to logits (m, K), and its optimiser, on one worker."""

    draws = True
    """Whether a pass draws random numbers of PyTorch's: then each begins with a seed of its own."""

    def __init__(self, context: TrainContext, config: ImageConfig, group: Group, device: torch.device,
                 model: nn.Module, loss: Loss = F.cross_entropy) -> None:
        """loss: of the validation rows."""
        weights = [each for each in model.parameters() if each.requires_grad]
        super().__init__(context, group, model, build_optimizer(weights, config.optim))
        self.config, self.device, self.loss = config, device, loss
        self.statistics = RunningStatistics(model, context.num_shards)

    def backward(self, rows: Columns, epoch: int) -> float:
        """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""
        raise NotImplementedError

    def learning_rate(self, step: int, total_steps: int) -> float:
        return self.config.optim.learning_rate(step, total_steps)

    def step(self, batch: MicroBatches, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        """One step."""
        set_lr(self.optimizer, rates[0])
        self.optimizer.zero_grad(set_to_none=True)
        loss, config, statistics = 0.0, self.config, self.statistics
        statistics.begin_step()
        for shard, columns in batch.items():
            statistics.begin_shard()
            for part, rows in enumerate(cut(columns, config.train.max_rows_per_pass)):
                if self.draws:
                    torch.manual_seed(micro_batch_seed(config.run.seed, state.epoch, state.step_in_epoch, shard, part))
                loss += self.backward(rows, state.epoch)
            statistics.end_shard()
        loss, agreed = self.group.reduce(self.model, loss, wishes(), statistics.sums)
        outcome = step_if_finite(self.optimizer, loss, config.optim.clip_norm)
        statistics.end_step(taken=outcome == "taken")
        return StepResult([loss], [outcome], agreed)

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
            loss = self.loss(logits, labels).double() * len(labels)
            sums += torch.tensor([len(labels), (logits.argmax(1) == labels).sum(), loss], dtype=torch.float64)
        count, correct, loss = self.group.total(sums).tolist()
        return {"accuracy": correct / count, "loss": loss / count}

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """Probabilities."""
        return ((rows["row_id"], rows["label"], torch.softmax(logits, 1).numpy())
                for rows, logits in self.batches(split))

    def predict_perturbed(self) -> None:
        """Rows as the world, and an adversary, change them."""
        predict_changed_rows(self.context, self.model.eval(), self.config, self.device)


@functools.cache
def share_of_a_row(global_batch_size: int, device: torch.device) -> Tensor:
    """What a row's loss counts for in the mean over the global batch."""
    return torch.tensor(1.0 / global_batch_size, device=device)
