"""The model that a run begins with (`--model.init-from`): found and verified once, by the driver, before training.

    config, origins = at_origin(job.name, config, storage)

The config names the artifact and its digest from then on: workers read that and nothing else, and a run that is gone on
with is refused if the name stands for other weights by then.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import MANIFEST, Artifact, open_artifact
from jobs.common.artifact.manifest import Origin
from jobs.common.config import Config
from jobs.common.execution.run_state import RUN_FILE
from jobs.common.registry.connection import REGISTERED, open_named
from jobs.common.runs.run_folder import RESULT_FILE, newest_attempt, read_record
from jobs.common.start_config import StartConfig, start_of, with_start

C = TypeVar("C", bound=Config)
Origins = Sequence[Origin]


def at_origin(job: str, config: C, storage: Store) -> tuple[C, Origins]:
    """The config with the place and the digest of the artifact that it begins with, and that artifact's lineage.
    job: whose models it can be. storage: of the runs.

    Raises: ConfigError for a model that this job cannot begin with; RegistryError, ArtifactError.
    """
    start = start_of(config)
    given = start.init_from
    if given is None:
        return config, ()
    found = _found(given, config, storage)
    _check(given, job, start, found)
    origin = Origin(name=given, uri=found.uri, digest=found.digest)
    origins = (origin, *found.manifest.description.started_from)
    return with_start(config, init_from=found.uri, init_digest=found.digest), origins


def is_recorded(config: Config, record: JsonObject) -> bool:
    """Whether a run's record says what the config begins with, by the same name or none."""
    given = start_of(config).init_from
    return given is None or given in [name for each in recorded(record)[:1] for name in (each.name, each.uri)]


def noted(origins: Origins) -> JsonObject:
    """What records and results keep of them."""
    return {"started_from": [asdict(each) for each in origins]} if origins else {}


def recorded(record: JsonObject) -> tuple[Origin, ...]:
    """The same, read back."""
    return tuple(Origin(**each) for each in record.get("started_from", []))


def _found(given: str, config: Config, storage: Store) -> Artifact:
    if given.startswith(REGISTERED):
        return open_named(given, config.run.tracking_uri, storage)[0]
    named = storage.child(given) if "/" not in given else None
    place = named if named is not None and named.exists(RUN_FILE) else Store.open(given)
    if place.exists(MANIFEST):
        return open_artifact(place)
    if not place.exists(RUN_FILE):
        raise ConfigError(f"--model.init-from {given}: there is no run and no artifact at {place.location()}"
                          f"{f', nor at {named.location()}' if named is not None else ''}: name a finished run, the "
                          "folder or URI of an artifact, or models:/NAME@ALIAS")
    if place.location() == storage.child(config.run.name).location():
        raise ConfigError(f"--model.init-from {given}: is this very run: name the artifact of one of its attempts, or "
                          "pass another --run.name")
    run = newest_attempt(place)
    result = read_record(run, RESULT_FILE)
    if result.get("status") != "done":
        raise ConfigError(f"--model.init-from {given}: that run is not finished "
                          f"({result.get('status', 'it has no result')}): go on with it first, or name an artifact")
    return open_artifact(run.child("artifact"), result.get("artifact_digest"))


def _check(given: str, job: str, start: StartConfig, found: Artifact) -> None:
    about, what = found.manifest.description, f"--model.init-from {given}"
    if about.job != job:
        raise ConfigError(f"{what}: is a model of the job {about.job}, and this is {job}: name a model of {job}, or "
                          f"train it with `trainyard train {about.job}`")
    if start.init_digest not in (None, found.digest):
        raise ConfigError(f"{what}: its manifest has the digest {found.digest}, and --model.init-digest is "
                          f"{start.init_digest}: name the model that was meant, or leave the digest out")
    if about.variant is not None:
        raise ConfigError(f"{what}: is the variant {about.variant.name} of the model with digest "
                          f"{about.variant.parent_digest[:12]}, which cannot be trained: name that one")
    if about.base is not None:
        raise ConfigError(f"{what}: is an adapter of {about.base.name}, and no model by itself: train it again with "
                          "--export.merge, and name the artifact of that")
