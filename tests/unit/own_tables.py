"""Modules and losses that a user might bring to the job for tables."""

import torch
from torch import Tensor, nn

from jobs.common.tables.info import TableInfo


class Normalised(nn.Module):
    """Has batch normalisation and dropout. No kinks, at which rounding would decide."""

    def __init__(self, info: TableInfo) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(size, 3) for size in info.cardinalities])
        width = info.num_numbers + 3 * len(info.cardinalities)
        self.layers = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 200), nn.Tanh(), nn.Dropout(0.3),
                                    nn.Linear(200, info.num_outputs))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [each(categories[:, place]) for place, each in enumerate(self.embeddings)]
        return self.layers(torch.cat([numbers, *embedded], dim=1))


def normalised(info: TableInfo) -> nn.Module:
    return Normalised(info)


class NumbersAlone(nn.Module):
    """Makes no use of categories, which its graph then does not take."""

    def __init__(self, info: TableInfo, more: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(info.num_numbers, info.num_outputs + more)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        return self.layer(numbers)


def one_too_many(info: TableInfo) -> nn.Module:
    return NumbersAlone(info, 1)


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()
