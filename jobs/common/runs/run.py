"""The life of a run, from the command line to the exit code; every job's `__main__` calls `main`.

parse → find the run → connect → preflight → prepare data → train → evaluate → artifact → register → summary.
Exit codes: 0 done · 1 training failed · 2 the user can fix it, nothing was written · 3 stopped, resumable.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, FolderGoneError, RunConflictError, StoppedError, TrainyardError, UserError
from cluster.core.network import spare_loopback
from cluster.core.signals import Told, on_stop_signal, say
from cluster.core.storage import Store
from cluster.preflight import versions
from jobs.common import config as configs
from jobs.common.command_line import flatten
from jobs.common.config import Config
from jobs.common.config_changes import decisive_fingerprint
from jobs.common.data.commits import at_commits
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.declared_metrics import headlines
from jobs.common.execution.controller import Controller, End
from jobs.common.execution.executors import Executor
from jobs.common.execution.failure_policy import resumable
from jobs.common.execution.generation_state import ControllerCallbacks, GenerationState
from jobs.common.execution.run_state import RunState
from jobs.common.execution.worker import WorkerSpec
from jobs.common.registry.mlflow_client import check_answers, tracking_address
from jobs.common.runs.check_data import check_data, check_steps
from jobs.common.runs.console import RunConsole, fail
from jobs.common.runs.data_page import show_data
from jobs.common.runs.event_file import event_file
from jobs.common.runs.live_status import publisher_of_job, status_of
from jobs.common.runs.open_executor import OpenExecutor, open_executor
from jobs.common.runs.origin import Extension, at_extension, at_origin, is_recorded, noted
from jobs.common.runs.prometheus import RunMetrics
from jobs.common.runs.rejections import refuse_again, remember
from jobs.common.runs.run_folder import RunFolder
from jobs.common.runs.timeline import Timeline
from jobs.common.training.find_job import check_name
from jobs.common.training.job import Job, require_any_workers
from jobs.common.training.optim_config import warmup_warning
from jobs.common.training.rendezvous import Heartbeat


def main(job: Job, arguments: list[str] | None = None) -> int:
    """Carries out a command line. Returns the exit code; prints one message for an expected error."""
    import sys

    config: Config | None = None
    spare_loopback()
    try:
        check_name(job)
        given = sys.argv[1:] if arguments is None else arguments
        config = configs.parse(job.config_type, given, f"python -m {job.package}")
        refuse_again(config.run)
        return check_data(job, config) if config.data.check else Run(
            job, config, timeline=Timeline.of_process()).carry_out()
    except TrainyardError as error:
        fail(str(error))
        if config:
            remember(config.run, error)
        if config and config.run.resume == "never" and not isinstance(error, UserError):
            fail("to go on with this attempt leave out --run.resume never: with it, another one begins")
        return error.exit_code


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """What training needs: the run's folder, locked; its data; who starts its workers; and its account so far."""

    folder: RunFolder
    dataset: Dataset
    executor: Executor
    use_ray: bool
    run_state: RunState


class Run:
    """One command line's way through a run's life."""

    def __init__(self, job: Job, config: Config, *, data_storage: Store | None = None,
                 stop: threading.Event | None = None, until_epoch: int | None = None,
                 open_executor: OpenExecutor = open_executor, timeline: Timeline | None = None) -> None:
        """data_storage: where prepared data is shared; by default the run's own storage. stop: where given, it alone
        asks the run to stop, and signals are left to whoever gives it. until_epoch: after that many epochs training
        rests, with a checkpoint. open_executor: connects to who starts the workers. timeline: by default it begins
        now.
        """
        self.job, self.config, self._data_storage = job, config, data_storage
        self.display, self.timeline = RunConsole(), timeline or Timeline.of_call()
        self.timeline.mark("imported")
        self._owns_signals, self._stop, self._training = stop is None, stop or Told(), False
        self._first_marks: dict[str, float] = {}
        self._found_out: JsonObject = {}
        self._extension: Extension | None = None
        self._until_epoch, self._open_executor = until_epoch, open_executor

    def carry_out(self) -> int:
        """Trains, evaluates, and leaves artifact, record and result. Returns the exit code. Raises: TrainyardError."""
        began = False
        try:
            with self.opened() as opened:
                if opened:
                    began = True
                    self._train_and_finish(opened)
        finally:
            if began:
                from jobs.common.runs.index_page import keep_index  # slow to import, and not needed before

                keep_index(self.config.run, self.display.say)
        return 0

    @contextmanager
    def opened(self) -> Generator[OpenedRun | None]:
        """Gives the run, ready to train, and locked meanwhile. None: it is done already, and has said so.

        Raises: TrainyardError.
        """
        self._heed_signals()
        folder = RunFolder.find(self.config)
        if self._is_done(folder) and is_recorded(self.config, folder.record):
            self._say_done(folder)
            yield None
            return
        require_any_workers(self.job, self.config)
        self.job.check(self.config)
        if self.config.run.trace_rows and not folder.storage.is_local:
            raise ConfigError("--run.trace-rows writes line by line: it needs a --run.storage on a file system")
        check_answers(tracking_address(self.config.run.tracking_uri, folder.storage))
        self.config, commits = at_commits(self.config, folder.commits, self.display.say)
        self.config, origins = at_origin(self.job.name, self.config, folder.storage)
        self._found_out = {"commits": commits, **noted(origins)}
        self._find()  # raises if it is to begin with other weights than it began with
        opening = self._open_executor(self.config.run, self.job.preload, folder, self.timeline, self.display.say)
        with opening as (executor, use_ray), folder.locked():
            self._heed_signals()  # again: `ray.init` has taken them
            folder = self._find()  # as it is now that nobody else is at it
            if self._is_done(folder):
                self._say_done(folder)
                yield None
                return
            dataset = self._data(folder, use_ray)
            folder, said = self._create(folder, dataset)
            run_state = RunState.open(folder.store, folder.require)
            for text in said:
                self.display.say(text)
                run_state.event(text)
            self._training = True
            yield OpenedRun(folder=folder, dataset=dataset, executor=executor, use_ray=use_ray, run_state=run_state)

    # ── before training ──
    def _heed_signals(self) -> None:
        """SIGTERM and Ctrl-C ask for a checkpoint at the next step boundary; a third Ctrl-C ends at once.

        Before training begins there is nothing to keep: whatever goes on then is given up.
        """
        if not self._owns_signals:
            return

        def asked(name: str) -> None:
            self._stop.set()
            if not self._training:
                raise StoppedError(f"{name} before training had begun: run the same command again")
            say(f"{name}: stopping at the next step, after a checkpoint")

        on_stop_signal(asked)

    def _find(self) -> RunFolder:
        """The run's folder, after the config knows what the run extends."""
        folder = RunFolder.find(self.config)
        self.config, self._extension = at_extension(self.config, folder)
        return folder

    def _data(self, folder: RunFolder, use_ray: bool) -> Dataset:
        dataset = self.job.prepare(self.config, self._data_storage or folder.storage, use_ray=use_ray,
                                   say=self.display.say)
        self.display.say("\n".join(lines_of(dataset)))
        self.timeline.mark("data")
        check_steps(self.config, dataset)
        recorded = folder.record.get("data", {}).get("fingerprint")
        if recorded and not dataset.has(recorded):
            raise ConfigError(f"the data of run {self.config.run.name!r} has changed since it began ({recorded[:12]} "
                              f"-> {dataset.fingerprint[:12]}): put the old data back, or begin another run with "
                              "--run.name")
        return dataset

    def _create(self, folder: RunFolder, dataset: Dataset) -> tuple[RunFolder, list[str]]:
        """The folder of the run that goes on or begins, and what is to be said of that."""
        if folder.record:
            return folder, folder.go_on(self.config)
        lines = "\n".join(f"  {key}: {value}" for key, value in flatten(configs.to_dict(self.config)).items())
        self.display.say(f"config:\n{lines}")
        if warning := warmup_warning(self.config, dataset.splits["train"].num_rows):
            self.display.say(warning)
        shards, said, found = self.config.run.shards, list[str](), self._found_out
        if extension := self._extension:
            shards, said = extension.copy_to(folder.store, self.config, dataset)
            found = found | noted(extension.origins)
        return folder.create(self.config, shards, dataset.describe(), job=self.job.name, **found), said

    # ── training ──
    def _train_and_finish(self, opened: OpenedRun) -> None:
        from jobs.common.runs.tracking import Tracking

        folder, run_state = opened.folder, opened.run_state
        tracking = Tracking.open(self.job.name, self.config, folder)
        try:
            with folder.kept():
                show_data(self.job, self.config, folder.store, opened.dataset, self.display.say)
                self.timeline.mark("data_page")
                run_state.price = self.config.run.price
                run_state.account.begin(*self.timeline.before_training())
                if self.train(opened, tracking.log) == "stopped":
                    raise StoppedError("stopped after a checkpoint: run the same command again to continue")
                from jobs.common.runs.finalize import finish  # slow to import, and not needed before

                summary = finish(self.job, self.config, folder, opened.dataset, run_state, tracking,
                                 self.timeline.parts(self._first_marks))
        except Exception as error:
            ending = resumable(error)
            self._record_end(folder, run_state, ending)
            tracking.finish("stopped" if isinstance(ending, StoppedError) else "failed")
            if ending is error:
                raise
            raise ending from error
        if problem := tracking.finish("done"):
            print(f"registry: {problem}")
        print(summary, flush=True)

    def train(self, opened: OpenedRun, report: Callable[[list[JsonObject]], object]) -> End:
        """Trains until the run is finished or stopped. report: is given the new rows of the history as they come."""
        folder, executor, run_state, use_ray = opened.folder, opened.executor, opened.run_state, opened.use_ray
        metrics = RunMetrics(self.job.name, self.config.run.name, folder.store) if use_ray else None
        publisher = publisher_of_job() if use_ray else None
        config = configs.to_dict(self.config)
        spec = WorkerSpec(train=self.job.train, config_type=self.job.config_path, config=config,
                          run_uri=folder.store.location(), config_fingerprint=decisive_fingerprint(self.config),
                          dataset_uri=opened.dataset.store.location(), until_epoch=self._until_epoch,
                          versions=versions() if use_ray else None)

        def on_update(current: GenerationState) -> None:
            if current.heartbeat is not None and "first_step" not in self._first_marks:
                self._first_marks = dict(current.heartbeat.marks)
            self.display.show(current.heartbeat or Heartbeat(), workers=current.alive, restarts=run_state.restarts)
            report(current.reports)
            log_events(current.reports)
            if metrics is not None:
                metrics.update(current.heartbeat, run_state.totals() | {"trainyard_train_workers": current.alive})
                metrics.update_ranks(current.times)
                metrics.update_time({cause: spent[0] for cause, spent in run_state.account.settled.items()})
            if publisher is not None:
                publisher.publish(lambda: status_of(self.job.name, self.config, current, run_state))

        run = self.config.run
        num_shards = folder.num_shards or run.shards
        callbacks = ControllerCallbacks(on_update=on_update, log=self.display.say, stop_requested=self._stop.is_set)
        controller = Controller(run=run, executor=executor, spec=spec, run_store=folder.store, run_state=run_state,
                                num_shards=num_shards, callbacks=callbacks)
        self.timeline.mark("group_asked")
        with self.display, event_file(run.tensorboard, folder.store, run_state.history, self.display.say) as log_events:
            try:
                controller.start(max(run.min_workers, min(run.max_workers, num_shards,
                                                          executor.possible_workers() - run.spares)))
                return executor.run(controller.supervise)
            finally:
                if publisher is not None:
                    publisher.close()

    # ── after training ──
    def _record_end(self, folder: RunFolder, run_state: RunState, error: Exception) -> None:
        """An end without success. Not where another driver has taken the run over, or nothing is left of its folder."""
        if isinstance(error, RunConflictError | FolderGoneError):
            return
        status = ("stopped" if isinstance(error, StoppedError) else "invalid" if isinstance(error, UserError)
                  else "failed")
        code = error.exit_code if isinstance(error, TrainyardError) else 1
        with suppress(TrainyardError, OSError):  # a full storage is what it may be about
            run_state.save(ended=True)
            folder.write_result(run_state.result(status, code, folder.attempt) | {
                "message": str(error), "error": type(error).__name__})

    def _is_done(self, folder: RunFolder) -> bool:
        return self.config.run.resume == "auto" and folder.is_done

    def _say_done(self, folder: RunFolder) -> None:
        result = folder.result()
        test: dict[str, float] = result.get("metrics", {}).get("test", {})
        found = ", ".join(" ".join(each) for each in headlines(self.job.metrics(self.config), test)[:3])
        print(f"run {self.config.run.name!r} (attempt {folder.attempt}) is done: {found}")
        print("extend it with more --train.epochs, or begin another with --run.name, or --run.resume never")
        print(f"artifact: {result['artifact']}", flush=True)
