"""The Transformer under each way of spreading its state: killed, stopped, resumed on other numbers of workers, damaged.

Three workers under the local binding, a tiny model, and text or conversations that the test makes: the result is the
uninterrupted run's, bit for bit, or with another number of workers within rounding.
"""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jobs.common.artifact.artifact import open_artifact
from jobs.common.predictor.loading import check_probe
from jobs.transformer.model import load
from jobs.transformer.predictor import TextPredictor
from jobs.transformer.strategies.shards import Slice
from tests import runs

STRATEGIES = {"ddp": "generate", "zero3": "chat"}
"""What each trains here; zero2 is in the matrix of `make soak`."""
INTERVAL = 4
FLAGS = [
    "--task", "generate", "--data.tokenizer", "characters", "--data.max-length", "32", "--model.layers", "2",
    "--model.heads", "2",
    "--model.width", "32", "--model.dropout", "0.1", "--train.global-batch-size", "12", "--train.epochs", "2",
    "--run.checkpoint-every-steps", str(INTERVAL), "--run.tracking-uri", "none", "--run.trace-rows",
    "--run.keep-checkpoints", "3",
    "--eval.samples", "0", "--optim.warmup", "5",
]
STEPS = 2 * 33
TALKS = 610


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and one with conversations."""
    folder = tmp_path_factory.mktemp("text")
    written_text(folder)
    (folder / "talks").mkdir()
    written_talks(folder / "talks")
    return folder


def written_text(folder: Path) -> Path:
    """400 training rows of sentences that have something to learn."""
    rng, words = random.Random(0), ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "near", "two",
                                    "birds"]
    path = folder / "input.txt"
    path.write_text(" ".join(rng.choice(words) for _ in range(3600))[:14_300])
    return path


def written_talks(folder: Path) -> Path:
    """400 training rows of a conversation each, which fills more than half of a row."""
    rng, names = random.Random(0), ["al", "bert", "carla", "dora"]
    path = folder / "talks.jsonl"
    with path.open("w") as file:
        for _ in range(TALKS):
            one, other = rng.choice(names), rng.choice(names)
            messages = [{"role": "user", "content": f"{one} {other}?"},
                        {"role": "assistant", "content": f"{one} says that {other} is here"}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def flags_of(strategy: str, text: Path, workers: int = 3) -> list[str]:
    return [*FLAGS, "--scale.strategy", strategy, "--data.uri", str(text), "--run.workers", str(workers)]


@pytest.fixture(scope="module", params=STRATEGIES)
def reference(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A strategy, and its run that nothing happened to."""
    folder = tmp_path_factory.mktemp(request.param) / "reference"
    with started(folder, request.param, text) as job:
        result = job.finished()
    assert result["steps"] == STEPS
    assert result["metrics"]["test"]["loss"] < 2.5
    return request.param, folder


def started(folder: Path, strategy: str, text: Path, workers: int = 3) -> Any:
    flags = flags_of(strategy, text / "input.txt", workers)
    if STRATEGIES[strategy] == "chat":
        flags += ["--task", "chat", "--data.uri", str(text / "talks"), "--data.max-length", "64", "--eval.answers", "0"]
    return runs.run(folder, *flags, quick=False, job="transformer")


def state(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """(weights or moment, parameter) -> all of it, from the parts of the newest checkpoint."""
    manifest = runs.manifests(folder)[-1]
    data = folder / "checkpoints/data" / manifest.parent.name / manifest.stem
    pieces: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for path in sorted(data.glob("*.safetensors")):
        for key, values in load_file(path).items():
            piece = Slice.parse(key)
            pieces.setdefault((piece.kind, piece.name), []).append((piece.start, values))
    return {key: np.concatenate([values for _, values in sorted(found, key=lambda item: item[0])])
            for key, found in pieces.items()}


def same(folder: Path, reference: Path) -> None:
    a, b = state(folder), state(reference)
    assert b and sorted(a) == sorted(b)
    assert [key for key in b if not np.array_equal(a[key], b[key])] == []
    assert runs.artifact_digest(folder) == runs.artifact_digest(reference)
    assert runs.consumed_rows(folder) == runs.consumed_rows(reference)
    assert runs.result(folder)["metrics"] == runs.result(reference)["metrics"]


def in_flight(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    written = {p.name for p in (folder / "checkpoints/data").glob("*/save-*")}
    return bool(written - {manifest.stem for manifest in runs.manifests(folder)})


def test_a_rank_and_then_the_driver_are_killed_and_the_result_is_the_same(reference: tuple[str, Path], text: Path,
                                                                          tmp_path: Path) -> None:
    strategy, whole = reference
    folder = tmp_path / "run"
    with started(folder, strategy, text) as job:
        job.until(lambda: job.step() >= 10 and runs.manifests(folder))
        job.kill_worker(1)
        job.until(lambda: job.text.count("training on 3 workers") == 2 and job.step() > STEPS // 2
                  and in_flight(folder))
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
    with started(folder, strategy, text) as again:
        result = again.finished()
    assert result["restarts"] == 2
    from_storage = 2 if strategy == "zero3" else 1  # a worker's death under ddp is none
    assert result["lost_steps"] <= 1 + from_storage * (INTERVAL + 1)
    same(folder, whole)


def test_the_artifact_answers_its_own_probe_and_a_model_of_conversations_is_asked_in_them(
        reference: tuple[str, Path]) -> None:
    strategy, whole = reference
    opened = open_artifact(whole / "artifact")
    predictor: Any = TextPredictor.load(opened)
    check_probe(predictor, opened)
    assert ("marks" in opened.probe().inputs) == (STRATEGIES[strategy] == "chat")
    chat = predictor.generator(0).chat
    assert (chat is not None) == (STRATEGIES[strategy] == "chat")
    if chat is not None:
        model: Any = load(whole / "artifact")
        ids = chat.prompt([{"role": "user", "content": "al bert?"}], [])
        assert model.tokenizer.decode(ids).endswith("al bert?<|im_end|>\n<|im_start|>assistant\n")
        assert model.end_id in chat.ends


def test_stopped_on_three_workers_and_gone_on_with_on_two_and_on_one(reference: tuple[str, Path], text: Path,
                                                                     tmp_path: Path) -> None:
    strategy, whole = reference
    folder = tmp_path / "run"
    for workers, step in ((3, 15), (2, 35)):
        with started(folder, strategy, text, workers) as job:
            job.until(lambda step=step: job.step() >= step)
            os.kill(job.process.pid, signal.SIGTERM)
            assert job.wait() == 3, job.text
        damaged = runs.manifests(folder)[-1]
    name = f"rank-{int(strategy != 'ddp')}.safetensors"
    part = folder / "checkpoints/data" / damaged.parent.name / damaged.stem / name
    part.write_bytes(part.read_bytes()[:-8])
    with started(folder, strategy, text, 1) as job:
        job.finished()
    assert f"{part.name}: has" in job.text, "the damaged shard is named before training starts"
    a, b = state(folder), state(whole)
    for key in b:
        assert np.linalg.norm(a[key] - b[key]) <= 2e-4 * np.linalg.norm(b[key]) + 1e-7, key
    assert runs.consumed_rows(folder) == runs.consumed_rows(whole)
    manifest = json.loads(runs.manifests(folder)[-1].read_text())["content"]
    assert manifest["world_size"] == 1
