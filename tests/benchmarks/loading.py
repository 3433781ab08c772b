"""The training loader beside torch's over Hugging Face's datasets, MosaicML Streaming and LitData, on one machine.

All have the same shuffled rows and hand out batches of uint8 images; each runs in a process of its own
(loading_readers.py). MosaicML Streaming and LitData declare what clashes with this project's lock (numpy < 2.2,
transformers < 5), so they are installed without their dependencies, into a folder that only these processes see.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.core.documents import JsonObject
from tests.benchmarks import loading_readers
from tests.benchmarks.apart import answer_of, size_of
from tests.benchmarks.loading_case import LITDATA, MOSAICML, OURS, Case
from tests.benchmarks.loading_readers import READERS
from tests.benchmarks.photographs import pictures, write_parquet
from tests.benchmarks.results import Figure, Outcome

TITLE = "shuffled batches of images from the disk of one machine, from the second epoch on"
PEER_PACKAGES = ("mosaicml-streaming==0.13.0", "litdata==0.2.76", "catalogue==2.0.10", "cramjam==2.14.0",
                 "lightning-utilities==0.15.3", "python-snappy==0.7.3", "zstd==1.5.7.2")
"""The peers that are not in the lock, and what they import that is not."""
OTHER_ROWS = 16
"""Of the validation and the test split, which are not read."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    small_rows: int = 60_000
    large_rows: int = 2_400
    seconds: float = 2.0
    """Of whole epochs that are measured."""
    rounds: int = 3

    @property
    def cases(self) -> tuple[Case, ...]:
        large = Case(rows=self.large_rows, side=224, channels=3, batch_size=32, kept="pixels")
        return (Case(rows=self.small_rows, side=28, channels=1, batch_size=64, kept="pixels"), large,
                replace(large, kept="files"))


QUICK = Settings(small_rows=2_000, large_rows=128, seconds=0.1, rounds=1)
NOTES = (
    "Rows a second: of whole epochs, after a first one in the same process, until 2 s have gone by; a batch of 64 "
    "(28 × 28) or 32 images and their labels, as arrays of NumPy or torch; medians over the rounds. Of the peers with "
    "0 and with 2 worker processes, the faster counts. CPU seconds are those of the processes' whole tree.",
    "Kept as files: JPEG files of quality 90, which each decodes with Pillow. LitData's own decoder needs torchvision, "
    "of which there is no build for this project's torch: it keeps the same files as bytes. MosaicML Streaming imports "
    "torchvision for what is not used here: stand-ins take its place.",
    "torch over datasets asks for whole batches by a sampler's lists; datasets keeps pixels as nested lists, whose "
    "offsets take four bytes for each last list.",
    "Resuming: seconds from opening a set that was read before, in a new process, to the first batch in the middle of "
    "an epoch, without imports, by each one's own state; torch's sampler leaves out what was read before any row is.",
    "On disk: all of a reader's folder; of Trainyard the prepared set and the node's cache of it.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    peers = workspace / "peers"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(peers),
                    *PEER_PACKAGES], check=True, stdout=sys.stderr)
    figures, samples = list[Figure](), dict[str, JsonObject]()
    for number, case in enumerate(settings.cases):
        found = compared(case, settings, workspace / str(number), str(peers))
        figures += figures_of(case, found)
        samples[case.name] = found
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def compared(case: Case, settings: Settings, folder: Path, peers: str) -> dict[str, JsonObject]:
    """Of each reader: rows_a_second, rows_a_cpu_second and resume_s, each by number of worker processes and round, and
    disk."""
    for seed, (split, rows) in enumerate({"train": case.rows, "validation": OTHER_ROWS, "test": OTHER_ROWS}.items()):
        drawn = pictures(rows, (case.side, case.side), case.channels, seed)
        write_parquet(folder / "source" / split / "0.parquet", drawn, as_files=case.kept == "files")

    def answer(action: str, who: str, *more: str) -> JsonObject:
        path = peers if who in (MOSAICML, LITDATA) else ""
        return answer_of(loading_readers.__name__, action, who, json.dumps(asdict(case)), str(folder / "source"),
                         str(folder / who), *more, env={"PYTHONPATH": path} if path else {})

    for who in READERS:
        answer("build", who)
    names = ("rows_a_second", "rows_a_cpu_second", "resume_s")
    found: dict[str, dict[str, dict[str, list[float]]]] = {who: {name: {} for name in names} for who in READERS}
    for _ in range(settings.rounds):
        for who in READERS:
            for workers in ("0",) if who == OURS else ("0", "2"):
                read = answer("read", who, workers, str(settings.seconds))
                resumed = answer("resume", who, workers, "0", json.dumps(read["state"]))
                for name, value in (read | {"resume_s": resumed["seconds"]}).items():
                    if name in names:
                        found[who][name].setdefault(workers, []).append(value)
    return {who: {**of, "disk": size_of(folder / who)} for who, of in found.items()}


def figures_of(case: Case, found: dict[str, JsonObject]) -> list[Figure]:
    def best(who: str, name: str) -> float:
        return max(map(statistics.median, found[who][name].values()))

    peers = [who for who in found if who != OURS]
    rates = {who: best(who, "rows_a_second") for who in found}
    per_cpu = {who: best(who, "rows_a_cpu_second") for who in found}
    return [
        *(Figure(name=f"{case.name}: {who}", value=rate, unit="rows/s") for who, rate in rates.items()),
        Figure(name=f"{case.name}: faster than the best of them",
               value=rates[OURS] / max(map(rates.__getitem__, peers)), at_least=1.0, aim_at_least=2.0),
        *(Figure(name=f"{case.name}: {who}, of a core", value=rate, unit="rows/CPU s")
          for who, rate in per_cpu.items()),
        Figure(name=f"{case.name}: more of a core than the best of them",
               value=per_cpu[OURS] / max(map(per_cpu.__getitem__, peers))),
        *(Figure(name=f"{case.name}: {who}, resuming", unit="s",
                 value=min(map(statistics.median, found[who]["resume_s"].values()))) for who in found),
        *(Figure(name=f"{case.name}: {who}, on disk", value=found[who]["disk"] / 1e6, unit="MB") for who in found),
    ]
