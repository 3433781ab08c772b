"""Training on more data than the cache may hold: memory of the workers, the cache's folder, and waiting for data."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks import images, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Watch
from tests.runs import ROOT, Job

TITLE = "4 GB of Parquet through a cache of 1 GB, two workers"
_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Settings:
    data_bytes: int = 4_000_000_000
    files: int = 8
    cache_gb: float = 1.0
    workers: int = 2
    batch_size: int = 1024
    """Global; the textbook network at 512 rows per worker, which is where it consumes most."""
    epochs: int = 2
    other_rows: int = 5_000


QUICK = Settings(data_bytes=80_000_000, files=2, cache_gb=0.04, epochs=2, other_rows=500, batch_size=256)
NOTES = (
    "Unshared memory is Private_Clean + Private_Dirty of /proc/PID/smaps_rollup, sampled ten times a second from the "
    "first step to the end of training; the cache is what its files take on the disk, at the same moments.",
    "Waiting for data is the part of the epochs' time in which the loop had no rows; each worker begins with an empty "
    "cache.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    data = workspace / "images"
    rows = settings.data_bytes // images.SIDE**2
    images.write_splits(data, rows, settings.other_rows, files=settings.files)
    storage, cache = workspace / "storage", workspace / "cache"
    began = time.perf_counter()
    images.prepared(data, storage)
    prepared_s = time.perf_counter() - began
    began_at = time.time()
    with stopwatch.started(storage / "run", Watch(log_steps=True), *flags(settings, data, cache)) as job:
        job.until(lambda: first_step(job.folder), 120)
        seen = watch(job, cache)
        job.finished(1800)
    legs = [leg for record in stopwatch.records(job.folder) for leg in record.legs]
    waited, trained = sum(leg["wait"] for leg in legs), sum(leg["seconds"] for leg in legs)
    steps_s = min(leg["seconds"] / leg["steps"] for leg in legs)
    figures = (
        Figure(name="training data", value=rows * images.SIDE**2 / 1e9, unit="GB"),
        Figure(name="highest unshared memory of a worker", value=max(seen["private"]) / 1e6, unit="MB", at_most=1000),
        Figure(name="largest size of the cache", value=max(seen["cache"]) / 1e6, unit="MB",
               at_most=settings.cache_gb * 1000),
        Figure(name="time waiting for data", value=100 * waited / trained, unit="%", at_most=5),
        Figure(name="consumed", value=settings.batch_size * images.SIDE**2 / steps_s / 1e6, unit="MB/s"),
        Figure(name="preparing the data, once", value=prepared_s, unit="s"),
        Figure(name="first step, data prepared before", value=first_step(job.folder) - began_at, unit="s"),
    )
    return Outcome(figures=figures, samples={"legs": legs, **seen}, notes=NOTES)


def flags(settings: Settings, data: Path, cache: Path) -> list[str]:
    return ["--config", str(ROOT / "jobs/mlp/textbook.yaml"), "--run.engine", "local", "--run.workers",
            str(settings.workers),
            "--data.uri", str(data), "--data.cache-dir", str(cache), "--data.cache-gb", str(settings.cache_gb),
            "--train.global-batch-size", str(settings.batch_size), "--train.epochs", str(settings.epochs)]


def first_step(folder: Path) -> float:
    """When the first worker had done its first step (unix seconds); 0: not yet."""
    lines = [path.read_text().partition("\n")[0] for path in (folder / "stopwatch").glob("steps-*.txt")]
    return min((float(line.split()[0]) for line in lines if line), default=0.0)


def watch(job: Job, cache: Path) -> dict[str, list[int]]:
    """Bytes, over and over until the workers are gone: the greatest unshared memory of a worker, and the cache."""
    seen: dict[str, list[int]] = {"private": [], "cache": []}
    pids = job.workers().values()
    while any(map(psutil.pid_exists, pids)):
        seen["private"].append(max(map(private_bytes, pids)))
        seen["cache"].append(sum(disk_bytes(path) for path in cache.rglob("*")))
        time.sleep(_EVERY_S)
    return seen


def private_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def disk_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0

