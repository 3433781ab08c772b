"""The run as the registry sees it: its row is begun in the background, its metrics go there at each evaluation."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.core.documents import JsonObject
from cluster.core.errors import TrainyardError
from jobs.common import config as configs
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.manifest import lineage
from jobs.common.command_line import flatten
from jobs.common.config import Config
from jobs.common.provenance import code_version
from jobs.common.registry.async_logger import RETRY_S
from jobs.common.registry.connection import open_registry
from jobs.common.registry.registry import Registry
from jobs.common.runs.origin import recorded
from jobs.common.runs.run_folder import RunFolder


class Tracking:
    """What the life cycle tells the registry. Training never waits for it, and never ends for it.

    What comes before the registry's run has begun is kept. Where the run could not be begun, that is a warning, and it
    is tried again every 30 s, and once more when there is a model to register.
    """

    def __init__(self, registry: Registry, begin: Callable[[], None]) -> None:
        """begin: begins the registry's run, or raises TrainyardError; called in a thread of its own."""
        self._registry, self._begin = registry, begin
        self._kept: list[JsonObject] = []
        self._try()

    @staticmethod
    def open(job: str, config: Config, folder: RunFolder) -> "Tracking":
        """Continues the registry's run of this attempt, or begins one,
        in the background (a new SQLite file takes seconds).

        Raises: ConfigError where a server is needed.
        """
        registry = open_registry(config.run.tracking_uri, folder.storage, name=config.run.name,
                                 experiment=config.run.experiment or job)

        origins = recorded(folder.record)

        def begin() -> None:
            run_id = registry.start(
                run_name=f"{config.run.name}-{folder.attempt}", params=flatten(configs.to_dict(config)),
                tags={"job": job, "storage": folder.store.location(), "attempt": str(folder.attempt),
                      "code": code_version(), **({"began_with": lineage(origins)} if origins else {})},
                run_id=folder.record.get("registry_run_id"),
            )
            if run_id and folder.record.get("registry_run_id") != run_id:
                folder.remember(registry_run_id=run_id)

        return Tracking(registry, begin)

    def log(self, reports: list[JsonObject]) -> None:
        """The numbers of each evaluation, and now and then the training loss, at their steps; returns at once."""
        self._kept += [report for report in reports if report["kind"] in ("evaluation", "progress")]
        if not self._begun.done():
            return
        if self._has_begun():
            self._send()
        elif time.monotonic() - self._tried_at > RETRY_S:
            self._try()

    def register(self, artifact: Artifact, metrics: dict[str, float], step: int) -> str | None:
        """Logs the final metrics, and the artifact as a model version.
        Returns the version, or None without a registry."""
        if not self._has_begun():
            self._try()
        if self._has_begun():
            self._send()
            self._registry.log(metrics, step=step)
        return self._registry.register(artifact)

    def attach(self, name: str, text: str) -> None:
        """Puts a file beside the run there."""
        if self._has_begun():
            self._registry.attach(name, text)

    def finish(self, status: str) -> str | None:
        """Ends the run there. Returns what went wrong with the registry, and the remedy, if anything did."""
        if self._has_begun():
            self._send()
        self._registry.finish(status)
        if not self._kept:
            return self._registry.problem
        lost = sum(report["kind"] == "evaluation" for report in self._kept)
        return f"{self._registry.problem or 'the registry did not answer'}; {lost} evaluations were not recorded there"

    def _try(self) -> None:
        pool = ThreadPoolExecutor(1, thread_name_prefix="trainyard-registry")
        self._begun: Future[None] = pool.submit(self._begin)
        self._tried_at = time.monotonic()
        pool.shutdown(wait=False)

    def _has_begun(self) -> bool:
        """Waits for the last try. A failure that is expected is said once; our own mistake is raised."""
        try:
            self._begun.result()
        except TrainyardError as error:
            self._registry.warn(error)
            return False
        return True

    def _send(self) -> None:
        kept, self._kept = self._kept, []
        for report in kept:
            numbers = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and k != "step"}
            self._registry.log(numbers, step=int(report["step"]))
