"""Where the time of a run went: every second has one cause."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.core.storage import Store
from jobs.common.checkpoint.writer import Timings
from jobs.common.execution import time_account
from jobs.common.execution.run_state import RunState
from jobs.common.execution.time_account import TimeAccount
from jobs.common.training.rendezvous import Heartbeat

Pass = Callable[[float], None]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Lets so many seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(time_account.time, "monotonic", lambda: now[0])

    def let(seconds: float) -> None:
        now[0] += seconds

    return let


def test_each_second_has_the_cause_that_ended_it(passes: Pass, tmp_path: Path) -> None:
    state = RunState.open(Store.open(str(tmp_path)))

    def look(seconds: float, step: int, beat: Heartbeat | None = None) -> None:
        passes(seconds)
        state.observe(beat, step, [], 2)

    written = Timings(step=60, bytes=1, blocking_s=0.5, snapshot_s=0.1, write_s=1.0, background_s=0.1)
    state.account.begin(3.0, 4.0)
    state.resume_from(0)
    look(5, 0)
    look(1, 1, Heartbeat())  # the first step ends the start
    look(10, 50, Heartbeat())
    look(2, 50, Heartbeat(phase="judging validation rows"))
    look(10, 90, Heartbeat(data_wait_s=1.5, checkpoint=written))
    look(1, 90, Heartbeat(data_wait_s=1.5, checkpoint=written))
    look(20, 90)
    state.account.hung()  # 21 s after the last step
    look(7, 90)
    state.failure("worker 1 hung")
    state.resume_from(60)
    look(2, 61, Heartbeat())
    look(3, 90, Heartbeat())  # those had been done before
    look(4, 100, Heartbeat())
    state.resume_from(100)  # one more worker, after a checkpoint
    look(6, 101, Heartbeat())
    look(1, 101, Heartbeat(phase="judging test rows"))
    passes(0.5)
    state.account.ended()
    passes(8)
    state.account.done(time_account.JUDGING)
    expected = {"starting": 9.0, "preparing data": 4.0, "steps that count": 22.0, "steps done again": 3.0,
                "waiting for data": 1.5, "waiting for checkpoints": 0.5, "evaluation": 3.0,
                "recovery from failures": 9.0, "hangs until noticed": 21.0, "changing workers": 6.0,
                "judging and exporting": 8.0, "report and end": 0.5}
    assert state.account.seconds() == expected
    assert sum(expected.values()) == 3 + 4 + 5 + 1 + 10 + 2 + 10 + 1 + 20 + 7 + 2 + 3 + 4 + 6 + 1 + 0.5 + 8
    trained = sum(expected.values()) - 3 - 4 - 8
    assert state.account.cost(1800.0) == {"workers": pytest.approx(trained), "lost": pytest.approx(3.0 + 9 + 21)}
    assert "cost" not in state.result("done", 0, 1)
    state.price = 1800.0
    assert state.result("done", 0, 1)["cost"]["lost"] == pytest.approx(33.0)


def test_an_account_goes_on_with_the_next_driver(passes: Pass, tmp_path: Path) -> None:
    first = RunState.open(Store.open(str(tmp_path)))
    first.resume_from(0)
    passes(4)
    first.observe(Heartbeat(), 9, [], 1)
    passes(2)
    first.observe(Heartbeat(), 9, [], 1)
    first.save()
    second = RunState.open(Store.open(str(tmp_path)))
    second.account.begin(1.0, 0.0)
    second.resume_from(8)
    passes(3)
    second.observe(Heartbeat(), 9, [], 1)
    assert second.account.seconds() == {"starting": 8.0, "preparing data": 0.0, "steps that count": 2.0}
    passes(1)
    second.observe(Heartbeat(), 12, [], 1)
    assert second.account.seconds()["steps that count"] == 3.0


def test_what_workers_count_is_taken_out_of_steps_alone(passes: Pass) -> None:
    account = TimeAccount()
    account.step(again=False)
    passes(1)
    account.look(Heartbeat(data_wait_s=5.0), 1)
    account.step(again=False)
    assert account.seconds() == {"starting": 0.0, "steps that count": 0.0, "waiting for data": 1.0}
