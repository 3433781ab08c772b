"""Contract 6: runs, metrics and model versions in MLflow. Only the driver writes to it; training goes on without it.

    python -m jobs.common.registry list [NAME]
    python -m jobs.common.registry promote NAME VERSION            # alias `champion`: what serving takes
    python -m jobs.common.registry register NAME ARTIFACT          # a model whose training could not register it
    each with --tracking-uri URI, or --storage FOLDER for the SQLite file in it

A new version gets the alias `candidate`. Its tag `manifest_digest` is what the artifact is held to wherever it is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.core.errors import RegistryError
from jobs.common.artifact.artifact import Artifact
from jobs.common.registry.promotions import Promotion

CANDIDATE, CHAMPION = "candidate", "champion"


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run_id: str
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        """sha256 of the manifest that was registered: what `open_artifact` is to be given."""
        return self.tags.get("manifest_digest", "")

    @property
    def uri(self) -> str:
        """Where training wrote the artifact, readable without the registry. The registry keeps a copy: see `fetch`."""
        return self.tags.get("artifact", "")


class Registry:
    """The registry that records nothing: what the tracking URI `none` gives, and the interface of the one that does."""

    run_id: str | None = None
    problem: str | None = None
    """Why something could not be recorded, with how to make up for it; None while all is well."""

    def another(self) -> "Registry":
        """For one more run beside this one, over the same connection."""
        return self

    def start(self, run_name: str, params: Mapping[str, object], tags: Mapping[str, str],
              run_id: str | None = None) -> str | None:
        """Begins a run, or goes on with that of an earlier attempt. params: flat. Returns the id to go on with later.

        Raises: RegistryError.
        """

    def warn(self, error: Exception) -> None:
        """Says that training goes on without the registry; only the first time."""

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Records the metrics of a step, soon; returns at once and never raises.
        None and infinite values are left out."""

    def last_step(self, metric: str) -> int:
        """The highest step of which the run that `start` went on with has this metric; -1: none.
        Raises: RegistryError."""
        return -1

    def register(self, artifact: Artifact) -> str | None:
        """A copy of the artifact becomes a version with the alias `candidate`; its number, or None if that failed.

        Registering what this run has registered already gives the same version.
        """

    def attach(self, name: str, text: str) -> None:
        """Puts a file beside the run there, such as its report. Never raises: the file is in the run's folder, too."""

    def finish(self, status: str) -> None:
        """Sends what is left and ends the run: `done`, `failed` or `stopped`. Never raises: see `problem`."""

    def resolve(self, reference: str) -> ModelVersion:
        """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` is now. Raises: RegistryError."""
        raise RegistryError(f"{reference} cannot be looked up: tracking is turned off")

    def fetch(self, version: ModelVersion, folder: Path) -> Artifact:
        """Downloads the registry's own copy into a new folder and verifies it. Raises: RegistryError, ArtifactError."""
        raise RegistryError(f"{version.name} cannot be downloaded: tracking is turned off")

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        """All versions of a model, or of all, newest first. Raises: RegistryError."""
        return []

    def promote(self, name: str, version: str, why: str = "") -> str | None:
        """Makes a version the champion, and records it; returns the version that was, if any. Raises: RegistryError."""
        raise RegistryError(f"{name} cannot be promoted: tracking is turned off")

    def promotions(self, name: str) -> list[Promotion]:
        """What is recorded of a model's champions, the newest last. Raises: RegistryError."""
        return []
