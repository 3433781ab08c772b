"""`make demo`: a cluster on this machine, the MLP job submitted to it, and its model asked about a test image,
here and over HTTP.

    python -m jobs.mlp.demo          with KEEP=1 in the environment the endpoint stays up until Ctrl-C
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from cluster.core.auth import expanded
from cluster.core.documents import JsonObject, parse_json, read_json
from cluster.core.errors import ClusterError, TrainyardError
from cluster.core.network import free_port, spare_loopback
from cluster.core.signals import exit_when_told
from cluster.core.storage import Store
from cluster.local import cluster as local
from jobs.common.arrays import Array
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader

WORKERS = 2
_SHADES = " .:-=+*#%@"
_RAYS = re.compile(r"\[?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\s")
"""How a line of Ray's own logs begins."""


def main() -> int:
    """Returns the job's exit code. Told to end, it ends its cluster first: nothing else knows of it."""
    exit_when_told()
    spare_loopback()
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    storage = expanded("~/trainyard")
    log = storage / f"ray-{name}.log"
    with tempfile.TemporaryDirectory(prefix="trainyard-demo-") as home:
        os.environ["TRAINYARD_HOME"] = home  # a cluster of its own, beside any that is up
        print("1. a Ray cluster on this machine, closed to others", flush=True)
        try:
            cluster = local.up(cpus_per_node=WORKERS)
            print(f"   up: dashboard {cluster.dashboard_url}\n   Ray's own lines: {log}", flush=True)
            print(f"\n2. the job, on {WORKERS} workers", flush=True)
            code = submit(name, storage, environment_for(cluster), log)
            if code == 0:
                print("\n3. its model, loaded back from the artifact", flush=True)
                show(storage / name)
        finally:
            local.down()
            print("the cluster is down", flush=True)
        if code == 0:
            print("\n4. the same model behind an endpoint", flush=True)
            serve(storage / name, log)
    return code


def environment_for(cluster: local.LocalCluster) -> dict[str, str]:
    """What submits to the cluster.
    A RAY_AUTH_TOKEN of the shell is left out: Ray would take it before the cluster's own."""
    return {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | cluster.environment()


def submit(name: str, storage: Path, env: dict[str, str], log: Path) -> int:
    """`python -m cluster submit`, following its output. log: gets Ray's own lines. Returns the job's exit code."""
    command = ["cluster", "submit", "mlp", "--", "--run.workers", str(WORKERS), "--run.storage", str(storage),
               "--run.name", name]
    print("$ python -m " + " ".join(command), flush=True)
    storage.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-m", *command], env=env, cwd=Path(__file__).parents[2],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process, log.open("a") as rays:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", file=rays if _RAYS.match(line) else sys.stdout, flush=True)
            return process.wait()
        finally:
            process.kill()


def show(run: Path) -> None:
    """Classifies the first test image, and draws it beside the answer."""
    from jobs.mlp.model import load

    record = read_json(run / "run.json")
    image, label = first_test_image(run.parent, record)
    classifier = load(run / "artifact")
    probabilities = classifier.predict(image[None])[0]
    answers = [f"{classifier.labels[k]}  {'█' * round(30 * float(probabilities[k]))} {probabilities[k]:.3f}"
               for k in np.argsort(-probabilities, kind="stable")[:5]]
    said = classifier.labels[int(probabilities.argmax())]
    beside = ["", f"the model says {said}, it is {classifier.labels[label]}", "", *answers]
    for row, line in enumerate(draw(image)):
        print(f"  {line}   {beside[row] if row < len(beside) else ''}".rstrip())
    print(f"\nreport: {run / 'report.html'}\nartifact: {run / 'artifact'}", flush=True)


def serve(run: Path, log: Path) -> None:
    """Asks an endpoint for the first test image over HTTP. log: as for `submit`."""
    record = read_json(run / "run.json")
    image, label = first_test_image(run.parent, record)
    with endpoint(run / "artifact", log) as url:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "data": image.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        print(f"$ curl {url}/v2/models/digits/infer -d '{{\"inputs\": [{{\"name\": \"image\", …}}]}}'", flush=True)
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v2/models/digits/infer", body),
                                    timeout=30) as response:
            answer = parse_json(response.read())
        probabilities: list[float] = answer["outputs"][0]["data"]
        said = int(np.argmax(probabilities))
        labels: list[str] = read_json(run / "artifact/manifest.json")["labels"]
        print(f"   version {answer['model_version']} says {labels[said]} ({probabilities[said]:.3f}), it is "
              f"{labels[label]}\nplayground: {url}/", flush=True)
        if os.environ.get("KEEP") == "1":
            print("it stays up until Ctrl-C", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()


@contextmanager
def endpoint(artifact: Path, log: Path) -> Generator[str]:
    """Its address. It ends with the block."""
    port = free_port() if os.environ.get("KEEP") != "1" else 8000
    command = ["serving", "up", "--model", f"digits={artifact}", "--no-auth", "--port", str(port)]
    print("$ python -m " + " ".join(command), flush=True)
    with log.open("a") as rays:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=Path(__file__).parents[2],
                                   stdout=subprocess.PIPE, stderr=rays, text=True)
    try:
        assert process.stdout is not None
        if not any(line.startswith("ready: ") for line in process.stdout):
            raise ClusterError(f"the endpoint did not start: see {log}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        print("the endpoint is down", flush=True)


def first_test_image(storage: Path, record: JsonObject) -> tuple[Array, int]:
    """(H, W, C) pixels and class of the run's first test row."""
    from jobs.common.vision.config import ImageDataConfig

    fingerprint = record["data"]["fingerprint"]
    for path in sorted((storage / "data").iterdir()):
        dataset = Dataset.load(Store.open(str(path)))
        if dataset.has(fingerprint):
            reader = Reader.open(dataset, "test", ImageDataConfig())
            rows = reader.rows(0, 1)
            image, label = np.array(rows["image"][0]), int(rows["label"][0])
            reader.close()
            return image, label
    raise FileNotFoundError(f"the prepared data {fingerprint[:12]} is not in {storage / 'data'}")


def draw(image: Array) -> list[str]:
    """One line of characters for every two rows of pixels."""
    gray = image.mean(axis=2).astype(float)
    pairs = gray[: len(gray) // 2 * 2].reshape(len(gray) // 2, 2, -1).mean(axis=1)
    span = max(1e-9, float(pairs.max() - pairs.min()))
    levels: list[list[int]] = np.rint((pairs - pairs.min()) / span * (len(_SHADES) - 1)).astype(np.int64).tolist()
    return ["".join(_SHADES[level] for level in line) for line in levels]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TrainyardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
