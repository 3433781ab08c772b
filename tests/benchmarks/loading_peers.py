"""The loaders that `loading` compares ours with, as their documentation has them used."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false, reportUnknownParameterType=false

import functools
import importlib.machinery
import io
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.core.documents import JsonObject
from tests.benchmarks.loading_case import Case, every_row, rows_of
from tests.benchmarks.photographs import files_of

SEED = 0


def stacked(rows: Sequence[Any]) -> Any:
    """A batch of rows as tensors; of JPEG files and of Pillow's images, their pixels."""
    import torch

    images = [Image.open(io.BytesIO(row["image"])) if isinstance(row["image"], bytes) else row["image"] for row in rows]
    return {"image": torch.from_numpy(np.stack([np.asarray(image) for image in images])),
            "label": torch.tensor([row["label"] for row in rows])}


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


# ── those whose loader knows where it is ──
class _Streaming:
    loader: Any

    def epoch(self) -> Iterator[Any]:
        return (batch["image"] for batch in self.loader)

    def state(self, epoch: int, step: int) -> JsonObject:
        return self.loader.state_dict()

    def resume(self, state: JsonObject) -> None:
        self.loader.load_state_dict(state)


class MosaicMLStreaming(_Streaming):
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


def stand_in_for_torchvision() -> None:
    """MosaicML Streaming imports it for the base class of data sets that are not used here."""
    for name, attribute in (("torchvision", None), ("torchvision.datasets", "VisionDataset"),
                            ("torchvision.transforms", None), ("torchvision.transforms.functional", "to_tensor")):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        if attribute:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module


class LitData(_Streaming):
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


def file_as_dicts(path: str, case: Case) -> Iterator[JsonObject]:
    for image, label in rows_of(path, case):
        yield {"image": image, "label": label}
