"""Preparing under Ray Data is the same, byte for byte, as preparing in this process; its errors and its quiet, too."""

import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.connect import connect, disconnect
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.found import near_texts, repeats
from jobs.common.predicting.predict import main as predict
from jobs.common.tables import prepare as table_prepare
from jobs.common.tables.config import TableDataConfig
from jobs.common.vision import prepare as image_prepare
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text import prepare as text_prepare
from jobs.transformer.text import survey
from tests import kept, runs
from tests.hub import Hub, hub_server

# Ray 2.60 sets deprecated fields of its own each time it makes a DataContext.
pytestmark = pytest.mark.filterwarnings("ignore:`\\w+` is deprecated:DeprecationWarning")
FILES, ROWS = 5, 5000
IMAGES = np.random.default_rng(0).integers(0, 256, (FILES, ROWS, 784), np.uint8)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def ray_cluster(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Its processes know where the Hub is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINYARD_HOME", str(tmp_path_factory.mktemp("trainyard")))
        connect("local", num_cpus=2)
        yield
        disconnect()


def _write(folder: Path, images: np.ndarray) -> None:
    folder.mkdir()
    for number, part in enumerate(images):
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 784)
        table = pa.table({"image": pixels, "label": np.arange(ROWS) % 10})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2000)


@pytest.fixture
def tasks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks for any size."""
    for module in (image_prepare, table_prepare, text_prepare, survey):
        monkeypatch.setattr(module, "RAY_BYTES", 0)
    monkeypatch.setattr(repeats, "_ROWS_AT_ONCE", 4000)
    monkeypatch.setattr(near_texts, "_PAIRS_AT_ONCE", 100)


@pytest.mark.usefixtures("ray_cluster", "tasks_for_all")
@pytest.mark.parametrize(("task", "options"), [("classify", {}), ("generate", {}), ("classify", {
    "normalise": "nfc", "case": "lower", "longest": 150, "near_duplicates": "drop", "near_duplicates_from": 0.6})])
def test_text_is_the_same_whoever_prepares_it(tmp_path: Path, task: str, options: dict[str, object],
                                              capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        rows = [{"text": f"{number} {'word ' * (i % 30)}{i} {' '.join(f'w{i}{k}' for k in range(i % 7 * 3))}",
                 "label": "ab"[i % 2]} for i in range(60)]
        (tmp_path / "in" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = from_dict(TransformerConfig, {"task": task, "data": {
        "uri": str(tmp_path / "in"), "piece_mb": 0.004, "max_length": 16, "vocab_size": 300, "tokenizer": "auto",
        **options}})
    capfd.readouterr()
    ray, here = (text_prepare.prepare(config, Store.open(str(tmp_path / name)), use_ray=name == "ray")
                 for name in ("ray", "here"))
    assert (ray.fingerprint, ray.splits, ray.details) == (here.fingerprint, here.splits, here.details)
    assert len(ray.splits["train"].pieces) == 15
    assert ("(--data.near-duplicates)" in ray.details.get("left_out", "")) == bool(options)
    (tmp_path / "in/3.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"3\.jsonl, line 1 is no JSON object"):
        text_prepare.prepare(config, Store.open(str(tmp_path / "ray")), use_ray=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("ray_cluster", "tasks_for_all")
def test_ray_data_and_this_process_prepare_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "in", IMAGES)
    config = ImageDataConfig(uri=str(tmp_path / "in"), piece_mb=4)
    capfd.readouterr()
    ray, here = (prepare(config, Store.open(str(tmp_path / name)), use_ray=name == "ray") for name in ("ray", "here"))
    assert ray.fingerprint == here.fingerprint
    assert (ray.splits, ray.details) == (here.splits, here.details)
    key = ray.store.uri.rpartition("/")[2]
    blocks = [{path.relative_to(tmp_path / name / "data" / key / dataset.blocks): path.read_bytes()
               for path in (tmp_path / name).rglob("*.parquet")} for name, dataset in (("ray", ray), ("here", here))]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) == 5 * 4, "of each piece a block of each split, and the hashes of the rows"

    damaged = IMAGES.astype(np.int32)
    damaged[3, 700, 3] = 999
    _write(tmp_path / "bad", damaged)
    with pytest.raises(DataError) as caught:
        prepare(ImageDataConfig(uri=str(tmp_path / "bad")), Store.open(str(tmp_path / "ray")), use_ray=True)
    assert str(caught.value).startswith(f"row 700 of {tmp_path}/bad/3.parquet has the pixel value 999: ")
    assert len(list((tmp_path / "ray").rglob("blocks-*"))) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("ray_cluster", "tasks_for_all")
def test_tars_on_the_hub_are_the_same_whoever_reads_them(hub: Hub, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task opens the dataset by itself, at the commit that the driver has found."""
    monkeypatch.setattr("jobs.common.vision.sources.tar.FRAGMENT_BYTES", 10_000)
    hub.commit("owner/tars", {f"data/{shard}.tar": _tar(range(60 * shard, 60 * shard + 60)) for shard in range(2)})
    config = ImageDataConfig(uri="hf://datasets/owner/tars", piece_mb=0.0004)
    ray, here = (prepare(config, Store.open(str(tmp_path / name)), use_ray=name == "ray") for name in ("ray", "here"))
    assert (ray.fingerprint, ray.splits, ray.details) == (here.fingerprint, here.splits, here.details)
    assert len(ray.splits["train"].pieces) > 4


@pytest.mark.usefixtures("ray_cluster", "tasks_for_all")
def test_tables_are_the_same_whoever_prepares_them(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 3000
    (tmp_path / "data").mkdir()
    for number in range(3):
        columns = {"x": rng.normal(size=count), "city": rng.choice(["Oslo", "Rome"], count),
                   "kind": rng.choice([*"ab"], count), "day": np.datetime64("2024-01-01") + rng.integers(0, 300, count)}
        pq.write_table(pa.table(columns), tmp_path / f"data/{number}.parquet", row_group_size=1000)
    config = TableDataConfig(uri=str(tmp_path / "data"), label_column="kind", piece_mb=0.01)
    ray, here = (table_prepare.prepare(config, Store.open(str(tmp_path / name)), use_ray=name == "ray",
                                       say=lambda _: None) for name in ("ray", "here"))
    assert (ray.fingerprint, ray.splits, ray.details) == (here.fingerprint, here.splits, here.details)
    assert len(ray.splits["train"].pieces) == 9
    columns["x"][2500] = np.inf
    pq.write_table(pa.table(columns), tmp_path / "data/2.parquet", row_group_size=1000)
    with pytest.raises(DataError, match=r"row 2500 of .*2\.parquet: column 'x' is inf"):
        table_prepare.prepare(config, Store.open(str(tmp_path / "ray")), use_ray=True, say=lambda _: None)


@pytest.mark.usefixtures("ray_cluster")
def test_answers_are_the_same_bytes_also_where_an_actor_is_killed(tmp_path: Path,
                                                                  capfd: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "in", IMAGES[:1])
    command = ["--model", str(kept.artifact("mlp")), "--data.uri", str(tmp_path / "in"), "--batch-rows", "4",
               "--piece-mb", "0.2", "--cpus-per-worker", "1", "--out"]
    killed = threading.Thread(target=_kill_an_actor, args=(tmp_path / "ray/_work",))
    killed.start()
    assert predict([*command, str(tmp_path / "ray"), "--address", "local", "--workers", "1:2"]) == 0
    killed.join()
    with runs.python("jobs.common.predicting.predict", *command, str(tmp_path / "here"), folder=tmp_path,
                     env={"RAY_ADDRESS": ""}) as job:  # by itself: the threads of this process are no more to be set
        assert job.wait() == 0, job.text
    ray, here = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("ray", "here"))
    assert ray == here
    assert len([name for name in ray if name.startswith("part-")]) > 10
    assert "by actors of the Ray cluster" in capfd.readouterr().out


def _kill_an_actor(work: Path) -> None:
    """In the middle of what it does."""
    until = time.monotonic() + 100
    while time.monotonic() < until:
        time.sleep(0.01)
        if len(list(work.glob("0*.json"))) > 2:
            for each in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it may have ended meanwhile
                    if "MapWorker" in " ".join(each.cmdline()):
                        each.kill()
                        return


def _tar(rows: range) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for i in rows:
            for name, data in ((f"{i}.pgm", b"P5 4 4 255\n" + bytes([i]) * 16), (f"{i}.cls", b"%d" % (i % 2))):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                file.addfile(about, io.BytesIO(data))
    return sink.getvalue()
