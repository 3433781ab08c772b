"""A worker's view of one generation: its share of the work, how fast it goes, what it is told."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core import storage
from cluster.core.errors import CheckpointError
from cluster.core.storage import Store, moved
from jobs.common.checkpoint.peer_memory import PeerMemory
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import Config, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.training import step_timer
from jobs.common.training.context import PeerLostError
from jobs.common.training.rendezvous import Assignment, Heartbeat, Rendezvous
from jobs.common.training.session import BEAT_S, Session
from jobs.common.training.step_timer import StepTimer
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(step_timer, "time", made)
    return made


def steps(pace: StepTimer, clock: Clock, seconds: list[float], rows: int = 10) -> None:
    for each in seconds:
        clock.now += each
        pace.step(rows)


def test_the_rate_leaves_out_the_first_20_steps(clock: Clock) -> None:
    pace = StepTimer()
    pace.start()
    steps(pace, clock, [5.0] * 20)
    assert pace.samples_per_s == 0.0
    steps(pace, clock, [0.5] * 4)
    assert pace.samples_per_s == pytest.approx(20.0)
    assert pace.median_s == 5.0


def test_steps_made_in_one_go_share_its_time_alike(clock: Clock) -> None:
    pace = StepTimer()
    pace.start()
    for _ in range(3):
        clock.now += 5.0
        pace.step(10, 10)
    assert (pace.count, pace.median_s) == (30, 0.5)
    assert pace.samples_per_s == pytest.approx(20.0), "of the last ten: the first twenty are left out"


def test_time_between_epochs_counts_for_no_step(clock: Clock) -> None:
    pace = StepTimer()
    pace.start()
    steps(pace, clock, [0.1] * 30)
    clock.now += 60
    pace.start()
    steps(pace, clock, [0.1] * 30)
    assert pace.samples_per_s == pytest.approx(100.0)
    assert max(pace.recent) == pytest.approx(0.1)


def test_a_pace_without_steps_is_zero() -> None:
    assert (StepTimer().median_s, StepTimer().samples_per_s) == (0.0, 0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(ImageDataConfig(), Store.open(str(tmp_path_factory.mktemp("data"))), use_ray=False)


Make = Callable[..., tuple[Rendezvous, list[Session]]]


@pytest.fixture
def make(dataset: Dataset, tmp_path: Path) -> Iterator[Make]:
    """Sessions of all ranks of one generation, with their rendezvous."""
    opened: list[Session] = []

    def group(world_size: int = 1, num_shards: int | None = None, **run: Any) -> tuple[Rendezvous, list[Session]]:
        config = from_dict(Config, {"run": {"checkpoint_every_steps": 8, **run}})
        rendezvous, store = Rendezvous(), Store.open(str(tmp_path))
        generation = Checkpoints(store.child("checkpoints")).begin_generation()
        assignments = {
            f"w{rank}": Assignment(generation=generation, rank=rank, world_size=world_size,
                                   num_shards=num_shards or world_size,
                                   checkpoint=None) for rank in range(world_size)
        }
        rendezvous.begin(assignments, {rank: f"w{rank}" for rank in range(world_size)})
        opened.extend(
            Session(config=config, run_store=store, dataset=dataset, assignment=assignments[f"w{rank}"],
                    rendezvous=rendezvous, slot=rank, worker=f"w{rank}", host="127.0.0.1", device="cpu",
                    config_fingerprint="f", memory=PeerMemory("127.0.0.1", rank)) for rank in range(world_size)
        )
        return rendezvous, opened

    yield group
    for session in opened:
        session.close(failed=True)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20 * BEAT_S + 5
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


def stepped(session: Session, step: int, loss: float = 1.0) -> None:
    session.progress.on_step_end(step=step, epoch=0, rows=60, loss=loss, skipped=0)


@pytest.mark.parametrize(("world_size", "num_shards"), [(1, 1), (2, 3), (3, 3), (2, 4)])
def test_every_row_is_evaluated_once_and_every_shard_has_one_owner(
    make: Make, dataset: Dataset, world_size: int, num_shards: int
) -> None:
    _, ranks = make(world_size, num_shards)
    for split in ("validation", "test"):
        rows = [row for session in ranks for row in session.local_range(split)]
        assert rows == list(range(dataset.splits[split].num_rows))
    owned = sorted(shard for session in ranks for shard in session.shards)
    assert owned == list(range(num_shards))


def test_a_stop_is_a_hint_that_arrives_with_a_beat(make: Make) -> None:
    rendezvous, (session,) = make()
    assert not session.peers.stop_wanted
    stepped(session, 1)
    rendezvous.request_stop()
    until(lambda: session.peers.stop_wanted)
    stepped(session, 2)  # which step to stop at, all ranks agree on


@pytest.mark.parametrize("how", ["break_up", "abort"])
def test_a_worker_that_is_told_to_leave_does_so_at_its_next_step(make: Make, how: str) -> None:
    rendezvous, (session,) = make()
    getattr(rendezvous, how)()

    def left() -> bool:
        try:
            session.heartbeat()
        except PeerLostError:
            return True
        return False

    until(left)
    with pytest.raises(PeerLostError):
        stepped(session, 5)
    assert session.progress.step == 5, "the step was done, and may have to be repeated"


def test_rank_0_broadcasts_its_value_to_all(make: Make) -> None:
    _, (first, second) = make(2)
    assert first.broadcast("port", lambda: 29500) == 29500
    assert second.broadcast("port", lambda: pytest.fail("only rank 0 makes it")) == 29500


def test_ranks_gather_a_value_of_each_and_keep_none_of_what_was_gathered_before(make: Make) -> None:
    rendezvous, ranks = make(3)
    found: dict[int, list[str]] = {}

    def gather(rank: int) -> None:
        for count in range(20):
            ranks[rank].all_gather(f"figures {count}", rank)
        found[rank] = ranks[rank].all_gather("address", f"host-{rank}")

    threads = [threading.Thread(target=gather, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {rank: ["host-0", "host-1", "host-2"] for rank in range(3)}
    assert {key.split("/")[0] for _, key in rendezvous._values} == {"address"}


def test_waiting_for_a_value_ends_when_the_generation_does(make: Make) -> None:
    rendezvous, ranks = make(2)
    rendezvous.break_up()
    with pytest.raises(PeerLostError, match="rank 0 did not share 'port'"):
        ranks[1].broadcast("port", lambda: None)


def test_only_rank_0_reports_and_asks_for_checkpoints(make: Make) -> None:
    rendezvous, (first, second) = make(2)
    for session in (first, second):
        session.progress.report("evaluation", step=6, validation_accuracy=0.5)
    assert [first.checkpoints.checkpoint_due(6), second.checkpoints.checkpoint_due(6)] == [True, False]
    reports: list[dict[str, Any]] = []
    until(lambda: reports.extend(rendezvous.poll().reports) or reports)
    time.sleep(2 * BEAT_S)
    reports += rendezvous.poll().reports
    assert reports == [{"kind": "evaluation", "step": 6, "validation_accuracy": 0.5}]


def test_beats_carry_the_latest_state_and_the_mean_loss_of_what_was_finite(make: Make) -> None:
    rendezvous, (session,) = make()
    session.update_status(total_steps=100)
    for step, loss in enumerate((2.0, float("nan"), 4.0), start=1):
        stepped(session, step, loss)
    session.heartbeat()
    session.close()
    beat = rendezvous.poll().heartbeats[0]
    assert (beat.step, beat.total_steps, beat.ticks) == (3, 100, 1)
    assert beat.loss is not None
    assert 2.0 <= beat.loss <= 4.0
    assert {"first_step"} <= set(beat.marks)


def test_a_status_that_no_heartbeat_has_is_a_mistake_of_who_gives_it(make: Make) -> None:
    _, (session,) = make(1)
    with pytest.raises(TypeError, match="temperature"):
        session.update_status(temperature=1.0)
    session.close()


def test_the_training_curve_says_no_speed_before_it_is_known_and_thins_out(make: Make) -> None:
    rendezvous, (session,) = make()
    rows: list[dict[str, Any]] = []
    for step in range(1, 400):
        stepped(session, step, loss=1.0)
        if step % 20 == 1 or step > 300:
            session._beat()
            rows += [row for row in rendezvous.poll().reports if row["kind"] == "progress"]
    assert rows[0]["step"] == 1 and "samples_per_s" not in rows[0]
    assert rows[-1]["samples_per_s"] > 0
    late = [row["step"] for row in rows if row["step"] > 300]
    assert min(np.diff(late)) >= 300 // 50
    assert all(row["train_loss"] == pytest.approx(1.0) for row in rows)


def test_the_last_losses_are_told_although_no_other_heartbeat_follows(make: Make) -> None:
    rendezvous, (session,) = make()
    stepped(session, 1, loss=2.0)
    session.close()
    assert [row["train_loss"] for row in rendezvous.poll().reports if row["kind"] == "progress"] == [2.0]


def test_the_rows_of_each_step_are_traced_by_shard(make: Make, tmp_path: Path) -> None:
    _, (session,) = make(trace_rows=True)
    session.data.trace(0, 3, {0: np.array([5, 7]), 2: np.array([1])})
    lines = (tmp_path / "logs/rows").glob("*-0.jsonl")
    text = next(iter(lines)).read_text()
    assert text == ('{"epoch": 0, "step": 3, "shard": 0, "rows": [5, 7]}\n'
                    '{"epoch": 0, "step": 3, "shard": 2, "rows": [1]}\n')


def test_a_checkpoint_is_saved_by_rank_0_and_read_by_all(make: Make, tmp_path: Path) -> None:
    _, (first, second) = make(2)
    weights = {"w": np.arange(5, dtype=np.float32)}
    for session in (first, second):
        session.checkpoints.save(lambda: weights, {"step": 4}, step=4, epoch=1, metric=0.5)
        session.checkpoints.wait_for_commit()
    for session in (first, second):
        np.testing.assert_array_equal(next(session.checkpoints.parts(session.checkpoints.best()))["w"], weights["w"])
    assert len(list(tmp_path.glob("checkpoints/manifests/*/*.json"))) == 1


def test_where_no_evaluated_checkpoint_is_intact_it_is_said_and_nobody_waits(make: Make, tmp_path: Path) -> None:
    _, (session,) = make(1)
    session.checkpoints.save(lambda: {"w": np.arange(6.0)}, {}, step=1, epoch=0, metric=0.5)
    session.checkpoints.wait_for_commit()
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError,
                       match=r"no checkpoint of an evaluation in .* is intact.* run the same command again"):
        session.checkpoints.best()


def test_what_was_reported_before_a_checkpoint_is_reported_again_by_who_goes_on_from_it(
    make: Make, dataset: Dataset, tmp_path: Path
) -> None:
    """A worker that is killed before its next beat has told nobody."""
    rendezvous, (session,) = make()
    session.progress.report("evaluation", step=3, epoch=1, validation_loss=float("inf"))
    session.checkpoints.save(lambda: {"model.w": np.zeros(2)}, {"mine": 1}, step=3, epoch=1)
    session.checkpoints.wait_for_commit()
    store = Checkpoints(Store.open(str(tmp_path)).child("checkpoints"))
    found = store.newest_intact(print)
    assert found is not None
    assignment = Assignment(generation=store.begin_generation(), rank=0, world_size=1, num_shards=1, checkpoint=found)
    rendezvous = Rendezvous()
    rendezvous.begin({"w0": assignment}, {0: "w0"})
    again = Session(config=session.config, run_store=session.run_store, dataset=dataset, assignment=assignment,
                    rendezvous=rendezvous, slot=0, worker="w0", host="127.0.0.1", device="cpu", config_fingerprint="f",
                    memory=PeerMemory("127.0.0.1", 0))
    again.close()
    assert rendezvous.poll().reports == [{"kind": "evaluation", "step": 3, "epoch": 1, "validation_loss": float("inf")}]
    assert again.checkpoints.resume_from is not None
    assert again.checkpoints.resume_from.state == {"mine": 1}


def test_waiting_for_slow_storage_is_no_hang(make: Make) -> None:
    rendezvous, (first, _) = make(2)
    with first.storage.waiting():
        until(lambda: rendezvous.poll().heartbeats.get(0, Heartbeat()).ticks > 2)
    rendezvous.break_up()
    with first.storage.waiting():  # as in `close`: a checkpoint in flight when a peer dies is finished
        first._left.set()
        until(lambda: first.peers.reply.leave)
        heard = rendezvous._heard[0]
        until(lambda: rendezvous.poll() and rendezvous._heard[0] > heard)


def test_waiting_for_storage_that_stands_still_is_a_hang_after_its_bound_and_one_that_moves_is_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendezvous, (session,) = make(storage_timeout_s=60.0, hang_timeout_s=1.0)
    monkeypatch.setattr(storage, "_moved_at", dict[int, float]())

    def ticks() -> int:
        until(lambda: rendezvous.poll().heartbeats)
        return rendezvous.poll().heartbeats[0].ticks

    def beats() -> None:
        session._beat()
        session._beat()

    with session.storage.waiting():
        session.storage._since = time.monotonic() - 100
        beats()
        began = ticks()
        beats()
        assert ticks() == began, "for 100 s nothing has been written or read"
        moved()
        beats()
        assert ticks() >= began + 2
        assert rendezvous.poll().heartbeats[0].storage_wait_s > 99
        assert rendezvous.poll().heartbeats[0].storage_still_s < 50
        rendezvous.request_stop()
        until(lambda: session.peers.stop_wanted)
        until(lambda: session.storage.seconds(session.checkpoints.writer.moved_at)[1] > 1.0)
        began = ticks()
        beats()
        assert ticks() == began, "who has asked for a stop waits for no more than a hang"
    beats()
    assert rendezvous.poll().heartbeats[0].storage_wait_s == 0


def test_what_ends_the_thread_that_beats_is_raised_in_the_loop(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (session,) = make()
    monkeypatch.setattr(session.checkpoints.schedule, "observe", lambda *_, **__: pytest.fail("as the test wants it"))
    until(session._beating.done)
    with pytest.raises(pytest.fail.Exception, match="as the test wants it"):
        stepped(session, 1)
    monkeypatch.undo()
