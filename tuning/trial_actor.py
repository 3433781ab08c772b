"""The process of a trial under Ray Tune. It is used for one trial after the other, so a framework is imported once.

A thread carries the trial out; each call of `step` hands one event to the driver, as JSON in the result's field
`event`: {"row": …} an evaluation, {"failure": …} an error, {"ended": "finished"} the run has come to an end of its own,
{"ended": "stopped"} it rests, {"lost": …} no trial can go on, {} nothing yet: a call never lasts long,
so that one that stops the trial gets its turn.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false

import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ray.tune import Trainable

from cluster.core.background import in_background
from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, DataError, RunConflictError, StoppedError, StorageError, TrainyardError
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.runs.trial import run_trial
from jobs.common.training.find_job import find_job

EVENT = "event"
_TICK_S = 1.0
_LAST_ONE_S = 30.0
"""How long the process that had a trial before, under a driver that died, may take to be gone."""


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """What a trial's process is told: plain values, as Ray Tune's config of the trial."""

    number: int
    job: str
    """The job's name: see jobs/common/training/find_job.py."""
    config: JsonObject
    until_epoch: int
    data_uri: str
    """Where prepared data is shared."""


class TrialActor(Trainable):
    """See the module."""

    def setup(self, config: JsonObject) -> None:
        # Ray Tune has gone elsewhere, and relative paths of the config would too
        os.chdir(os.environ["TUNE_ORIG_WORKING_DIR"])
        self._begin(config)

    def step(self) -> dict[str, str]:
        if self._over:  # the driver wants it to be tried again
            self._begin(self._order)
        try:
            event = self._events.get(timeout=_TICK_S)
        except queue.Empty:
            if self._trial.done():
                self._trial.result()  # raises what ended it without an event; else there is one now
            event = {}
        self._over = bool(event) and "row" not in event
        return {EVENT: json.dumps(event)}

    def reset_config(self, new_config: JsonObject) -> bool:
        self._end()
        os.chdir(os.environ["TUNE_ORIG_WORKING_DIR"])
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end()

    def _begin(self, config: JsonObject) -> None:
        self._order = config
        self._events: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._stop, self._over = threading.Event(), False
        events, stop = self._events, self._stop
        self._trial = in_background("trial", lambda: _carry_out(TrialOrder(**config), events, stop))

    def _end(self) -> None:
        """Stops the trial at its next step, after a checkpoint."""
        self._stop.set()
        self._trial.exception()  # until it has ended


def _carry_out(order: TrialOrder, events: "queue.SimpleQueue[dict[str, object]]", stop: threading.Event) -> None:
    try:
        job = find_job(order.job)
        config = from_dict(job.config_type, order.config)
        storage = Store.open(order.data_uri)
        end = _alone(lambda: run_trial(job, config, lambda row: events.put({"row": row}), until_epoch=order.until_epoch,
                                       stop=stop,
                                       data_storage=storage))
        events.put({"ended": end})
    # of no trial's own making: the search stops, and goes on when that is mended
    except (StorageError, StoppedError) as error:
        events.put({"lost": f"{error}"})
    except (ConfigError, DataError) as error:
        events.put({"failure": str(error), "fatal": True})
    except TrainyardError as error:
        events.put({"failure": str(error)})
    except Exception as error:  # noqa: BLE001  (any error of a framework's, out of memory on a GPU: the search goes on)
        traceback.print_exc()
        events.put({"failure": f"{type(error).__name__}: {error}"})


def _alone(carry_out: Callable[[], str]) -> str:
    """Waits for another process that still holds the trial's run."""
    clock = LoopClock()
    deadline = clock.now + _LAST_ONE_S
    while True:
        try:
            return carry_out()
        except RunConflictError:
            if clock.look() > deadline:
                raise
            time.sleep(0.5)
