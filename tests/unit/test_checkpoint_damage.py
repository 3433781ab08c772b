"""Damaged, half-written and missing checkpoints: the newest intact one is found and the damage is named.
Storage that fills up."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import CheckpointError, StorageError, StorageFullError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from tests.s3 import s3_server

STEPS = (10, 20, 30)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Three checkpoints at steps 10, 20, 30, by one generation."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    uri = f"s3://trainyard/damage-{tmp_path.name}" if request.param == "s3" else str(tmp_path / "checkpoints")
    store = Store.open(uri)
    save(store, *STEPS)
    return store


def weights_at(step: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.full(5000, step, np.float32), "b": np.arange(step)}


def writer_for(store: Store, generation: str) -> CheckpointWriter:
    return CheckpointWriter(store, generation, config_fingerprint="f", environment={}, keep_last=3)


def save(store: Store, *steps: int) -> str:
    generation = Checkpoints(store).begin_generation()
    with writer_for(store, generation) as writer:
        for step in steps:
            writer.save(weights_at(step), {"step": step}, step=step, epoch=0)
    return generation


def resume(store: Store) -> tuple[Checkpoint | None, list[str]]:
    """As a driver does before it starts workers."""
    damages: list[str] = []
    checkpoints = Checkpoints(store)
    checkpoints.begin_generation()
    return checkpoints.newest_intact(damages.append), damages


def require_resumed(store: Store, step: int, *named: str) -> None:
    checkpoint, damages = resume(store)
    assert checkpoint is not None
    assert checkpoint.step == step, damages
    assert np.array_equal(Checkpoints(store).load(checkpoint)["w"], weights_at(step)["w"])
    assert len(damages) == len(named), damages
    for what, line in zip(named, damages, strict=True):
        assert what in line


def newest(store: Store) -> Checkpoint:
    return Checkpoints(store).committed()[0]


def change(store: Store, path: str, how: Callable[[bytes], bytes]) -> None:
    data = store.read_bytes(path)
    store.write_bytes(path, how(data))


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def tensors_file(store: Store) -> str:
    return newest(store).files[0].path


def manifest_file(store: Store) -> str:
    return newest(store).name.manifest


# ── a damaged file ──
def test_a_flipped_bit_is_named_and_the_one_before_resumed(store: Store) -> None:
    path = tensors_file(store)
    change(store, path, flip(-100))
    with pytest.raises(CheckpointError, match="sha256 differs"):
        Checkpoints(store).load(newest(store))
    assert Checkpoints(store).damages(newest(store))
    require_resumed(store, 20, f"checkpoint at step 30: {path}: sha256 differs")


def test_a_truncated_file_is_named_and_the_one_before_resumed(store: Store) -> None:
    change(store, tensors_file(store), lambda data: data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="were written"):
        Checkpoints(store).load(newest(store))
    require_resumed(store, 20, "were written")


def test_a_deleted_file_is_named_and_the_one_before_resumed(store: Store) -> None:
    checkpoint = newest(store)
    store.delete(checkpoint.files[0].path)
    with pytest.raises(CheckpointError, match="is missing"):
        Checkpoints(store).load(checkpoint)
    require_resumed(store, 20, "rank-0.safetensors: is missing")


@pytest.mark.parametrize("place", [0, 9, 60, 70])
def test_a_flipped_bit_in_the_header_is_found(tmp_path: Path, place: int) -> None:
    store = Store.open(str(tmp_path))
    save(store, *STEPS)
    change(store, tensors_file(store), flip(place))
    require_resumed(store, 20, "sha256 differs")


def test_two_damaged_in_a_row_lead_to_the_third(store: Store) -> None:
    thirty, twenty, _ = Checkpoints(store).committed()
    change(store, thirty.files[0].path, flip(-1))
    store.delete(twenty.files[0].path)
    require_resumed(store, 10, "checkpoint at step 30", "checkpoint at step 20")


def test_all_damaged_means_the_beginning_and_nothing_is_deleted(store: Store) -> None:
    for checkpoint in Checkpoints(store).committed():
        change(store, checkpoint.files[0].path, flip(-1))
    checkpoint, damages = resume(store)
    assert checkpoint is None
    assert len(damages) == 3
    Checkpoints(store).prune(1)
    assert len(store.files("data")) == 3


# ── a damaged manifest ──
def test_a_truncated_manifest_is_named(store: Store) -> None:
    change(store, manifest_file(store), lambda text: text[: len(text) // 2])
    require_resumed(store, 20, "step-30.json: is not readable")


def test_a_manifest_of_garbage_is_named(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    save(store, *STEPS)
    path = manifest_file(store)
    for garbage in (b"", b"\xff\xfe\x00", b"[]", b"{}", b"null", b'{"content": 3, "sha256": "x"}', os.urandom(500)):
        store.write_bytes(path, garbage)
        damages: list[str] = []
        checkpoint = Checkpoints(store).newest_intact(damages.append)
        assert checkpoint is not None
        assert (checkpoint.step, len(damages)) == (20, 1)


def test_a_flipped_digit_in_a_manifest_is_found(store: Store) -> None:
    change(store, manifest_file(store), lambda text: text.replace(b'"step": 30', b'"step": 31'))
    require_resumed(store, 20, "step-30.json: sha256 differs")


def test_a_deleted_manifest_is_named(store: Store) -> None:
    store.delete(manifest_file(store))
    require_resumed(store, 20, "save-0003-step-30: has no manifest")


def test_a_manifest_deleted_later_is_named(store: Store) -> None:
    path = manifest_file(store)
    Checkpoints(store).begin_generation()
    store.delete(path)
    require_resumed(store, 20, "step-30.json: is missing")


# ── half-written ones ──
def test_half_written_ones_are_named_and_removed_by_the_next_commit(store: Store) -> None:
    generation = newest(store).generation
    half = f"data/{generation}/save-0004-step-40/rank-0.safetensors"
    store.write_bytes(half, b"half of it")
    store.write_bytes(f"data/{generation}/save-0005-step-50/rank-1.json", b"{")
    require_resumed(store, 30, "step-50: has no manifest", "step-40: has no manifest")
    save(store, 31)
    assert not store.exists(half)
    require_resumed(store, 31)


def test_unfinished_manifests_and_strange_files_are_passed_over(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    generation = save(store, *STEPS)
    store.write_bytes(f"manifests/{generation}/save-0004-step-40.json.1f.partial", b"{")
    store.write_bytes(f"manifests/{generation}/notes.txt", b"mine")
    store.write_bytes("data/README", b"mine")
    store.write_bytes("manifests/old/x", b"mine")
    require_resumed(store, 30)


def test_a_writer_killed_in_the_middle_of_its_saves_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    code = (
        "import os, signal, sys, threading, numpy as np\n"
        "from cluster.core.storage import Store\nfrom jobs.common.checkpoint.writer import CheckpointWriter\n"
        "w = CheckpointWriter(Store.open(sys.argv[1]), sys.argv[2], config_fingerprint='f', environment={}, "
        "keep_last=2)\nfor step in range(1, 100000):\n"
        "    w.save({'w': np.full(600000, step, np.int64)}, {'step': step}, step=step, epoch=0)\n"
        "    if step == int(sys.argv[3]):\n"
        "        threading.Event().wait(float(sys.argv[4])); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    reached = 0
    for saves, delay_s in ((3, 0.0), (2, 0.002), (3, 0.005), (4, 0.01)):
        generation = Checkpoints(store).begin_generation()
        command = [sys.executable, "-c", code, store.uri, generation, str(saves), str(delay_s)]
        assert subprocess.run(command, timeout=60).returncode == -9
        checkpoints = Checkpoints(store)
        checkpoint = checkpoints.newest_intact(lambda _: None)
        assert checkpoint is not None
        assert checkpoint.generation == generation
        assert checkpoint.step >= saves - 1  # at most the one in flight is lost
        assert (checkpoints.load(checkpoint)["w"] == checkpoint.step).all()
        reached += 1
    assert reached == 4


# ── what counts afterwards ──
def test_damaged_ones_do_not_take_the_place_of_good_ones(store: Store) -> None:
    change(store, tensors_file(store), flip(-1))
    driver = Checkpoints(store)
    generation = driver.begin_generation()
    assert (resumed := driver.newest_intact(lambda _: None)) is not None
    assert resumed.step == 20
    with CheckpointWriter(store, generation, config_fingerprint="f", environment={}, keep_last=2) as writer:
        writer.save(weights_at(25), {}, step=25, epoch=0)
    assert [checkpoint.step for checkpoint in driver.committed()] == [25, 20]
    require_resumed(store, 25)


def test_a_new_lineage_comes_before_an_older_one_with_more_steps(store: Store) -> None:
    change(store, tensors_file(store), flip(-1))
    assert resume(store)[0] is not None
    save(store, 22)
    require_resumed(store, 22)


def test_a_damaged_best_one_is_named_and_the_next_best_taken(store: Store) -> None:
    generation = Checkpoints(store).begin_generation()
    with CheckpointWriter(store, generation, config_fingerprint="f", environment={}, keep_last=9) as writer:
        for step, metric in ((40, 0.9), (50, 0.8)):
            writer.save(weights_at(step), {}, step=step, epoch=0, metric=metric)
    damages: list[str] = []
    forty = Checkpoints(store).best()
    assert forty is not None
    change(store, forty.files[0].path, flip(-1))
    best = Checkpoints(store).best(damages.append)
    assert best is not None
    assert (forty.step, best.step) == (40, 50)
    assert "checkpoint at step 40" in damages[0]


# ── the generations' own records ──
@pytest.mark.parametrize("how", ["truncated", "garbage", "deleted"])
def test_a_damaged_generation_record_is_named_and_costs_nothing(tmp_path: Path, how: str) -> None:
    store = Store.open(str(tmp_path))
    save(store, 10)
    save(store, 20)
    generation = save(store, 30)
    path = f"generations/{generation}.json"
    if how == "deleted":
        store.delete(path)
    else:
        change(store, path, lambda text: text[:20] if how == "truncated" else b"\x00garbage")
    damages: list[str] = []
    checkpoint = Checkpoints(store).newest_intact(damages.append)
    assert checkpoint is not None
    assert checkpoint.step == 30
    assert [c.step for c in Checkpoints(store).committed()] == [30, 20, 10]
    assert len(damages) == 1
    assert generation in damages[0]
    save(store, 40)
    require_resumed(store, 40)


def test_all_generation_records_gone_still_leaves_the_manifests(store: Store) -> None:
    save(store, 40)
    for file in store.files("generations"):
        store.delete(file.path)
    require_resumed(store, 40, "generations/000002-", "generations/000001-")
    assert [c.step for c in Checkpoints(store).committed()] == [40, 30, 20]


# ── storage that fails ──
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root and the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_storage_is_said_and_the_last_good_checkpoint_stays(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "checkpoints"))
    generation = Checkpoints(store).begin_generation()
    writer = writer_for(store, generation)
    writer.save(weights_at(10), {}, step=10, epoch=0)
    writer.save({"w": np.ones(4_000_000, np.float32)}, {}, step=20, epoch=0)
    with pytest.raises(StorageFullError,
                       match=r"is full, data/.*step-20/rank-0\.safetensors was not written: make room"):
        writer.wait()
    assert writer.committed_step == 10
    require_resumed(store, 10)
    assert os.statvfs(small_disk).f_bfree * 4096 > 7_000_000  # what was written of it is gone
    save(store, 20)
    require_resumed(store, 20)


def test_a_full_storage_is_said_by_the_next_save(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "checkpoints"))
    with writer_for(store, Checkpoints(store).begin_generation()) as writer:
        writer.save({"w": np.ones(4_000_000, np.float32)}, {}, step=20, epoch=0)
        with pytest.raises(StorageFullError):
            writer.save(weights_at(30), {}, step=30, epoch=0)


def test_no_room_for_the_manifest_commits_nothing(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "checkpoints"))
    writer = writer_for(store, Checkpoints(store).begin_generation())
    writer.save(weights_at(10), {}, step=10, epoch=0)
    writer.wait()
    room = os.statvfs(small_disk).f_bfree * 4096
    writer.save({"w": np.ones((room - 4096) // 4 // 1024 * 1024 - 1024, np.float32)}, {"log": "x" * 50_000}, step=20,
                epoch=0)
    with pytest.raises(StorageFullError, match="manifests/"):
        writer.wait()
    assert os.statvfs(small_disk).f_bfree * 4096 >= room - 50_000  # its data do not fill the storage for nothing
    require_resumed(store, 10)


def test_storage_that_becomes_read_only_is_said_and_the_last_good_checkpoint_stays(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "checkpoints"))
    writer = writer_for(store, Checkpoints(store).begin_generation())
    writer.save(weights_at(10), {}, step=10, epoch=0)
    writer.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer.save(weights_at(20), {}, step=20, epoch=0)
    with pytest.raises(StorageFullError, match="is read-only"):
        writer.wait()
    assert newest(store).step == 10
    assert not Checkpoints(store).damages(newest(store))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    writer.save(weights_at(30), {}, step=30, epoch=0)
    writer.close()
    require_resumed(store, 30)


def test_an_object_store_that_goes_away_is_said_and_nothing_is_taken_for_damaged(tmp_path: Path) -> None:
    with s3_server():
        store = Store.open(f"s3://trainyard/{tmp_path.name}")
        writer = writer_for(store, Checkpoints(store).begin_generation())
        writer.save(weights_at(10), {}, step=10, epoch=0)
        writer.wait()
        checkpoint = newest(store)
    writer.save(weights_at(20), {}, step=20, epoch=0)
    with pytest.raises(StorageError, match="cannot be read"):  # at the same time: the S3 client tries for 10 s
        Checkpoints(store).load(checkpoint)
    with pytest.raises(StorageError, match="cannot be written"):
        writer.wait()
