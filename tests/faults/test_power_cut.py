"""The power is cut: what was said to be done is done, and what was not goes on from the last checkpoint."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.data.dataset import Dataset
from jobs.common.registry.connection import open_registry
from jobs.common.runs.run import main
from jobs.mlp.job import JOB
from tests import runs
from tests.faults.disk import Disk
from tuning.journal import Journal

FLAGS = ["--run.workers", "1", "--train.epochs", "2", "--run.tracking-uri", "None"]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.remove()


def empty_files(folder: Path) -> list[str]:
    """Files of which the power cut has left nothing but the name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
                  and not path.stat().st_size)


def test_a_disk_forgets_what_was_not_synced(disk: Disk) -> None:
    """Else the tests below would show nothing."""
    store = Store.open(str(disk.path))
    store.write_text("a/synced.json", "{}" * 3000)
    (disk.path / "plain.partial").write_text("{}" * 3000)
    (disk.path / "plain.partial").rename(disk.path / "plain.json")
    store.write_text("b/synced.json", "{}" * 3000)
    disk.cut()
    assert store.read_text("a/synced.json") == store.read_text("b/synced.json") == "{}" * 3000
    assert (disk.path / "plain.json").read_bytes() == b"", "its name came with a later file's journal entry"


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")  # MLflow's
def test_a_run_whose_power_is_cut_continues_and_a_finished_one_stays_finished(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk.path / "run"
    with runs.run(folder, *FLAGS) as job:
        job.until_past_a_checkpoint(9)
    disk.cut()
    [data] = [path for path in (disk.path / "data").iterdir() if path.is_dir()]
    assert not empty_files(data / Dataset.load(Store.open(str(data))).blocks)
    damages: list[str] = []
    checkpoint = Checkpoints(Store.open(f"{folder}/checkpoints")).newest_intact(damages.append)
    assert checkpoint is not None and checkpoint.step > 0
    with runs.run(folder, *FLAGS) as again:
        result = again.finished()
    assert f"continuing at step {checkpoint.step}" in again.text
    disk.cut()
    assert runs.result(folder) == result
    digest = open_artifact(folder / "artifact").digest
    shutil.copy(disk.path / "mlflow.db", tmp_path)  # this process would keep it open
    registry = open_registry(f"sqlite:///{tmp_path}/mlflow.db", Store.open(str(disk.path)), name="run")
    [version] = registry.versions("run")
    assert registry.fetch(version, tmp_path / "fetched").digest == digest == version.digest
    storage = ["--run.engine", "local", "--run.storage", str(disk.path), "--run.name", "run"]
    assert main(JOB, [*runs.QUICK, *storage, *FLAGS]) == 0
    assert "run 'run' (attempt 1) is done" in capsys.readouterr().out


def test_what_a_search_has_decided_is_not_forgotten(disk: Disk) -> None:
    store = Store.open(f"{disk.path}/searches/search")
    journal = Journal.open(store, b"k" * 32)
    journal.begin({"space": {}})
    journal.add(0, kind="begun", values={"optim.lr": 0.1})
    journal.add(1, kind="begun", values={"optim.lr": 0.2})
    journal.add(0, kind="ended", status="completed")
    disk.cut()
    again = Journal.open(store, b"k" * 32)
    assert again.events() == journal.events()
