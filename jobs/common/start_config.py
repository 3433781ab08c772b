"""The config's fields by which a model begins with the weights of another one, and by which layers are not trained.

What comes of them: start.py. A config is parsed without what reads weights.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from cluster.core.documents import JsonObject
from jobs.common.config import Config, OnResume, require

C = TypeVar("C", bound=Config)


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The fields of a config's group `model` that every job has which can begin with another model's weights."""

    init_from: str | None = None
    """Begins with the weights of another model of this job: an artifact (a folder, s3://…), models:/NAME@ALIAS,
    models:/NAME/VERSION, or a finished run (its name in this storage, or its folder)."""
    init_digest: str | None = None
    """The sha256 that the manifest of that artifact must have; by default what it has when the run begins."""
    init_except: tuple[str, ...] = ()
    """With `init_from`: layers that begin anew all the same, by name or its beginning: head layers.2 'conv_*'."""
    freeze: tuple[str, ...] = ()
    """Layers that are not trained and stay as they begin, named as for `init_except`."""

    on_resume: ClassVar[dict[str, OnResume]] = {"init_from": "free"}  # which weights that are, `init_digest` says

    def __post_init__(self) -> None:
        require(self.init_from != "", "model.init_from", "''", "name a model, or leave the option out")
        for name in ("init_digest", "init_except"):
            require(not getattr(self, name) or self.init_from is not None, f"model.{name}", getattr(self, name),
                    "is for a model that begins with another's weights: pass --model.init-from, too")


def start_of(config: object) -> StartConfig:
    """The config's group `model`; of a job that cannot begin with another model, one that asks for nothing."""
    model: object = getattr(config, "model", None)
    return model if isinstance(model, StartConfig) else StartConfig()


def with_start(config: C, **values: object) -> C:
    """The config with other values in that group."""
    group: Any = config
    return replace(group, model=replace(group.model, **values))


def at_known_digest(config: C, recorded: JsonObject) -> C:
    """The config with the digest that a run's recorded one has, where it names a model to begin with and no digest yet:
    whether that model is still the same shows when it is looked for."""
    start, known = start_of(config), recorded.get("model", {}).get("init_digest")
    unknown = start.init_from is not None and start.init_digest is None
    return with_start(config, init_digest=known) if unknown else config
