"""Runs of a job as a user starts them, in a process of their own, and what tests want to know of them afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from cluster.core.network import free_port
from cluster.local import cluster as local

ROOT = Path(__file__).parents[1]
QUICK = ["--model.hidden", "64", "--train.global-batch-size", "60", "--run.tracking-uri", "none",
         "--run.checkpoint-every-steps", "8", "--eval.bootstrap-samples", "100", "--eval.robustness-rows", "0"]
"""A small model whose steps take milliseconds, with checkpoints close to each other."""
STEPS_PER_EPOCH = 19
"""Of the digits at this batch size."""


@dataclass
class Job:
    """A started run. `lines` grows as it prints."""

    process: "subprocess.Popen[str]"
    folder: Path
    lines: list[str] = field(default_factory=list)

    def wait(self, timeout_s: float = 120) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def finished(self, timeout_s: float = 120) -> dict[str, Any]:
        """result.json, after the run has ended well."""
        assert self.wait(timeout_s) == 0, self.text
        return result(self.folder)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def until(self, condition: Callable[[], Any], timeout_s: float = 180) -> Any:
        """Waits for something that the run does. Fails at once if the run ends before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if value := condition():
                return value
            assert self.process.poll() is None, f"the run ended:\n{self.text}"
            time.sleep(0.01)
        raise AssertionError(f"not in {timeout_s} s:\n{self.text}")

    def until_step(self, step: int) -> int:
        """Waits until this process trains, a step has been done (by it or by one before it), and a checkpoint
        committed. Returns the step that was seen."""
        def seen() -> int:
            if "training on " not in self.text:
                return 0  # what is in the folder is of the process before
            highest = progress(self.folder).get("highest_step", 0)
            return highest if highest >= step and manifests(self.folder) else 0

        return self.until(seen)

    def workers(self) -> dict[int, int]:
        """Slot → process id, of the newest generation."""
        files = sorted((self.folder / "logs/workers").glob("*.json"))
        return {int(slot): worker["pid"] for slot, worker in json.loads(files[-1].read_text()).items()} if files else {}

    def kill_worker(self, slot: int, sign: int = signal.SIGKILL) -> int:
        pid = self.workers()[slot]
        os.kill(pid, sign)
        return pid

    def start_reading(self) -> None:
        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.lines.append(line)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def step(self) -> int:
        """The last step that any worker has done, to the very last one."""
        highest = 0
        for path in (self.folder / "logs/steps").glob("*-*"):
            with suppress(FileNotFoundError):  # a mark appears by a rename, and the next generation takes it away
                highest = max(highest, int(path.read_text() or 0))
        return highest

    def until_past_a_checkpoint(self, step: int) -> int:
        """Waits until a step has been done, and some more since the last checkpoint,
        which are lost if a worker dies now."""

        def seen() -> int:
            committed, now = manifests(self.folder), self.step()
            beyond = now - step_of(committed[-1]) if committed else 0
            # at an epoch's end it saves
            return now if now >= step and 2 <= beyond <= 4 and now % STEPS_PER_EPOCH else 0

        return self.until(seen)

    def freeze(self, step: int) -> int:
        """SIGSTOPs rank 0 somewhere past a checkpoint. Returns how many steps are lost if it does not wake up again."""
        self.until_past_a_checkpoint(step)
        self.kill_worker(0, signal.SIGSTOP)
        step, since = self.step(), time.monotonic()
        while time.monotonic() - since < 1.5:  # the others may still finish the step that it had its part in
            time.sleep(0.02)
            if (now := self.step()) != step:
                step, since = now, time.monotonic()
        return step - step_of(manifests(self.folder)[-1])

    def kill_driver(self) -> None:
        """SIGKILL to the driver; a frozen rank 0 gets one too, as it would notice nothing."""
        frozen = self.workers()[0]
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGKILL)

    def stop_reading(self) -> None:
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = AbstractContextManager[Job]
"""A run that is started at the block's beginning, and ended at its end."""


@contextmanager
def run(folder: Path, *flags: str, env: Mapping[str, str] | None = None, quick: bool = True,
        engine: str = "local", job: str = "mlp", on: Sequence[str] = ()) -> Iterator[Job]:
    """Starts `python -m jobs.JOB` for the run in `folder`; ends it, and all that it started, when the block ends."""
    command = [*(QUICK if quick else []), "--run.engine", engine, "--run.storage", str(folder.parent), "--run.name",
               folder.name]
    with python(f"jobs.{job}", *command, *flags, folder=folder, env=env, on=on) as started:
        yield started


@contextmanager
def python(module: str, *arguments: str, folder: Path, env: Mapping[str, str] | None = None,
           on: Sequence[str] = (), cwd: Path = ROOT) -> Iterator[Job]:
    """`python -m MODULE …` in a session of its own; it and all that it started end with the block.
    on: a command that runs it."""
    process = subprocess.Popen([*on, sys.executable, "-m", module, *arguments], cwd=cwd, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    job = Job(process, folder)
    job.start_reading()
    try:
        yield job
    finally:
        end_tree(process.pid)
        process.wait(10)
        job.stop_reading()


@contextmanager
def cluster(home: Path, *, nodes: int, cpus_per_node: int) -> Iterator[local.LocalCluster]:
    """A Ray cluster of processes on this machine, as `python -m cluster up` starts it,
    with a home folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINYARD_HOME", str(home))
        try:
            yield local.up(nodes=nodes, cpus_per_node=cpus_per_node, dashboard_port=free_port("127.0.0.1"))
        finally:
            local.down()


def end_tree(pid: int) -> None:
    """SIGKILL to a process and all below it. They are stopped first, so that none starts another one meanwhile."""
    stopped: dict[int, psutil.Process] = {}
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        while new := [process for process in (parent, *parent.children(recursive=True)) if process.pid not in stopped]:
            for process in new:
                stopped[process.pid] = process
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
    for process in stopped.values():
        with suppress(psutil.NoSuchProcess):
            process.kill()


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def progress(folder: Path) -> dict[str, Any]:
    path = folder / "progress.json"
    return json.loads(path.read_text()) if path.exists() else {}


def manifests(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    found = (folder / "checkpoints/manifests").glob("*/*.json")
    return sorted(found, key=lambda path: (step_of(path), path.parent.name))


def step_of(manifest: Path) -> int:
    match = re.search(r"step-(\d+)", manifest.name)
    assert match
    return int(match[1])


def weights(folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All tensors (model and optimiser) of the newest checkpoint, or of the one at a step."""
    chosen = [m for m in manifests(folder) if step is None or step_of(m) == step][-1]
    data = folder / "checkpoints/data" / chosen.parent.name / chosen.stem
    return load_file(data / "rank-0.safetensors")


def relative_difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """‖a - b‖ / ‖b‖ over the model's weights."""
    names = [name for name in b if name.startswith("model.")]
    assert names and sorted(a) == sorted(b)
    difference = sum(float(((a[n].astype(np.float64) - b[n]) ** 2).sum()) for n in names)
    return (difference / sum(float((b[n].astype(np.float64) ** 2).sum()) for n in names)) ** 0.5


def artifact_digest(folder: Path) -> str:
    """sha256 of the artifact's weights, as its manifest says; never of nothing."""
    manifest = json.loads((folder / "artifact/manifest.json").read_text())
    entry = next(file for file in manifest["files"] if file["path"].endswith("model.safetensors"))
    assert entry["size"] > 10_000
    return entry["sha256"]


def consumed_rows(folder: Path) -> dict[tuple[int, int, int], list[int]]:
    """(epoch, step, shard) → row ids, from all generations; a step that was repeated must have had the same rows."""
    rows: dict[tuple[int, int, int], list[int]] = {}
    for path in sorted((folder / "logs/rows").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed
            key = (entry["epoch"], entry["step"], entry["shard"])
            assert rows.setdefault(key, entry["rows"]) == entry["rows"], f"{path}: other rows at {key}"
    return rows
