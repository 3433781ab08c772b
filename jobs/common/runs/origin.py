"""What a run begins with: found and verified once, by the driver, before training.

    config, origins = at_origin(job.name, config, storage)      # `--model.init-from`: another model's weights
    config, extension = at_extension(config, folder)            # more steps, or `--run.extend-from`: all of a run

The config names the artifact and its digest from then on: workers read that and nothing else, and a run that is gone on
with is refused if the name stands for other weights by then. A run that is extended is copied: its checkpoints, from
the newest of which training goes on, and its account.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import MANIFEST, Artifact, open_artifact
from jobs.common.artifact.manifest import Origin
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import Config
from jobs.common.config_changes import changes, consequences, decisive
from jobs.common.data.dataset import Dataset
from jobs.common.execution.run_state import RUN_FILE
from jobs.common.registry.connection import REGISTERED, open_named
from jobs.common.runs.run_folder import RESULT_FILE, RunFolder, newest_attempt, read_record
from jobs.common.start_config import StartConfig, start_of, with_start
from jobs.common.training.optim_config import ExtensionConfig

C = TypeVar("C", bound=Config)
Origins = Sequence[Origin]
OF_A_RUN = ("progress.json", "excluded_steps.json")
"""What is copied of a run beside its checkpoints: its account, and the steps that are left out."""


def at_origin(job: str, config: C, storage: Store) -> tuple[C, Origins]:
    """The config with the place and the digest of the artifact that it begins with, and that artifact's lineage.
    job: whose models it can be. storage: of the runs.

    Raises: ConfigError for a model that this job cannot begin with; RegistryError, ArtifactError.
    """
    start = start_of(config)
    given = start.init_from
    if given is None:
        return config, ()
    what, own = f"--model.init-from {given}", storage.child(config.run.name)
    if not given.startswith(REGISTERED) and _place(given, storage).location() == own.location():
        raise ConfigError(f"{what}: is this very run: name the artifact of one of its attempts, or pass another "
                          "--run.name")
    found = named_artifact(what, given, config.run.tracking_uri, storage)
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


def named_artifact(what: str, given: str, tracking_uri: str | None, storage: Store) -> Artifact:
    """given: a registered model, an artifact's place, or a finished run. what: the option that names it.
    Raises: ConfigError, RegistryError, ArtifactError."""
    if given.startswith(REGISTERED):
        return open_named(given, tracking_uri, storage)[0]
    place = _place(given, storage)
    if place.exists(MANIFEST):
        return open_artifact(place)
    if not place.exists(RUN_FILE):
        named = f", nor at {storage.child(given).location()}" if "/" not in given else ""
        raise ConfigError(f"{what}: there is no run and no artifact at {place.location()}{named}: name a finished run, "
                          "the folder or URI of an artifact, or models:/NAME@ALIAS")
    return _finished(what, place)[2]


def _place(given: str, storage: Store) -> Store:
    """A run of the storage by its name, or a folder or URI."""
    named = storage.child(given) if "/" not in given else None
    return named if named is not None and named.exists(RUN_FILE) else Store.open(given)


def _finished(what: str, place: Store) -> tuple[Store, JsonObject, Artifact]:
    """The newest attempt of a run with its result and its artifact. what: the option that names it."""
    run = newest_attempt(place)
    result = read_record(run, RESULT_FILE)
    if result.get("status") != "done":
        raise ConfigError(f"{what}: that run is not finished ({result.get('status', 'it has no result')}): go on with "
                          "it first")
    return run, result, open_artifact(run.child("artifact"), result.get("artifact_digest"))


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


# ── extending a run ──
@dataclass(frozen=True, kw_only=True)
class Extension:
    """A finished run that another one, or another attempt at it, goes on with."""

    what: str
    """What asks for it."""
    name: str
    store: Store
    record: JsonObject
    step: int
    """How many steps it made."""
    artifact: Artifact

    @property
    def origins(self) -> Origins:
        own = Origin(name=self.name, uri=self.artifact.uri, digest=self.artifact.digest)
        return own, *self.artifact.manifest.description.started_from

    def copy_to(self, store: Store, config: Config, dataset: Dataset) -> tuple[int, list[str]]:
        """Puts its state into another run's folder. Returns the number of shards that its rows are dealt to, and what
        is to be said of that.
        Raises: ConfigError where that would be another training."""
        what, train, shards = self.what, config.train, self.record["num_shards"]
        total = train.total_steps(dataset.splits["train"].num_rows // train.global_batch_size)
        if not dataset.has(self.record["data"]["fingerprint"]):
            raise ConfigError(f"{what}: is of other data ({self.record['data']['fingerprint'][:12]}, and this is "
                              f"{dataset.fingerprint[:12]}): put the old data back, or take its weights alone with "
                              "--model.init-from")
        if total <= self.step:
            raise ConfigError(f"{what}: has made {self.step:,} steps, and this run would have {total:,}: pass more "
                              "--train.epochs or --train.max-steps")
        if config.run.num_shards not in (None, shards):
            raise ConfigError(f"{what}: was made with --run.num-shards {shards}: pass that, or leave the option out")
        if config.run.min_workers > shards:
            raise ConfigError(f"{what}: was made for at most {shards} workers: ask for up to {shards}")
        if config.run.num_shards not in (None, shards):
            raise ConfigError(f"{what}: was made with --run.num-shards {shards}: pass that")
        newest = next(iter(Checkpoints(self.store.child("checkpoints")).committed()), None)
        if newest is None or newest.step != self.step:
            raise ConfigError(f"{what}: its last checkpoint, of step {self.step:,}, is not there any more: take its "
                              "weights alone with --model.init-from")
        patience = train.early_stopping_epochs
        if patience is not None and newest.state.get("epochs_since_best", 0) >= patience:
            raise ConfigError(f"{what}: had stopped early, and would again at once: pass a larger "
                              "--train.early-stopping-epochs, or None")
        for path in [*(file.path for file in self.store.files("checkpoints")), *OF_A_RUN]:
            if self.store.exists(path):
                self.store.copy_to(store, path, path)
        said = f"goes on with {self.store.location()}, which stays as it is, from step {self.step:,} to {total:,}"
        return shards, [said, *consequences(changes(self.record["config"], config), config, shards)]


def at_extension(config: C, folder: RunFolder) -> tuple[C, Extension | None]:
    """The config with the step at which the run is extended, and what it extends, if that is still to be copied.
    Raises: ConfigError for a run that cannot be gone on with; ArtifactError, StorageError."""
    name, given = config.run.name, config.run.extend_from
    if folder.record:
        return _extended_at(config, _growth(config, folder)), None
    if folder.extends is not None:
        extension = _extension(f"run {name!r}", config, name, folder.extends.store)
    elif given is not None:
        place = folder.storage.child(given) if "/" not in given else Store.open(given)
        if not place.exists(RUN_FILE):
            raise ConfigError(f"--run.extend-from {given}: there is no run at {place.location()}: name a finished one, "
                              "or its folder")
        extension = _extension(f"--run.extend-from {given}", config, given, place)
    else:
        return config, None
    return _extended_at(config, extension.step), extension


def _extended_at(config: C, step: int | None) -> C:
    group = cast(Any, config)
    return config if step is None else replace(group, optim=replace(group.optim, extended_at=step))


def _growth(config: Config, folder: RunFolder) -> int | None:
    """The step from which on a run that has begun is extended: as it was, or, where it is not finished and is to make
    more steps, what it had to make."""
    old: JsonObject = folder.record["config"].get("optim", {})
    begun = old.get("extended_at")
    if folder.is_done or not folder.is_extended_by(config):
        return begun
    what = f"run {config.run.name!r}"
    optim = _schedule(what, config, f"comes to its end at step {folder.planned_steps:,}")
    if begun is not None and (optim.extend == "cosine" or old.get("extend") == "cosine"):
        raise ConfigError(f"{what}: its rate rises and falls in the steps from {begun:,} on, which are not finished: "
                          "let it finish with the old values first, and extend it then")
    return folder.planned_steps if begun is None else begun


def _extension(what: str, config: Config, name: str, place: Store) -> Extension:
    _schedule(what, config, "has come to its end")
    store, result, artifact = _finished(what, place)
    record = read_record(store, RUN_FILE)
    if changed := decisive(changes(record["config"], config), config, longer=True):
        listed = "\n  ".join(map(str, changed))
        raise ConfigError(f"{what}: was made with another config:\n  {listed}\npass the old values, or take its "
                          "weights alone with --model.init-from")
    return Extension(what=what, name=name, store=store, record=record, step=int(result["steps"]), artifact=artifact)


def _schedule(what: str, config: Config, ends: str) -> ExtensionConfig:
    """Raises: ConfigError where it is not said how it goes on."""
    optim = getattr(config, "optim", None)
    if not isinstance(optim, ExtensionConfig):
        raise ConfigError(f"{what}: this job has no schedule that could go on: begin another run, with another "
                          "--run.name and without --run.extend-from")
    schedule = getattr(optim, "schedule", "constant")
    if schedule != "constant" and optim.extend is None:
        raise ConfigError(f"{what}: its schedule, {schedule}, {ends}: pass --optim.extend constant (the highest rate) "
                          "or cosine (rises and falls again)")
    return optim
