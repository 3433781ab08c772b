"""The storage fills up, or becomes read-only, in the middle of a run: a clear end,
and after it is mended the same result."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from tests import runs
from tests.faults.conftest import EPOCHS
from tests.faults.test_killed import gone

FLAGS = ["--train.epochs", str(EPOCHS), "--run.workers", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 16 MiB. Its locks, which a run holds open, are elsewhere: else it could not be made read-only."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place, locks = tmp_path / "disk", tmp_path / "locks"
    place.mkdir()
    locks.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place))
    if done.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {done.stderr.strip()}")
    try:
        (place / ".locks").mkdir()
        assert mount("--bind", str(locks), str(place / ".locks")).returncode == 0
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def mount(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)


def fill_up(disk: Path, job: runs.Job) -> None:
    """Takes all the room there is, also what the run frees, until it ends."""

    def take() -> bool:
        with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)) == 1 << 16:
                pass
        return job.process.poll() is not None

    while not take():
        pass


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


def make_read_only(disk: Path, _: runs.Job) -> None:
    remount(disk, "ro")


def make_writable(disk: Path) -> None:
    remount(disk, "rw")


def remount(disk: Path, how: str) -> None:
    """Read-only is refused while any file is open for writing, as some are for moments."""
    for _ in range(2000):
        if (done := mount("-o", f"remount,{how}", str(disk))).returncode == 0:
            return
        time.sleep(0.01)
    raise AssertionError(done.stderr)


@pytest.mark.parametrize(
    ("harm", "mend", "why", "tracking"), [
        (fill_up, make_room, "is full", "None"),  # MLflow's SQLite file is in the storage, too
        (make_read_only, make_writable, "is read-only", "none"),  # which a SQLite file held open would forbid
    ], ids=["full", "read-only"],
)
def test_storage_that_fails_in_the_middle_ends_clearly_and_the_same_command_continues(
    harm: Callable[[Path, runs.Job], None], mend: Callable[[Path], None], why: str, tracking: str,
    small_disk: Path, reference: Path,
) -> None:
    flags = [*FLAGS, "--run.tracking-uri", tracking]
    folder = small_disk / "run"
    with runs.run(folder, *flags) as job:
        job.until_step(30)
        workers = job.workers().values()
        harm(small_disk, job)
        assert job.wait() == 3, job.text
        job_gone = time.monotonic()
        while not gone(workers):
            assert time.monotonic() < job_gone + 60, "workers outlive their driver"
            time.sleep(0.05)
    assert why in job.text and str(small_disk) in job.text
    assert "run the same command again" in job.text
    assert "Traceback" not in job.text

    mend(small_disk)
    warnings: list[str] = []
    checkpoint = Checkpoints(Store.open(f"{folder}/checkpoints")).newest_intact(warnings.append)
    assert checkpoint is not None and checkpoint.step > 0
    assert not [what for what in warnings if "sha256" in what]

    with runs.run(folder, *flags) as again:
        result = again.finished()
    assert f"continuing at step {checkpoint.step}" in again.text
    assert result["status"] == "done"
    assert runs.artifact_digest(folder) == runs.artifact_digest(reference)
    mine, theirs = runs.weights(folder), runs.weights(reference)
    assert {name: tensor.tobytes() for name, tensor in mine.items()} == {name: t.tobytes()
                                                                         for name, t in theirs.items()}
