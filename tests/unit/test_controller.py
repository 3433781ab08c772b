"""What the controller makes of what its executor and its workers meet: real rendezvous, sessions and checkpoints,
one worker."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from cluster.core.errors import ClusterError, StoppedError, StorageError, TrainingFailedError
from cluster.core.storage import Store
from jobs.common.checkpoint import writer
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import Config, from_dict, to_dict
from jobs.common.execution import hang_policy, preemption_policy
from jobs.common.execution.controller import Controller
from jobs.common.execution.executors import GroupLostError
from jobs.common.execution.generation_state import ControllerCallbacks, GenerationState
from jobs.common.execution.run_state import RunState
from jobs.common.execution.worker import Place, WorkerSpec, work
from jobs.common.training.rendezvous import Rendezvous, WorkerExit, WorkerInfo
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare

STEPS = 300


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs take less than a second."""
    monkeypatch.setattr(preemption_policy, "EVERY_S", 0.02)


class ThreadEngine:
    """Its worker is a thread; what is set on it happens to the run."""

    can_replace = True

    def __init__(self, rendezvous: Rendezvous) -> None:
        self.rendezvous = rendezvous
        self.starts = 0
        self.sizes: list[int] = []
        self.asked_for: list[int] = []
        self.granted: Callable[[], bool] = lambda: False
        self.room: Callable[[], int] = lambda: 1
        self.at_look: Callable[[], None] = lambda: None
        self.who_leaves: Callable[[], Literal["", "workers", "driver"]] = lambda: ""
        self._thread: threading.Thread | None = None

    def start(self, task: WorkerSpec, num_workers: int) -> None:
        self.starts += 1
        self.sizes.append(num_workers)
        place = Place(slot=0, host="127.0.0.1", node_id=None, device="cpu")
        self._thread = threading.Thread(target=work, args=(task, self.rendezvous, place))
        self._thread.start()

    def possible_workers(self) -> int:
        return self.room()

    @contextmanager
    def queued(self, num_workers: int) -> Generator[Callable[[], bool]]:
        self.asked_for.append(num_workers)
        yield self.granted

    def leaving(self, members: list[WorkerInfo]) -> Literal["", "workers", "driver"]:
        return self.who_leaves()

    def maintain(self) -> None:
        self.at_look()

    def ended(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def stacks(self, members: list[WorkerInfo]) -> dict[int, str]:
        return {}

    def kill(self, members: list[WorkerInfo]) -> None:
        self.rendezvous.abort()

    def starved(self, members: list[WorkerInfo]) -> str:
        return ""

    def end(self) -> None:
        if self._thread:
            self._thread.join(20)
            assert not self._thread.is_alive()

    def run(self, supervise: Callable[[], Any]) -> Any:
        return supervise()


class Case:
    """A run of one of `loops` under a controller."""

    def __init__(self, folder: Path, loop: str = "count", executor: Any = None, **run: Any) -> None:
        self.store = Store.open(str(folder / "run"))
        self.away_s = 0.0
        dataset = prepare(ImageDataConfig(), Store.open(str(folder)), use_ray=False)
        config = from_dict(Config, {"run": {"checkpoint_every_steps": 20, "wait": 0.0, **run},
                                    "train": {"max_steps": STEPS}})
        task = WorkerSpec(train=f"tests.unit.loops:{loop}", config_type="jobs.common.config:Config",
                          config=to_dict(config),
                          config_fingerprint="f", run_uri=self.store.location(), dataset_uri=dataset.store.location())
        self.executor = executor or ThreadEngine(Rendezvous(self.now))
        self.run_state, self.said = RunState.open(self.store), list[str]()
        self.alive: list[int] = []
        self.stuck: set[str] = set()
        self.stop_requested: Callable[[], bool] = lambda: False
        callbacks = ControllerCallbacks(on_update=self._listen, log=self.said.append,
                                        stop_requested=lambda: self.stop_requested())
        self.controller = Controller(run=config.run, executor=self.executor, spec=task, run_store=self.store,
                                     num_shards=1,
                                     run_state=self.run_state, callbacks=callbacks, now=self.now)

    def now(self) -> float:
        """What time it is for the controller and its rendezvous: `away_s` is how long their process has been paused."""
        return time.monotonic() + self.away_s

    def _listen(self, watch: GenerationState) -> None:
        self.alive.append(watch.alive)
        self.stuck.add(watch.stuck)

    def carry_out(self) -> str:
        self.controller.start(1)
        return self.executor.run(self.controller.supervise)

    @property
    def account(self) -> tuple[int, int, int]:
        """(highest step, lost steps, restarts)"""
        return self.run_state.highest_step, self.run_state.lost_steps, self.run_state.restarts

    def once_at(self, step: int, what: Callable[[], Any], otherwise: Any = None) -> Callable[[], Any]:
        """Does it at one call, after a step has been seen."""
        done = threading.Event()

        def now() -> Any:
            if done.is_set() or self.run_state.highest_step < step:
                return otherwise
            done.set()
            return what()

        return now


def test_workers_leave_a_node_that_is_about_to_go_and_lose_no_step(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.executor.who_leaves = case.once_at(20, lambda: "workers", otherwise="")
    assert case.carry_out() == "finished"
    assert case.executor.starts == 2
    assert case.account == (STEPS, 0, 0)
    assert any("about to be taken away" in line for line in case.said)


def test_a_worker_names_the_interface_of_its_nodes_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    assert Case(tmp_path).carry_out() == "finished"
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "=lo")


def test_a_run_stops_resumable_where_there_is_no_other_room(tmp_path: Path) -> None:
    case = Case(tmp_path, wait=0.3)
    case.executor.who_leaves = case.once_at(20, lambda: "workers", otherwise="")
    case.executor.room = lambda: 0
    with pytest.raises(StoppedError, match="1 worker is needed and the cluster has room for 0"):
        case.carry_out()
    last = Checkpoints(case.store.child("checkpoints")).newest_intact(pytest.fail)
    assert last is not None and 0 < last.step < STEPS
    assert case.account[1:] == (0, 0)
    assert case.alive[-1] == 0, "while it waits, whoever watches is told that nobody works"


def test_a_run_stops_with_a_checkpoint_when_its_drivers_node_is_about_to_go(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.executor.who_leaves = case.once_at(20, lambda: "driver", otherwise="")
    assert case.carry_out() == "stopped"
    last = Checkpoints(case.store.child("checkpoints")).newest_intact(pytest.fail)
    assert last is not None and last.step == case.run_state.highest_step < STEPS


def test_a_cluster_that_does_not_answer_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    def silent() -> Any:
        raise ClusterError("does not answer")

    case = Case(tmp_path)
    case.executor.who_leaves = case.once_at(1, silent, otherwise="")
    case.executor.room = silent
    assert case.carry_out() == "finished"
    assert case.account == (STEPS, 0, 0)


def test_a_group_that_is_lost_is_a_failure_and_is_started_again(tmp_path: Path) -> None:
    def lost() -> None:
        raise GroupLostError("the controller died")

    case = Case(tmp_path)
    case.executor.at_look = case.once_at(40, lost)
    assert case.carry_out() == "finished"
    assert (case.executor.starts, case.run_state.restarts) == (2, 1)
    assert 0 <= case.run_state.lost_steps <= 20


def test_lost_groups_are_limited_by_max_failures(tmp_path: Path) -> None:
    def lost() -> None:
        raise GroupLostError("the controller died")

    case = Case(tmp_path, max_failures=0)
    case.executor.at_look = case.once_at(40, lost)
    with pytest.raises(TrainingFailedError, match=r"the controller died, and --run\.max-failures 0 is spent"):
        case.carry_out()


def test_a_run_whose_hosts_are_lost_says_what_it_waits_for_and_stops_resumable(tmp_path: Path) -> None:
    def lost() -> None:
        raise GroupLostError("its host is gone") from ValueError("more of it")

    case = Case(tmp_path, wait=0.3)
    case.executor.at_look, case.executor.room = case.once_at(40, lost), lambda: 0
    with pytest.raises(StoppedError, match="1 worker is needed and the cluster has room for 0"):
        case.carry_out()
    assert case.said[-1] == "waiting up to 0.3 s for room for 1 worker"
    assert case.store.read_text(f"logs/errors/{case.controller._current.generation}-group.txt") == "more of it"


def test_a_cluster_is_asked_for_room_and_the_run_goes_on_when_it_has_added_some(tmp_path: Path) -> None:
    case = Case(tmp_path, wait=30)
    case.executor.who_leaves = case.once_at(20, lambda: "workers", otherwise="")
    case.executor.room = lambda: int(bool(case.executor.asked_for))
    assert case.carry_out() == "finished"
    assert case.executor.asked_for == [1]
    assert case.account == (STEPS, 0, 0)


@pytest.mark.parametrize(("room", "started"), [(2, 2), (1, 1)])
def test_a_spare_worker_takes_room_that_is_left_and_keeps_nobody_from_training(tmp_path: Path, room: int,
                                                                               started: int) -> None:
    """Of one worker and one spare, on a cluster that has lost a node."""
    case = Case(tmp_path, spares=1)
    case.executor.who_leaves = case.once_at(20, lambda: "workers", otherwise="")
    case.executor.room = lambda: room
    assert case.carry_out() == "finished"
    assert case.executor.sizes == [2, started]


def test_a_stop_ends_the_wait_for_room(tmp_path: Path) -> None:
    case = Case(tmp_path, wait=60)
    case.executor.who_leaves = case.once_at(20, lambda: "workers", otherwise="")
    case.executor.room = lambda: 0
    case.stop_requested = lambda: bool(case.executor.asked_for)
    with pytest.raises(StoppedError, match="stopped while it waited for room"):
        case.carry_out()


def test_what_a_worker_of_an_earlier_generation_met_does_not_end_the_run(tmp_path: Path) -> None:
    case = Case(tmp_path)
    first: list[str] = []

    def move() -> Literal["workers"]:
        first.extend(member.worker for member in case.controller._current.workers.values())
        return "workers"

    def complain() -> None:
        if case.executor.starts == 2 and first and case.controller._current.generation:
            case.executor.rendezvous.deregister(WorkerExit(slot=0, worker=first.pop(), outcome="error",
                                                           kind="RunConflictError"))

    case.executor.who_leaves, case.executor.at_look = case.once_at(20, move, otherwise=""), complain
    assert case.carry_out() == "finished"
    assert first == []


def test_a_worker_that_is_not_heard_of_is_named_once_with_its_host(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """It beats five times a second, and is looked at more often."""
    monkeypatch.setattr(hang_policy, "TOLD_AFTER_S", 0.0)
    case = Case(tmp_path)
    case.carry_out()
    told = [text for text in case.said if text.startswith("nothing has been heard of worker 0 on 127.0.0.1 for 0 s")]
    assert len(told) == 1
    assert told[0] in case.run_state.events[0]


# ── what hangs, and what ends without a word ──
def test_a_checkpoint_that_storage_never_takes_ends_the_run_resumable_and_is_told_of_before(tmp_path: Path) -> None:
    """Its thread is in a system call that does not return."""
    case = Case(tmp_path, "block", hang_timeout_s=2.0, storage_timeout_s=4.0)
    with pytest.raises(StorageError,
                       match=r"has neither taken nor given anything for \d s, and a checkpoint waits for it"):
        case.carry_out()
    told = [text for text in case.said if "has waited" in text]
    assert len(told) == 1
    assert told[0] in case.stuck
    assert told[0].startswith("rank 0 on 127.0.0.1 has waited 1 s for storage")
    assert told[0].endswith("after 4 s it is taken to hang (--run.storage-timeout-s)")
    let_go(tmp_path)


def test_a_stop_does_not_wait_for_storage_that_stands_still_longer_than_for_a_hang(tmp_path: Path) -> None:
    case = Case(tmp_path, "block", hang_timeout_s=2.0, storage_timeout_s=600.0)
    case.stop_requested = lambda: case.run_state.highest_step > 0
    with pytest.raises(StorageError, match="has neither taken nor given anything for 2 s"):
        case.carry_out()
    let_go(tmp_path)


def let_go(folder: Path) -> None:
    """Of the thread that `loops.block` leaves in a system call."""
    (pipe,) = (folder / "run/checkpoints/data").glob("*/*/*.safetensors")
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))


# the worker is a thread, and ends so
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_checkpoint_thread_that_dies_at_once_is_a_failure_with_its_error(tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise PermissionError("as the test wants it")

    monkeypatch.setattr(writer, "_lower_priority", die)
    case = Case(tmp_path, max_failures=1)
    with pytest.raises(TrainingFailedError,
                       match=r"PermissionError: as the test wants it\), and --run\.max-failures 1 is spent"):
        case.carry_out()
    assert case.executor.starts == 2
    assert case.said.count("worker 0 failed: PermissionError: as the test wants it") == 2


HANGS_HERE = """
import sys, threading
from pathlib import Path
from cluster.core.signals import on_stop_signal
from jobs.common.execution import executors as executor
from tests.unit.test_controller import Case

executor._LAST_S = 0.1
stop = threading.Event()
case = Case(Path(sys.argv[1]), "sleep", executor.InProcessExecutor(), hang_timeout_s=1.0)
case.stop_requested = stop.is_set
on_stop_signal(lambda name: stop.set())
case.carry_out()
"""


def test_a_worker_that_hangs_in_the_drivers_own_process_is_ended_by_a_signal(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGS_HERE, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        while not any((tmp_path / "run/logs/steps").glob("*-0")):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(1.5)
        assert process.poll() is None, "perhaps somebody looks at it in a debugger"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == StoppedError.exit_code
        assert process.stderr is not None
        assert "stopped without a last checkpoint: the worker has made no progress for 1 s" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
# ── a driver that was away ──
def pause(case: Case) -> None:
    case.away_s += 3600


@pytest.mark.parametrize("when", ["at_look", "who_leaves"])
def test_a_driver_that_was_paused_blames_no_worker(tmp_path: Path, when: str) -> None:
    """It wakes up before it has looked for hangs in this turn of its loop, and after it."""
    case = Case(tmp_path, max_failures=0)
    setattr(case.executor, when, case.once_at(40, lambda: pause(case) or "", otherwise=""))
    assert case.carry_out() == "finished"
    assert case.account == (STEPS, 0, 0)
    assert not [line for line in case.said if "hang" in line or "nothing has been heard" in line]


def test_a_driver_that_was_paused_while_workers_start_goes_on_waiting_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, looks, loaded, load = Case(tmp_path, max_failures=0), list[float](), threading.Event(), WorkerSpec.load

    def poll() -> None:
        looks.append(case.now())
        if len(looks) == 2:
            pause(case)
        elif len(looks) == 4:
            loaded.set()

    def late(task: WorkerSpec) -> Any:
        loaded.wait(20)
        return load(task)

    monkeypatch.setattr(WorkerSpec, "load", late)
    case.executor.at_look = poll
    assert case.carry_out() == "finished"
    assert case.account == (STEPS, 0, 0)


def test_a_driver_that_was_paused_while_it_waits_for_room_still_looks_for_it(tmp_path: Path) -> None:
    case = Case(tmp_path, wait=30)
    case.executor.who_leaves = case.once_at(20, lambda: "workers", otherwise="")
    rooms: list[int] = []

    def room() -> int:
        rooms.append(int(len(rooms) > 4))
        if len(rooms) == 4:
            pause(case)
        return rooms[-1]

    case.executor.room = room
    assert case.carry_out() == "finished"
    assert case.account == (STEPS, 0, 0)


def test_a_worker_that_hangs_is_found_by_the_time_that_the_driver_has_watched(tmp_path: Path) -> None:
    """Each turn of the driver's loop is as slow as a pause: a bound of 30 s is still reached, after as many turns."""
    case = Case(tmp_path, loop="hang", max_failures=0)
    killed: list[WorkerInfo] = []
    case.executor.at_look = lambda: setattr(case, "away_s", case.away_s + 120)
    kill = case.executor.kill
    case.executor.kill = lambda members: (killed.extend(members), kill(members))[1]  # type: ignore[method-assign]
    with pytest.raises(TrainingFailedError, match="is spent"):
        case.carry_out()
    assert [member.slot for member in killed][:1] == [0]
