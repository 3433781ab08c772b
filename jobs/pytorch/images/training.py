"""How a PyTorch module that tells images apart is judged, and its rows as the world changes them. The step is of
`jobs/pytorch/trainable.py`, and what is done in one pass its job says.

Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn

from jobs.common.data.dataset import Columns, SplitName
from jobs.common.evaluation.part_sums import PartSums
from jobs.common.own_code import OwnModel
from jobs.common.training.context import TrainContext
from jobs.common.training.trainable import Answers
from jobs.common.vision.config import ImageConfig
from jobs.pytorch.images.adversary import predict_changed_rows
from jobs.pytorch.own_module import Loss
from jobs.pytorch.process_group import Group
from jobs.pytorch.trainable import TorchTraining


class ImageTraining(TorchTraining):
    """A module from pixels (m, H, W, C) to logits (m, K), and its optimiser, on one worker."""

    def __init__(self, context: TrainContext, config: ImageConfig, group: Group, device: torch.device,
                 model: nn.Module, loss: Loss = F.cross_entropy, own: OwnModel | None = None) -> None:
        """loss: of the validation rows. own: a user's class, whose own loss goes before it."""
        super().__init__(context, config, group, device, model, own)
        self.config, self.loss = config, loss

    def answer(self, rows: Columns) -> Tensor:
        """Logits (m, K)."""
        return self.model(torch.from_numpy(rows["image"]).to(self.device)).float()

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """Accuracy and loss over a whole split, on all workers: sums are added, every row counts once."""
        sums = PartSums(self.context, 3)
        for part, rows, logits in self.batches(split):
            labels = torch.from_numpy(rows["label"])
            mean = self.whole_loss(self.model, self.batch(rows)) if self.whole_loss else self.loss(logits, labels)
            sums.add(part, [len(labels), (logits.argmax(1) == labels).sum().item(), mean.item() * len(labels)])
        count, correct, loss = sums.total(self.total).tolist()
        return {"accuracy": correct / count, "loss": loss / count, **self.own_figures(split)}

    def batch(self, rows: Columns, images: Tensor | None = None) -> dict[str, Tensor]:
        """What a loss of the whole model is given: pixels (m, H, W, C), labels (m,), row ids (m,).
        images: in place of the rows' own."""
        pixels = torch.from_numpy(rows["image"]).to(self.device) if images is None else images
        return {"image": pixels, "label": torch.from_numpy(rows["label"]).to(self.device),
                "row_id": torch.from_numpy(rows["row_id"])}

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """Probabilities."""
        return ((rows["row_id"], rows["label"], torch.softmax(logits, 1).numpy())
                for _, rows, logits in self.batches(split))

    def predict_perturbed(self) -> None:
        """Rows as the world, and an adversary, change them."""
        predict_changed_rows(self.context, self.model.eval(), self.config, self.device)
