"""Ten minutes of steady load on an endpoint, then 200 promotions and rollbacks: whether any of its processes grows."""

import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.core.network import free_port
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.registry.connection import open_registry
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.serving_http import body_of, images
from tests.runs import ROOT, Job, python, run

TITLE = "ten minutes of steady load: growth of an endpoint's processes"


@dataclass(frozen=True, kw_only=True)
class Settings:
    seconds: int = 600
    warm_s: int = 120
    """What comes before is not looked at."""
    every_s: float = 5.0
    connections: int = 8
    cycles: int = 200
    """Promotions, each with its rollback."""
    warm_cycles: int = 20


QUICK = Settings(seconds=30, warm_s=10, every_s=1.0, cycles=6, warm_cycles=2)
NOTES = (
    "wrk asks for one digit a request (784 JSON floats) over eight connections, as fast as it is answered. Resident "
    "memory of the ingress, of Serve's controller and of HAProxy together, every five seconds from the second minute "
    "on: its slope by least squares, and the upper end of the slope's 95% interval (Student's t).",
    "A cycle is `serving promote` of one of two other versions, by turns, and `serving rollback`, by the commands "
    "themselves: a version that has had no requests for two changes ends, so each promotion starts replicas. Memory is "
    "taken after each.",
)
PROCESSES = ("ServeReplica", "ServeController", "haproxy")


def slope(seconds: list[float], megabytes: list[float]) -> tuple[float, float]:
    """MB a minute, and the upper end of its two-sided 95% interval."""
    from scipy.stats import linregress, t

    found = linregress(np.array(seconds) / 60, megabytes)
    return float(found.slope), float(found.slope + t.ppf(0.975, len(seconds) - 2) * found.stderr)


def resident(job: Job) -> dict[str, float]:
    """MB by kind of process."""
    found = dict.fromkeys(PROCESSES, 0.0)
    for process in psutil.Process(job.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            for name in PROCESSES:
                if name in process.name():
                    found[name] += process.memory_info().rss / 1e6
    return found


def under_load(job: Job, url: str, body: bytes, settings: Settings,
               folder: Path) -> tuple[int, list[float], dict[str, list[float]]]:
    """Answers, the seconds of the samples, and MB at each by kind of process. Fails if an answer was no success."""
    (folder / "body").write_bytes(body)
    (folder / "post.lua").write_text(f'wrk.method = "POST"\nwrk.body = io.open("{folder}/body", "rb"):read("*a")\n')
    times: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in PROCESSES}
    command = ["wrk", "-t1", f"-c{settings.connections}", f"-d{settings.seconds}s", "-s", str(folder / "post.lua"), url]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        while load.poll() is None:
            if time.monotonic() - began > settings.warm_s:
                times.append(time.monotonic() - began)
                for name, value in resident(job).items():
                    samples[name].append(value)
            time.sleep(settings.every_s)
        text = load.stdout.read() if load.stdout else ""
    answered = re.search(r"(\d+) requests in", text)
    assert answered and "Non-2xx" not in text, text
    return int(answered[1]), times, samples


def register(workspace: Path) -> None:
    """Trains a model, and makes it three versions of `digits`: one a run of the registry,
    which has no more than one."""
    with run(workspace / "digits", "--run.tracking-uri", "none", "--train.epochs", "1", "--eval.robustness-rows", "0",
             quick=False) as job:
        artifact = open_artifact(job.finished()["artifact"])
    for version in ("1", "2", "3"):
        registry = open_registry(None, Store.open(str(workspace)), "digits")
        registry.start(run_name=f"soak-{version}", params={}, tags={})
        assert registry.register(artifact) == version
        registry.finish("done")


def after_changes(job: Job, where: list[str], cycles: int) -> list[float]:
    """MB after each promotion and its rollback."""
    found: list[float] = []
    for cycle in range(cycles):
        for command in (["promote", "digits", str(2 + cycle % 2)], ["rollback", "digits"]):
            done = subprocess.run([sys.executable, "-m", "serving", *command, *where], cwd=ROOT, capture_output=True,
                                  text=True, check=False)
            assert done.returncode == 0, done.stderr
        found.append(sum(resident(job).values()))
    return found


def measure(settings: Settings, workspace: Path) -> Outcome:
    assert shutil.which("wrk"), "needs wrk: see .ci/debian-packages"
    register(workspace)
    port = free_port()
    where = ["--port", str(port), "--storage", str(workspace)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINYARD_HOME", str(workspace / "home"))
        # three beside each other
        command = ["up", "--model", "digits=models:/digits/1", "--no-auth", "--cpus-per-replica", "0.25",
                   *where]
        with python("serving", *command, folder=workspace / "up") as started:
            started.until(lambda: "ready: " in started.text)
            url = f"http://127.0.0.1:{port}/v2/models/digits/infer"
            answered, times, samples = under_load(started, url, body_of(images(1)), settings, workspace)
            changed = after_changes(started, where, settings.cycles)[settings.warm_cycles:]
    a_cycle = float(np.polyfit(np.arange(len(changed)), changed, 1)[0])
    whole = [sum(values) for values in zip(*samples.values(), strict=True)]
    rate, bound = slope(times, whole)
    return Outcome(figures=(
        Figure(name="requests answered", value=answered),
        Figure(name="memory at the second minute", value=whole[0], unit="MB"),
        Figure(name="growth", value=rate, unit="MB a minute"),
        Figure(name="upper end of its 95% interval", value=bound, unit="MB a minute", at_most=1.0),
        Figure(name="growth by promotions and rollbacks", value=a_cycle, unit="MB a cycle", at_most=0.5),
    ), samples={"seconds": times, **samples, "changed": changed}, notes=NOTES)
