"""Preparing JPEG files in Parquet: decode, resize to 224 × 224, write; beside Ray Data and Hugging Face's datasets.

All three have the same files and the same two cores, each in a process of its own, and leave uint8 pixels on disk: ours
in Parquet blocks with splits, hashes, repeats and statistics, a bare pipeline of Ray Data in Parquet files, and
`datasets.map(batched=True, num_proc=2)` in its own Arrow cache.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import functools
import io
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare
from tests.benchmarks import photographs
from tests.benchmarks.apart import answer_of, answer_timed, size_of
from tests.benchmarks.results import Figure, Outcome

TITLE = "decoding and resizing JPEG files on two cores"
SIDE = 224
OURS, ENCODED = "Trainyard", "Trainyard, --data.keep encoded"
RAY_DATA, DATASETS = "bare Ray Data", "datasets.map(num_proc=2)"
WHO = (OURS, ENCODED, RAY_DATA, DATASETS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 8_000
    large_rows: int = 16_000
    """A second size: what the driver's memory does not grow with."""
    files: int = 8
    rounds: int = 3


QUICK = Settings(rows=128, large_rows=256, files=2, rounds=1)
NOTES = (
    "The pictures are cuts of 200 to 312 pixels a side out of random fields with a photograph's spectrum, as JPEG "
    "of quality 90, in row groups of 64. MB are of these files. Seconds are from the call to the last row on disk, "
    "without starting Ray.",
    "The peers' pixels are tensors (Ray Data) and bytes (datasets: faster than its arrays).",
    "The driver's memory is what its resident set grew by since the call, sampled ten times a second, under Ray.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    source, large = workspace / "source", workspace / "large"
    megabytes = write_source(source, settings.rows, settings.files) / 1e6
    write_source(large, settings.large_rows, settings.files)
    seconds: dict[str, list[float]] = {who: [] for who in WHO}
    disk: dict[str, int] = {}
    for round_ in range(settings.rounds):
        for who in WHO:
            out = workspace / f"{round_}" / str(WHO.index(who))
            seconds[who].append(done(who, source, out)["seconds"])
            disk[who] = size_of(out)
    rates = {who: megabytes / statistics.median(took) for who, took in seconds.items()}
    driver = [done(OURS, uri, workspace / "driver")["grown"] / 1e6 for uri in (source, large)]
    best = max(rates[RAY_DATA], rates[DATASETS])
    figures = (
        *(Figure(name=who, value=rate, unit="MB/s") for who, rate in rates.items()),
        *(Figure(name=f"{who}, pictures", value=settings.rows / megabytes * rate, unit="rows/s")
          for who, rate in rates.items()),
        Figure(name="faster than the best of them", value=rates[OURS] / best, at_least=1.0, aim_at_least=2.0),
        Figure(name="faster than the best of them, --data.keep encoded", value=rates[ENCODED] / best),
        *(Figure(name=f"{who}: on disk, of the files' bytes", value=disk[who] / megabytes / 1e6) for who in WHO),
        Figure(name=f"the driver's memory, {settings.rows:,} pictures", value=driver[0], unit="MB"),
        Figure(name=f"the driver's memory, {settings.large_rows:,} pictures", value=driver[1], unit="MB"),
        Figure(name="grown by", value=driver[1] - driver[0], unit="MB", at_most=100.0),
    )
    return Outcome(figures=figures, samples={"seconds": seconds, "driver": driver, "disk": disk}, notes=NOTES)


def write_source(folder: Path, rows: int, files: int) -> int:
    """Returns the bytes of the JPEG files."""
    return sum(photographs.write_parquet(folder / f"part-{number}.parquet",
                                         photographs.pictures(rows // files, (200, 312), 3, number), as_files=True)
               for number in range(files))


def done(who: str, source: Path, out: Path) -> JsonObject:
    """seconds; grown: the most bytes of memory that the driver had more than before."""
    return answer_of(__name__, who, str(source), str(out))


# ── in a process of its own ──
def ours(source: str, out: str, keep: Literal["pixels", "encoded"] = "pixels") -> None:
    prepare(ImageDataConfig(uri=source, resize=SIDE, keep=keep), Store.open(out), use_ray=True)


def pixels_of(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def resized(batch: dict[str, Any]) -> dict[str, Any]:
    """What a user writes for `map_batches`."""
    return {"image": np.stack([pixels_of(image["bytes"]) for image in batch["image"]]), "label": batch["label"]}


def ray_data(source: str, out: str) -> None:
    import ray.data

    rows: Any = ray.data.read_parquet(source)
    rows.map_batches(resized, batch_size=64).write_parquet(out)


def resized_bytes(batch: dict[str, Any]) -> dict[str, Any]:
    """What a user writes for `datasets.map`."""
    return {"image": [pixels_of(image["bytes"]).tobytes() for image in batch["image"]], "label": batch["label"]}


def hugging_face(source: str, out: str) -> None:
    from datasets import Features, Value, load_dataset

    files: Any = load_dataset("parquet", data_files=list(photographs.files_of(Path(source))), split="train",
                              cache_dir=out)
    files.map(resized_bytes, batched=True, batch_size=64, writer_batch_size=64, num_proc=2,
              features=Features({"image": Value("binary"), "label": Value("int64")}))


def main(who: str, source: str, out: str) -> None:
    work: Callable[[str, str], None] = {OURS: ours, ENCODED: functools.partial(ours, keep="encoded"),
                                        RAY_DATA: ray_data, DATASETS: hugging_face}[who]
    answer_timed(lambda: work(source, out), cpus=0 if who == DATASETS else 2)


if __name__ == "__main__":
    from tests.benchmarks import pictures  # by its name, by which tasks find its functions

    pictures.main(*sys.argv[1:])
