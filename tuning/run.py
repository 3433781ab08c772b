"""The life of a search, from the command line to the exit code:
`python -m tuning mlp --num-trials 30 --time-budget 10m`.

parse → check the space against the job → connect → preflight → data → trials → leaderboard, best.yaml, report → final
trainings Exit codes as a job's: 0 done,
or a budget reached · 1 no trial came to a result · 2 the user can fix it · 3 stopped, resumable.
"""

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path

from cluster.capacity import Request, preflight
from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, RunConflictError, StoppedError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.signals import Told, on_stop_signal, say
from cluster.core.storage import Store
from jobs.common import config as configs
from jobs.common.command_line import current_names, flatten
from jobs.common.config import to_dict
from jobs.common.config_changes import differences
from jobs.common.data.commits import Commits, at_commits
from jobs.common.declared_metrics import searchable
from jobs.common.registry.mlflow_client import check_answers, tracking_address
from jobs.common.runs.console import duration, fail
from jobs.common.runs.origin import at_origin
from jobs.common.runs.run_folder import RESULT_FILE, RunFolder, open_storage, read_record
from jobs.common.training.find_job import beside
from jobs.common.training.job import Job
from tuning import results
from tuning import retrain_best as final
from tuning.journal import Journal, Trial
from tuning.objective import Goal
from tuning.options import MAY_CHANGE, OWN, SearchOptions, base_config, combined, in_folder
from tuning.progress import SearchProgress
from tuning.search import Search
from tuning.space import SPACE_FILE, Space, with_values


def main(job: Job, arguments: Sequence[str]) -> int:
    """Carries out a command line. Returns the exit code; prints one message for an expected error."""
    spare_loopback()
    try:
        return Tuning(job, configs.parse(combined(job.config_type), arguments,
                                         f"python -m tuning {job.name}")).carry_out()
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code


def _space_file(job: Job, given: str | None) -> Path:
    """The file of --space, or the job's own. Raises: ConfigError if there is neither."""
    found = Path(given) if given else beside(job, SPACE_FILE)
    if found is None:
        raise ConfigError(f"the job {job.name} has no {SPACE_FILE} beside its job.py: write one, or pass --space FILE")
    return found


class Tuning:
    """One command line's way through a search's life."""

    def __init__(self, job: Job, options: SearchOptions) -> None:
        """Raises: ConfigError for a space, an objective or an option that does not fit the job."""
        self.job, self.options = job, options
        self.base = base_config(options, job.config_type)
        job.check(self.base)
        self._fields = flatten(to_dict(self.base))
        self.space, self.pinned = Space.read(_space_file(job, options.space)).renamed(self._fields).fixed(options.fix)
        self.space.check(with_values(self.base, self.pinned))
        objective = options.objective or (f"validation_{self.base.metric}",)
        self.goal = Goal.of(searchable(job.metrics(self.base)), objective, options.constraint)
        self._check_run()
        if options.scheduler == "pbt" and not any(parameter.mutable for parameter in self.space.parameters.values()):
            raise ConfigError("--scheduler pbt: no field of the space may change while a model trains: mark one, such "
                              "as optim.lr: {log_uniform: [1e-4, 1e-1], mutable: true}, or pass another scheduler")
        self._stop, self._begun = Told(), False
        self._commits: Commits = {}

    def _check_run(self) -> None:
        run = self.base.run
        if run.min_workers != run.max_workers:
            raise ConfigError(f"--run.workers {run.workers}: a trial keeps the resources that it began with: pass "
                              "--run.workers N")
        if run.engine == "local":
            raise ConfigError("--run.engine local: trials are carried out by Ray: leave it out; without a cluster one "
                              "is started on this machine")
        if run.extend_from is not None:
            raise ConfigError(f"--run.extend-from {run.extend_from}: trials differ from that run: begin with its "
                              "weights, --model.init-from, or leave it out")
        if run.resume == "never":
            raise ConfigError("--run.resume never: a search is not begun anew under its name: pass another --run.name")

    def carry_out(self) -> int:
        folder = RunFolder.find(self.base)
        if folder.record:
            raise RunConflictError(f"{self.base.run.name!r} in {folder.storage.location()} is a job's run: pass "
                                   "another --run.name")
        check_answers(tracking_address(self.base.run.tracking_uri, folder.storage))
        store = folder.top
        search = self.open(store)
        if self._is_done(store, search):
            return self._already_done(store)
        with self._connected(folder), folder.locked():
            self._heed_signals()
            search = self.open(store)  # as it is now that nobody else is at it
            self.job.prepare(with_values(self.base, self.pinned), folder.storage, use_ray=True, say=print)
            if not search.journal.about:
                search.journal.begin(self.about())
            self._begun = True
            if (left := search.left_out) > 0:
                print(f"grid: {left} points are left out: pass --num-trials {search.num_trials + left} to try them all",
                      flush=True)
            watch = SearchProgress(search, store, self.options, self.base.run, lambda: self._stop.is_set())
            watch.tracking.start(flatten(search.journal.about))
            for trial in search.trials.values():
                watch.tracking.catch_up(trial)
            self._search(search, store, watch)
        return self._finish(search, store, watch)

    # ── before ──
    def open(self, store: Store) -> Search:
        """The search in a folder, or a new one. Raises: RunConflictError with the differences if it was begun with
        something else."""
        journal = Journal.open(store, fields=self._fields)
        self.base, self._commits = at_commits(self.base, journal.about.get("commits", {}), print)
        self.base, _ = at_origin(self.job.name, self.base, open_storage(self.base.run.storage))
        if journal.about:
            before, now = {**journal.about}, self.about()
            before["space"] = Space.from_dict(before["space"]).renamed(self._fields).to_dict()
            before["pinned"] = current_names(before["pinned"], self._fields)
            changed = [line for part in ("job", "options", "space", "pinned")
                       for line in differences({part: before[part]}, {part: now[part]})]
            changed += differences(before["config"], self.base)
            if changed:
                listed = "\n  ".join(changed)
                raise RunConflictError(f"search {self.base.run.name!r} was begun with something else:\n  {listed}\n"
                                       "pass the old values to continue it, or another --run.name")
        return Search(journal, store, self.options, self.base, self.space, self.pinned, self.goal)

    def about(self) -> JsonObject:
        """What the journal keeps of a search when it begins."""
        decisive = {name: getattr(self.options, name) for name in OWN if name not in MAY_CHANGE}
        if self.options.scheduler == "pbt":
            decisive["num_trials"] = self.options.num_trials  # the population's size
        decisive["workers"] = self.base.run.workers
        return {"job": self.job.name, "options": decisive, "space": self.space.to_dict(), "pinned": self.pinned,
                "config": to_dict(self.base), **({"commits": self._commits} if self._commits else {})}

    @contextlib.contextmanager
    def _connected(self, folder: RunFolder) -> Generator[None]:
        from cluster.connect import connect, disconnect
        from jobs.common.execution.ray_executor import claim

        self._heed_signals()
        connect(self.base.run.address)
        try:
            held = claim(folder.storage.location(), self.base.run.name)
            preflight(self._request(), folder.storage, self.base.run.wait)
            yield
            del held  # with it goes the name
        finally:
            disconnect()

    def _request(self) -> Request:
        run = self.base.run
        return Request(num_workers=run.max_workers, cpus_per_worker=run.cpus_per_worker,
                       gpus_per_worker=run.gpus_per_worker)

    def _heed_signals(self) -> None:
        """SIGTERM and Ctrl-C end the search after a checkpoint of each trial; a third Ctrl-C ends at once."""
        def asked(name: str) -> None:
            self._stop.set()
            if not self._begun:
                raise StoppedError(f"{name} before the search had begun: run the same command again")
            say(f"{name}: ending the search; its trials go on with the same command")

        on_stop_signal(asked)

    # ── the search ──
    def _search(self, search: Search, store: Store, watch: SearchProgress) -> None:
        from tuning.ray_tune import TrialRunner, run_trials
        from tuning.trial_actor import TrialOrder

        data_uri = Store.open(self.base.run.storage).location()

        def order(trial: Trial, until_epoch: int) -> TrialOrder:
            config = results.config_of(self.base, search, trial)
            config = in_folder(config, storage=store.child("trials").location(), name=trial.folder)
            return TrialOrder(number=trial.number, job=self.job.name, config=to_dict(config), until_epoch=until_epoch,
                         data_uri=data_uri)

        flight = TrialRunner(search=search, order=order, request=self._request(), watcher=watch,
                             max_concurrent=self.options.max_concurrent)
        with watch.display:
            if not search.over and not watch.ends():
                run_trials(flight, max_failures=self.base.run.max_failures)
        watch.lost = flight.lost

    # ── after ──
    def _finish(self, search: Search, store: Store, watch: SearchProgress) -> int:
        from jobs.common.runs.index_page import keep_index
        from tuning.report import write_report

        best = results.write_best(store, self.base, search)
        results.write_leaderboard(store, search)
        error = watch.verdict(best)
        status = "stopped" if isinstance(error, StoppedError) else "failed" if error else "done"
        write_report(store, search, self.base, self.space, status, watch.why)
        result = results.summary_of(search, status,
                                    error.exit_code if error else 0) | {"report": store.location("report.html")}
        results.write_result(store, result)
        try:
            if error is None and best is not None and self.options.then_train:
                config = results.config_of(self.base, search, best)
                result |= final.train(self.job, config, store, best.number, self.options.then_train, watch.tracking)
                results.write_result(store, result)
        finally:
            watch.tracking.finish({"epochs": float(result["epochs"]), "trials": float(len(search.trials))}, status)
            keep_index(self.base.run, print)
        if watch.tracking.problem:
            print(f"registry: {watch.tracking.problem}")
        print(self._summary(search, store, result, watch.why), flush=True)
        if error is not None:
            raise error
        return 0

    def _summary(self, search: Search, store: Store, result: JsonObject, why: str) -> str:
        counts, best = result["trials"], result["best"]
        saved = result["epochs_without_stopping"] - result["epochs"]
        rows = [("ended", why), ("trials", ", ".join(f"{count} {name}" for name, count in counts.items() if count)),
                ("epochs", f"{result['epochs']}, {saved} saved"), ("time", duration(result["wall_s"]))]
        if best:
            rows += [("best", f"trial {best['trial']}, epoch {best['evaluation']['epoch']}")]
            rows += [(f"  {name}", f"{best['evaluation'][name]:.4f}") for name in search.goal.metrics]
            rows += [(f"  {name}", str(value)) for name, value in best["values"].items()]
        rows += [("report", result["report"]), ("leaderboard", store.location(results.LEADERBOARD))]
        rows += [("final trainings", result["final_summary"])] if "final_summary" in result else []
        width = max(len(name) for name, _ in rows)
        table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
        last = f"artifact: {result['artifact']}" if result.get("artifact") else f"best: {store.location(results.BEST)}"
        return f"\nresult\n{table}\n{last if best else ''}".rstrip()

    def _is_done(self, store: Store, search: Search) -> bool:
        known = read_record(store, RESULT_FILE)
        best = results.best_trial(search)
        trained = [run for run in known.get("final", []) if best and run["trial"] == best.number]
        return known.get("status") == "done" and search.over and len(trained) >= self.options.then_train

    def _already_done(self, store: Store) -> int:
        result = read_record(store, RESULT_FILE)
        best = result["best"]
        print(f"search {self.base.run.name!r} is done: best trial {best['trial']}; go on with more --num-trials, "
              "or begin another with --run.name")
        print(f"artifact: {result['artifact']}" if result.get("artifact") else f"best: {store.location(results.BEST)}",
              flush=True)
        return 0
