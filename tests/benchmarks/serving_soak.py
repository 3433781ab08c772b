"""Ten minutes of steady load on an endpoint: whether any of its processes grows."""

import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from cluster.network import free_port
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.serving_http import body_of, images
from tests.runs import Job, python, run

TITLE = "ten minutes of steady load: growth of an endpoint's processes"


@dataclass(frozen=True, kw_only=True)
class Settings:
    seconds: int = 600
    warm_s: int = 120
    """What comes before is not looked at."""
    every_s: float = 5.0
    connections: int = 8


QUICK = Settings(seconds=30, warm_s=10, every_s=1.0)
NOTES = (
    "wrk asks for one digit a request (784 JSON floats) over eight connections, as fast as it is answered. Resident memory of the "
    "ingress, of Serve's controller and of HAProxy together, every five seconds from the second minute on: its slope by least "
    "squares, and the upper end of the slope's 95% interval (Student's t).",
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


def measure(settings: Settings, workspace: Path) -> Outcome:
    assert shutil.which("wrk"), "needs wrk: see .ci/debian-packages"
    with run(workspace / "digits", "--run.tracking-uri", "none", "--train.epochs", "1", "--eval.robustness-rows", "0",
             quick=False) as job:
        artifact = job.finished()["artifact"]
    port = free_port()
    with python("serving", "up", "--model", f"digits={artifact}", "--no-auth", "--port", str(port), folder=workspace / "up",
                env={"TRAINYARD_HOME": str(workspace / "home")}) as started:
        started.until(lambda: "ready: " in started.text)
        url = f"http://127.0.0.1:{port}/v2/models/digits/infer"
        answered, times, samples = under_load(started, url, body_of(images(1)), settings, workspace)
    whole = [sum(values) for values in zip(*samples.values(), strict=True)]
    rate, bound = slope(times, whole)
    return Outcome(figures=(
        Figure(name="requests answered", value=answered),
        Figure(name="memory at the second minute", value=whole[0], unit="MB"),
        Figure(name="growth", value=rate, unit="MB a minute"),
        Figure(name="upper end of its 95% interval", value=bound, unit="MB a minute", at_most=1.0),
    ), samples={"seconds": times, **samples}, notes=NOTES)
