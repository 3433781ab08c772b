"""An endpoint against FastAPI and LitServe: the same MLP, the same body, one replica each;
requests a second, p50 and p99."""

import json
import re
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.core.network import free_port
from jobs.common.artifact.artifact import open_artifact
from serving.core.api_keys import new_key
from tests.benchmarks.results import Figure, Outcome
from tests.runs import python, run

TITLE = "an endpoint against FastAPI and LitServe: the same perceptron and body, one replica each"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rounds: int = 3
    seconds: int = 8
    clients: tuple[int, ...] = (1, 32)


QUICK = Settings(rounds=1, seconds=1, clients=(1,))
NOTES = (
    "The default perceptron of the digits; a body of 784 JSON floats; wrk with one thread on the same two cores; by "
    "turns, medians over the rounds. Each server computes with one thread. Ours: `python -m serving up` as it is, so "
    "with a key, validation, metrics and HAProxy, the model in the ingress's process (`--placement auto`); "
    "`--batch-wait-ms 0`, so batches form of what waits while the replica is busy. FastAPI: one uvicorn process that "
    "calls the model in its event loop, without key, validation or metrics. LitServe: its defaults with one worker.",
    "Rows of a request of 64, as binary tensors and as JSON: one client.",
)
_WRK = re.compile(r"50%\s+([\d.]+)(us|ms|s).*?99%\s+([\d.]+)(us|ms|s).*?Requests/sec:\s+([\d.]+)", re.DOTALL)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
SERVERS = ("trainyard", "FastAPI", "LitServe")


@dataclass(frozen=True)
class Server:
    url: str
    header: str = "X-None: 1"

    def ask(self, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        name, _, value = self.header.partition(": ")
        request = urllib.request.Request(self.url, body,
                                         {name: value, "Content-Type": "application/json", **(headers or {})})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read()


@contextmanager
def server(name: str, artifact: str, folder: Path) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    if name == "trainyard":
        key, line = new_key("benchmark")
        (folder / "keys").write_text(line)
        command = ["serving", "up", "--model", f"digits={artifact}", "--port", str(port), "--keys",
                   str(folder / "keys")]
        made = Server(f"http://127.0.0.1:{port}/v2/models/digits/infer", f"Authorization: Bearer {key}")
    else:
        command = ["tests.benchmarks.peer_servers", name.lower(), artifact, str(port)]
        made = Server(f"http://127.0.0.1:{port}/infer")
    with python(*command, folder=folder, env={"OMP_NUM_THREADS": "1"}) as started:
        deadline = time.monotonic() + 120
        while True:
            try:
                made.ask(body_of(images(1)))
                break
            except OSError:
                assert started.process.poll() is None and time.monotonic() < deadline, started.text
                time.sleep(0.2)
        yield made


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 28, 28, 1), np.uint8)


def body_of(pixels: np.ndarray) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape),
              "data": pixels.astype(float).ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def loaded(target: Server, folder: Path, clients: int, seconds: int, body: bytes) -> dict[str, float]:
    """What wrk measures. Fails if an answer was no success."""
    name, _, value = target.header.partition(": ")
    (folder / "body").write_bytes(body)
    (folder / "post.lua").write_text(
        f'wrk.method = "POST"\nlocal f = io.open("{folder}/body", "rb")\nwrk.body = f:read("*a")\n'
        f'wrk.headers["Content-Type"] = "application/json"\nwrk.headers["{name}"] = "{value}"\n')
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", str(folder / "post.lua"), target.url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text, text
    found = _WRK.search(text)
    assert found, text
    return {"p50": float(found[1]) * _MS[found[2]], "p99": float(found[3]) * _MS[found[4]], "rate": float(found[5])}


def rows_per_s(target: Server, seconds: float, *, binary: bool) -> float:
    """Of one client with 64 rows a request."""
    pixels = images(64)
    body, headers = body_of(pixels), {}
    if binary:
        size = {"binary_data_size": pixels.nbytes}
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "parameters": size}
        head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]})
        body, headers = head.encode() + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    for _ in range(5):
        target.ask(body, headers)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        target.ask(body, headers)
        done += 64
    return done / (time.perf_counter() - began)


def bare(artifact: str, seconds: float) -> float:
    """Rows a second of the model itself."""
    import torch

    from jobs.mlp.model import load

    torch.set_num_threads(1)
    model, pixels, done, began = load(artifact), images(64), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        model.predict(pixels)
        done += 64
    return done / (time.perf_counter() - began)


def measure(settings: Settings, workspace: Path) -> Outcome:
    with run(workspace / "digits", "--run.tracking-uri", "none", "--train.epochs", "5", "--eval.robustness-rows", "0",
             quick=False) as job:
        artifact = open_artifact(job.finished()["artifact"]).uri
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for turn in range(settings.rounds):
        for name in SERVERS:
            with server(name, artifact, workspace / f"{name}-{turn}") as target:
                for clients in settings.clients:
                    loaded(target, workspace, clients, 1, body_of(images(1)))
                    for what, value in loaded(target, workspace, clients, settings.seconds, body_of(images(1))).items():
                        note(f"{name}, {clients}: {what}", value)
                if name == "trainyard":
                    note("64 rows, binary: trainyard", rows_per_s(target, settings.seconds / 2, binary=True))
                if name == "FastAPI":
                    note("64 rows, JSON: FastAPI", rows_per_s(target, settings.seconds / 2, binary=False))
        note("64 rows: the model itself", bare(artifact, settings.seconds / 4))
    medians = {name: statistics.median(values) for name, values in found.items()}
    figures: list[Figure] = []
    for clients in settings.clients:
        for name in SERVERS:
            figures += [Figure(name=f"{clients} clients, {name}: requests a second",
                               value=medians[f"{name}, {clients}: rate"]),
                        Figure(name=f"{clients} clients, {name}: p50", value=medians[f"{name}, {clients}: p50"],
                               unit="ms"),
                        Figure(name=f"{clients} clients, {name}: p99", value=medians[f"{name}, {clients}: p99"],
                               unit="ms")]
        mine, fast, lit = (medians[f"{name}, {clients}: rate"] for name in SERVERS)
        figures.append(Figure(name=f"{clients} clients: requests a second over LitServe's", value=mine / lit,
                              at_least=1.0,
                              aim_at_least=fast / lit))
        for quantile in ("p50", "p99"):
            ratio = medians[f"trainyard, {clients}: {quantile}"] / medians[f"LitServe, {clients}: {quantile}"]
            figures.append(Figure(name=f"{clients} clients: {quantile} over LitServe's", value=ratio, at_most=1.0))
    figures += [Figure(name=f"{name}: rows a second", value=value) for name, value in medians.items()
                if name.startswith("64")]
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)
