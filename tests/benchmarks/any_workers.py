"""What `--run.exact any-workers` costs: a step that sums shards in their order against one that sums as it comes; and
the ways to make a sum that does not depend on the number of workers, of which it is one."""

import json
import math
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from cluster.core.storage import Store
from jobs.common.training.session import Session
from jobs.common.training.train_state import TrainState
from jobs.common.vision.prepare import prepare
from jobs.mlp.config import MlpConfig
from jobs.mlp.train import MlpTraining
from jobs.pytorch.gradients.ordered_sum import OrderedSum
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import set_up_torch
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.spread import strategy
from jobs.transformer.tasks import task_of
from jobs.transformer.train import TransformerTraining
from tests.benchmarks.results import Figure, Outcome
from tests.unit.fewer_workers import Fewer
from tests.unit.token_rows import config_of, run_group, token_rows

TITLE = "bits that do not depend on the number of workers: what they cost on two"
SHARDS = (2, 4)
NOTES = (
    "Two local workers of one thread each make every step with both sums by turns, on the same rows; the ratio is the "
    "median over pairs. MLP: the default preset, 30 rows a worker. tiny: 8 rows of 64 tokens; DistilBERT (67 million "
    "parameters): 8 rows of 64 tokens. Bytes are what rank 0's TCP connections sent (the kernel's count).",
    "2 shards on two workers are one addition, for which an all-reduce serves as it is. With 4, a worker sends "
    "(V/W + 1) (W - 1)/W = 1.5 times the gradients, and an all-reduce of what each has summed 1.",
    "Ways to sum 4 shards on two workers, of which each begins with its two, summed already where the way allows it: "
    "`slices in order` is what is used; `all shards to all`: V times the bytes; `fixed point`: 64-bit integers with "
    "an exponent that an all-reduce finds, which any order adds up alike, but which lose what is 2^60 times smaller "
    "than the largest.",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    mlp_steps: int = 400
    tiny_steps: int = 60
    distilbert_steps: int = 12
    sizes: tuple[int, ...] = (270_000, 4_000_000)
    sums: int = 16


QUICK = Settings(mlp_steps=20, tiny_steps=6, distilbert_steps=3, sizes=(10_000,), sums=4)


def measure(settings: Settings, workspace: Path) -> Outcome:
    folder = workspace / "run"
    folder.mkdir()
    config = config_of(run={"workers": "2", "name": "run", "hang_timeout_s": 600.0, "seed": 0}, train={
        "epochs": 1}, data={"max_length": 64})
    (folder / "settings.json").write_text(json.dumps(settings.__dict__))
    run_group(folder, token_rows(workspace, rows=4000, length=64), config, "tests.benchmarks.any_workers:pairs", 2,
              preload=["tests.benchmarks.any_workers", "torch._dynamo"])
    found = json.loads((folder / "found.json").read_text())
    figures: list[Figure] = []
    for name, of_case in found["steps"].items():
        ratio = statistics.median(b / a for a, b in zip(of_case["plain"], of_case["ordered"], strict=True))
        aim = (1.2 if "DistilBERT" in name else 1.1) if ", 2 shards" in name else None
        figures += [Figure(name=f"{name}: a step as it comes", value=1e3 * statistics.median(of_case["plain"]),
                           unit="ms"),
                    Figure(name=f"{name}: in order, times that", value=ratio, aim_at_most=aim),
                    *(Figure(name=f"{name}: sent, {how}", value=of_case["bytes"][key] / 1e6, unit="MB/step")
                      for how, key in (("as it comes", "plain"), ("in order", "ordered")))]
    for name, of_way in found["sums"].items():
        figures.append(Figure(name=name, value=1e3 * statistics.median(of_way), unit="ms"))
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


# ── in the workers ──
def pairs(session: Session, config: TransformerConfig) -> Literal["finished", "stopped"]:
    """Measures all cases; rank 0 writes them."""
    session.update_status(total_steps=1, epochs=1, epoch=0)
    settings = json.loads(session.run_store.read_text("settings.json"))
    device = set_up_torch(session, 1)
    images = prepare(MlpConfig().data, Store.open(session.run_store.local_path().parent.as_posix()), use_ray=False)
    found: dict[str, Any] = {"steps": {}, "sums": {}}
    text = replace(config, train=replace(config.train, global_batch_size=16))
    tiny = replace(text, model=replace(text.model, layers=4, heads=4, width=128))
    distilbert = config_of(task="classify", model={"name": "distilbert", "layers": None, "heads": None, "width": None},
                           data={"uri": "languages", "max_length": 64}, train={"global_batch_size": 16})
    of_classes = token_rows(session.run_store.local_path().parent, rows=400, length=64, classes=4)
    cases: list[tuple[str, Any, Any, int]] = [
        ("MLP", MlpConfig(), images, settings["mlp_steps"]), ("tiny", tiny, session.dataset, settings["tiny_steps"]),
        ("DistilBERT", distilbert, of_classes, settings["distilbert_steps"])]
    with Group(session, device) as group:
        for shards in SHARDS:
            for name, of_case, dataset, steps in cases:
                run = replace(of_case.run, workers="2", num_shards=shards)
                group.num_shards = shards
                context: Any = Fewer(session, f"{name} {shards}", replace(of_case, run=run), dataset, 2)
                exact = replace(of_case, run=replace(run, exact="any-workers"))
                found["steps"][f"{name}, {shards} shards"] = _paired(context, exact, group, device, steps)
                context.data.close()
        for size in settings["sizes"]:
            found["sums"] |= _sums(session, group, size, settings["sums"])
    if session.rank == 0:
        session.run_store.write_text("found.json", json.dumps(found))
    return "finished"


def _paired(context: Any, exact: Any, group: Group, device: torch.device, steps: int) -> dict[str, Any]:
    """Seconds of the steps of both, and the bytes of one; the first two are left out."""
    configs = {"plain": context.config, "ordered": exact}
    text = isinstance(exact, TransformerConfig)
    seconds: dict[str, list[float]] = {how: [] for how in configs}
    sent = dict.fromkeys(configs, 0)
    with (strategy(context, configs["plain"], group) if text else nullcontext() as a,
          strategy(context, exact, group) if text else nullcontext() as b):
        def made(how: str, model: Any) -> Any:
            if text:
                return TransformerTraining(context, configs[how], group, model,
                                           task_of(context.dataset, exact, device))
            return MlpTraining(context, configs[how], group, device)

        both = {"plain": made("plain", a), "ordered": made("ordered", b)}
        batches = (batch for epoch in range(1000) for batch in context.data_loader().steps(epoch, 0, frozenset()))
        for number, batch in enumerate(islice(batches, steps + 2)):
            for how in sorted(both, reverse=bool(number % 2)):
                group.total(torch.zeros(1))
                before, began = _bytes_sent(), time.perf_counter()
                both[how].step(batch, TrainState(step=number), [1e-4], lambda: [0.0])
                if number >= 2:
                    seconds[how].append(time.perf_counter() - began)
                    sent[how] += _bytes_sent() - before
            context.heartbeat()
    return seconds | {"bytes": {how: total / steps for how, total in sent.items()}}


def _bytes_sent() -> int:
    """By all TCP connections of this process: `tcpi_bytes_acked` of Linux's tcp_info."""
    total = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.is_socket():
            with socket.socket(fileno=os.dup(int(descriptor.name))) as connection, suppress(OSError):
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                    total += struct.unpack_from("Q", told, 120)[0]
    return total


def _sums(session: Session, group: Group, size: int, times: int) -> dict[str, list[float]]:
    """Seconds of each way to sum four shards of so many float32s."""
    shards = [torch.randn(size) for _ in range(2)]
    group.num_shards = 4
    ordered, everything = OrderedSum(group, shards[0], size), torch.empty(4 * size)

    def as_it_comes() -> None:
        dist.all_reduce(shards[0] + shards[1])

    def in_order() -> None:
        for shard in shards:
            ordered.flat.copy_(shard)
            ordered.send()
            ordered.add()
        ordered.gather()
        ordered.finish()

    def all_to_all() -> None:
        dist.all_gather_single(everything, torch.cat(shards))
        a, c, b, d = everything.split(size)
        (a + b).add_(c).add_(d)

    def fixed_point() -> None:
        largest = torch.stack([shard.abs().max() for shard in shards]).max().reshape(1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        scale = 2.0 ** (60 - math.frexp(float(largest))[1])
        total = sum((shard.double() * scale).to(torch.int64) for shard in shards)
        assert isinstance(total, torch.Tensor)
        dist.all_reduce(total)
        (total.double() / scale).float()

    ways: dict[str, Callable[[], None]] = {
        "as it comes": as_it_comes, "slices in order": in_order, "all shards to all": all_to_all,
        "fixed point": fixed_point}
    found: dict[str, list[float]] = {}
    for number in range(times + 1):
        for name, way in ways.items():
            group.total(torch.zeros(1))
            began = time.perf_counter()
            way()
            if number:
                found.setdefault(f"sum of {size / 1e6:g} million float32s, {name}", []).append(
                    time.perf_counter() - began)
        session.heartbeat()
    return found
