"""Replicas of an endpoint: two against one, how soon a new one answers,
and how soon one answers when there was none."""

import json
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.network import free_port
from jobs.common.artifact.artifact import open_artifact
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.serving_http import Server, body_of, images, loaded
from tests.runs import python, run

TITLE = "replicas of an endpoint: two against one, a load step, and from none"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rounds: int = 3
    seconds: int = 8
    placements: tuple[str, ...] = ("ingress", "replicas")


QUICK = Settings(rounds=1, seconds=2, placements=("replicas",))
CLIENTS = 32
NOTES = (
    "The default perceptron of the digits, one a request, wrk with 32 connections, all on two cores: the clients, "
    "HAProxy and Serve's own processes have their share of them, so a second replica has little to compute with. "
    "`ingress`: replicas of the ingress compute the model themselves; `replicas`: it has replicas of its own behind "
    "one ingress.",
    "Load step: from nothing to 32 connections, one replica that may become two (`--max-replicas 2`), until the "
    "ingress has a second one to send requests to, as `/live` says; two of these seconds are `upscale_delay_s`. From "
    "none: `--min-replicas 0`, a request when the last replica's process has ended, until its answer; with the "
    "process, the import of PyTorch, the artifact's verification and the warm-up in it.",
)


@contextmanager
def endpoint(artifact: str, folder: Path, *flags: str) -> Iterator[Server]:
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    with python("serving", "up", "--model", f"digits={artifact}", "--no-auth", "--port", str(port), *flags,
                folder=folder,
                env={"TRAINYARD_HOME": str(folder / "home")}) as job:
        job.until(lambda: "ready: " in job.text, 120)
        yield Server(f"http://127.0.0.1:{port}/v2/models/digits/infer")


def replicas(target: Server) -> int:
    """Of the model, as the ingress knows them."""
    with urllib.request.urlopen(target.url.replace("/v2/models/digits/infer", "/live"), timeout=10) as response:
        live: dict[str, Any] = json.load(response)
    return live["replicas"]["models"]["digits"]


def rate(artifact: str, folder: Path, settings: Settings, placement: str, count: int) -> float:
    with endpoint(artifact, folder, "--placement", placement, "--min-replicas", str(count), "--max-replicas",
                  str(count)) as target:
        loaded(target, folder, CLIENTS, 1, body_of(images(1)))
        return loaded(target, folder, CLIENTS, settings.seconds, body_of(images(1)))["rate"]


def load_step(artifact: str, folder: Path) -> float:
    """Seconds from the first of the load until there are two replicas."""
    with endpoint(artifact, folder, "--placement", "replicas", "--max-replicas", "2") as target:
        (folder / "body").write_bytes(body_of(images(1)))
        (folder / "post.lua").write_text(f'wrk.method = "POST"\nwrk.body = io.open("{folder}/body", "rb"):read("*a")\n')
        began = time.monotonic()
        with subprocess.Popen(["wrk", "-t1", f"-c{CLIENTS}", "-d120s", "-s", str(folder / "post.lua"), target.url],
                              stdout=subprocess.DEVNULL) as load:
            try:
                while replicas(target) < 2:
                    assert time.monotonic() - began < 100
                    time.sleep(0.1)
                return time.monotonic() - began
            finally:
                load.kill()


def from_none(artifact: str, folder: Path) -> tuple[float, float]:
    """Seconds until there is no replica any more after a request, and of a request then."""
    with endpoint(artifact, folder, "--placement", "replicas", "--min-replicas", "0", "--downscale-delay-s", "2",
                  "--timeout-s", "60") as target:
        _ask(target)
        began = time.monotonic()
        while replicas(target) > 0:
            assert time.monotonic() - began < 100
            time.sleep(0.1)
        gone = time.monotonic()
        time.sleep(3)  # its process ends
        asked = time.monotonic()
        _ask(target)
        return gone - began, time.monotonic() - asked


def _ask(target: Server) -> None:
    """With patience for a replica that starts."""
    with urllib.request.urlopen(urllib.request.Request(target.url, body_of(images(1))), timeout=90) as response:
        response.read()


def measure(settings: Settings, workspace: Path) -> Outcome:
    with run(workspace / "digits", "--run.tracking-uri", "none", "--train.epochs", "1", "--eval.robustness-rows", "0",
             quick=False) as job:
        artifact = open_artifact(job.finished()["artifact"]).uri
    found: dict[str, list[float]] = {}
    for turn in range(settings.rounds):
        for placement in settings.placements:
            for count in (1, 2):
                value = rate(artifact, workspace / f"{placement}-{count}-{turn}", settings, placement, count)
                found.setdefault(f"{placement}, {count}: requests a second", []).append(value)
        found.setdefault("load step: seconds to a second replica",
                         []).append(load_step(artifact, workspace / f"step-{turn}"))
        gone, first = from_none(artifact, workspace / f"none-{turn}")
        found.setdefault("seconds from the last answer to no replica", []).append(gone)
        found.setdefault("from none: seconds to the first answer", []).append(first)
    medians = {name: statistics.median(values) for name, values in found.items()}
    figures = [Figure(name=name, value=value) for name, value in medians.items()]
    for placement in settings.placements:
        one, two = (medians[f"{placement}, {count}: requests a second"] for count in (1, 2))
        figures.append(Figure(name=f"{placement}: two replicas over one", value=two / one))
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)
