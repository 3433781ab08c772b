"""What a model begins with where it is not random, the weights of another model, and what of it is not trained.

No framework: a job says what tensors its model has (`taken`, `named`), and moves them by itself. Names are those of the
model's tensors, `layers.0.weight` or `dense_1/kernel`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from cluster.core.errors import ConfigError
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.start_config import StartConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors, by name."""
_BETWEEN = re.compile(r"[./]")
_MOST_LABELS = 5


def origin_of(start: StartConfig) -> Artifact | None:
    """The verified artifact that a model begins with; None where it begins with random weights. Raises: ArtifactError.
    """
    return None if start.init_from is None else open_artifact(start.init_from, start.init_digest)


def named(option: str, wanted: Sequence[str], names: Collection[str]) -> set[str]:
    """Those of some names that are wanted, by name or by its beginning up to a dot or slash.

    Raises: ConfigError for a wanted one that is the beginning of none.
    """
    beginnings = {name: [name, *(name[: at.start()] for at in _BETWEEN.finditer(name))] for name in names}
    found: set[str] = set()
    for each in wanted:
        more = {name for name, parts in beginnings.items() if any(fnmatchcase(part, each) for part in parts)}
        if not more:
            raise ConfigError(f"--{option} {each}: the model has no such layer: it has {', '.join(_layers(names))}")
        found |= more
    return found


def taken(start: StartConfig, own: Shapes, given: Shapes) -> list[str]:
    """The tensors that a model takes from the one that it begins with. own, given: what both have.

    Raises: ConfigError for a name in `init_except` that neither has, and for what does not fit, with all names and
    shapes.
    """
    anew = named("model.init-except", start.init_except, {**own, **given})
    wrong = {name: f"{name} is {_size(given, name)} there and {_size(own, name)} here"
             for name in sorted({*own, *given} - anew) if own.get(name) != given.get(name)}
    if wrong:
        raise ConfigError(
            f"--model.init-from {start.init_from}: its tensors do not fit this model: {'; '.join(wrong.values())}: "
            f"build the model that they are of, or let these layers begin anew with --model.init-except "
            f"{' '.join(_layers(wrong))}")
    if not (names := [name for name in own if name not in anew]):
        raise ConfigError(f"--model.init-except {' '.join(start.init_except)}: nothing is left to begin with: name "
                          "fewer layers, or leave --model.init-from out")
    return names


def frozen(start: StartConfig, trained: Collection[str], others: Collection[str] = ()) -> set[str]:
    """Those of a model's tensors that shall stay as they begin. others: tensors that are not trained anyhow.
    Raises: ConfigError for a name in `freeze` that none has, and where nothing would be left to train."""
    found = named("model.freeze", start.freeze, dict.fromkeys((*trained, *others)))
    if start.freeze and found.issuperset(trained):
        raise ConfigError(f"--model.freeze {' '.join(start.freeze)}: nothing is left to train: name fewer layers of "
                          f"{', '.join(_layers(trained))}")
    return found


def check_labels(start: StartConfig, opened: Artifact, class_names: Sequence[str]) -> None:
    """Raises: ConfigError where a model tells other classes apart than the data has, and no layer begins anew."""
    there = opened.manifest.description.labels
    if tuple(there) != tuple(class_names) and not start.init_except:
        raise ConfigError(
            f"--model.init-from {start.init_from}: its answers mean {_listed(there)}, and those of this data "
            f"{_listed(class_names)}: let the layer that gives them begin anew with --model.init-except LAYER, or take "
            "data of the same classes")


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_MOST_LABELS])
    return (f"{len(labels)} classes ({shown}{', …' if len(labels) > _MOST_LABELS else ''})" if labels else "no classes")


def _size(shapes: Shapes, name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "missing"


def _layers(names: Iterable[str]) -> list[str]:
    """What the tensors are parts of, each once, in their order."""
    return list(dict.fromkeys(_BETWEEN.split(name[::-1], maxsplit=1)[-1][::-1] for name in names))
