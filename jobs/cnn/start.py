"""What a Keras model begins with, and what of it is not trained: see jobs/common/start.py.

Names are those of Keras's variables: LAYER/kernel.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Iterator

from jobs.cnn.framework import keras
from jobs.cnn.model import KERAS_FILE, is_seed, load_keras
from jobs.common import start
from jobs.common.artifact.artifact import Artifact
from jobs.common.start_config import StartConfig


def begin(model: keras.Model, wanted: StartConfig, opened: Artifact) -> None:
    """Puts an artifact's weights into a model in place of its random ones. Raises: ConfigError for those that do not
    fit, ArtifactError."""
    given = _variables(load_keras(opened.read(KERAS_FILE), opened.uri))
    own = _variables(model)
    shapes = [{name: tuple(each.shape) for name, each in of.items()} for of in (own, given)]
    for name in start.taken(wanted, *shapes):
        own[name].assign(given[name].numpy())


def freeze(model: keras.Model, wanted: StartConfig) -> frozenset[str]:
    """Takes weights out of training, and with all of a layer's what it keeps of the rows, as batch normalisation does.
    Returns the paths of what stays as it is.

    Raises: ConfigError for a name that no layer has, and where nothing is left to train.
    """
    own = _variables(model)
    names = start.frozen(wanted, [each.path for each in model.trainable_variables], own)
    for name in names:
        own[name].trainable = False
    for layer in _layers(model):
        held = {each.path for each in layer.variables if not is_seed(each)}
        if held and held <= names:
            layer.trainable = False
    return frozenset(names)


def _layers(outer: keras.Layer) -> Iterator[keras.Layer]:
    """However deeply they are nested."""
    for layer in getattr(outer, "layers", ()):
        yield layer
        yield from _layers(layer)


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    return {each.path: each for each in model.variables if not is_seed(each)}
