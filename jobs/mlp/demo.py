"""`make demo`: a cluster on this machine, the MLP job submitted to it, and its model asked what a test image shows.

    python -m jobs.mlp.demo
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster import local
from cluster.signals import exit_when_told
from cluster.storage import Store
from jobs.common.dataset import Dataset

WORKERS = 2
_SHADES = " .:-=+*#%@"


def main() -> int:
    """Returns the job's exit code. Told to end, it ends its cluster first: nothing else knows of it."""
    exit_when_told()
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    storage = Path("~/trainyard").expanduser()
    with tempfile.TemporaryDirectory(prefix="trainyard-demo-") as home:
        os.environ["TRAINYARD_HOME"] = home  # a cluster of its own, beside any that is up
        print("1. a Ray cluster on this machine, closed to others", flush=True)
        try:
            cluster = local.up(cpus_per_node=WORKERS)
            print(f"   up: dashboard {cluster.dashboard_url}\n\n2. the job, on {WORKERS} workers", flush=True)
            code = submit(name, storage, environment_for(cluster))
            if code == 0:
                print("\n3. its model, loaded back from the artifact", flush=True)
                show(storage / name)
        finally:
            local.down()
            print("the cluster is down", flush=True)
    return code


def environment_for(cluster: local.LocalCluster) -> dict[str, str]:
    """What submits to the cluster. A RAY_AUTH_TOKEN of the shell is left out: Ray would take it before the cluster's own."""
    return {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | cluster.environment()


def submit(name: str, storage: Path, env: dict[str, str]) -> int:
    """`ray job submit`, following its output."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.mlp", "--run.workers", str(WORKERS),
               "--run.storage", str(storage), "--run.name", name]
    print("$ " + " ".join(command), flush=True)
    program = str(Path(sys.executable).with_name("ray"))
    return subprocess.run([program, *command[1:]], env=env, cwd=Path(__file__).parents[2], check=False).returncode


def show(run: Path) -> None:
    """Classifies the first test image, and draws it beside the answer."""
    from jobs.mlp.model import load

    record = json.loads((run / "run.json").read_text())
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


def first_test_image(storage: Path, record: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """(H, W, C) pixels and class of the run's first test row."""
    from jobs.common.images import ImageDataConfig

    fingerprint = record["data"]["fingerprint"]
    for path in sorted((storage / "data").iterdir()):
        dataset = Dataset.load(Store.open(str(path)))
        if dataset.fingerprint == fingerprint:
            reader = dataset.reader("test", ImageDataConfig())
            rows = reader.rows(0, 1)
            image, label = np.array(rows["image"][0]), int(rows["label"][0])
            reader.close()
            return image, label
    raise FileNotFoundError(f"the prepared data {fingerprint[:12]} is not in {storage / 'data'}")


def draw(image: np.ndarray[Any, Any]) -> list[str]:
    """One line of characters for every two rows of pixels."""
    gray = image.mean(axis=2).astype(float)
    pairs = gray[: len(gray) // 2 * 2].reshape(len(gray) // 2, 2, -1).mean(axis=1)
    span = max(1e-9, float(pairs.max() - pairs.min()))
    levels: list[list[int]] = np.rint((pairs - pairs.min()) / span * (len(_SHADES) - 1)).astype(np.int64).tolist()
    return ["".join(_SHADES[level] for level in line) for line in levels]


if __name__ == "__main__":
    sys.exit(main())
