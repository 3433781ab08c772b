"""What the controller's policies say is to be done: about failures, hangs, room, and nodes that are to go."""

from pathlib import Path
from typing import Any, Literal

import pytest

from cluster.core.errors import ClusterError, DivergedError, TrainingFailedError
from cluster.core.storage import Store
from jobs.common.config import RunConfig
from jobs.common.execution import hang_policy, preemption_policy, scaling_policy
from jobs.common.execution.executors import InProcessExecutor, ProcessExecutor
from jobs.common.execution.failure_policy import MAX_ROLLBACKS, FailurePolicy
from jobs.common.execution.generation_state import GenerationState
from jobs.common.execution.hang_policy import HangPolicy
from jobs.common.execution.phase import Phase
from jobs.common.execution.preemption_policy import PreemptionPolicy
from jobs.common.execution.run_state import RunState
from jobs.common.execution.scaling_policy import ScalingPolicy
from jobs.common.training.rendezvous import Heartbeat, View, WorkerExit, WorkerInfo


def member(slot: int, life: str = "a", **more: Any) -> WorkerInfo:
    return WorkerInfo(slot=slot, worker=f"{life}{slot}", pid=slot, started=0.0, node_id=None, host=f"10.0.0.{slot}",
                      **more)


def group(num_workers: int, **more: Any) -> GenerationState:
    workers = {rank: member(rank) for rank in range(num_workers)}
    return GenerationState(num_workers=num_workers, generation="g1", workers=workers, **more)


# ── failures ──
def failures(folder: Path, *, can_replace: bool = True, **run: Any) -> tuple[FailurePolicy, RunState]:
    store = Store.open(str(folder))
    run_state = RunState.open(store)
    return FailurePolicy(RunConfig(**run), run_state=run_state, store=store,
                         executor=ProcessExecutor(1) if can_replace else InProcessExecutor(), remedy=str), run_state


def test_failures_are_recovered_from_until_their_number_is_spent(tmp_path: Path) -> None:
    policy, run_state = failures(tmp_path, max_failures=1)
    first = policy.failed("worker 1 was lost")
    assert (first.says, first.error) == ("worker 1 was lost: recovering (failure 1 of 1)", None)
    second = policy.failed("worker 0 was lost")
    assert isinstance(second.error, TrainingFailedError)
    assert second.says == ""
    assert run_state.failures == 2


def test_any_number_of_failures_may_be_allowed(tmp_path: Path) -> None:
    policy, _ = failures(tmp_path, max_failures=-1)
    assert [policy.failed("x").error for _ in range(50)] == [None] * 50
    assert policy.failed("x").says == "x: recovering (failure 51 of any number)"


def error_of(kind: str) -> WorkerExit:
    return WorkerExit(slot=2, worker="a2", outcome="error", kind=kind, message="why", traceback="where")


@pytest.mark.parametrize(("can_replace", "generation", "ends"),
                         [(True, "g1", False), (True, "", True), (False, "g1", True)])
def test_a_workers_error_ends_the_run_where_another_worker_would_fail_alike(
    tmp_path: Path, can_replace: bool, generation: str, ends: bool
) -> None:
    policy, run_state = failures(tmp_path, can_replace=can_replace)
    verdict = policy.worker_failed(error_of("ValueError"), generation)
    assert verdict.says == "worker 2 failed: ValueError: why"
    assert isinstance(verdict.error, TrainingFailedError) == ends
    assert (tmp_path / f"logs/errors/{generation}-rank-2.txt").read_text() == "where"
    assert len(run_state.events) == 1


def test_a_workers_error_that_its_user_can_fix_is_raised_as_it_is(tmp_path: Path) -> None:
    policy, run_state = failures(tmp_path)
    verdict = policy.worker_failed(error_of("DivergedError"), "g1")
    assert isinstance(verdict.error, DivergedError)
    assert (str(verdict.error), verdict.says, run_state.events) == ("why", "", [])


def test_those_that_are_new_in_the_next_generation_were_lost(tmp_path: Path) -> None:
    policy, _ = failures(tmp_path)
    joined = {0: member(0, "b", last_step=7, why="connection reset"), 1: member(1, "b")}
    assert policy.generation_broke(joined, group(2)).says.startswith("worker 1 was lost: recovering")
    assert (tmp_path / "logs/errors/g1-rank-0-peer.txt").read_text() == "connection reset"
    survivors = {0: member(0, "b", last_step=7)}
    assert policy.generation_broke(survivors, group(2)).says.startswith("the workers lost each other: recovering")


def test_steps_that_are_not_finite_are_left_out_a_few_times_and_are_no_failure(tmp_path: Path) -> None:
    policy, run_state = failures(tmp_path, max_failures=0)
    for turn in range(MAX_ROLLBACKS):
        verdict = policy.generation_broke({0: member(0, last_step=9, bad_steps=(turn,))}, group(1))
        assert verdict.error is None
        assert verdict.says.startswith(f"loss or gradient not finite at steps [{turn}]")
    last = policy.generation_broke({0: member(0, last_step=9, bad_steps=(8, 9))}, group(1))
    assert "5 steps left out" in str(last.error)
    assert (run_state.failures, run_state.excluded_steps) == (0, (0, 1, 2, 8, 9))


def test_the_time_between_failures_is_known_or_seen(tmp_path: Path) -> None:
    known, _ = failures(tmp_path, mtbf_h=2.0)
    assert known.mean_time_between_s(3) == 2400, "three nodes, each failing every two hours"
    seen, run_state = failures(tmp_path)
    run_state._earlier_s, run_state.restarts = 3600.0, 2
    assert seen.mean_time_between_s(3) is None
    run_state.restarts = 3
    assert seen.mean_time_between_s(3) == pytest.approx(1200, abs=5), "what has been seen counts from three failures on"


def test_failures_that_needed_no_storage_let_checkpoints_be_rarer(tmp_path: Path) -> None:
    known, account = failures(tmp_path, mtbf_h=2.0)
    account.restarts, account.memory_resumes = 9, 9
    assert known.mean_time_between_s(3) == pytest.approx(10 * 2400), "one in ten may need it, of nine that did not"
    account.memory_resumes = 4
    assert known.mean_time_between_s(3) == pytest.approx(2400 / 0.6)


# ── hangs ──
def view(silence_s: dict[int, float], *, step: int = 0, storage: tuple[float, float] = (0.0, 0.0),
         registered: dict[int, WorkerInfo] | None = None) -> View:
    beat = Heartbeat(step=step, storage_wait_s=storage[0], storage_still_s=storage[1])
    return View(registered=registered or {}, heartbeats=dict.fromkeys(silence_s, beat), silence_s=silence_s, reports=[],
                exits=[])


TRAINS = Heartbeat(marks={"first_step": 1.0}, median_step_s=0.1)


def hangs(**run: Any) -> HangPolicy:
    policy = HangPolicy(RunConfig(hang_timeout_s=20.0, **run), can_replace=True, storage="/runs")
    policy.begin(100.0)
    return policy


def test_a_worker_that_is_silent_hangs_once() -> None:
    policy, current, seen = hangs(), group(2, heartbeat=TRAINS), view({0: 0.0, 1: 21.0}, step=1)
    policy.observe(seen, 105.0)
    assert list(policy.hung(current, seen, 106.0)) == [1]
    policy.ended({1: current.workers[1]}, 106.0)
    assert policy.hung(current, seen, 107.0) == {}


def test_without_progress_the_silent_ones_hang_or_all() -> None:
    policy, current, all_beat = hangs(), group(2, heartbeat=TRAINS), view({0: 0.0, 1: 0.0}, step=1)
    policy.observe(all_beat, 100.0)
    policy.observe(all_beat, 121.0)
    assert policy.hung(current, all_beat, 119.0) == {}
    assert list(policy.hung(current, all_beat, 121.0)) == [0, 1]
    assert list(policy.hung(current, view({0: 0.0, 1: hang_policy.SILENT_S + 1}, step=1), 121.0)) == [1]
    policy.observe(view({0: 0.0, 1: 0.0}, step=2), 121.0)
    assert policy.hung(current, all_beat, 122.0) == {}, "a step was made"


def test_a_long_step_and_the_first_one_have_more_time() -> None:
    policy, seen = hangs(), view({0: 0.0})
    policy.observe(seen, 100.0)
    assert policy.limit_s(group(1, heartbeat=Heartbeat(median_step_s=9.0))) == 90.0
    assert policy.hung(group(1), seen, 399.0) == {}
    assert list(policy.hung(group(1), seen, 401.0)) == [0]


def test_a_worker_that_does_not_come_back_hangs_and_those_that_did_do_not() -> None:
    policy, current = hangs(), group(3, heartbeat=TRAINS)
    seen = view({0: 30.0, 1: 30.0, 2: 1.0}, registered={0: member(0, "b")})
    assert list(policy.hung_before_return(current, seen)) == [1]


def test_silence_is_told_once_for_each() -> None:
    policy, current = hangs(), group(2)
    assert policy.silent(current, view({0: 9.0, 1: 0.0})) == ""
    assert policy.silent(current,
                         view({0: 11.0, 1: 0.0})).startswith("nothing has been heard of worker 0 on 10.0.0.0 for 10 s")
    assert policy.silent(current,
                         view({0: 12.0, 1: 11.0})).startswith("nothing has been heard of worker 1 on 10.0.0.1 for")
    assert policy.silent(current, view({0: 13.0, 1: 12.0})) == ""


def test_what_keeps_a_run_from_getting_on_is_said_from_half_of_the_bound_on() -> None:
    policy, current = hangs(storage_timeout_s=600.0), group(2, heartbeat=TRAINS)
    policy.observe(view({0: 0.0, 1: 0.0}), 100.0)
    assert policy.stuck(current, view({0: 0.0, 1: 0.0}), 109.0) == ""
    assert policy.stuck(current, view({0: 0.0, 1: 0.0}), 111.0).startswith("no worker has got on for 11 s: after 20 s")
    waits = policy.stuck(current, view({0: 0.0, 1: 0.0}, storage=(12.0, 7.0)), 101.0)
    assert waits.startswith("rank 0 on 10.0.0.0 has waited 12 s for storage /runs, which has stood still for 7 s")


# ── room ──
def scaling(room: int | None, **run: Any) -> ScalingPolicy:
    def possible() -> int:
        if room is None:
            raise ClusterError("it does not answer")
        return room

    return ScalingPolicy(RunConfig(**run), num_shards=8, spares=run.get("spares", 0), possible_workers=possible)


@pytest.mark.parametrize(("room", "run", "grows_to"), [
    (4, {"workers": "2:6"}, 4),
    (9, {"workers": "2:6"}, 6),
    (9, {"workers": "2:16"}, 8),  # no more than there are shards
    (4, {"workers": "2:6", "spares": 2}, None),
    (3, {"workers": "2:6"}, None),
    (9, {"workers": "3"}, None),
    (None, {"workers": "2:6"}, None),
])
def test_an_elastic_run_grows_where_there_is_room(room: int | None, run: dict[str, Any], grows_to: int | None) -> None:
    assert scaling(room, **run).growth(group(3), now=1.0) == grows_to


def test_room_is_asked_for_now_and_then() -> None:
    policy = scaling(4, workers="2:6")
    policy.pause(10.0)
    assert policy.growth(group(3), now=9.0) is None
    assert policy.growth(group(3), now=10.0) == 4
    assert policy.growth(group(3), now=11.0) is None
    assert policy.growth(group(3), now=10.0 + scaling_policy.ROOM_EVERY_S) == 4


def test_workers_that_have_no_room_any_more_are_not_waited_for() -> None:
    policy = scaling(2, workers="3", wait=5.0)
    assert policy.gives_up(group(3), since=0.0, now=1.0)
    assert not policy.gives_up(group(3), since=0.0, now=2.0), "it asks now and then"
    assert not policy.gives_up(GenerationState(num_workers=3), since=0.0, now=100.0), "they have never been there"
    assert policy.gives_up(GenerationState(num_workers=3), since=0.0, now=186.0)
    assert not scaling(4, workers="3").gives_up(group(3, spares=1), since=0.0, now=1.0)


@pytest.mark.parametrize(("room", "size"), [(9, (6, 2)), (7, (6, 1)), (4, (4, 0)), (1, (2, 0)), (None, (2, 2))])
def test_standby_workers_take_what_the_others_leave(room: int | None, size: tuple[int, int]) -> None:
    assert scaling(room, workers="2:6", spares=2).group(room) == size


# ── nodes that are to go ──
@pytest.mark.parametrize(("who", "phase", "says"), [
    ("workers", Phase.MOVING, "a node with workers is about to be taken away: checkpoint, then on without it"),
    ("driver", Phase.STOPPING, "this driver's node is about to be taken away: checkpoint, then stop"),
])
def test_a_node_that_is_to_go_is_left(who: Literal["workers", "driver"], phase: Phase, says: str) -> None:
    found = PreemptionPolicy().look(lambda: who, now=1.0)
    assert found is not None
    assert (found.phase, found.says) == (phase, says)


def test_it_is_asked_now_and_then_also_after_no_answer() -> None:
    def silent() -> Any:
        raise ClusterError("it does not answer")

    policy = PreemptionPolicy()
    assert policy.look(silent, now=1.0) is None
    assert policy.look(lambda: "driver", now=1.5) is None
    assert policy.look(lambda: "", now=1.0 + preemption_policy.EVERY_S) is None
    assert policy.look(lambda: "driver", now=1.0 + 2 * preemption_policy.EVERY_S) is not None


# ── who has which rank ──
def test_standby_workers_take_the_ranks_of_the_dead() -> None:
    current = group(3)
    joined = {0: member(0, "b"), 2: member(2, "b"), 5: member(5, "b"), 4: member(4, "b")}
    assert {rank: found.slot for rank, found in current.ranks_for(joined).items()} == {0: 0, 1: 4, 2: 2}
    first = GenerationState(num_workers=2).ranks_for({3: member(3), 1: member(1)})
    assert {rank: found.slot for rank, found in first.items()} == {0: 1, 1: 3}
