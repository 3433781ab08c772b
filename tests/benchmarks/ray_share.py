"""What Ray Train adds to a step: the same loop by turns under it and under the local session;
then two workers against one."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.local.cluster import LocalCluster
from tests.benchmarks import images, ray_cluster, stopwatch, two_workers
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Watch
from tests.runs import ROOT

TITLE = "the loop under Ray Train against the local session, and two workers against one"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 60_000
    other_rows: int = 2_000
    batch_size: int = 64
    epochs: int = 41
    """The first of them is left out."""
    scaling_rows: int = 40_000
    scaling_epochs: int = 13


QUICK = Settings(rows=4_000, other_rows=200, epochs=3, scaling_rows=6_000, scaling_epochs=3)
NOTE = (
    "Ray's share: one worker each, the textbook network, both runs alive and training an epoch by turns; the ratio is "
    "the median over neighbouring turns. What Ray's own processes (control store, raylet, dashboard, agents) use "
    "meanwhile is given beside it: on a machine with a core to spare it costs the loop nothing."
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    share = ray_against_local(settings, workspace / "share")
    scaling = two_workers.measure(settings.scaling_rows, settings.other_rows, settings.scaling_epochs,
                                  workspace / "scaling")
    return Outcome(figures=share.figures + scaling.figures, samples=share.samples | scaling.samples,
                   notes=share.notes + scaling.notes)


def ray_against_local(settings: Settings, workspace: Path) -> Outcome:
    data = images.prepared(images.write_splits(workspace / "images", settings.rows, settings.other_rows),
                           workspace / "storage")
    flags = ["--config", str(ROOT / "jobs/mlp/textbook.yaml"), "--data.uri", str(data), "--data.cache-dir",
             str(workspace / "cache"), "--train.global-batch-size", str(settings.batch_size), "--train.epochs",
             str(settings.epochs)]
    runs = [(workspace / "storage" / engine, Watch(), [*flags, "--run.engine", engine]) for engine in ("local", "ray")]
    with ray_cluster.running(1) as cluster:
        before: dict[int, float] = {}
        (local,), (ray,) = stopwatch.by_turns(runs, when_all_are_here=lambda: before.update(own_cpu_s(cluster)))
        after = own_cpu_s(cluster)
    pairs = list(zip(local.legs[1:], ray.legs[1:], strict=True))
    ratios = sorted(b["seconds"] / a["seconds"] for a, b in pairs)
    seconds = after.pop(0) - before[0]
    own = sum(after[pid] - before[pid] for pid in after if pid in before) / seconds
    figures = (
        Figure(name="a step under Ray Train over one under the local session", value=statistics.median(ratios),
               at_most=1.02),
        Figure(name="its lower quartile", value=ratios[len(ratios) // 4]),
        Figure(name="its upper quartile", value=ratios[len(ratios) * 3 // 4]),
        Figure(name="the same in CPU time of the loop's thread",
               value=statistics.median(b["cpu"] / a["cpu"] for a, b in pairs)),
        Figure(name="Ray's own processes meanwhile", value=100 * own, unit="% of a core"),
    )
    return Outcome(figures=figures, samples={"local": local.legs, "ray": ray.legs, "ray_cpu_share": own}, notes=(NOTE,))


def own_cpu_s(cluster: LocalCluster) -> dict[int, float]:
    """CPU seconds of each process of the cluster but those that run Python for a job; the time under 0."""
    found = {0: time.monotonic()}
    for process in cluster.processes():
        try:
            if not process.cmdline()[0].startswith("ray::"):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        except (psutil.NoSuchProcess, IndexError):
            continue
    return found
