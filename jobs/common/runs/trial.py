"""One trial of a search: a run whose evaluations a search hears, and that rests where the search says.

With one worker it trains in this very process, with no worker group; with more it starts a group of Ray Train inside
the placement group of the Ray Tune trial that it is called in. The life cycle is a run's own: a trial's folder holds
checkpoints like any other, so a trial that is started again goes on where it was, and the job's command with the
folder's `config.yaml` makes its artifact.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.config import Config
from jobs.common.execution.controller import End
from jobs.common.runs.open_executor import open_executor_in_trial
from jobs.common.runs.run import OpenedRun, Run
from jobs.common.training.job import Job

Report = Callable[[JsonObject], object]


def run_trial(job: Job, config: Config, report: Report, *, until_epoch: int | None = None,
              stop: threading.Event | None = None,
              data_storage: Store | None = None) -> End:
    """Prepares the data and trains; may be called outside the main thread. Returns whether the run finished by itself,
    or was stopped: it rests, was told to, or its node is about to be taken away.

    report: is given each evaluation (`step`, `epoch`, `validation_accuracy`, …, `parameters`, `validation_ms_per_row`),
    first those that an earlier start has made; the trial stops after a checkpoint if it returns True, and without one
    if it raises. until_epoch: after so many epochs it rests, with a checkpoint; by default after the last. Test rows
    are never judged. stop: may be set by another thread, and stops it at its next step, after a checkpoint.
    data_storage: where prepared data is shared with others; by default `run.storage`. `run.tracking_uri` is left out of
    account: the search keeps the record.
    Raises: ConfigError for a number of workers that may change; what a run raises (TrainyardError).
    """
    run = config.run
    if run.min_workers != run.max_workers:
        raise ConfigError(f"--run.workers {run.workers}: a trial keeps the resources that it began with: pass "
                          "--run.workers N")
    engine = "local" if run.max_workers == 1 else "ray"
    config = replace(config, run=replace(run, engine=engine, tracking_uri="none", spares=0))
    stop = stop or threading.Event()

    def tell(reports: list[JsonObject]) -> None:
        for row in reports:
            values = {name: value for name, value in row.items() if name != "kind"}
            if row["kind"] == "evaluation" and report(values) is True:
                stop.set()

    trial = Run(job, config, data_storage=data_storage, stop=stop, until_epoch=until_epoch or config.train.epochs,
                open_executor=open_executor_in_trial)
    with trial.opened() as opened:
        return _train(trial, opened, stop, tell) if opened else "stopped"


def _train(trial: Run, opened: OpenedRun, stop: threading.Event, tell: Callable[[list[JsonObject]], None]) -> End:
    """Tells first what an earlier start has made. The trial ends with its last checkpoint: nothing is judged."""
    with opened.folder.kept():
        try:
            tell(opened.run_state.history)
            return "stopped" if stop.is_set() else trial.train(opened, tell)
        finally:
            opened.run_state.save(ended=True)
