"""The network for tables: embeddings of categories beside normalised numbers, then residual blocks (after Gorishniy et
al. 2021).

    python -c "from jobs.tabular.model import load; model = load('PATH/TO/artifact'); print(model.info.schema.numbers)"
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from torch import Tensor, nn

from jobs.common.artifact import artifact
from jobs.common.config import from_dict
from jobs.common.own_code import OwnModel
from jobs.common.tables.info import TableInfo
from jobs.pytorch.tables import model as tables
from jobs.tabular.config import TabularConfig


def residual_network(info: TableInfo) -> nn.Module:
    """What is trained where no other function is named."""
    return ResidualNetwork(info.num_numbers, info.cardinalities, info.num_outputs, info.model.width, info.model.blocks,
                           info.model.dropout)


class ResidualNetwork(nn.Module):
    """From numbers (B, N) and categories (B, C) to outputs (B, K)."""

    def __init__(self, num_numbers: int, cardinalities: tuple[int, ...], num_outputs: int, width: int, blocks: int,
                 dropout: float) -> None:
        super().__init__()
        sizes = [min(32, (count + 1) // 2) for count in cardinalities]
        self.embeddings = nn.ModuleList([nn.Embedding(*each) for each in zip(cardinalities, sizes, strict=True)])
        self.first = nn.Linear(num_numbers + sum(sizes), width)
        self.blocks = nn.ModuleList([
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout),
                          nn.Linear(2 * width, width), nn.Dropout(dropout)) for _ in range(blocks)])
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, num_outputs))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [each(categories[:, place]) for place, each in enumerate(self.embeddings)]
        rows = self.first(torch.cat([numbers, *embedded], dim=1))
        for block in self.blocks:
            rows = rows + block(rows)
        return self.last(rows)


def load(where: artifact.Where | artifact.Artifact) -> tables.LoadedModel:
    """The model of an artifact, by the function that built it. Raises: ArtifactError, ConfigError."""
    opened = artifact.as_artifact(where)
    settings = from_dict(TabularConfig, {"model": dict(opened.manifest.description.config["model"])}).model
    return tables.load(opened, OwnModel.named(settings.build, settings.settings), settings)
