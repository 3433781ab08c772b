"""The registry that records: MLflow, through its client only, so nothing of its global state is touched."""
# pyright: reportMissingTypeStubs=false

import copy
import logging
import math
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cluster.core.background import in_background
from cluster.core.errors import RegistryError, TrainyardError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.artifact.manifest import lineage
from jobs.common.config import MODELS_FOLDER
from jobs.common.provenance import without_secrets
from jobs.common.registry.async_logger import Metric, MetricLog
from jobs.common.registry.mlflow_client import check_answers, connect, patient, shown, tracking_address, translated
from jobs.common.registry.promotions import PROMOTIONS, Promotion, recorded, with_another
from jobs.common.registry.registry import CANDIDATE, CHAMPION, ModelVersion, Registry

_FOLDER = "artifact"
_STATUS = {"done": "FINISHED", "stopped": "KILLED"}
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_log = logging.getLogger(__name__)


class MlflowRegistry(Registry):
    """MLflow behind one URI. The first failure of what cannot raise is a warning, and training goes on."""

    def __init__(self, tracking_uri: str | None, storage: Store, name: str, experiment: str) -> None:
        self._uri, self._storage = tracking_address(tracking_uri, storage), storage
        self._name, self._experiment = name, experiment
        self._failed = threading.Event()
        self._metrics: MetricLog | None = None
        self._not_begun: TrainyardError | None = None
        self._connection = self._connecting()

    def another(self) -> "MlflowRegistry":
        made = copy.copy(self)
        made.run_id, made.problem, made._metrics = None, None, None
        return made

    def start(self, run_name: str, params: Mapping[str, object], tags: Mapping[str, str],
              run_id: str | None = None) -> str | None:
        run_id = run_id or (self.run_id if self._not_begun else None)  # a run that was made, and then not described
        try:
            with translated(self._uri):
                known = self._resume(run_id) if run_id else None
                self.run_id = known or self._client.create_run(self._experiment_id(), run_name=run_name).info.run_id
                self._describe(params, tags)
        except TrainyardError as error:
            self._not_begun = error
            raise
        self._not_begun, self._metrics = None, MetricLog(self._send, self.warn)
        return self.run_id

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        now = int(time.time() * 1000)
        kept = {re.sub(r"[^\w\-. :/]", "_", key): value for key, value in metrics.items() if value is not None}
        if self._metrics:
            self._metrics.add([Metric(k, float(v), step, now) for k, v in kept.items() if math.isfinite(v)])

    def last_step(self, metric: str) -> int:
        with translated(self._uri):
            return max((known.step for known in self._client.get_metric_history(self.run_id, metric)), default=-1)

    def register(self, artifact: Artifact) -> str | None:
        try:
            check_answers(self._uri)
            if self._not_begun is not None:
                raise self._not_begun
            with translated(self._uri), patient():
                return self._registered(artifact)
        except TrainyardError as error:
            self.warn(error)
            remedy = shlex.join(["python", "-m", "jobs.common.registry", "register", self._name, artifact.uri,
                                 "--tracking-uri",
                                 shown(self._uri)])
            self.problem = f"the model was not registered ({error}). When the registry is back: {remedy}"
            return None

    def attach(self, name: str, text: str) -> None:
        if self._not_begun is not None or self._failed.is_set():
            return
        try:
            check_answers(self._uri)
            with translated(self._uri):
                self._client.log_text(self.run_id, text, name)
        except TrainyardError as error:
            self.warn(error)

    def finish(self, status: str) -> None:
        unsent = self._metrics.close() if self._metrics else 0
        try:
            if self.run_id and not unsent:
                check_answers(self._uri)
                with translated(self._uri):
                    self._client.set_terminated(self.run_id, _STATUS.get(status, "FAILED"))
        except TrainyardError as error:
            self.warn(error)
            self.problem = self.problem or str(error)
        if unsent:
            self.problem = f"{self.problem or 'the registry did not answer'}; {unsent} metrics were not recorded there"

    def resolve(self, reference: str) -> ModelVersion:
        name, separator, which = _parse(reference)
        with translated(self._uri):
            find = self._client.get_model_version_by_alias if separator == "@" else self._client.get_model_version
            try:
                item = find(name, which)
                return _version(item, item.aliases)
            except Exception as error:
                if _code(error) not in _ABSENT:
                    raise
                raise RegistryError(f"registry {shown(self._uri)} has no {reference}: {self._present(name)}") from error

    def fetch(self, version: ModelVersion, folder: Path) -> Artifact:
        folder.mkdir(parents=True, exist_ok=True)
        with translated(self._uri), patient():
            path = self._client.download_artifacts(version.run_id, _FOLDER, str(folder))
        return open_artifact(path, version.digest)

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        with translated(self._uri):
            chosen = f"name = '{name}'" if name else None
            models = self._client.search_registered_models(chosen, max_results=1000)
            return [version for model in models for version in self._versions_of(model.name)]

    def promote(self, name: str, version: str, why: str = "") -> str | None:
        self.resolve(f"models:/{name}/{version}")
        with translated(self._uri):
            model = self._client.get_registered_model(name)
            before = str(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None
            self._client.set_registered_model_alias(name, CHAMPION, version)
            self._client.set_registered_model_tag(name, PROMOTIONS, with_another(model.tags, version, before, why))
        return before

    def promotions(self, name: str) -> list[Promotion]:
        with translated(self._uri):
            return recorded(self._client.get_registered_model(name).tags)

    @property
    def _client(self) -> Any:
        """Where connecting failed, another connection is tried: the server may have come back."""
        if self._connection.done() and self._connection.exception() is not None:
            self._connection = self._connecting()
        return self._connection.result()

    def _connecting(self) -> "Future[Any]":
        return in_background("mlflow-connect", self._connect)

    def _connect(self) -> Any:
        check_answers(self._uri)
        return connect(self._uri)

    def _experiment_id(self) -> str:
        """Made where it is not there, which another driver may do at the same moment."""
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            place = None if self._uri.startswith("http") else self._storage.location(MODELS_FOLDER)
            try:
                return self._client.create_experiment(self._experiment, artifact_location=place)
            except Exception as error:
                if _code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self._experiment)
        if found.lifecycle_stage == "deleted":
            raise RegistryError(f"experiment {self._experiment} is deleted in {shown(self._uri)}: restore it there "
                                f"(mlflow experiments restore -x {found.experiment_id}), or pass another "
                                "--run.experiment")
        return found.experiment_id

    def _resume(self, run_id: str) -> str | None:
        """The run's id, running again; None if this registry does not have it."""
        try:
            found = self._client.get_run(run_id)
        except Exception as error:
            if _code(error) not in _ABSENT:
                raise
            return None
        if found.info.lifecycle_stage == "deleted":
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _describe(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """MLflow refuses another value for a parameter that a run has: where a later driver has one, it is a tag."""
        from mlflow.entities import Param, RunTag

        had = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(without_secrets(value))) for key, value in params.items() if key not in had]
        now = {f"now {key}": value for key, value in params.items()
               if key in had and had[key] != str(without_secrets(value))}
        labels = [RunTag(key, str(without_secrets(value))) for key, value in {**tags, **now}.items()]
        for start in range(0, max(len(new), len(labels)), 100):
            self._client.log_batch(self.run_id, params=new[start : start + 100], tags=labels[start : start + 100])

    def _send(self, batch: Sequence[Metric]) -> None:
        from mlflow import entities

        metrics = [entities.Metric(m.key, m.value, m.timestamp_ms, m.step) for m in batch]
        if self._failed.is_set():
            check_answers(self._uri)
        with translated(self._uri):
            self._client.log_batch(self.run_id, metrics=metrics)

    def warn(self, error: Exception) -> None:
        if not self._failed.is_set():
            self._failed.set()
            _log.warning("%s. Training goes on without it.", str(error).rstrip("."))

    def _registered(self, artifact: Artifact) -> str:
        client, name = self._client, self._name
        for item in client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'"):
            if item.tags.get("manifest_digest") == artifact.digest:
                if CANDIDATE not in client.get_registered_model(name).aliases:  # the one before was cut off in between
                    client.set_registered_model_alias(name, CANDIDATE, item.version)
                return str(item.version)
        self._upload(artifact)
        _create_if_absent(lambda: client.create_registered_model(name))
        source = f"runs:/{self.run_id}/{_FOLDER}"
        made = client.create_model_version(name, source, self.run_id, tags=_tags(artifact), await_creation_for=0)
        client.set_registered_model_alias(name, CANDIDATE, made.version)
        return str(made.version)

    def _upload(self, artifact: Artifact) -> None:
        if artifact.store.is_local:
            self._client.log_artifacts(self.run_id, str(artifact.store.local_path()), _FOLDER)
        else:
            with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
                artifact.copy_to(folder)
                self._client.log_artifacts(self.run_id, folder, _FOLDER)
        self._make_durable()

    def _make_durable(self) -> None:
        """MLflow copies into a folder of this machine without syncing it; the version that names it follows at once."""
        uri = self._client.get_run(self.run_id).info.artifact_uri
        if uri.startswith(("/", "file:")):
            copied = Store.open(uri)
            for file in copied.files(_FOLDER):
                copied.make_durable(file.path)

    def _versions_of(self, name: str) -> list[ModelVersion]:
        """Newest first. A search does not tell aliases, the model does."""
        aliases = self._client.get_registered_model(name).aliases
        found = self._client.search_model_versions(f"name = '{name}'")
        named = [_version(item, [a for a, v in aliases.items() if str(v) == str(item.version)]) for item in found]
        return sorted(named, key=lambda version: -int(version.version))

    def _present(self, name: str) -> str:
        present = [f"{v.version}{''.join(f' @{alias}' for alias in v.aliases)}" for v in self.versions(name)]
        return f"it has version {', '.join(present)}" if present else f"it has no model {name}"


def _version(item: Any, aliases: Sequence[str]) -> ModelVersion:
    return ModelVersion(name=item.name, version=str(item.version), aliases=tuple(aliases), run_id=item.run_id,
                        tags=dict(item.tags))


def _tags(artifact: Artifact) -> dict[str, str]:
    about = artifact.manifest.description
    value = about.metrics.get("test", {}).get(about.primary_metric)
    tags = {"manifest_digest": artifact.digest, "artifact": without_secrets(artifact.uri), "job": about.job,
            "task": about.task, "code": about.code, "data_fingerprint": str(about.data.get("fingerprint", ""))}
    if value is not None:
        tags |= {"metric": about.primary_metric, f"test_{about.primary_metric}": f"{value:.6f}"}
    if about.variant is not None:
        tags |= {"variant": about.variant.name, "parent": about.variant.parent_version or about.variant.parent_digest}
    if about.started_from:
        tags |= {"began_with": without_secrets(lineage(about.started_from))}
    return tags


def _create_if_absent(create: Callable[[], object]) -> None:
    try:
        create()
    except Exception as error:
        if _code(error) != "RESOURCE_ALREADY_EXISTS":
            raise


def _code(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))


def _parse(reference: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"models:/([^/@]+)([/@])([^/@]+)", reference)
    if match is None:
        raise RegistryError(f"{reference!r} names no model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2], match[3]
