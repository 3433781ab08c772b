"""Answers of a finished model for new data by two actors, beside Ray Data's `map_batches` written by hand.

Both have the same Parquet files, the same model and the same cores, each in a process of its own, and leave Parquet
with the answers. What is written by hand neither verifies the model nor goes on where it was killed, and lists no bad
rows.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.common.artifact.artifact import open_artifact
from jobs.common.predicting.predict import main as predict
from jobs.common.predictor.find import load_predictor
from tests import kept
from tests.benchmarks.apart import answer_of, answer_timed
from tests.benchmarks.results import Figure, Outcome

TITLE = "answers for Parquet by two actors of one core each"
OURS, BY_HAND = "trainyard predict", "map_batches by hand"
MODELS = {"images": "mlp", "texts": "transformer"}
BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    images: int = 200_000
    texts: int = 20_000
    files: int = 8
    rounds: int = 3


QUICK = Settings(images=8_000, texts=500, files=2, rounds=1)
NOTES = (
    "The models are small ones: an MLP of 28 × 28 pixels, and a ModernBERT of two layers, whose rows cost least, so "
    "that what lies around them shows.",
    "Seconds are from the call to the last row on disk, with the start of actors, without starting Ray. Trainyard's "
    "have the checks of the model, of the storage from every node, and the hashes of what is written. Both answer "
    f"{BATCH:,} rows at a time.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    write_images(workspace / "images", settings.images, settings.files)
    write_texts(workspace / "texts", settings.texts, settings.files)
    counts = {"images": settings.images, "texts": settings.texts}
    seconds: dict[str, list[float]] = {}
    for round_ in range(settings.rounds):
        for what in MODELS:
            for who in (OURS, BY_HAND):
                out = workspace / f"{what}-{who[:4]}-{round_}"
                answer = answer_of(__name__, who, what, str(workspace / what), str(out))
                seconds.setdefault(f"{what}: {who}", []).append(answer["seconds"])
                assert rows_in(out) == counts[what]
    rates = {name: counts[name.partition(":")[0]] / statistics.median(took) for name, took in seconds.items()}
    figures: list[Figure] = []
    for what in MODELS:
        ours, by_hand = rates[f"{what}: {OURS}"], rates[f"{what}: {BY_HAND}"]
        figures += [Figure(name=f"{what}: {OURS}", value=ours, unit="rows/s"),
                    Figure(name=f"{what}: {BY_HAND}", value=by_hand, unit="rows/s"),
                    Figure(name=f"{what}: of what is written by hand", value=ours / by_hand, at_least=0.95)]
    return Outcome(figures=tuple(figures), samples={"seconds": seconds}, notes=NOTES)


def rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def write_images(folder: Path, rows: int, files: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(files):
        pixels = draw.integers(0, 256, (rows // files, 784), np.uint8)
        column = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 784)
        pq.write_table(pa.table({"id": np.arange(len(pixels)), "image": column}), folder / f"{number}.parquet",
                       row_group_size=16384)


def write_texts(folder: Path, rows: int, files: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    words = [f"{first}{last}" for first in ("Deutsch", "Frank", "Ire", "Finn") for last in ("land", "reich", "o")]
    for number in range(files):
        texts = [" ".join(draw.choice(words, draw.integers(1, 6))) for _ in range(rows // files)]
        pq.write_table(pa.table({"id": np.arange(len(texts)), "text": texts}), folder / f"{number}.parquet",
                       row_group_size=4096)


# ── in a process of its own ──
def ours(what: str, data: str, out: str) -> None:
    assert predict(["--model", str(kept.artifact(MODELS[what])), "--data.uri", data, "--out", out, "--address", "local",
                    "--workers", "2", "--cpus-per-worker", "1", "--batch-rows", str(BATCH)]) == 0


class Answering:
    """What a user writes for `map_batches`."""

    def __init__(self, what: str) -> None:
        self.what, artifact = what, open_artifact(kept.artifact(MODELS[what]))
        self.labels = np.array(artifact.manifest.description.labels)
        self.predictor = load_predictor(artifact)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        values = (np.stack(batch["image"]).reshape(-1, 28, 28, 1) if self.what == "images" else batch["text"])
        probabilities = self.predictor.predict(values)
        return {**batch, "predicted": self.labels[probabilities.argmax(1)], "probability": probabilities.max(1),
                "probabilities": probabilities}


def by_hand(what: str, data: str, out: str) -> None:
    import ray.data

    rows = ray.data.read_parquet(data)
    answered = rows.map_batches(Answering, fn_constructor_args=(what,), batch_size=BATCH, concurrency=2,
                                num_cpus=0.5)  # with a core each there would be none to read with, and no end
    answered.write_parquet(out)


def main(who: str, what: str, data: str, out: str) -> None:
    work: Callable[[str, str, str], None] = {OURS: ours, BY_HAND: by_hand}[who]
    answer_timed(lambda: work(what, data, out), cpus=2)


if __name__ == "__main__":
    from tests.benchmarks import predicting  # by its name, by which actors find its class

    predicting.main(*sys.argv[1:])
