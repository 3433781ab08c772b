"""How deep the house is: the functions of this repository, and their files, that one batch, one checkpoint, one request
and one trial pass through. A function is counted once, in whichever thread it is entered."""

import asyncio
import inspect
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from cluster.core.documents import JsonObject
from jobs.common.artifact.artifact import open_artifact
from jobs.common.config import from_dict
from jobs.common.runs.trial import run_trial
from jobs.common.training.session import Session
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from jobs.mlp.train import train
from serving.core.settings import EndpointSettings, ModelSettings, routes
from serving.endpoint.app import connected_here
from serving.endpoint.http import Endpoint
from serving.model.replica import Replica
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Table
from tests import image_loops, kept
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT

TITLE = "functions and files that a batch, a checkpoint, a request and a trial pass through"
OURS = tuple(f"{ROOT / folder}/" for folder in ("cluster", "jobs", "serving", "tuning"))
BEFORE = {"steady batch": (33, 15), "checkpoint": (63, 11), "HTTP request": (66, 12), "trial": (379, 52)}
"""Functions and files of commit e4d30b9, counted in the same way. Twice what is aimed at."""
NOTES = (
    "By `sys.setprofile`, in all threads but the one that beats, of which a trial's counts, too: functions, methods, "
    "properties and lambdas of cluster/, jobs/, serving/ and tuning/, each once; no comprehensions, and nothing that "
    "an import runs.",
    "Steady batch: the MLP's, of one local worker, from the end of a step to the end of the next. Checkpoint: from "
    "`save` to the commit, the second one of a run. HTTP request: `/v2/models/mlp/infer` with one row, from the ASGI "
    "application to the answer, the model in the endpoint's process; the second one. Trial: one epoch, on prepared "
    "data.",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    step: int = 8
    """After which the steady batch begins."""


QUICK = Settings()


class Depth:
    """What is entered while it counts, in this thread and in those that begin after it was made."""

    def __init__(self) -> None:
        self.entered: dict[str, set[CodeType]] = {}
        self._counting = ""

    def begin(self, what: str) -> None:
        self._counting = what
        self.entered[what] = set()

    def end(self) -> None:
        self._counting = ""

    @contextmanager
    def watching(self) -> Generator[None]:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if (event == "call" and self._counting and code.co_filename.startswith(OURS)
                and code.co_flags & inspect.CO_OPTIMIZED and (code.co_name[0] != "<" or code.co_name == "<lambda>")
                and (self._counting == "trial" or threading.current_thread().name != "trainyard-beat")):
            self.entered[self._counting].add(code)


def loop(depth: Depth, settings: Settings, workspace: Path) -> None:
    """A batch and a checkpoint of one run."""
    saved: list[int] = []

    class Watched(Session):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._on_step_end, self._save = self.progress.on_step_end, self.checkpoints.save
            self.progress.on_step_end = self._counted_step
            self.checkpoints.save = self._counted_save

        def _counted_step(self, *, step: int, **rest: Any) -> None:
            self._on_step_end(step=step, **rest)
            if step == settings.step:
                depth.begin("steady batch")
            elif step == settings.step + 1:
                depth.end()

        def _counted_save(self, *arguments: Any, step: int, **rest: Any) -> None:
            saved.append(step)
            if len(saved) == 2:
                depth.begin("checkpoint")
            self._save(*arguments, step=step, **rest)
            self.checkpoints.wait_for_commit()
            depth.end()

    data = image_loops.digits(workspace / "data")
    config = from_dict(MlpConfig, {"run": {"storage": str(workspace), "checkpoint_every_steps": 1000},
                                   "model": {"hidden": [8]}, "eval": {"robustness_rows": 0}, "train": {"epochs": 2}})
    image_loops.train(train, workspace / "run", data, config, Watched)


def request(depth: Depth) -> None:
    artifact = open_artifact(str(kept.artifact("mlp")))
    model = ModelSettings(name="mlp", version="1", uri=artifact.uri, digest=artifact.digest)
    replica, settings, measures = Replica(asdict(model)), EndpointSettings(auth=False), EndpointMetrics()
    table = Table(settings, lambda _: connected_here(replica), measures.batch)
    table.change(routes({"mlp": {"1": 1.0}}, {"mlp-1": model})["models"])
    app = Endpoint(settings, table, measures)

    async def twice() -> None:
        for what in ("a first request", "HTTP request"):
            depth.begin(what)
            status = await asked(app)
            depth.end()
            assert status == 200, f"the endpoint answered {status}"

    asyncio.run(twice())


async def asked(app: Endpoint) -> int:
    """The status of an answer to one row."""
    body = b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [%s]}]}'
    row = body % b",".join([b"0"] * 28 * 28)
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": row}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    await app({"type": "http", "path": "/v2/models/mlp/infer", "method": "POST", "headers": []}, receive, send)
    return statuses[0]


def trial(depth: Depth, workspace: Path) -> None:
    for what in ("a first trial", "trial"):
        config = from_dict(MlpConfig, {"run": {"storage": str(workspace), "name": what.replace(" ", "-")},
                                       "model": {"hidden": [8]}, "train": {"epochs": 1}})
        told: list[JsonObject] = []
        depth.begin(what)
        run_trial(JOB, config, told.append)
        depth.end()
        assert [row["epoch"] for row in told] == [1]


def measure(settings: Settings, workspace: Path) -> Outcome:
    depth = Depth()
    with depth.watching():
        loop(depth, settings, workspace)
        request(depth)
        trial(depth, workspace)
    figures: list[Figure] = []
    for what, before in BEFORE.items():
        codes = depth.entered[what]
        found = (len(codes), len({code.co_filename for code in codes}))
        figures += [Figure(name=f"{what}: {unit}", value=value, aim_at_most=most // 2)
                    for unit, value, most in zip(("functions", "files"), found, before, strict=True)]
    return Outcome(figures=tuple(figures), samples={what: named(depth.entered[what]) for what in BEFORE}, notes=NOTES)


def named(codes: set[CodeType]) -> dict[str, list[str]]:
    """file → the functions of it, by name."""
    found: dict[str, list[str]] = {}
    for code in sorted(codes, key=lambda code: (code.co_filename, code.co_firstlineno)):
        found.setdefault(str(Path(code.co_filename).relative_to(ROOT)), []).append(code.co_qualname)
    return found
