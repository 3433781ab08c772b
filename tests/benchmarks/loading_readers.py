"""One loader over one set of pictures, in a process of its own: what `loading` compares.

    python -m tests.benchmarks.loading_readers build|read|resume READER CASE SOURCE FOLDER [WORKERS [SECONDS [STATE]]]

`build` makes of the Parquet files in SOURCE what the reader reads, in FOLDER. `read` answers with the speed of
epochs from the second on, and with the state in the middle of a later one, from which `resume` goes on.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false, reportUnknownParameterType=false

import functools
import importlib
import importlib.machinery
import io
import itertools
import json
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.data.arrow import numpy_column
from jobs.common.data.dataset import Dataset
from jobs.common.training.rendezvous import Assignment
from jobs.common.training.worker_data import WorkerData
from jobs.common.vision.config import ImageConfig, ImageDataConfig, ImageTrainConfig
from jobs.common.vision.prepare import prepare
from tests.benchmarks.photographs import files_of

OURS, TORCH, MOSAICML, LITDATA = "Trainyard", "torch over datasets", "MosaicML Streaming", "LitData"
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Pictures, and how a reader keeps them: `pixels`, or JPEG files that it decodes whenever a row is read."""

    rows: int
    side: int
    channels: int
    batch_size: int
    kept: Literal["pixels", "files"]

    @property
    def name(self) -> str:
        return f"{self.side} × {self.side} × {self.channels}, kept as {self.kept}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, self.channels

    @property
    def steps(self) -> int:
        return self.rows // self.batch_size


class Reader(Protocol):
    """A loader. The first epoch and step are 0."""

    def epoch(self) -> Iterator[Any]:
        """The next epoch's batches of images, (rows, H, W, C) uint8, or what is left of one after `resume`."""
        ...

    def state(self, epoch: int, step: int) -> JsonObject:
        """From where to go on; called when so many batches of an epoch were taken."""
        ...

    def resume(self, state: JsonObject) -> None: ...


# ── what a row is ──
def rows_of(path: str, case: Case) -> Iterator[tuple[Any, int]]:
    """(pixels, or a JPEG file, and label) of each row of a Parquet file."""
    for batch in pq.ParquetFile(path).iter_batches():
        labels = batch.column("label").to_pylist()
        column = batch.column("image")
        images = (column.field("bytes").to_pylist() if case.kept == "files"
                  else numpy_column(column.flatten()).reshape(-1, *case.shape))
        yield from zip(images, labels, strict=True)


def every_row(source: str, case: Case) -> Iterator[tuple[Any, int]]:
    return itertools.chain.from_iterable(rows_of(path, case) for path in files_of(Path(source) / "train"))


def stacked(rows: Sequence[Any]) -> Any:
    """A batch of rows as tensors; of JPEG files and of Pillow's images, their pixels."""
    import torch

    images = [Image.open(io.BytesIO(row["image"])) if isinstance(row["image"], bytes) else row["image"] for row in rows]
    return {"image": torch.from_numpy(np.stack([np.asarray(image) for image in images])),
            "label": torch.tensor([row["label"] for row in rows])}


# ── Trainyard ──
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


# ── torch.utils.data over datasets ──
class ShuffledBatches:
    """A sampler whose elements are the rows of a batch, in an order of each epoch's own."""

    def __init__(self, case: Case) -> None:
        self.case, self.next, self.start = case, 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        size, order = self.case.batch_size, np.random.default_rng((SEED, self.next)).permutation(self.case.rows)
        first, self.next, self.start = self.start, self.next + 1, 0
        return (order[step * size : (step + 1) * size].tolist() for step in range(first, self.case.steps))


class TorchOverDatasets:
    """A whole batch is asked for at once, which is what `datasets` recommends."""

    def __init__(self, case: Case, source: str, folder: str, workers: int) -> None:
        from datasets import load_from_disk
        from torch.utils.data import DataLoader

        self.sampler = ShuffledBatches(case)
        rows: Any = load_from_disk(f"{folder}/rows").with_format("numpy", dtype=np.uint8)  # int64 otherwise
        self.loader: Any = DataLoader(rows, sampler=self.sampler, batch_size=None, num_workers=workers,
                                      persistent_workers=workers > 0)

    @staticmethod
    def build(case: Case, source: str, folder: str) -> None:
        from datasets import Array3D, Features, Value
        from datasets import Dataset as Rows
        from datasets import Image as Picture

        features = Features({"image": Picture() if case.kept == "files" else Array3D(case.shape, "uint8"),
                             "label": Value("int64")})
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            made: Any = Rows.from_generator(as_dicts, features=features, cache_dir=cache,
                                            gen_kwargs={"source": source, "case": case})
            made.save_to_disk(f"{folder}/rows")

    def epoch(self) -> Iterator[Any]:
        return (batch["image"] for batch in self.loader)

    def state(self, epoch: int, step: int) -> JsonObject:
        return {"epoch": epoch, "step": step}

    def resume(self, state: JsonObject) -> None:
        """Leaves batches out before any of their rows is read."""
        self.sampler.next, self.sampler.start = state["epoch"], state["step"]


def as_dicts(source: str, case: Case) -> Iterator[JsonObject]:
    for image, label in every_row(source, case):
        yield {"image": {"bytes": image, "path": None} if case.kept == "files" else image, "label": label}


# ── MosaicML Streaming ──
class MosaicMLStreaming:
    """A set that lies on this machine, as MDS."""

    def __init__(self, case: Case, source: str, folder: str, workers: int) -> None:
        import streaming

        rows = streaming.StreamingDataset(local=f"{folder}/mds", shuffle=True, batch_size=case.batch_size)
        self.loader = streaming.StreamingDataLoader(rows, batch_size=case.batch_size, num_workers=workers,
                                                    drop_last=True, collate_fn=stacked,
                                                    persistent_workers=workers > 0)

    @staticmethod
    def build(case: Case, source: str, folder: str) -> None:
        from streaming import MDSWriter

        kind = "jpeg" if case.kept == "files" else f"ndarray:uint8:{','.join(map(str, case.shape))}"
        with (MDSWriter(out=f"{folder}/mds", columns={"image": kind, "label": "int"}) as writer,
              tempfile.NamedTemporaryFile() as file):
            for image, label in every_row(source, case):
                if isinstance(image, bytes):  # it keeps a file as it is only where the picture was opened by its name
                    Path(file.name).write_bytes(image)
                writer.write({"image": Image.open(file.name) if isinstance(image, bytes) else image, "label": label})

    def epoch(self) -> Iterator[Any]:
        return (batch["image"] for batch in self.loader)

    def state(self, epoch: int, step: int) -> JsonObject:
        return self.loader.state_dict()

    def resume(self, state: JsonObject) -> None:
        self.loader.load_state_dict(state)


def stand_in_for_torchvision() -> None:
    """MosaicML Streaming imports it for the base class of data sets that are not used here."""
    for name, attribute in (("torchvision", None), ("torchvision.datasets", "VisionDataset"),
                            ("torchvision.transforms", None), ("torchvision.transforms.functional", "to_tensor")):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        if attribute:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module


# ── LitData ──
class LitData:
    """A set that lies on this machine. Its own decoder of JPEG is torchvision's, so files are kept as bytes."""

    def __init__(self, case: Case, source: str, folder: str, workers: int) -> None:
        import litdata

        rows = litdata.StreamingDataset(f"{folder}/litdata", shuffle=True, drop_last=True, seed=SEED)
        self.loader = litdata.StreamingDataLoader(rows, batch_size=case.batch_size, num_workers=workers,
                                                  drop_last=True, collate_fn=stacked,
                                                  persistent_workers=workers > 0)

    @staticmethod
    def build(case: Case, source: str, folder: str) -> None:
        import litdata

        litdata.optimize(fn=functools.partial(file_as_dicts, case=case), inputs=files_of(Path(source) / "train"),
                         output_dir=f"{folder}/litdata", chunk_bytes="64MB", num_workers=1, verbose=False)

    def epoch(self) -> Iterator[Any]:
        return (batch["image"] for batch in self.loader)

    def state(self, epoch: int, step: int) -> JsonObject:
        return self.loader.state_dict()

    def resume(self, state: JsonObject) -> None:
        self.loader.load_state_dict(state)


def file_as_dicts(path: str, case: Case) -> Iterator[JsonObject]:
    for image, label in rows_of(path, case):
        yield {"image": image, "label": label}


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


def main(action: str, name: str, case: Case, source: str, folder: str, workers: int = 0,
         seconds: float = 1.0, state: str = "{}") -> None:
    if name == MOSAICML:
        stand_in_for_torchvision()
    for package in PACKAGES[name]:
        importlib.import_module(package)
    if action == "build":
        Path(folder).mkdir(parents=True, exist_ok=True)
        READERS[name].build(case, source, folder)
        print(json.dumps({"built": asdict(case)}))
    elif action == "read":
        print(json.dumps(read(READERS[name](case, source, folder, workers), case, seconds)))
    else:
        began = time.perf_counter()
        reader = READERS[name](case, source, folder, workers)
        reader.resume(json.loads(state))
        next(iter(reader.epoch()))
        print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    from tests.benchmarks import loading_readers  # by its name, by which other processes find its functions

    action, name, case, *rest = sys.argv[1:]
    loading_readers.main(action, name, loading_readers.Case(**json.loads(case)), *rest[:2],
                         *map(int, rest[2:3]), *map(float, rest[3:4]), *rest[4:])
