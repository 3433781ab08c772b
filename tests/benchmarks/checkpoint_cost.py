"""Background checkpoints of a large model against none, by turns within one run of the real loop."""

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import images, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Record, Watch
from tests.runs import ROOT

TITLE = "background checkpoints of 60 million parameters with AdamW's state"


@dataclass(frozen=True, kw_only=True)
class Settings:
    hidden: tuple[int, ...] = (5400, 5400, 5000)
    batch_size: int = 32
    every_steps: int = 50
    """--run.checkpoint-every-steps: a snapshot every 38 steps, committed within 12."""
    checkpoints_per_phase: int = 2
    pairs: int = 4
    """Phases with checkpoints, each between two without; one more of each comes before, as a warm-up."""
    other_rows: int = 200
    threads: tuple[int, ...] = (1, 2)

    @property
    def snapshot_steps(self) -> int:
        return self.every_steps - self.every_steps // 4

    @property
    def phase(self) -> int:
        return self.checkpoints_per_phase * self.snapshot_steps

    @property
    def steps(self) -> int:
        return self.phase * (2 * self.pairs + 3)


QUICK = Settings(hidden=(512, 512), every_steps=8, checkpoints_per_phase=2, pairs=2, threads=(1,))
NOTES = (
    "One run of the real loop, in which checkpoints are on for two snapshots' time, off for as long, and so on; each "
    "phase with them is compared with the mean of the two beside it. A step's time is everything from one step's end "
    "to the next: also the copy of the tensors, and waiting for a commit that is late.",
    "With --run.checkpoint-every-steps 50 a snapshot is taken every 38 steps, so that at most 50 are ever lost: more "
    "often than every 50 steps.",
    "Memory: a snapshot is kept in the process while it is written, so the peak grows by the checkpoint's size.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    data = images.write_splits(workspace / "images", settings.steps * settings.batch_size, settings.other_rows)
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for threads in settings.threads:
        record = stopwatch.carried_out(
            workspace / "storage" / f"threads-{threads}", Watch(stamps=True, checkpoint_phases=settings.phase),
            "--config", str(ROOT / "jobs/mlp/textbook.yaml"), "--run.engine", "local", "--run.cpus-per-worker",
            str(threads),
            "--run.checkpoint-every-steps", str(settings.every_steps), "--data.uri", str(data), "--data.cache-dir",
            str(workspace / "cache"), "--model.hidden", *map(str, settings.hidden), "--optim.name", "adamw",
            "--optim.lr", "1e-5",
            "--train.global-batch-size", str(settings.batch_size), "--train.epochs", "1",
        )[0]
        means = phase_means(record.stamps, settings.phase)
        figures += figures_of(f"{threads} thread{'s' * (threads > 1)}: ", record, means, settings,
                              threshold=threads == 1)
        samples[f"{threads} threads"] = {"phase_means_s": means, "checkpoints": record.checkpoints,
                                         "peak_rss": record.peak_rss}
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def phase_means(stamps: list[float], phase: int) -> list[float]:
    """Mean seconds of a step in each phase: off, on, off, on, … off. The first step has no time and is left out."""
    times = [b - a for a, b in itertools.pairwise(stamps)]
    return [statistics.fmean(times[max(0, start - 1):start + phase - 1]) for start in range(0, len(stamps), phase)]


def figures_of(prefix: str, record: Record, means: list[float], settings: Settings, *, threshold: bool) -> list[Figure]:
    """Phases 0 and 1 are the warm-up; then phase 2 is off, 3 on, … and the last is off."""
    costs = [100 * (2 * means[i] / (means[i - 1] + means[i + 1]) - 1) for i in range(3, len(means) - 1, 2)]
    taken = [c for c in record.checkpoints if "bytes" in c and c["at"] > 2 * settings.phase]
    size, blocking, write, cpu = (statistics.median(c[key] for c in taken)
                                  for key in ("bytes", "blocking_s", "write_s", "background_s"))
    before = [peak for step, peak in record.peak_rss if step <= settings.phase][-1]
    return [
        Figure(name=prefix + "checkpoints lengthen a step by", value=statistics.median(costs), unit="%",
               at_most=3.0 if threshold else None),
        Figure(name=prefix + "a step without", value=1e3 * statistics.median(means[2::2]), unit="ms",
               at_least=20 if threshold else None),
        Figure(name=prefix + "size of a checkpoint", value=size / 1e6, unit="MB"),
        Figure(name=prefix + "the step path is kept by one for", value=1e3 * blocking, unit="ms"),
        Figure(name=prefix + "one is written in", value=write, unit="s"),
        Figure(name=prefix + "CPU time of writing one", value=cpu, unit="s"),
        Figure(name=prefix + "highest resident memory without", value=before / 1e6, unit="MB"),
        Figure(name=prefix + "highest resident memory with", value=record.peak_rss[-1][1] / 1e6, unit="MB"),
    ]
