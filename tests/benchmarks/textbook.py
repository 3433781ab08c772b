"""The textbook loop, as tutorials have it: a DataLoader over a TensorDataset, `loss.item()` at each step, plain SGD.

    python -m tests.benchmarks.textbook SETTINGS.json

Nothing of this project is in it but the turns. Its images are in memory, float32 from 0 to 1, before the first step.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.turns import Turns

LR = 0.01


def images_of(path: Path) -> tuple[Tensor, Tensor]:
    """All rows of a file of tests.benchmarks.images: (rows, 784) from 0 to 1, and (rows,)."""
    table = pq.read_table(path)
    pixels = table["image"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return torch.from_numpy(pixels.astype("float32") / 255), torch.from_numpy(table["label"].to_numpy().copy())


def run(settings: dict) -> dict:
    """Epochs by turns. Returns the seconds of each, and the loss of each step."""
    torch.set_num_threads(1)
    images, labels = images_of(Path(settings["file"]))
    turns = Turns(Path(settings["turns"][0]), *settings["turns"][1:])
    batches = given_order(images, labels, settings["rows"]) if settings.get("rows") else DataLoader(
        TensorDataset(images, labels), batch_size=settings["batch_size"], shuffle=True, drop_last=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(images.shape[1], 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    criterion = nn.CrossEntropyLoss()
    legs: list[dict] = []
    losses: list[float] = []
    for _ in range(settings["epochs"]):
        turns.begin()
        steps, cpu, began = 0, (time.thread_time(), time.process_time()), time.perf_counter()
        for x, y in batches:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            steps += 1
        legs.append({"seconds": time.perf_counter() - began, "cpu": time.thread_time() - cpu[0], "steps": steps,
                     "process_cpu": time.process_time() - cpu[1]})
    turns.leave()
    return {"legs": legs, "losses": losses}


def given_order(images: Tensor, labels: Tensor, batches: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of these rows, for the comparison of losses."""
    return ((images[rows], labels[rows]) for rows in batches)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["out"]).write_text(json.dumps(run(asked)))
