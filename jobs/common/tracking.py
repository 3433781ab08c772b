"""The run as the registry sees it: its row is begun in the background, its metrics go there at each evaluation."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cluster.errors import TrainyardError
from jobs.common import config as configs
from jobs.common.config import Config
from jobs.common.registry import Registry
from jobs.common.run_folder import RunFolder


class Tracking:
    """What the life cycle tells the registry. Training never waits for it: what comes before it is ready is kept."""

    def __init__(self, started: "Future[Registry]") -> None:
        self._started = started
        self._kept: list[dict[str, Any]] = []

    @staticmethod
    def open(job: str, config: Config, folder: RunFolder) -> "Tracking":
        """Continues the registry's run of this attempt, or begins one, in the background (a new SQLite file takes seconds).

        Raises: ConfigError where a server is needed, RegistryError where one does not answer.
        """
        registry = Registry.open(config.run.tracking_uri, folder.storage, name=config.run.name)

        def start() -> Registry:
            run_id = registry.start(
                run_name=f"{config.run.name}-{folder.attempt}", params=configs.flatten(configs.to_dict(config)),
                tags={"job": job, "storage": folder.store.location(), "attempt": str(folder.attempt)},
                run_id=folder.record.get("registry_run_id"),
            )
            if run_id and folder.record.get("registry_run_id") != run_id:
                folder.remember(registry_run_id=run_id)
            return registry

        pool = ThreadPoolExecutor(1, thread_name_prefix="trainyard-registry")
        started = pool.submit(start)
        pool.shutdown(wait=False)
        return Tracking(started)

    def log(self, reports: list[dict[str, Any]]) -> None:
        """The numbers of each evaluation, at its step. Raises: what went wrong when the registry's run was begun."""
        self._kept += [report for report in reports if report["kind"] == "evaluation"]
        if self._started.done():
            self._send()

    def _send(self) -> None:
        kept, self._kept = self._kept, []
        for report in kept:
            numbers = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and k != "step"}
            self._started.result().log(numbers, step=int(report["step"]))

    def register(self, artifact: Any, metrics: dict[str, float], step: int) -> str | None:
        """Logs the final metrics, and the artifact as a model version. Returns the version, or None without a registry."""
        registry = self._started.result()
        self._send()
        registry.log(metrics, step=step)
        return registry.register(artifact)

    def finish(self, status: str) -> str | None:
        """Ends the run there. Returns what went wrong with the registry, and the remedy, if anything did."""
        try:
            registry = self._started.result()
        except TrainyardError as error:
            return str(error)
        self._send()
        registry.finish(status)
        return registry.problem
