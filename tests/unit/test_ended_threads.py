"""What ends the thread of a trial, or that of Ray Train, is told to whoever carries the trial or the run."""

import sys
from typing import Any

import pytest

from cluster.capacity import Request
from jobs.common.execution.executors import GroupLostError
from jobs.common.execution.ray_executor import RayExecutor
from jobs.common.execution.worker import WorkerSpec
from jobs.common.training.rendezvous import Rendezvous
from tuning import trial_actor
from tuning.trial_actor import TrialActor


class OwnRendezvous(Rendezvous):
    """In place of the actor."""

    actor = None


def test_what_ends_the_thread_that_carries_ray_train_is_a_lost_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    engine: Any = RayExecutor(OwnRendezvous(),
                              Request(num_workers=1, cpus_per_worker=1, gpus_per_worker=0))  # type: ignore[arg-type]
    engine.start(WorkerSpec(train="", config_type="", config={}, config_fingerprint="", run_uri="/x", dataset_uri=""),
                 1)
    engine._fitting.exception(20)
    assert engine.ended()
    with pytest.raises(GroupLostError, match=r"Ray Train gave the workers up: import of ray\.train halted"):
        engine.maintain()
    engine.maintain()  # it is told once
    assert engine.ended()


def test_what_ends_a_trials_thread_without_an_event_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(name: str) -> None:
        raise SystemExit("as the test wants it")

    monkeypatch.setattr(trial_actor, "find_job", end)
    trial = TrialActor.__new__(TrialActor)
    trial._begin({"number": 1, "job": "m:job", "config": {}, "until_epoch": 1, "data_uri": "/x"})
    with pytest.raises(SystemExit, match="as the test wants it"):
        trial.step()
    trial._end()
