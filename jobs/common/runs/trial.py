"""One trial of a search: a run whose evaluations a search hears, and that rests where the search says.

With one worker it trains in this very process, with no worker group; with more it starts a group of Ray Train inside the placement
group of the Ray Tune trial that it is called in. The life cycle is a run's own: a trial's folder holds checkpoints like any other,
so a trial that is started again goes on where it was, and the job's command with the folder's `config.yaml` makes its artifact.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset
from jobs.common.execution.controller import End
from jobs.common.execution.executors import Executor
from jobs.common.execution.run_state import RunState
from jobs.common.runs.run import Run
from jobs.common.runs.run_folder import RunFolder
from jobs.common.training.job import Job

Report = Callable[[dict[str, Any]], object]


def run_trial(job: Job, config: Config, report: Report, *, until_epoch: int | None = None, stop: threading.Event | None = None,
              data_storage: Store | None = None) -> End:
    """Prepares the data and trains; may be called outside the main thread. Returns whether the run finished by itself, or was
    stopped: it rests, was told to, or its node is about to be taken away.

    report: is given each evaluation (`step`, `epoch`, `validation_accuracy`, …, `parameters`, `validation_ms_per_row`), first those
    that an earlier start has made; the trial stops after a checkpoint if it returns True, and without one if it raises.
    until_epoch: after so many epochs it rests, with a checkpoint; by default after the last. Test rows are never judged.
    stop: may be set by another thread, and stops it at its next step, after a checkpoint.
    data_storage: where prepared data is shared with others; by default `run.storage`. `run.tracking_uri` is left out of account:
    the search keeps the record. Raises: ConfigError for a number of workers that may change; what a run raises (TrainyardError).
    """
    run = config.run
    if run.min_workers != run.max_workers:
        raise ConfigError(f"--run.workers {run.workers}: a trial keeps the resources that it began with: pass --run.workers N")
    engine = "local" if run.max_workers == 1 else "ray"
    config = replace(config, run=replace(run, engine=engine, tracking_uri="none", spares=0))
    trial = _Trial(job, config, report, until_epoch or config.train.epochs, stop or threading.Event(), data_storage)
    trial.carry_out()
    return trial.end


class _Trial(Run):
    """A run that reports to a search where another one reports to the registry, and that ends with its last checkpoint."""

    def __init__(self, job: Job, config: Config, report: Report, until_epoch: int, stop: threading.Event,
                 data_storage: Store | None) -> None:
        super().__init__(job, config, data_storage=data_storage)
        self._report, self._until_epoch, self._stop = report, until_epoch, stop
        self.end: End = "stopped"

    def log(self, reports: list[dict[str, Any]]) -> None:
        """Passes evaluations on, as `Tracking.log` does."""
        for row in reports:
            if row["kind"] == "evaluation" and self._report({name: value for name, value in row.items() if name != "kind"}) is True:
                self._stop.set()

    def _heed_signals(self) -> None:
        """The process is not the trial's own: what a signal does is for its owner to say."""

    @contextmanager
    def _executor(self, folder: RunFolder) -> Generator[tuple[Executor, bool]]:
        run = self.config.run
        if run.max_workers == 1:
            with super()._executor(folder) as found:
                yield found
            return
        from cluster.capacity import Request
        from jobs.common.execution.ray_executor import RayExecutor, claim

        request = Request(num_workers=run.min_workers, cpus_per_worker=run.cpus_per_worker, gpus_per_worker=run.gpus_per_worker)
        yield RayExecutor(claim(folder.storage.location(), run.name), request, in_own_group=True), False

    def _train_and_finish(self, folder: RunFolder, dataset: Dataset, executor: Executor, use_ray: bool) -> int:
        self._training = True
        run_state = RunState.open(folder.store, folder.require)
        with folder.kept():
            try:
                self.log(run_state.history)
                if not self._stop.is_set():
                    self.end = self._train(folder, dataset, executor, run_state, self, use_ray)
            finally:
                run_state.save(ended=True)
        return 0
