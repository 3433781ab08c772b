"""The node's cache: never over its cap, never a torn file, damage noticed, whoever shares it."""

import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.core.errors import ConfigError, StorageError, StorageFullError
from jobs.common.data import cache as cache_module
from jobs.common.data.arrow import arrow_column, numpy_column
from jobs.common.data.cache import BlockCache

ROWS = 10_000
BLOCK_BYTES = 8 * ROWS


def _block(number: int) -> Any:
    return pa.RecordBatch.from_arrays([arrow_column(np.full(ROWS, number, np.int64))], ["n"])


def _values(batch: Any) -> np.ndarray:
    return numpy_column(batch.column(0))


def _refuse() -> Any:
    raise AssertionError("fetched again")


def _on_disk(folder: Path) -> int:
    """Bytes that the folder's files take now."""
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def test_a_block_is_fetched_once_and_then_mapped(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10**6)
    assert (_values(cache.get("a.arrow", lambda: _block(7))) == 7).all()
    again = _values(cache.get("a.arrow", _refuse))
    assert (again == 7).all()
    assert not again.flags.writeable


def test_the_least_recently_used_block_makes_room(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * BLOCK_BYTES)
    for name in "abc":
        cache.get(f"{name}.arrow", lambda: _block(1))
    cache.get("a.arrow", _refuse)
    cache.get("d.arrow", lambda: _block(1))
    assert sorted(path.name for path in tmp_path.glob("*.arrow")) == ["a.arrow", "c.arrow", "d.arrow"]


def test_a_dropped_block_stays_readable_while_it_is_held(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 2 * BLOCK_BYTES)
    held = _values(cache.get("a.arrow", lambda: _block(1)))
    cache.get("b.arrow", lambda: _block(2))
    assert not (tmp_path / "a.arrow").exists()
    assert (held == 1).all()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "trailer"])
def test_a_damaged_block_is_noticed_and_fetched_again(tmp_path: Path, damage: str,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    cache = BlockCache(tmp_path, 10**6)
    cache.get("a.arrow", lambda: _block(3))
    path = tmp_path / "a.arrow"
    data = bytearray(path.read_bytes())
    data[{"trailer": -1}.get(damage, len(data) // 2)] ^= 1
    path.write_bytes({"truncate": data[:5000], "empty": b""}.get(damage, data))
    assert (_values(cache.get("a.arrow", lambda: _block(3))) == 3).all()
    assert "a.arrow is damaged" in caplog.text
    assert (_values(cache.get("a.arrow", _refuse)) == 3).all()


def test_a_block_that_nobody_else_has_used_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[int] = []
    monkeypatch.setattr(cache_module, "_is_whole", lambda *_: checks.append(1) or True)
    here, there = (BlockCache(tmp_path, 10**6) for _ in range(2))
    for _ in range(3):
        here.get("a.arrow", lambda: _block(3))
    assert len(checks) == 1
    there.get("a.arrow", _refuse)
    here.get("a.arrow", _refuse)
    assert len(checks) == 3


def test_what_a_killed_writer_left_is_cleared_and_counted(tmp_path: Path) -> None:
    (tmp_path / "x.arrow.partial").write_bytes(b"0" * 3 * BLOCK_BYTES)
    (tmp_path / ".used").write_text("gar")
    cache = BlockCache(tmp_path, 4 * BLOCK_BYTES)
    for number in range(5):
        cache.get(f"{number}.arrow", lambda: _block(1))
    assert not list(tmp_path.glob("*.partial"))
    assert _on_disk(tmp_path) <= cache.cap_bytes


def test_a_block_larger_than_the_cap_is_refused_with_the_cap_to_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache-gb 8e-05: one block of the data takes .*: use at least 0\.0003"):
        BlockCache(tmp_path, BLOCK_BYTES).get("a.arrow", lambda: _block(1))
    assert not list(tmp_path.glob("*.arrow*"))


def _use(folder: str, seed: int, cap_bytes: int, failures: Any) -> None:
    """A worker: reads random blocks, each checked against what it must hold."""
    cache, rng = BlockCache(Path(folder), cap_bytes), np.random.default_rng(seed)
    for number in rng.integers(0, 20, 120):
        values = _values(cache.get(f"{number}.arrow", lambda n=int(number): _block(n)))
        if not (values == number).all():
            failures.put(f"block {number} holds {values[values != number][0]}")


def test_many_processes_share_a_cache_below_its_cap_and_never_read_a_torn_block(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures, cap_bytes, most = context.SimpleQueue(), 6 * BLOCK_BYTES, 0
    users = [context.Process(target=_use, args=(str(tmp_path), seed, cap_bytes, failures)) for seed in range(4)]
    for user in users:
        user.start()
    try:
        while any(user.is_alive() for user in users):
            most = max(most, _on_disk(tmp_path))
            users[0].join(0.001)
    finally:
        for user in users:
            user.kill()
            user.join()
    assert [user.exitcode for user in users] == [0] * 4
    assert failures.empty()
    assert BLOCK_BYTES < most <= cap_bytes


def test_the_default_folder_is_private_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = BlockCache.open(None, 1).folder
    assert folder == tmp_path / f"trainyard-cache-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="not a private folder of this user"):
        BlockCache.open(None, 1)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be made .*--data\.cache-dir"):
        BlockCache.open(str(tmp_path / "file/cache"), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / ".used").write_text("0")
    (tmp_path / "a.arrow.partial").symlink_to("/dev/full")
    with pytest.raises(StorageFullError, match=r"is full or read-only: .*--data\.cache-dir"):
        BlockCache(tmp_path, 10**6).get("a.arrow", lambda: _block(1))
