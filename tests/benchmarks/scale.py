"""What grows with workers, nodes, data and time: each model of it,
held against a measurement at the size that fits here."""

import statistics
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cluster.capacity import Request, await_room
from cluster.core import storage
from cluster.core.storage import Store
from cluster.monitoring.status import read_status
from jobs.common.checkpoint import direct_io
from jobs.common.checkpoint import writer as checkpoint_writer
from jobs.common.checkpoint.manifest import Checkpoint, FileEntry, SaveName, read_manifest, write_manifest
from jobs.common.checkpoint.optimal_interval import best_interval_s, mean_time_between_failures_s
from jobs.common.checkpoint.shards import announce, collect
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from jobs.common.data.sampling import SamplingOrder, resolve_window_rows
from jobs.common.training.weight_digest import digest_of_arrays
from tests.benchmarks.failures import Life, simulate
from tests.benchmarks.faked_cluster import faked_cluster
from tests.benchmarks.goodput_model import expected_goodput
from tests.benchmarks.results import Figure, Outcome

TITLE = "what grows with workers, nodes, data and time: models against measurements"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 10**12
    shards: int = 10_000
    small_rows: int = 10**7
    small_shards: int = 10
    row_bytes: int = 784
    block_rows: int = 4096
    places: int = 300
    """(epoch, step, shard) at which the order is asked."""
    parts: tuple[int, ...] = (100, 1000, 3000, 10_000)
    """Ranks that write a checkpoint; the last is predicted from those before it."""
    nodes: tuple[int, ...] = (50, 150, 300, 1000)
    checkpoint_mb: tuple[int, ...] = (64, 256)
    """The second is predicted from the first."""
    bandwidths_mb_s: tuple[int, ...] = (50, 100)
    failures: int = 300
    node_mtbf_h: float = 50_000.0
    """Of one node. Not measured here: a setting, which the best cadence is printed for."""
    fleets: tuple[int, ...] = (1, 100, 1000, 10_000)
    checkpoint_cost_s: float = 1.0
    weights_mb: int = 256


QUICK = Settings(rows=10**9, shards=100, places=20, parts=(50, 100, 300), nodes=(20, 40, 80), checkpoint_mb=(16, 32),
                 bandwidths_mb_s=(50,), failures=40, weights_mb=16)
NOTES = (
    "Order: how long the row ids of one shard's micro-batch take to find, anywhere in the run, with nothing kept from "
    "before; all ids found at places drawn at random must be different and within the data. Windows hold at most 128 "
    "MiB over all shards, and at least one block.",
    "Manifests: a checkpoint of so many parts, in a local folder: its manifest written and read, the notes of all "
    "ranks read by rank 0, and all listed for pruning. Time = a + b × parts, fitted to the smaller sizes, predicts the "
    "largest. Notes are written without fsync, by one process: here it is their reader that is measured.",
    "Nodes: `status` and the part of preflight that looks for room, against a control store that is faked "
    "(`faked_cluster.py`): one server answers for all nodes. The small task that preflight runs on every node is not "
    "in it. Predicted like manifests.",
    "Checkpoint time: the real writer into a local folder; bandwidth is limited by sleeping in it. Time = bytes / (own "
    "rate) + bytes / bandwidth, its own rate taken from the smaller size without a limit.",
    "Goodput: a simulation of a run that fails at random, in which the real `CheckpointSchedule` says when it saves "
    "(`failures.py`), against the formula (`optimal_interval.py`), which then gives the best cadence for fleets "
    "that nobody has here.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    samples: dict[str, Any] = {}
    figures = [*order_figures(settings, samples), *manifest_figures(settings, workspace, samples),
               *node_figures(settings, samples), *checkpoint_figures(settings, workspace, samples),
               *goodput_figures(settings, samples), *weight_figures(settings, samples)]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


# ── the order of rows ──
def order_figures(settings: Settings, samples: dict[str, Any]) -> list[Figure]:
    small, large = (order_of(settings, rows, shards) for rows, shards in
                    ((settings.small_rows, settings.small_shards), (settings.rows, settings.shards)))
    few, many = order_times(small, settings.places), order_times(large, settings.places)
    samples["order"] = {"small_s": few, "large_s": many, "window_rows": [small.window_rows, large.window_rows]}
    per_row = [statistics.median(times) / order.window_rows for times, order in ((few, small), (many, large))]
    size, shards = f"{settings.rows:.0e} rows, {settings.shards:,} shards", f"{settings.shards:,} shards"
    return [
        Figure(name=f"order at {size}: one micro-batch", value=1e3 * statistics.median(many), unit="ms", at_most=50),
        Figure(name="the same, for a row of a window, over that at small size", value=per_row[1] / per_row[0],
               at_most=4),
        Figure(name=f"rows of a window at {shards}", value=large.window_rows),
        Figure(name=f"ids drawn at {size} that come twice or lie outside", value=wrong_ids(large, settings.places),
               at_most=0),
    ]


def order_of(settings: Settings, rows: int, shards: int) -> SamplingOrder:
    window = resolve_window_rows(65536, shards, settings.row_bytes, settings.block_rows)
    return SamplingOrder(num_rows=rows, num_shards=shards, global_batch_size=64 * shards,
                         block_rows=settings.block_rows,
                         window_rows=window, seed=0)


def order_times(order: SamplingOrder, count: int) -> list[float]:
    return [timed(lambda place=place: order.positions(*place)) for place in places(order, count)]


def places(order: SamplingOrder, count: int) -> list[tuple[int, int, int]]:
    """(epoch, step, shard), drawn at random; each another one."""
    rng = np.random.default_rng(0)
    steps = rng.integers(0, order.steps_per_epoch, count).tolist()
    return [(0, step, number % order.num_shards) for number, step in enumerate(sorted(set(steps)))]


def wrong_ids(order: SamplingOrder, count: int) -> int:
    found = np.concatenate([order.positions(*place) for place in places(order, count)])
    return len(found) - len(np.unique(found)) + int(((found < 0) | (found >= order.num_rows)).sum())


# ── checkpoints of many parts ──
def manifest_figures(settings: Settings, workspace: Path, samples: dict[str, Any]) -> list[Figure]:
    with mock.patch.object(storage, "_sync"):
        times = {count: manifest_times(Store.open(str(workspace / f"parts-{count}")), count)
                 for count in settings.parts}
    samples["manifests"] = times
    figures: list[Figure] = []
    for what in ("write the manifest", "read it", "collect the ranks' notes", "list all, to prune"):
        known = {count: found[what] for count, found in times.items()}
        figures += predicted(f"{settings.parts[-1]:,} parts: {what}", known, within=1.6)
    return figures


def manifest_times(store: Store, count: int) -> dict[str, float]:
    save = SaveName("000001-00000000", 1, 10)
    files = tuple(FileEntry(path=save.part(rank), size=1 << 30, sha256=f"{rank:064x}", rank=rank)
                  for rank in range(count))
    whole = Checkpoint(generation=save.generation, sequence=1, step=10, epoch=0, state={}, metric=None,
                       config_fingerprint="f",
                       world_size=count, created=0.0, environment={}, files=files)
    for entry in files[1:]:
        announce(store, save, entry.rank, entry)
    checkpoints = Checkpoints(store)
    checkpoints.begin_generation()
    calls: dict[str, Callable[[], object]] = {
        "write the manifest": lambda: write_manifest(store, whole),
        "read it": lambda: read_manifest(store, save),
        "collect the ranks' notes": lambda: collect(store, save, count, 60.0, threading.Event()),
        "list all, to prune": lambda: checkpoints.prune(1, generation="a later one"),  # so nothing is deleted
    }
    return {name: statistics.median(timed(call) for _ in range(5)) for name, call in calls.items()}


# ── many nodes ──
def node_figures(settings: Settings, samples: dict[str, Any]) -> list[Figure]:
    status: dict[int, float] = {}
    room: dict[int, float] = {}
    for count in settings.nodes:
        with faked_cluster(count, cpus=16.0, busy=4.0) as address:
            status[count] = statistics.median(timed(lambda at=address: read_status(at)) for _ in range(3))
            request = Request(num_workers=3 * count, cpus_per_worker=4)
            with mock.patch("cluster.capacity._gcs", lambda at=address: _gcs(at)):
                room[count] = statistics.median(timed(lambda wanted=request: await_room(wanted, 0.0)) for _ in range(3))
    samples["nodes"] = {"status_s": status, "room_s": room}
    last = settings.nodes[-1]
    return [*predicted(f"{last:,} nodes: status", status, within=1.6, at_most=10.0),
            *predicted(f"{last:,} nodes: preflight's look for room", room, within=1.6, at_most=5.0)]


def _gcs(address: str) -> Any:
    from cluster.core.control_store import Gcs

    return Gcs(address)


# ── how long a checkpoint takes ──
def checkpoint_figures(settings: Settings, workspace: Path, samples: dict[str, Any]) -> list[Figure]:
    small, large = settings.checkpoint_mb
    own_s = write_time(workspace / "own", small, None)
    rate = small / own_s
    cases = {f"{large} MB": (large, None),
             **{f"{small} MB at {mb} MB/s": (small, mb) for mb in settings.bandwidths_mb_s}}
    figures = [Figure(name="a checkpoint is hashed and written at", value=rate, unit="MB/s")]
    taken: dict[str, dict[str, float]] = {}
    for name, (size, bandwidth) in cases.items():
        found, model = write_time(workspace / name.replace(" ", "-").replace("/", "-"), size, bandwidth), checkpoint_s(
            size, rate, bandwidth)
        taken[name] = {"measured_s": found, "model_s": model}
        figures.append(Figure(name=f"checkpoint of {name}: measured over model", value=found / model, at_least=0.6,
                              at_most=1.6))
    samples["checkpoints"] = {"own_s": own_s, **taken}
    return figures + [
        Figure(name=f"model: a part of {gb} GB at {mb} MB/s", value=checkpoint_s(1000.0 * gb, rate, mb) / 60,
               unit="min")
        for gb in (10, 100) for mb in (100, 1000)]


def checkpoint_s(mb: float, own_mb_s: float, bandwidth_mb_s: float | None) -> float:
    """A rank hashes and writes its part piece by piece, one after the other; all ranks do so at once."""
    return mb / own_mb_s + (mb / bandwidth_mb_s if bandwidth_mb_s else 0.0)


def write_time(folder: Path, mb: int, bandwidth_mb_s: int | None) -> float:
    """Of the second of two checkpoints: the first one's memory is new."""
    tensors = {"weights": np.random.default_rng(0).standard_normal(mb * 250_000, dtype=np.float32)}
    store = Store.open(str(folder))
    with throttled(bandwidth_mb_s), CheckpointWriter(store, Checkpoints(store).begin_generation(),
                                                     config_fingerprint="f",
                                                     environment={}, keep_last=1) as writer:
        for step in (1, 2):
            writer.save(tensors, {}, step=step, epoch=0)
        writer.wait()
        assert writer.timings is not None
        return writer.timings.write_s


@contextmanager
def throttled(mb_s: int | None) -> Generator[None]:
    real = direct_io.writing

    @contextmanager
    def slow(store: Store, path: str, size: int) -> Generator[Callable[[memoryview], object]]:
        with real(store, path, size) as write:
            def paced(piece: memoryview) -> None:
                began = time.perf_counter()
                write(piece)
                time.sleep(max(0.0, len(piece) / (mb_s or 1) / 1e6 - (time.perf_counter() - began)))

            yield paced if mb_s else write

    with mock.patch.object(checkpoint_writer.direct_io, "writing", slow):
        yield


# ── failures ──
def goodput_figures(settings: Settings, samples: dict[str, Any]) -> list[Figure]:
    life = Life(step_s=1.0, blocking_s=1.0, write_s=4.0, mtbf_s=1800.0, recovery_s=30.0)
    lives = {"auto": life, **{f"every {every} steps": replace(life, every_steps=every) for every in (20, 400)},
             "auto, a failure an hour": replace(life, mtbf_s=3600.0)}
    figures: list[Figure] = []
    found = {name: simulate(each, failures=settings.failures, seed=0) for name, each in lives.items()}
    for name, result in found.items():
        figures.append(Figure(name=f"goodput, {name}: simulated less model", value=result.goodput - result.model,
                              at_least=-0.02, at_most=0.02))
    samples["goodput"] = {name: vars(result) for name, result in found.items()}
    best, others = found["auto"].goodput, [found[f"every {every} steps"].goodput for every in (20, 400)]
    figures.append(Figure(name="goodput with auto less the better of every 20 and 400 steps", value=best - max(others),
                          at_least=0))
    for nodes in settings.fleets:
        mtbf_s = mean_time_between_failures_s(settings.node_mtbf_h, nodes)
        interval_s = best_interval_s(settings.checkpoint_cost_s, mtbf_s)
        goodput = expected_goodput(interval_s, settings.checkpoint_cost_s, mtbf_s, recovery_s=60.0)
        figures += [Figure(name=f"model: {nodes:,} nodes: best interval", value=interval_s, unit="s"),
                    Figure(name=f"model: {nodes:,} nodes: goodput", value=goodput)]
    return figures


# ── the weights' hash ──
def weight_figures(settings: Settings, samples: dict[str, Any]) -> list[Figure]:
    from jobs.pytorch.weight_digest import digest_of

    arrays = [np.random.default_rng(0).standard_normal(settings.weights_mb * 25_000, dtype=np.float32)
              for _ in range(10)]
    import torch

    torch.set_num_threads(1)
    ways: dict[str, Callable[[], int]] = {
        "NumPy": lambda: digest_of_arrays(arrays), "PyTorch": lambda: digest_of(map(torch.from_numpy, arrays))}
    times = {name: [timed(way) for _ in range(5)] for name, way in ways.items()}
    samples["weights"] = times
    assert ways["NumPy"]() == ways["PyTorch"]()
    return [Figure(name=f"weights are hashed, {name}, one thread",
                   value=settings.weights_mb / 1e3 / statistics.median(taken),
                   unit="GB/s", at_least=0.5) for name, taken in times.items()]


# ── ──
def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def predicted(name: str, times: dict[int, float], *, within: float, at_most: float | None = None) -> list[Figure]:
    """The largest size's time, and how it compares with a + b × size fitted to the others."""
    *sizes, last = times
    model = linear(sizes, [times[size] for size in sizes], last)
    return [Figure(name=name, value=1e3 * times[last], unit="ms", at_most=None if at_most is None else 1e3 * at_most),
            Figure(name=f"{name}: measured over model", value=times[last] / model, at_least=1 / within, at_most=within)]


def linear(sizes: Sequence[int], seconds: Sequence[float], at: int) -> float:
    """Least squares of the relative errors, so that small sizes count too."""
    weights = 1 / np.array(seconds)
    design = np.stack([np.ones(len(sizes)), np.array(sizes)], 1) * weights[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)
    return float(a + b * at)
