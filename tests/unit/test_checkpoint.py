"""Checkpoints on a local folder and on a real S3 server: written, committed, found, loaded, pruned."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.core.errors import CheckpointError, NonFiniteStateError, RunConflictError
from cluster.core.storage import Store
from jobs.common.checkpoint.manifest import read_manifest, write_manifest
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store.open(str(tmp_path / "checkpoints"))
    request.getfixturevalue("s3")
    return Store.open(f"s3://trainyard/{tmp_path.name}/checkpoints")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "checkpoints"))


def tensors_at(step: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(step)
    return {
        "model.weight": rng.random((300, 7), np.float32), "model.bias": rng.random(7),
        "half": rng.random(5).astype(np.float16),
        "optimizer.step": np.asarray(step), "flags": rng.random((2, 3)) > 0.5, "empty": np.zeros((0, 4), np.float32),
        "bytes": rng.integers(0, 256, (3, 1, 2), np.uint8), "transposed": rng.random((4, 9), np.float32).T,
        "big-endian": rng.random(3).astype(">f4"),
    }


def writer_for(store: Store, generation: str, rank: int = 0, world_size: int = 1, **more: Any) -> CheckpointWriter:
    settings: dict[str, Any] = {"config_fingerprint": "f", "environment": {"python": "3"}, "keep_last": 2} | more
    return CheckpointWriter(store, generation, rank, world_size, **settings)


def save_steps(store: Store, steps: list[int], metrics: dict[int, float] | None = None, **more: Any) -> str:
    """One generation that commits these steps. Returns its name."""
    generation = Checkpoints(store).begin_generation()
    with writer_for(store, generation, **more) as writer:
        for step in steps:
            writer.save(tensors_at(step), {"epoch": 0, "step": step}, step=step, epoch=0,
                        metric=(metrics or {}).get(step))
    return generation


def newest(store: Store) -> tuple[Checkpoint | None, list[str]]:
    damages: list[str] = []
    return Checkpoints(store).newest_intact(damages.append), damages


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].shape == b[k].shape for k in a)


def steps(store: Store) -> list[int]:
    return [checkpoint.step for checkpoint in Checkpoints(store).committed()]


# ── what is written comes back ──
def test_what_was_saved_comes_back(store: Store) -> None:
    generation = Checkpoints(store).begin_generation()
    state = {"epoch": 3, "rng": {"state": 2**100 + 1}, "excluded": (4, 5), "best": None, "lr": 0.1 + 0.2,
             "n": np.int64(7)}
    with writer_for(store, generation, environment={"threads": 2}) as writer:
        writer.save(tensors_at(40), state, step=40, epoch=3, metric=0.75)
        writer.wait()
        assert writer.committed_step == 40
    checkpoint, damages = newest(store)
    assert checkpoint is not None
    assert damages == []
    assert same(Checkpoints(store).load(checkpoint), tensors_at(40))
    assert checkpoint.state == {**state, "excluded": [4, 5], "n": 7}
    assert (checkpoint.step, checkpoint.epoch, checkpoint.metric, checkpoint.world_size) == (40, 3, 0.75, 1)
    assert (checkpoint.generation, checkpoint.config_fingerprint, checkpoint.environment) == (generation, "f",
                                                                                              {"threads": 2})
    assert abs(checkpoint.created - time.time()) < 60


def test_nothing_saved_means_nothing_to_resume(store: Store) -> None:
    assert newest(store) == (None, [])
    assert Checkpoints(store).current_generation() is None
    generation = Checkpoints(store).begin_generation()
    assert newest(store) == (None, [])
    assert Checkpoints(store).current_generation() == generation
    assert Checkpoints(store).best() is None


def test_the_file_is_plain_safetensors_whatever_the_order_of_the_tensors(local: Store, tmp_path: Path) -> None:
    save_steps(local, [1])
    (entry,) = Checkpoints(local).committed()[0].files
    assert same(load_file(local.local_path(entry.path)), tensors_at(1))
    other = Store.open(str(tmp_path / "other"))
    with writer_for(other, Checkpoints(other).begin_generation()) as writer:
        writer.save(dict(reversed(tensors_at(1).items())), {}, step=1, epoch=0)
    assert Checkpoints(other).committed()[0].files[0].sha256 == entry.sha256


def test_large_files_come_back_whole_at_any_size(local: Store) -> None:
    sizes = [(4 << 20) // 4 * 2 - 16, 1_100_001, 3 << 20]  # around pieces and disk blocks
    with writer_for(local, Checkpoints(local).begin_generation(), keep_last=9) as writer:
        for step, size in enumerate(sizes):
            writer.save({"w": np.arange(size, dtype=np.float32)}, {}, step=step, epoch=0)
    for checkpoint in Checkpoints(local).committed():
        (entry,) = checkpoint.files
        assert local.local_path(entry.path).stat().st_size == entry.size
        assert same(Checkpoints(local).load(checkpoint), {"w": np.arange(sizes[checkpoint.step], dtype=np.float32)})


def test_loaded_tensors_can_be_written_to(local: Store) -> None:
    save_steps(local, [1])
    for array in Checkpoints(local).load(Checkpoints(local).committed()[0]).values():
        assert array.flags.writeable
        assert array.flags.aligned


def test_a_snapshot_is_not_changed_by_the_steps_after_it(store: Store) -> None:
    weights, state = {"w": np.zeros(2_000_000, np.float32)}, {"rows": [1]}
    with writer_for(store, Checkpoints(store).begin_generation()) as writer:
        writer.save(weights, state, step=1, epoch=0)
        weights["w"] += 1  # the loop goes on while the background writes
        state["rows"].append(2)
    checkpoint, _ = newest(store)
    assert checkpoint is not None
    assert checkpoint.state == {"rows": [1]}
    assert not Checkpoints(store).load(checkpoint)["w"].any()


def test_shapes_may_change_from_one_save_to_the_next(local: Store) -> None:
    with writer_for(local, Checkpoints(local).begin_generation(), keep_last=9) as writer:
        for size in (3, 5, 4):
            writer.save({"w": np.full(size, size)}, {}, step=size, epoch=0)
    assert [len(Checkpoints(local).load(c)["w"]) for c in Checkpoints(local).committed()] == [4, 5, 3]


def test_costs_are_measured(local: Store) -> None:
    with writer_for(local, Checkpoints(local).begin_generation()) as writer:
        assert writer.timings is None
        writer.save({"w": np.ones(1_000_000, np.float32)}, {}, step=1, epoch=0)
        writer.wait()
        timings = writer.timings
        assert timings is not None
        assert timings.bytes >= 4_000_000
        assert 0 < timings.snapshot_s <= timings.blocking_s
        assert 0 < timings.background_s < timings.write_s + 0.1


def test_types_that_safetensors_does_not_know_are_refused(local: Store) -> None:
    with (
        pytest.raises(TypeError, match="'w' of type complex64"),
        writer_for(local, Checkpoints(local).begin_generation()) as writer,
    ):
        writer.save({"w": np.zeros(1, np.complex64)}, {}, step=1, epoch=0)


# ── nothing that is not finite ──
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_checkpoint_with_a_non_finite_number_is_refused(local: Store, dtype: type, bad: float) -> None:
    generation = Checkpoints(local).begin_generation()
    with writer_for(local, generation) as writer:
        writer.save({"w": np.ones(9, dtype), "v": np.ones(9)}, {}, step=1, epoch=0)
        spoiled = np.ones((3, 3), dtype)
        spoiled[1, 1] = bad
        writer.save({"w": spoiled, "v": np.ones(9)}, {}, step=2, epoch=0)
        with pytest.raises(NonFiniteStateError, match="step 2 is refused: tensor 'w' holds NaN"):
            writer.wait()
        assert writer.committed_step == 1
        writer.wait()  # raised once
        assert steps(local) == [1]
        writer.save({"w": np.ones(9, dtype), "v": np.ones(9)}, {}, step=3, epoch=0)
    assert steps(local) == [3, 1]


def test_a_non_finite_number_is_found_anywhere_in_a_large_tensor(local: Store) -> None:
    weights = np.ones(5_000_000, np.float32)
    for place in (0, 1_048_575, 1_048_576, 2_500_000, 4_999_999):
        spoiled = {"a": weights, "b": weights.copy(), "c": np.ones(3, np.int64)}
        spoiled["b"][place] = np.nan
        with writer_for(local, Checkpoints(local).begin_generation()) as writer:
            writer.save(spoiled, {}, step=1, epoch=0)
            with pytest.raises(NonFiniteStateError, match="'b'"):
                writer.wait()
    assert steps(local) == []
    assert not local.files("data")


def test_numbers_whose_sum_overflows_are_finite(local: Store) -> None:
    huge = {"w": np.full(9, np.finfo(np.float32).max), "h": np.full(9, np.float16(65000)), "i": np.full(3, -1)}
    with writer_for(local, Checkpoints(local).begin_generation()) as writer:
        writer.save(huge, {}, step=1, epoch=0)
    assert steps(local) == [1]


def test_a_state_that_is_not_finite_is_refused_at_once(local: Store) -> None:
    with writer_for(local, Checkpoints(local).begin_generation()) as writer:
        with pytest.raises(NonFiniteStateError, match="'loss': nan"):
            writer.save(tensors_at(1), {"loss": float("nan")}, step=1, epoch=0)
        writer.save(tensors_at(1), {}, step=1, epoch=0, metric=float("nan"))
    assert Checkpoints(local).committed()[0].metric is None


# ── which are kept, and which is best ──
def test_the_last_k_and_the_best_are_kept(store: Store) -> None:
    save_steps(store, [10, 20, 30, 40, 50], {10: 0.1, 20: 0.9, 30: 0.9, 40: 0.2})
    assert steps(store) == [50, 40, 20]
    best = Checkpoints(store).best()
    assert best is not None
    assert best.step == 20  # the earliest of equals
    kept = {entry.path for checkpoint in Checkpoints(store).committed() for entry in checkpoint.files}
    assert {file.path for file in store.files("data")} == kept


def test_what_older_generations_left_unfinished_is_removed(store: Store) -> None:
    first = save_steps(store, [10])
    store.write_bytes(f"data/{first}/save-0002-step-20/rank-0.safetensors", b"half")
    save_steps(store, [20])
    assert steps(store) == [20, 10]
    assert len(store.files("data")) == 2
    save_steps(store, [30, 40])
    assert steps(store) == [40, 30]
    assert len(store.files("data")) == 2
    assert first not in (*store.folders("data"), *store.folders("manifests"))


def test_a_checkpoint_in_flight_is_not_pruned(local: Store) -> None:
    save_steps(local, [10, 20, 30])
    generation = Checkpoints(local).begin_generation()
    in_flight = f"data/{generation}/save-0001-step-40/rank-0.safetensors"
    local.write_bytes(in_flight, b"half")
    Checkpoints(local).prune(1)
    assert steps(local) == [30]
    assert local.exists(in_flight)


def test_the_checkpoint_that_was_resumed_from_is_not_pruned_by_its_driver(local: Store) -> None:
    save_steps(local, [10, 20])
    driver = Checkpoints(local)
    generation = driver.begin_generation()
    assert (checkpoint := driver.newest_intact(print)) is not None
    with writer_for(local, generation) as writer:
        writer.save(tensors_at(30), {}, step=30, epoch=0)
    driver.prune(1)
    assert steps(local) == [30, 20]
    assert same(driver.load(checkpoint), tensors_at(20))


# ── generations ──
def test_generations_are_numbered_and_continue_the_list(store: Store) -> None:
    names = [save_steps(store, [10]), save_steps(store, [20]), Checkpoints(store).begin_generation()]
    assert [name[:7] for name in names] == ["000001-", "000002-", "000003-"]
    assert steps(store) == [20, 10]
    assert Checkpoints(store).current_generation() == names[-1]


def late_writers(store: Store) -> tuple[CheckpointWriter, CheckpointWriter]:
    """An old generation whose rank 0 waits for rank 1 before it commits step 20, as if both had been stopped."""
    old = save_steps(store, [10])
    rank_0, rank_1 = (writer_for(store, old, rank, 2) for rank in range(2))
    rank_0.save(tensors_at(20), {}, step=20, epoch=0)
    return rank_0, rank_1


def test_an_old_writer_that_wakes_up_late_cannot_commit(store: Store) -> None:
    rank_0, rank_1 = late_writers(store)
    new = save_steps(store, [15])
    rank_1.save(tensors_at(21), {}, step=20, epoch=0)
    rank_1.close()
    with pytest.raises(RunConflictError, match=f"{new} has begun"):
        rank_0.close()
    checkpoint, damages = newest(store)
    assert checkpoint is not None
    assert (checkpoint.step, damages) == (15, [])


def test_a_manifest_that_an_old_writer_slips_in_does_not_count_and_is_removed(store: Store) -> None:
    old = save_steps(store, [10, 20])
    new = Checkpoints(store).begin_generation()
    with writer_for(store, new, keep_last=9) as writer:
        writer.save(tensors_at(21), {}, step=21, epoch=0)
    (twenty,) = (c for c in Checkpoints(store).committed() if c.step == 20)
    late = Checkpoint(**{**vars(twenty), "step": 99, "sequence": 9, "files": ()})
    store.write_bytes(late.name.part(0), b"late")
    write_manifest(store, late)  # what a process does that was stopped between its last look and this write
    assert read_manifest(store, late.name).step == 99
    assert steps(store) == [21, 20, 10]
    checkpoint, _ = newest(store)
    assert checkpoint is not None
    assert checkpoint.step == 21
    Checkpoints(store).prune(9, generation=old)  # the old one deletes nothing
    assert store.exists(late.name.manifest)
    save_steps(store, [22])
    assert not store.exists(late.name.manifest)
    assert not store.exists(late.name.part(0))


def test_an_old_process_that_was_stopped_and_wakes_up_is_harmless(local: Store) -> None:
    """A real process: SIGSTOP in the middle of its saves, SIGCONT when the next generation has committed."""
    generation = Checkpoints(local).begin_generation()
    code = (
        "import sys, numpy as np\nfrom cluster.core.storage import Store\n"
        "from jobs.common.checkpoint.writer import CheckpointWriter\n"
        "w = CheckpointWriter(Store.open(sys.argv[1]), sys.argv[2], config_fingerprint='f', environment={}, "
        "keep_last=2)\nfor step in range(1, 100000):\n    w.save({'w': np.full(50000, step)}, {}, step=step, epoch=0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, local.uri, generation], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: bool(steps(local)))
        process.send_signal(19)
        driver = Checkpoints(local)
        new = driver.begin_generation()
        resumed = driver.newest_intact(print)
        assert resumed is not None
        with writer_for(local, new) as writer:
            writer.save({"w": np.ones(3)}, {}, step=resumed.step + 1, epoch=0)
        before = steps(local)
        process.send_signal(18)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "has begun in the meantime" in log
    assert steps(local) == before
    assert newest(local)[0] == driver.committed()[0]


def wait_until(true: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_generations_begun_at_once_one_counts(local: Store) -> None:
    save_steps(local, [10])
    with ThreadPoolExecutor(2) as pool:
        a, b = sorted(pool.map(lambda _: Checkpoints(local).begin_generation(), range(2)))
    with writer_for(local, b) as writer:
        writer.save(tensors_at(20), {}, step=20, epoch=0)
    with pytest.raises(RunConflictError), writer_for(local, a) as writer:
        writer.save(tensors_at(30), {}, step=30, epoch=0)
    assert steps(local) == [20, 10]


# ── several ranks ──
def test_each_rank_writes_its_part(store: Store) -> None:
    generation = Checkpoints(store).begin_generation()
    barrier = threading.Barrier(3)

    def loop(rank: int) -> None:
        with writer_for(store, generation, rank, 3) as writer:
            for step in (10, 20):
                barrier.wait()
                writer.save(tensors_at(step + rank), {"rank": rank}, step=step, epoch=0)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(loop, range(3)))
    checkpoint, damages = newest(store)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.world_size, checkpoint.state, damages) == (20, 3, {"rank": 0}, [])
    for rank in range(3):
        assert same(Checkpoints(store).load(checkpoint, rank), tensors_at(20 + rank))
    with pytest.raises(CheckpointError, match="with 3 workers"):
        Checkpoints(store).load(checkpoint, 3)


def test_without_every_rank_nothing_is_committed(store: Store) -> None:
    generation = Checkpoints(store).begin_generation()
    with writer_for(store, generation, 1, 3) as writer:
        writer.save(tensors_at(1), {}, step=1, epoch=0)
    rank_0 = writer_for(store, generation, 0, 3, part_timeout_s=0.3)
    rank_0.save(tensors_at(1), {}, step=1, epoch=0)
    with pytest.raises(CheckpointError,
                       match=r"step 1 is not committed: rank 2 of 3 did not write its part within 0\.3 s"):
        rank_0.close()
    assert steps(store) == []
    assert newest(store)[0] is None


def test_a_rank_that_refuses_its_part_is_heard_at_once(local: Store) -> None:
    generation = Checkpoints(local).begin_generation()
    rank_0, rank_1 = writer_for(local, generation, 0, 2), writer_for(local, generation, 1, 2)
    rank_0.save({"w": np.ones(3)}, {}, step=1, epoch=0)
    rank_1.save({"w": np.full(3, np.nan)}, {}, step=1, epoch=0)
    with pytest.raises(NonFiniteStateError):
        rank_1.close()
    with pytest.raises(NonFiniteStateError, match="rank 1: checkpoint at step 1 is refused"):
        rank_0.close()


# ── in the loop ──
def test_the_loop_goes_on_while_a_checkpoint_is_in_flight_and_waits_with_the_next(local: Store) -> None:
    generation = Checkpoints(local).begin_generation()
    rank_0, rank_1 = writer_for(local, generation, 0, 2), writer_for(local, generation, 1, 2)
    rank_0.save(tensors_at(1), {}, step=1, epoch=0)
    assert rank_0.in_flight
    assert rank_0.committed_step is None
    late = threading.Timer(0.3, lambda: rank_1.save(tensors_at(1), {}, step=1, epoch=0))
    late.start()
    rank_0.save(tensors_at(2), {}, step=2, epoch=0)
    assert rank_0.committed_step == 1, "which the other rank's part has made it"
    late.join()
    rank_1.save(tensors_at(2), {}, step=2, epoch=0)
    rank_1.close()
    rank_0.close()
    assert not rank_0.in_flight
    assert steps(local) == [2, 1]


def test_a_checkpoint_is_written_where_priorities_may_not_be_raised_and_none_is(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers run at nice 15, mostly without CAP_SYS_NICE.
    A thread has the priority of the thread that starts it."""
    found: list[int] = []

    def refused(which: int, who: int, priority: int) -> None:
        found.append(priority - os.getpriority(which, who))
        raise PermissionError(errno.EACCES, "Permission denied")

    def at(nice: int) -> None:
        set_priority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        save_steps(local, [1, 2])

    set_priority = os.setpriority
    monkeypatch.setattr(os, "setpriority", refused)
    for nice, raised in ((15, []), (5, [5, 5])):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(at, nice).result(20)
        assert (found, set(steps(local))) == (raised, {1, 2})


def test_what_was_in_flight_is_committed_when_the_loop_fails(local: Store) -> None:
    with pytest.raises(ZeroDivisionError), writer_for(local, Checkpoints(local).begin_generation()) as writer:
        writer.save(tensors_at(1), {}, step=1, epoch=0)
        raise ZeroDivisionError
    assert steps(local) == [1]
