"""Whatever a user can get wrong ends the command with exit code 2 and one clear message, and leaves nothing in storage.

Most cases call the command line in this process; those below under `own process` see it as a shell does. What is wrong
with more kinds of data is in tests/unit/test_bad_data.py; what needs Ray is in
tests/integration/test_refused_on_ray.py.
"""

import ctypes
import gzip
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.core.storage import Store
from jobs.cnn.job import JOB as CNN
from jobs.common.runs.run import main
from jobs.common.training.job import Job
from jobs.mlp.job import JOB
from tests import runs
from tests.s3 import BUCKET, s3_server
from tests.unit.test_picture import claiming

ROWS = 60
IMAGES = np.random.default_rng(0).integers(0, 255, (ROWS, 4, 4)).astype(np.uint8)
LABELS = [row % 3 for row in range(ROWS)]
ASKED = ["--run.engine", "local", "--run.name", "bad"]


# ── data sets, most with something wrong ──
def parquet(folder: Path, images: Any = None, labels: Any = None) -> None:
    folder.mkdir()
    table = {"image": pa.array(IMAGES.tolist()) if images is None else images,
             "label": LABELS if labels is None else labels}
    pq.write_table(pa.table(table), folder / "rows.parquet")


def with_pixel(value: float) -> pa.Array:
    images = IMAGES.astype(float).tolist()
    images[17][2][1] = value
    return pa.array(images)


def with_image(rows: list[list[int]]) -> pa.Array:
    images = IMAGES.tolist()
    images[23] = rows
    return pa.array(images)


def with_label(row: int, label: Any) -> list[Any]:
    return [*LABELS[:row], label, *LABELS[row + 1 :]]


def cut_short(folder: Path) -> None:
    parquet(folder)
    path = folder / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def corrupt_gzip(folder: Path) -> None:
    folder.mkdir()
    packed = bytearray(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, ROWS, 4, 4) + IMAGES.tobytes()))
    packed[len(packed) // 2] ^= 0xFF
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, ROWS) + bytes(LABELS))


def no_rows(folder: Path) -> None:
    parquet(folder, pa.array([], pa.list_(pa.list_(pa.uint8()))), pa.array([], pa.int64()))


@dataclass(frozen=True)
class Case:
    """What is given, and what the message must say of it: what was asked, what was found, what to do."""

    says: tuple[str, ...]
    make: Callable[[Path], Any] = lambda folder: parquet(folder)
    flags: tuple[str, ...] = ()


DATA = {
    "missing path": Case(("/in", "no such file or folder", "check the path"), lambda _: None),
    "empty folder": Case(("/in", "no files", "give Parquet"), Path.mkdir),
    "no rows": Case(("/in", "no rows", "give"), no_rows),
    "class with one row": Case(("class 'rare' has 1 row", "too few"),
                               lambda p: parquet(p, labels=["a", "b"] * 29 + ["a", "rare"])),
    "sizes differ": Case(("row 23", "rows.parquet", "3x4", "4x4"),
                         lambda p: parquet(p, with_image([[1, 2, 3, 4]] * 3))),
    "NaN pixel": Case(("row 17", "rows.parquet", "not a number"), lambda p: parquet(p, with_pixel(float("nan")))),
    "infinite pixel": Case(("row 17", "rows.parquet", "infinite"), lambda p: parquet(p, with_pixel(float("inf")))),
    "label out of range": Case(("-1", "row 31", "rows.parquet"), lambda p: parquet(p, labels=with_label(31, -1))),
    "labels with a gap": Case(("up to 4", "never is 1"), lambda p: parquet(p, labels=[2 * label for label in LABELS])),
    "image column missing": Case(("'picture'", "has image, label", "--data.image-column NAME"),
                                 flags=("--data.image-column", "picture")),
    "label column missing": Case(("'digit'", "has image, label", "--data.label-column NAME"),
                                 flags=("--data.label-column", "digit")),
    "corrupt Parquet": Case(("rows.parquet", "cannot be read"), cut_short),
    "large picture": Case(  # half of what Pillow itself refuses: it would only warn
        ("07.png", "25,000,000", "make it smaller"),
        lambda p: (mixed_pictures(p), (p / "kind-1/07.png").write_bytes(claiming(12_000, 12_000)))),
    "corrupt gzip": Case(("train-images-idx3-ubyte.gz", "cannot be"), corrupt_gzip),
}
FLAGS = {
    "unknown flag": (["--optim.lrr", "0.1"], ("--optim.lrr", "--optim.lr")),
    "unknown group": (["--optimizer.speed", "0.1"], ("--optimizer.speed", "nearest known flag is --optim.")),
    "learning rate 0": (["--optim.lr", "0"], ("--optim.lr 0.0", "more than 0")),
    "learning rate below 0": (["--optim.lr", "-0.1"], ("--optim.lr -0.1", "more than 0")),
    "no number": (["--optim.lr", "fast"], ("--optim.lr", "fast", "FLOAT")),
    "more workers than this machine bears": (["--run.workers", "1000", "--train.global-batch-size", "1000"],
                                             ("--run.workers 1000", "bears", "or --run.engine ray")),
    "batch not divisible": (["--run.workers", "7"], ("--train.global-batch-size 60", "7", "nearest is 63")),
    "recipe not there": (["--config", "/nowhere.yaml"], ("--config /nowhere.yaml", "cannot be read")),
    "GPU under one worker": (["--run.gpus-per-worker", "1"], ("--run.gpus-per-worker 1", "has no GPU", "pass 0")),
    "dead tracking server": (["--run.tracking-uri", "http://127.0.0.1:1"],
                             ("http://127.0.0.1:1", "Connection refused", "`none`")),
}


# ── in this process ──
@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Runs a command line that must be refused, and returns its one message."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*flags: str, job: Job = JOB) -> str:
        code = main(job, [*ASKED, *flags])
        out, message = capsys.readouterr()
        assert code == 2, out + message
        return one_message(out, message)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def one_message(out: str, err: str) -> str:
    assert "Traceback" not in out + err
    assert err.startswith("error: "), err
    assert err.count("error: ") == 1
    assert "Error(" not in err, "a message, not an exception's repr"
    return err


@pytest.mark.parametrize("name", DATA)
def test_bad_data_is_refused(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    case = DATA[name]
    case.make(tmp_path / "in")
    message = refused("--run.storage", str(tmp_path / "storage"), "--data.uri", str(tmp_path / "in"), *case.flags)
    for words in case.says:
        assert words in message
    assert len(message.splitlines()) == 1, message
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("name", FLAGS)
def test_a_bad_flag_is_refused(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    if name.startswith("GPU") and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    flags, says = FLAGS[name]
    message = refused("--run.storage", str(tmp_path / "storage"), *flags)
    for words in says:
        assert words in message
    assert not (tmp_path / "storage").exists()


def test_a_batch_larger_than_the_data_is_refused_and_leaves_no_run(refused: Callable[..., str], tmp_path: Path) -> None:
    parquet(tmp_path / "in")
    message = refused("--run.storage", str(tmp_path / "storage"), "--data.uri", str(tmp_path / "in"),
                      "--train.global-batch-size", "1000")
    assert "--train.global-batch-size 1000: there are 39 training rows: pass 39 or less" in message
    assert [path.name
            for path in (tmp_path / "storage").iterdir()] == ["data"], "what was prepared is whole, and used again"
    assert len(list((tmp_path / "storage").glob("data/*/dataset.json"))) == 1


def test_an_object_store_that_cannot_be_used_is_refused(refused: Callable[..., str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    message = refused("--run.storage", "s3://bucket/runs?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
    for words in ("s3://bucket/runs", "cannot be read", "--run.storage"):
        assert words in message
    message = refused("--run.storage", "ftp://bucket/runs")
    for words in ("'ftp://bucket/runs'", "s3://BUCKET/"):
        assert words in message


def test_an_object_store_without_a_tracking_server_is_refused(refused: Callable[..., str]) -> None:
    with s3_server():
        message = refused("--run.storage", f"s3://{BUCKET}/runs")
        for words in (f"s3://{BUCKET}/runs", "cannot hold MLflow's SQLite file", "--run.tracking-uri"):
            assert words in message
        assert Store.open(f"s3://{BUCKET}/runs").files() == []


def test_storage_below_a_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = refused("--run.storage", str(tmp_path / "file/storage"))
    assert str(tmp_path / "file/storage") in message
    assert "cannot be written" in message
    assert "--run.storage" in message
    assert (tmp_path / "file").read_text() == "mine"


def mixed_pictures(folder: Path) -> None:
    """Gray pictures of two classes, and one in colour."""
    for number in range(12):
        path = folder / f"kind-{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3) if number == 7 else (9, 9), 20 * number, np.uint8)).save(path)


@pytest.mark.parametrize(("make", "flags", "says"), [
    (parquet, (), ("--model.depth 3", "8×8", "these are 4×4", "smaller --model.depth")),
    (parquet, ("--model.depth", "1", "--model.padding", "valid"), ("--model.depth 1", "6×6", "these are 4×4")),
    (mixed_pictures, (), ("07.png", "9x9x3", "the first image is 9x9x1", "--data.channels gray|rgb|rgba")),
    (parquet, ("--model.depth", "1", "--model.build", "no_package.at_all:build"),
     ("no_package.at_all:build", "MODULE:FUNCTION")),
], ids=["too small", "too small for valid padding", "channels differ", "no such network"])
def test_what_a_cnn_cannot_be_trained_on_is_refused(make: Callable[[Path], None], flags: tuple[str, ...],
                                                    says: tuple[str, ...],
                                                    refused: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("jobs.cnn.framework", reason="needs TensorFlow (pip install 'trainyard[tensorflow]')")
    make(tmp_path / "in")
    message = refused("--run.storage", str(tmp_path / "storage"), "--data.uri", str(tmp_path / "in"), *flags, job=CNN)
    for words in says:
        assert words in message, message


def test_a_changed_config_is_refused_and_changes_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    with runs.run(tmp_path / "bad", "--train.max-steps", "1") as job:
        job.finished()
    (tmp_path / "bad/result.json").unlink()  # as if it had been stopped
    before = contents(tmp_path)
    message = refused("--run.storage", str(tmp_path), *runs.QUICK, "--train.max-steps", "1", "--optim.lr", "0.5")
    assert "optim.lr: 0.002 -> 0.5" in message
    assert "--run.resume never" in message
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ── in its own process ──
def command_line(*flags: str, preexec: Callable[[], None] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "jobs.mlp", *ASKED, *flags], cwd=runs.ROOT, text=True,
                          capture_output=True,
                          timeout=60, check=False, preexec_fn=preexec)


@pytest.mark.parametrize("name", ["missing path", "NaN pixel", "corrupt gzip", "large picture"])
def test_a_shell_sees_exit_code_2_and_one_line(name: str, tmp_path: Path) -> None:
    case = DATA[name]
    case.make(tmp_path / "in")
    done = command_line("--run.storage", str(tmp_path / "storage"), "--data.uri", str(tmp_path / "in"), "--run.workers",
                        "2")
    assert done.returncode == 2
    assert len(one_message(done.stdout, done.stderr).splitlines()) == 1, done.stderr
    assert not (tmp_path / "storage").exists()


def test_a_shell_sees_the_nearest_known_flag(tmp_path: Path) -> None:
    done = command_line("--run.storage", str(tmp_path / "storage"), "--train.epoch", "3")
    assert done.returncode == 2
    assert "--train.epoch, 3" in done.stderr
    assert "--train.epochs" in one_message(done.stdout, done.stderr)
    assert not (tmp_path / "storage").exists()


def test_storage_that_is_read_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    done = command_line("--run.storage", str(tmp_path / "storage"),
                        preexec=lambda: make_read_only(tmp_path / "storage"))
    if done.returncode == 77:
        pytest.skip("this user may not mount, and its own permissions do not bind it")
    assert done.returncode == 2
    message = one_message(done.stdout, done.stderr)
    assert f"storage {tmp_path}/storage cannot be written" in message
    assert "make it writable, or pass another --run.storage" in message
    (tmp_path / "storage").chmod(0o755)
    assert list((tmp_path / "storage").iterdir()) == []


def make_read_only(folder: Path) -> None:
    """For this process only: a read-only tmpfs in a mount namespace of its own, for root;
    permissions for anybody else."""
    if os.geteuid():
        folder.chmod(0o555)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, read_only = 0x00020000, 0x4000 | 0x40000, 1
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private, None) or libc.mount(
            b"tmpfs", os.fsencode(folder), b"tmpfs", read_only, None):
        os._exit(77)


def test_text_labels_are_fine_and_become_classes(tmp_path: Path) -> None:
    words = ["no", "yes", "perhaps"]
    parquet(tmp_path / "in", labels=[words[label] for label in LABELS])
    with runs.run(tmp_path / "run", "--data.uri", str(tmp_path / "in"), "--train.max-steps", "1",
                  "--train.global-batch-size", "8") as job:
        job.finished()
    assert '"no",\n   "perhaps",\n   "yes"' in (tmp_path / "run/run.json").read_text()
