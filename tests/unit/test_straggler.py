"""Who keeps the others waiting, by the time that each spends on a step without waiting."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import grpc
import pytest
from ray.core.generated import gcs_service_pb2 as pb
from ray.core.generated import gcs_service_pb2_grpc

from cluster.core.control_store import Gcs, JobInfo
from cluster.core.storage import Store
from cluster.monitoring import run_status as runs
from cluster.monitoring.run_status import RankTime, RunStatus, RunStatusPublisher, read_runs, run_problems
from cluster.monitoring.status import Status
from jobs.common.config import Config, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.execution import controller
from jobs.common.execution import straggler as stragglers
from jobs.common.execution.controller import Controller
from jobs.common.execution.generation_state import ControllerCallbacks
from jobs.common.execution.run_state import RunState
from jobs.common.execution.straggler import HOLD_S, Straggler, StragglerWatch, straggler
from jobs.common.execution.worker import Place, WorkerSpec, work
from jobs.common.training import step_timer
from jobs.common.training.rendezvous import Rendezvous, WorkerInfo
from jobs.common.training.session import Session
from jobs.common.training.step_timer import StepTimer
from tests.clock import Clock
from tests.unit.test_status import HEAD, shown


def times(*busy_s: float, passes: tuple[int, ...] = ()) -> list[RankTime]:
    return [RankTime(rank=rank, host=f"10.0.0.{rank}", node_id=None, busy_s=each, passes=passes[rank] if passes else 1)
            for rank, each in enumerate(busy_s)]


@pytest.mark.parametrize(("found", "step_s", "slow"), [
    (times(0.1, 0.1, 0.2), 0.21, 2),
    (times(0.1, 0.2), 0.21, 1),
    (times(0.1, 0.12, 0.11), 0.2, None),  # a fifth slower is within what machines differ by
    (times(0.001, 0.002), 1.0, None),  # twice as slow at what hardly counts: the network is what takes long
    (times(0.1, 0.2, passes=(1, 2)), 0.21, None),  # twice the shards
    (times(0.1, 0.4, passes=(1, 2)), 0.41, 1),
    (times(0.1), 0.1, None),
    ([], 0.0, None),
])
def test_the_slow_one_is_named(found: list[RankTime], step_s: float, slow: int | None) -> None:
    named = straggler(found, step_s)
    assert (named and named.slow.rank) == slow


def test_what_is_so_for_a_while_is_said_once() -> None:
    watch, slow, fast = StragglerWatch(), dict(enumerate(times(0.1, 0.3))), dict(enumerate(times(0.1, 0.1)))
    assert watch.hear(slow, 0.3, now=0.0) is None
    assert watch.hear(fast, 0.1, now=HOLD_S / 2) is None
    assert watch.hear(slow, 0.3, now=HOLD_S) is None, "it begins anew"
    assert watch.present is None
    said = watch.hear(slow, 0.3, now=2.1 * HOLD_S)
    assert said is not None
    assert said.startswith("rank 1 on 10.0.0.1 computes 0.3 s a step, where the others take 0.1 s and wait for it")
    assert watch.hear(slow, 0.3, now=3 * HOLD_S) is None
    assert watch.present is not None
    assert watch.hear(fast, 0.1, now=4 * HOLD_S) is None
    assert watch.present is None, "status says how it is now"


def test_time_spent_waiting_is_not_a_ranks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace = Clock(), StepTimer()
    monkeypatch.setattr(step_timer, "time", clock)
    pace.start()
    pace.step(10)
    assert pace.busy_s == 0.0, "the first step tells nothing"
    clock.now += 0.25
    pace.waited(0.125)
    pace.step(10)
    assert (pace.busy_s, pace.recent[-1]) == (0.125, 0.25)
    pace.waited(100.0)
    pace.start()
    clock.now += 0.5
    pace.step(10)
    assert pace.busy[-1] == 0.5, "what was waited before does not count"


def run_status(straggler: int | None) -> RunStatus:
    ranks = tuple(RankTime(rank=rank, host="10.0.0.7", node_id=HEAD.node_id if rank else None, busy_s=busy)
                  for rank, busy in enumerate((0.11, 0.12, 0.43)))
    return RunStatus(name="night[1]", job="mlp", storage="/runs", phase="", step=40, total_steps=100, step_s=0.45,
                     goodput=0.931,
                     restarts=2, ranks=ranks, straggler=straggler)


def test_status_shows_runs_and_names_the_straggler() -> None:
    problems = run_problems([run_status(2)], [HEAD])
    assert problems == ["run night[1]: rank 2 on node head[1] (10.0.0.7) computes 0.43 s a step, the others 0.12 s, "
                        "and wait for it: look at what else runs on that node, or drain it"]
    assert run_problems([run_status(None)], [HEAD]) == []
    seen = shown(Status(address="127.0.0.1:1", dashboard_url="", versions={"ray": "2", "python": "3"}, nodes=[HEAD],
                        jobs=[],
                        problems=problems, runs=(run_status(2),)))
    for text in ("training runs", "night[1]", "40 of 100", "0.11 to 0.43", "93%", problems[0]):
        assert text in seen


def test_a_run_that_does_not_get_on_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = replace(run_status(None), stuck="no worker has got on for 20 s")
    assert run_problems([stuck], [HEAD]) == ["run night[1]: no worker has got on for 20 s"]
    publisher = RunStatusPublisher("127.0.0.1:1", "0a")
    publisher.publish(lambda: stuck)
    assert publisher._present() == stuck
    monkeypatch.setattr(runs, "_SILENT_S", 0.0)
    silent = publisher._present()
    assert silent is not None
    assert silent.stuck.startswith("its driver has not looked at its workers for 0 s")
    publisher.close()


def test_a_run_status_is_read_as_it_was_written() -> None:
    assert RunStatus.parse(json.dumps(asdict(run_status(1))).encode()) == run_status(1)


def test_a_runs_status_comes_and_goes_with_its_driver() -> None:
    """Against a control store that keeps values, and nothing else."""
    running = JobInfo(job_id="0a", submission_id="", entrypoint="", ip="", started=0.0, running=True)
    ended = JobInfo(job_id="0b", submission_id="", entrypoint="", ip="", started=0.0, running=False)
    with values_kept() as (address, values):
        gcs, publisher = Gcs(address), RunStatusPublisher(address, "0a")
        publisher.publish(lambda: run_status(2))
        until(lambda: values)
        values[b"run/0b"] = values[b"run/0a"]  # as a killed driver leaves it
        assert read_runs(gcs, [running, ended]) == [run_status(2)]
        publisher.close()
        assert set(values) == {b"run/0b"}
        assert read_runs(gcs, [running]) == []


def test_a_run_status_is_made_every_second_and_no_oftener(monkeypatch: pytest.MonkeyPatch) -> None:
    told, publisher = [], RunStatusPublisher("127.0.0.1:1", "0a")
    for now in (100.0, 100.1, 100.4, 101.0, 101.1):
        monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda now=now: now))
        publisher.publish(lambda now=now: (told.append(now), run_status(2))[1])
    publisher.close()
    assert told == [100.0, 101.0]


def test_a_publisher_bears_a_control_store_that_is_gone() -> None:
    publisher = RunStatusPublisher("127.0.0.1:1", "0a")
    publisher.publish(lambda: run_status(None))
    publisher.close()


@contextmanager
def values_kept() -> Iterator[tuple[str, dict[bytes, bytes]]]:
    values: dict[bytes, bytes] = {}

    class Keeper(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
        def InternalKVPut(self, request: Any, context: Any) -> Any:  # noqa: N802
            assert (request.namespace, request.overwrite) == (b"trainyard", True)
            values[request.key] = request.value
            return pb.InternalKVPutReply()

        def InternalKVGet(self, request: Any, context: Any) -> Any:  # noqa: N802
            return pb.InternalKVGetReply(value=values.get(request.key, b""))

        def InternalKVDel(self, request: Any, context: Any) -> Any:  # noqa: N802
            values.pop(request.key, None)
            return pb.InternalKVDelReply()

    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Keeper(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", values
    finally:
        server.stop(None).wait()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ── the driver ──
class Threads:
    """An engine whose workers are threads, each on a host of its own."""

    can_replace = True

    def __init__(self, count: int) -> None:
        self.rendezvous, self._count = Rendezvous(), count
        self._threads: list[threading.Thread] = []

    def start(self, task: WorkerSpec, num_workers: int) -> None:
        places = [Place(slot=n, host=f"127.0.0.{n + 1}", node_id=None, device="cpu") for n in range(num_workers)]
        self._threads = [threading.Thread(target=work, args=(task, self.rendezvous, place)) for place in places]
        for thread in self._threads:
            thread.start()

    def possible_workers(self) -> int:
        return self._count

    def leaving(self, members: list[WorkerInfo]) -> Literal["", "workers", "driver"]:
        return ""

    def maintain(self) -> None:
        pass

    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def stacks(self, members: list[WorkerInfo]) -> dict[int, str]:
        return {}

    def kill(self, members: list[WorkerInfo]) -> None:
        self.rendezvous.abort()

    def starved(self, members: list[WorkerInfo]) -> str:
        return ""

    def end(self) -> None:
        for thread in self._threads:
            thread.join(20)

    def run(self, supervise: Callable[[], Any]) -> Any:
        return supervise()


def test_the_driver_names_a_slow_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stragglers, "HOLD_S", 0.05)
    monkeypatch.setattr(controller, "_PACING_EVERY_S", 0.02)
    barrier = threading.Barrier(3)

    def train(session: Session, _: Any) -> str:
        own_s = 0.03 if session.rank == 1 else 0.01
        session.progress.pace.start()
        for step in range(1, 41):
            time.sleep(own_s)
            barrier.wait()
            pace = session.progress.pace
            pace.waited(pace.since_last_s - own_s)  # what a busy machine adds is no rank's own
            session.progress.on_step_end(step=step, epoch=0, rows=1, loss=1.0, skipped=0)
        return "finished"

    config = from_dict(Config, {"run": {"workers": "3"}, "train": {"global_batch_size": 60}})
    monkeypatch.setattr(WorkerSpec, "load", lambda _: (train, config))
    monkeypatch.setattr(Dataset, "load", lambda _: None)
    monkeypatch.setattr("jobs.common.execution.worker.set_collective_interface", lambda _: None)
    store = Store.open(str(tmp_path))
    task = WorkerSpec(train="", config_type="", config={}, run_uri=str(tmp_path), config_fingerprint="f",
                      dataset_uri=str(tmp_path))
    run_state, heard = RunState.open(store), list[Straggler | None]()
    callbacks = ControllerCallbacks(on_update=lambda now: heard.append(now.pacing.present), log=print,
                                    stop_requested=lambda: False)
    run = Controller(run=config.run, executor=Threads(3), spec=task, run_store=store, num_shards=3, run_state=run_state,
                     callbacks=callbacks)
    run.start(3)
    assert run.supervise() == "finished"
    [said] = [event for event in run_state.events if "computes" in event]
    assert re.search(r"rank 1 on 127\.0\.0\.2 computes 0\.\d+ s a step", said)
    assert {found.slow.rank for found in heard if found} == {1}
