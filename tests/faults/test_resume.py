"""What resuming does with damaged checkpoints, another number of workers, and NaN, under the local binding."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import runs
from tests.faults.conftest import FLAGS, same_result


def rewound(reference: Path, target: Path, step: int = 10**9) -> Path:
    """A copy of a finished run as it was when its newest checkpoint was the last one at or before a step."""
    shutil.copytree(reference, target)
    for name in ("result.json", "progress.json"):
        (target / name).unlink()
    for name in ("rows", "steps"):
        shutil.rmtree(target / "logs" / name)
    for manifest in runs.manifests(target):
        if runs.step_of(manifest) > step:
            shutil.rmtree(target / "checkpoints/data" / manifest.parent.name / manifest.stem)
            manifest.unlink()
    return target


def part(folder: Path, manifest: Path) -> Path:
    return folder / "checkpoints/data" / manifest.parent.name / manifest.stem / "rank-0.safetensors"


def truncate(folder: Path, manifest: Path) -> None:
    path = part(folder, manifest)
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder: Path, manifest: Path) -> None:
    data = bytearray(part(folder, manifest).read_bytes())
    data[len(data) // 2] ^= 1
    part(folder, manifest).write_bytes(data)


def delete_a_file(folder: Path, manifest: Path) -> None:
    part(folder, manifest).unlink()


def delete_the_manifest(_: Path, manifest: Path) -> None:
    manifest.unlink()


def spoil_the_manifest(_: Path, manifest: Path) -> None:
    manifest.write_text(manifest.read_text()[:50])


DAMAGES = (truncate, flip_a_bit, delete_a_file, delete_the_manifest, spoil_the_manifest)


def test_damaged_checkpoints_are_named_and_the_result_is_the_same(reference: Path, tmp_path: Path) -> None:
    """Stopped time and again, each time the newest checkpoint is damaged in another way, at last all of them are."""
    folder, flags = tmp_path / "run", [*FLAGS, "--run.keep-checkpoints", "1000"]
    newest = before = 0
    for number, damage in enumerate(DAMAGES, start=1):
        stopped_at(folder, flags, 25 * number, newest, before)
        newest, before = (runs.step_of(manifest) for manifest in runs.manifests(folder)[:-3:-1])
        damage(folder, runs.manifests(folder)[-1])
        (folder / f"checkpoints/data/00000{number}-stray").mkdir()
        (folder / f"checkpoints/data/00000{number}-stray/half.partial").write_bytes(b"half")
    stopped_at(folder, flags, 25 * len(DAMAGES) + 25, newest, before)
    for manifest in runs.manifests(folder):
        if part(folder, manifest).exists():
            flip_a_bit(folder, manifest)
    with runs.run(folder, *flags) as job:
        job.finished()
    assert "from the beginning" in job.text
    assert job.text.count("damaged:") >= 10
    same_result(folder, reference)


def stopped_at(folder: Path, flags: list[str], step: int, damaged: int, before: int) -> None:
    """The run goes on to about a step, from the checkpoint before the damaged one, which it names;
    then it is stopped."""
    with runs.run(folder, *flags) as job:
        job.until(lambda: job.step() >= step and "training on 3 workers" in job.text)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.wait() == 3, job.text
    if damaged:
        events = runs.result(folder)["events"]
        assert f"continuing at step {before}" in job.text
        assert any(f"step {damaged}" in event or f"step-{damaged}" in event for event in events), events


@pytest.fixture(scope="module")
def on_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps on 3 workers, all checkpoints kept; there is one at step 19 (an epoch's end) and at step 39 or 40."""
    folder = tmp_path_factory.mktemp("three") / "run"
    with runs.run(folder, *RESIZED, "--run.workers", "3") as job:
        job.finished()
    return folder


RESIZED = ["--train.max-steps", "39", "--train.epochs", "10", "--run.keep-checkpoints", "1000", "--run.trace-rows"]


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (2, 3)])
def test_another_number_of_workers_sees_the_same_micro_batches_and_ends_with_the_same_weights(
    before: int, after: int, on_three: Path, tmp_path: Path
) -> None:
    folder = on_three
    if before != 3:
        folder = rewound(on_three, tmp_path / "first", step=-1)
        with runs.run(folder, *RESIZED, "--run.workers", str(before)) as job:
            job.finished()
        assert json.loads((folder / "run.json").read_text())["num_shards"] == 3
    folder = rewound(folder, tmp_path / "second", step=19)
    with runs.run(folder, *RESIZED, "--run.workers", str(after)) as job:
        job.finished()
    assert f"training on {after} worker" in job.text
    assert "continuing at step 19" in job.text
    assert f"workers: {before} -> {after}" in job.text, "it must say that bits are no longer promised"
    expected = {key: rows for key, rows in runs.consumed_rows(on_three).items() if (key[0], key[1]) >= (1, 0)}
    assert len(expected) == 20 * 3
    assert runs.consumed_rows(folder) == expected
    difference = runs.relative_difference(runs.weights(folder), runs.weights(on_three))
    assert 0 < difference < 1e-5


def test_more_workers_than_a_run_was_made_for_are_refused(on_three: Path, tmp_path: Path) -> None:
    folder = rewound(on_three, tmp_path / "run", step=19)
    with runs.run(folder, *RESIZED, "--run.workers", "4") as job:
        assert job.wait() == 2
    assert "was made for at most 3 workers" in job.text


def poisoned(folder: Path, rows: list[int]) -> list[str]:
    """Float images of two classes; those training rows hold finite numbers that no float32 loss survives."""
    rng = np.random.default_rng(0)
    flags: list[str] = []
    for flag, count, bad in (("uri", 400, rows), ("val-uri", 40, []), ("test-uri", 40, [])):
        labels = np.arange(count) % 2
        images = rng.normal(size=(count, 8, 8)).astype(np.float32) + labels[:, None, None]
        images[bad] = 3e38
        pq.write_table(pa.table({"image": images.tolist(), "label": labels}), folder / f"{flag}.parquet")
        flags += [f"--data.{flag}", str(folder / f"{flag}.parquet")]
    return flags


NAN = ["--model.normalise", "unit", "--augment.shift", "0", "--augment.rotate", "0", "--augment.scale", "0",
       "--train.epochs", "1",
       "--train.global-batch-size", "8", "--run.checkpoint-every-steps", "2", "--run.keep-checkpoints", "1000"]


def finite(folder: Path) -> bool:
    return all(np.isfinite(tensor).all() for m in runs.manifests(folder)
               for tensor in runs.weights(folder, runs.step_of(m)).values() if tensor.dtype.kind == "f")


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    data = poisoned(tmp_path, [*range(10, 14)])
    with runs.run(tmp_path / "run", *NAN, *data, "--train.max-skipped-steps", "40") as job:
        result = job.finished()
    assert 1 <= result["skipped_steps"] <= 4
    assert result["excluded_steps"] == []
    assert finite(job.folder)


def test_too_many_bad_steps_go_back_to_a_checkpoint_and_leave_their_rows_out(tmp_path: Path) -> None:
    data = poisoned(tmp_path, [10])
    with runs.run(tmp_path / "run", *NAN, *data, "--train.max-skipped-steps", "1", "--run.workers", "2") as job:
        result = job.finished()
    assert len(result["excluded_steps"]) == 1
    assert "back to the last checkpoint, their rows left out" in job.text
    assert any("left out" in event for event in result["events"])
    assert finite(job.folder)


def test_a_run_that_is_never_finite_fails_with_the_remedy_and_keeps_finite_checkpoints(tmp_path: Path) -> None:
    data = poisoned(tmp_path, [])
    with runs.run(tmp_path / "run", *NAN, *data, "--optim.name", "sgd", "--optim.lr", "1e30",
                  "--optim.clip-norm", "None", "--optim.warmup", "0", "--train.max-skipped-steps", "2") as job:
        assert job.wait() == 1
    assert "lower --optim.lr" in job.text
    assert "Traceback" not in job.text
    assert finite(job.folder)
