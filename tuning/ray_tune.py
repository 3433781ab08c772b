"""A search carried out by Ray Tune: what Ray asks its searcher, scheduler and stopper is answered by the search.

Ray Tune starts processes where there is room (a placement group each), uses them again, and starts those again that
died. What it would save of its own is not wanted: see journal.py.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false
# pyright: reportUnknownParameterType=false

import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypeVar

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from cluster.capacity import Request, possible_groups
from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import StoppedError, StorageError, TrainyardError
from tuning.journal import Trial
from tuning.search import Search
from tuning.trial_actor import EVENT, TrialActor, TrialOrder

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ROOM_EVERY_S = 2.0
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files of results for each trial, beside the journal
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has its own
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Watcher(Protocol):
    """Who hears of what happens, and may end the search."""

    def started(self, trial: Trial) -> None: ...
    def on_event(self, trial: Trial) -> None: ...
    def on_trial_slot_free(self, trial: Trial) -> None: ...
    def ends(self) -> bool:
        """Whether the search is to end now. Called a few times a second."""
        ...


@dataclass(kw_only=True)
class TrialRunner:
    """The trials that Ray carries out now."""

    search: Search
    order: Callable[[Trial, int], TrialOrder]
    request: Request
    watcher: Watcher
    max_concurrent: int | None
    lost: str | None = None
    """Why no trial can go on, such as storage that is gone."""
    error: TrainyardError | None = None
    """What the search itself met."""
    _until: dict[int, int] = field(default_factory=dict[int, int])
    _numbers: dict[str, int] = field(default_factory=dict[str, int])
    _room: tuple[float, int] = (-1e9, 0)

    @property
    def failed(self) -> bool:
        return self.lost is not None or self.error is not None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Ray Tune pickles what it is given, for a restore of its own: it gets nothing."""
        return object, ()

    def next_config(self, ray_id: str) -> dict[str, object] | None:
        """Ray Tune's config of a trial to start; None if none can start now."""
        if len(self.search.running) >= self._most():
            return None
        if (found := self.search.next()) is None:
            return None
        trial, until_epoch = found
        self._numbers[ray_id], self._until[trial.number] = trial.number, until_epoch
        self.watcher.started(trial)
        return asdict(self.order(trial, until_epoch))

    def goes_on(self, number: int, event: JsonObject) -> bool:
        """What a trial's process says, and whether it is to go on."""
        trial, goes_on = self.search.trials[number], True
        if not event:
            return True
        if "row" in event:
            goes_on = self.search.evaluated(number, event["row"]) == "continue"
        elif "failure" in event:
            goes_on = self.search.failed(number, event["failure"], fatal=event.get("fatal", False)) == "retry"
        elif "lost" in event:
            self.lost, goes_on = event["lost"], False
        elif trial.epoch >= self._until[number]:
            self.search.paused(number)
            goes_on = False
        elif event["ended"] == "finished":
            self.search.finished(number)
            goes_on = False
        else:
            goes_on = (self.search.failed(number,
                                          "it was stopped after a checkpoint: its node is to be taken away") == "retry")
        self.watcher.on_event(trial)
        return goes_on

    def guarded(self, call: Callable[[], T], otherwise: T) -> T:
        """What a call gives. An expected error ends the search: Ray Tune would make a stack trace of it."""
        try:
            return call()
        except (StorageError, StoppedError) as error:
            self.lost = self.lost or str(error)
        except TrainyardError as error:
            self.error = self.error or error
        return otherwise

    def died(self, number: int, why: str) -> None:
        """A trial's process is gone; Ray starts another one as often as it may."""
        if self.search.trials[number].status != "running":
            _log.warning("trial %d had ended when %s", number, why)
            return
        self.search.failed(number, why)
        self.watcher.on_event(self.search.trials[number])

    def on_trial_slot_free(self, ray_id: str) -> None:
        number = self._numbers.pop(ray_id)
        self.search.on_trial_slot_free(number)
        self.watcher.on_trial_slot_free(self.search.trials[number])

    def _most(self) -> int:
        """How many trials may run at a time. Measured while as many run as may: a process that has just landed one
        trial and waits for the next still holds its room, and would be counted as a stranger's."""
        now, running = time.monotonic(), len(self.search.running)
        if running >= self._room[1] and now - self._room[0] > _ROOM_EVERY_S:
            self._room = (now, max(1, possible_groups(self.request, held=running)))
        return min(self._room[1], self.max_concurrent or self._room[1])


def run_trials(runner: TrialRunner, *, max_failures: int, actor: type[tune.Trainable] = TrialActor) -> None:
    """Carries trials out until the search is over, the watcher ends it, or `runner.lost` says why it cannot go on.

    Needs a connected process. What had not ended goes on with the next call, or in another process. actor: a trial's
    process. Raises: what the search raises (TrainyardError).
    """
    os.environ.update(_SETTINGS)
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    request = runner.request
    bundles = [request.bundle] if request.num_workers == 1 else [{}, *[request.bundle] * request.num_workers]
    trainable = tune.with_resources(actor, tune.PlacementGroupFactory(bundles))
    with tempfile.TemporaryDirectory(prefix="trainyard-tune-") as folder:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(search_alg=_searcher(runner), scheduler=_scheduler(runner), num_samples=-1,
                                        reuse_actors=True,
                                        trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}"),
            run_config=tune.RunConfig(storage_path=folder, name="search", verbose=0, stop=_stopper(runner),
                                      failure_config=tune.FailureConfig(max_failures=max_failures),
                                      checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)),
        ).fit()
    if runner.error is not None:
        raise runner.error


def _searcher(runner: TrialRunner) -> Searcher:
    class Suggests(Searcher):
        def suggest(self, trial_id: str) -> dict[str, object] | str | None:
            if runner.search.over or runner.failed:
                return Searcher.FINISHED
            return runner.guarded(lambda: runner.next_config(trial_id), None)

        def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
            runner.guarded(lambda: runner.on_trial_slot_free(trial_id), None)

        def get_state(self) -> dict[str, object]:
            return {}

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return Suggests()


def _scheduler(runner: TrialRunner) -> TrialScheduler:
    class Asks(FIFOScheduler):
        def on_trial_result(self, tune_controller: object, trial: RayTrial, result: JsonObject) -> str:
            number, event = trial.config["number"], parse_json(result[EVENT])
            goes_on = runner.guarded(lambda: runner.goes_on(number, event), False)
            return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

        def on_trial_error(self, tune_controller: object, trial: RayTrial) -> None:
            runner.guarded(lambda: runner.died(trial.config["number"], "its process died" + _cause(trial)), None)

    return Asks()


def _stopper(runner: TrialRunner) -> Stopper:
    class Ends(Stopper):
        def __call__(self, trial_id: str, result: object) -> bool:
            return False

        def stop_all(self) -> bool:
            return runner.failed or runner.watcher.ends()

    return Ends()


def _cause(trial: RayTrial) -> str:
    error = trial.get_pickled_error()  # written by this very process
    return f" ({type(error).__name__})" if error is not None else ""
