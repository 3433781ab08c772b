"""The search in MLflow: a parent run, and each trial as a child run with its values and evaluations.

One thread talks to the registry; a search never waits for it, and goes on where it does not answer.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from cluster.core.background import logged
from cluster.core.documents import JsonObject
from cluster.core.errors import TrainyardError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact
from jobs.common.registry.registry import Registry
from jobs.common.runs.run_folder import read_record
from tuning.journal import Trial
from tuning.space import Values

_FILE = "registry.json"
_ENDED = {"completed": "done", "stopped": "done", "failed": "failed", "running": "stopped"}


class Tracking:
    """What the driver tells the registry."""

    def __init__(self, registry: Registry, store: Store, name: str, job: str) -> None:
        """store: the search's folder, where the ids of the runs are kept for the next start."""
        self._registry, self._store, self._name, self._job = registry, store, name, job
        kept = read_record(store, _FILE)
        self._ids: dict[str, str] = kept.get("ids", {})
        self._ended: list[str] = kept.get("ended", [])
        self._children: dict[str, Registry] = {}
        self._params: Mapping[str, object] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trainyard-registry")
        self.problem: str | None = None

    def start(self, params: Mapping[str, object]) -> None:
        self._params = params
        self._later(self._begin)

    def trial(self, trial: Trial) -> None:
        """A trial begins, or goes on."""
        self.child(trial.folder, trial.values, {"trial": str(trial.number)})

    def catch_up(self, trial: Trial) -> None:
        """A trial of an earlier start, whose driver may have been killed before the registry had heard all of it."""
        if trial.folder in self._ended:
            return
        self.trial(trial)
        self._later(lambda: self._catch_up(trial.folder, list(trial.evaluations)))
        if trial.status != "running":
            self.end(trial.folder, trial.status)

    def _catch_up(self, name: str, rows: list[JsonObject]) -> None:
        last = self._children[name].last_step("epoch")
        for row in rows:
            if row["step"] > last:
                self._log(name, row)

    def child(self, name: str, params: Values, tags: Mapping[str, str]) -> None:
        def call() -> None:
            self._begin()
            registry = self._registry.another()
            parent = {"mlflow.parentRunId": str(self._registry.run_id)} if self._registry.run_id else {}
            self._start(registry, name, f"{self._name}-{name}", params, {**tags, **parent})
            self._children[name] = registry

        self._later(call)

    def log(self, name: str, row: JsonObject) -> None:
        """An evaluation of a child."""
        self._later(lambda: self._log(name, row))

    def _log(self, name: str, row: JsonObject) -> None:
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        self._children[name].log(numbers, step=int(row["step"]))

    def end(self, name: str, status: str) -> None:
        """status: a trial's."""
        def call() -> None:
            self._children.pop(name).finish(_ENDED.get(status, status))
            if status != "running":
                self._ended.append(name)
                self._keep()

        self._later(call)

    def register(self, artifact: Artifact) -> str | None:
        """An artifact becomes a version of the model with the search's name.
        Returns the version; None if that failed."""
        self._later(self._begin)
        version = self._pool.submit(lambda: self._registry.register(artifact)).result()
        self.problem = self.problem or self._registry.problem
        return version

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        """Ends the runs there, and this thread. See `problem`."""
        for name in list(self._children):
            self.end(name, "running")
        self._later(lambda: self._registry.log(metrics, step=0))
        self._later(lambda: self._registry.finish(status))
        self._pool.shutdown(wait=True)
        self.problem = self.problem or self._registry.problem

    def _begin(self) -> None:
        """The search's own run; where the registry did not answer before, it may now."""
        if self._registry.run_id is None:
            self._start(self._registry, "search", self._name, self._params, {"kind": "search"})

    def _start(self, registry: Registry, key: str, run_name: str, params: Mapping[str, object],
               tags: Mapping[str, str]) -> None:
        tags = {"job": self._job, "storage": self._store.location(), **tags}
        run_id = registry.start(run_name=run_name, params=params, tags=tags, run_id=self._ids.get(key))
        if run_id and self._ids.get(key) != run_id:
            self._ids[key] = run_id
            self._keep()

    def _keep(self) -> None:
        self._store.write_text(_FILE, json.dumps({"ids": self._ids, "ended": self._ended}, indent=1))

    def _later(self, call: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                call()
            except TrainyardError as error:
                self.problem = self.problem or str(error)
            except KeyError:  # of a child that could not be begun
                pass

        self._pool.submit(guarded).add_done_callback(logged("the registry's record of the search"))
