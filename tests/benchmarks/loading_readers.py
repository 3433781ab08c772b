"""One loader over one set of pictures, in a process of its own: what `loading` compares.

    python -m tests.benchmarks.loading_readers build|read|resume READER CASE SOURCE FOLDER [WORKERS [SECONDS [STATE]]]

`build` makes of the Parquet files in SOURCE what the reader reads, in FOLDER. `read` answers with the speed of
epochs from the second on, and with the state in the middle of a later one, from which `resume` goes on.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false, reportUnknownParameterType=false

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.training.rendezvous import Assignment
from jobs.common.training.worker_data import WorkerData
from jobs.common.vision.config import ImageConfig, ImageDataConfig, ImageTrainConfig
from jobs.common.vision.prepare import prepare
from tests.benchmarks.loading_case import LITDATA, MOSAICML, OURS, TORCH, Case, Reader
from tests.benchmarks.loading_peers import LitData, MosaicMLStreaming, TorchOverDatasets, stand_in_for_torchvision


def image_config(case: Case, source: str, folder: str) -> ImageConfig:
    data = ImageDataConfig(uri=f"{source}/train", val_uri=f"{source}/validation", test_uri=f"{source}/test",
                           image_shape="x".join(map(str, case.shape)), cache_dir=f"{folder}/cache",
                           keep="encoded" if case.kept == "files" else "pixels")
    return ImageConfig(data=data, train=ImageTrainConfig(global_batch_size=case.batch_size))


class Ours:
    """The loader of a worker that is alone."""

    def __init__(self, case: Case, source: str, folder: str, workers: int) -> None:
        config = image_config(case, source, folder)
        dataset = Dataset.load(Store.open(str(next(Path(folder, "data").iterdir()))))
        assignment = Assignment(generation="0", rank=0, world_size=1, num_shards=1, checkpoint=None)
        self.loader = WorkerData(config, dataset, Store.open(folder), assignment).data_loader()
        self.next, self.start = 0, 0

    @staticmethod
    def build(case: Case, source: str, folder: str) -> None:
        prepare(image_config(case, source, folder).data, Store.open(folder), use_ray=False)

    def epoch(self) -> Iterator[Any]:
        steps = self.loader.epoch(self.next, self.start)
        self.next, self.start = self.next + 1, 0
        for _, micro_batches in steps:
            yield micro_batches[0]["image"]

    def state(self, epoch: int, step: int) -> JsonObject:
        return {"epoch": epoch, "step": step}

    def resume(self, state: JsonObject) -> None:
        self.next, self.start = state["epoch"], state["step"]


READERS: dict[str, Any] = {OURS: Ours, TORCH: TorchOverDatasets, MOSAICML: MosaicMLStreaming, LITDATA: LitData}
PACKAGES = {OURS: (), TORCH: ("torch", "datasets"), MOSAICML: ("torch", "streaming"), LITDATA: ("torch", "litdata")}
"""What is imported before a clock starts."""


# ── in a process of its own ──
def read(reader: Reader, case: Case, seconds: float) -> JsonObject:
    """rows_a_second and rows_a_cpu_second of whole epochs from the second on, until so many seconds have gone by;
    state: in the middle of the epoch after them."""
    assert rows_in(reader, case) == case.steps * case.batch_size
    cpu, began, rows, epochs, took = cpu_seconds(), time.perf_counter(), 0, 1, 0.0
    while took < seconds:
        rows += rows_in(reader, case)
        epochs, took = epochs + 1, time.perf_counter() - began
    busy = cpu_seconds() - cpu
    middle, last = case.steps // 2, reader.epoch()
    for _ in range(middle):
        next(last)
    return {"rows_a_second": rows / took, "rows_a_cpu_second": rows / busy, "state": reader.state(epochs, middle)}


def rows_in(reader: Reader, case: Case) -> int:
    """Of one epoch, every batch of which is as asked."""
    rows = 0
    for batch in reader.epoch():
        assert tuple(batch.shape[1:]) == case.shape and str(batch.dtype).endswith("uint8"), (batch.shape, batch.dtype)
        rows += len(batch)
    return rows


def cpu_seconds() -> float:
    """Of this process and of all that it has started and that live."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(of.user + of.system for of in times)


def main(action: str, name: str, case_json: str, source: str, folder: str, workers: str = "0", seconds: str = "1",
         state: str = "{}") -> None:
    case = Case(**json.loads(case_json))
    if name == MOSAICML:
        stand_in_for_torchvision()
    for package in PACKAGES[name]:
        importlib.import_module(package)
    if action == "build":
        Path(folder).mkdir(parents=True, exist_ok=True)
        READERS[name].build(case, source, folder)
        print(json.dumps({"built": case.name}))
    elif action == "read":
        print(json.dumps(read(READERS[name](case, source, folder, int(workers)), case, float(seconds))))
    else:
        began = time.perf_counter()
        reader = READERS[name](case, source, folder, int(workers))
        reader.resume(json.loads(state))
        next(iter(reader.epoch()))
        print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
