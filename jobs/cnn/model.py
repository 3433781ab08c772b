"""The convolutional network: built from a config with Keras alone, or loaded back from an artifact, without Ray.

    python -c "from jobs.cnn.model import load; print(load('PATH/TO/artifact').predict(images))"

Shapes: B rows, H × W × C pixels, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cluster.core.errors import ArtifactError, ConfigError
from jobs.cnn.config import CnnConfig, ModelConfig
from jobs.cnn.framework import keras, tf
from jobs.common.arrays import Array
from jobs.common.artifact import artifact
from jobs.common.own_code import called, function_of_yours
from jobs.common.vision.build_info import BuildInfo

KERAS_FILE = "model.keras"
POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


def build_model(info: BuildInfo) -> keras.Model:
    """Pixels (B, H, W, C) to logits (B, K). Put your own in its place with `--model.build MODULE:FUNCTION`.

    It is called once on every worker, with the seeds of Python, NumPy and Keras set. What must hold: a `keras.Model` of
    one input and one output, with logits and no softmax at its end.
    """
    model: ModelConfig = info.model
    layers = keras.layers
    pixels = keras.Input(info.shape, name="image")
    scale = [1 / deviation for deviation in info.std]
    offset: Any = [-m * s for m, s in zip(info.mean, scale, strict=True)]
    x = layers.Rescaling(scale, offset, dtype="float32", name="normalise")(pixels)
    for block in range(1, model.depth + 1):
        for place in range(1, model.convolutions + 1):
            x = layers.Conv2D(model.width * 2 ** (block - 1), model.kernel, padding=model.padding,
                              use_bias=not model.batch_norm,
                              activation=None if model.batch_norm else "relu", kernel_initializer="he_normal",
                              name=f"convolution_{block}_{place}")(x)
            if model.batch_norm:
                x = layers.BatchNormalization(momentum=0.95, name=f"normalisation_{block}_{place}")(x)
                x = layers.ReLU(name=f"relu_{block}_{place}")(x)
        x = layers.MaxPooling2D(2, name=f"pooling_{block}")(x)
    x = (layers.Flatten(name="features")(x) if model.head == "flatten"
         else layers.GlobalAveragePooling2D(name="features")(x))
    for place, width in enumerate(model.dense, 1):
        x = layers.Dropout(model.dropout, name=f"dropout_{place}")(x) if model.dropout else x
        x = layers.Dense(width, activation="relu", name=f"dense_{place}")(x)
    x = layers.Dropout(model.dropout, name="dropout")(x) if model.dropout else x
    return keras.Model(pixels, layers.Dense(info.num_classes, dtype="float32", name="logits")(x), name=model.name)


def new_model(config: CnnConfig, info: BuildInfo) -> keras.Model:
    """The config's model with its first weights, a function of the run's seed.
    Raises: ConfigError for one that cannot be used."""
    keras.utils.clear_session()  # layers are named as in a new process
    keras.utils.set_random_seed(config.run.seed % 2**32)
    before, name = keras.config.dtype_policy(), config.model.build
    keras.config.set_dtype_policy(POLICIES[config.hardware.precision])
    try:
        model = called(f"--model.build {name}", function_of_yours("--model.build", name), info,
                       hint=f" (it cannot be built for images of {info.shape})")
        if isinstance(model, keras.Sequential):
            model = keras.Model(model.inputs, model.outputs[0], name=model.name)
    finally:
        keras.config.set_dtype_policy(before)
    _check(model, name, info.num_classes)
    return model


def _check(model: object, name: str, num_classes: int) -> None:
    if not isinstance(model, keras.Model) or getattr(model.output, "shape", None) != (None, num_classes):
        raise ConfigError(f"--model.build {name} gave {model!r}: it must return a built keras.Model whose output is "
                          f"(None, {num_classes})")
    if getattr(model.layers[-1], "activation", None) is keras.activations.softmax:
        raise ConfigError(f"--model.build {name} ends in a softmax: leave it out, the loss wants logits (the artifact "
                          "gets one)")
    odd = [v.path for v in model.non_trainable_variables if not is_seed(v) and not v.dtype.startswith("float")]
    if odd:
        raise ConfigError(f"--model.build {name}: the state {odd[0]} is not of floats, so workers cannot agree on its "
                          "mean")
    paths = [v.path for v in model.variables]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"--model.build {name}: two of its weights have the same path: name each layer differently")


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is what a layer such as Dropout draws its random numbers from."""
    return variable.path.endswith("seed_generator_state")


def with_probabilities(model: keras.Model) -> keras.Model:
    """The same model with a softmax behind its logits, which is what an artifact holds."""
    return keras.Model(model.input, keras.layers.Softmax(dtype="float32", name="probabilities")(model.output),
                       name=model.name)


class Classifier:
    """A trained model as an application sees it. `model`: the Keras model, from pixels to probabilities."""

    def __init__(self, model: keras.Model, labels: Sequence[str]) -> None:
        self.model, self.labels = model, tuple(labels)
        self._logits = keras.Model(model.input, model.layers[-1].input)

    def predict(self, images: Array) -> npt.NDArray[np.float32]:
        """images: (B, H, W, C) as in the training data. Returns probabilities (B, K)."""
        return self.model(tf.constant(images), training=False).numpy()

    def explain(self, images: Array, target: Array | None = None,
                baseline: Array | None = None) -> tuple[npt.NDArray[np.float32], ...]:
        """How much each pixel speaks for a class: integrated gradients of its log odds, ln(p / (1 - p)).

        images: (B, H, W, C) as in the training data. target: (B,) class indices; None: the predicted ones. baseline:
        (H, W, C) or (B, H, W, C), the images that they are compared with; None: an even image of each image's own mean.

        Returns attributions (B, H, W, C), completeness gaps (B,): how far their sum is from the change of the log odds,
        and that change (B,).
        """
        from jobs.cnn.explain import integrated_gradients

        pixels = np.asarray(images, np.float32)
        classes = self.predict(images).argmax(1) if target is None else np.asarray(target)
        start = pixels.mean(axis=(1, 2), keepdims=True) if baseline is None else np.asarray(baseline, np.float32)
        return integrated_gradients(self._logits, pixels, np.broadcast_to(start, pixels.shape), classes)

    def regions(self, images: Array, target: Array | None = None) -> npt.NDArray[np.float32] | None:
        """(B, H, W), 0 or more: the region that speaks for a class (Grad-CAM);
        None of a model without a convolution."""
        from jobs.cnn.explain import grad_cam

        classes = self.predict(images).argmax(1) if target is None else np.asarray(target)
        return grad_cam(self._logits, np.asarray(images, np.float32), classes)

    def compiled(self) -> "CompiledClassifier":
        """The same model, compiled."""
        return CompiledClassifier(self.model, self.labels)


class CompiledClassifier(Classifier):
    """Predicts by one graph, traced once for any number of rows, instead of layer by layer in Python.

    Without XLA: that compiles anew for each number of rows, which takes seconds, and a request may have any.
    """

    def __init__(self, model: keras.Model, labels: Sequence[str]) -> None:
        super().__init__(model, labels)
        def call(images: tf.Tensor) -> tf.Tensor:
            return model(images, training=False)

        self._graph = tf.function(call, input_signature=[tf.TensorSpec((None, *model.input.shape[1:]), tf.float32)])

    def predict(self, images: Array) -> npt.NDArray[np.float32]:
        return self._graph(tf.constant(images, tf.float32)).numpy()


def load(where: artifact.Where | artifact.Artifact) -> Classifier:
    """The model of an artifact: a verified one, or one in a folder, a URI or a store, which is verified first.

    Raises: ArtifactError, also if it is not safe.
    """
    opened = artifact.as_artifact(where)
    return Classifier(load_keras(opened.read(KERAS_FILE), opened.uri), opened.manifest.description.labels)


def load_keras(data: bytes, where: str) -> keras.Model:
    """A model of the bytes of a `.keras` file, in safe mode: nothing in it is run. Raises: ArtifactError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, KERAS_FILE)
        file.write_bytes(data)
        try:
            return cast(keras.Model, keras.saving.load_model(file, compile=False, safe_mode=True))
        except Exception as error:
            raise ArtifactError(f"{KERAS_FILE} of {where} is refused: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error).rpartition("Exception encountered: ")[2]  # below what Keras says of each layer around it
    if "ambda" in text:
        return ("it holds a Lambda layer, or other Python code, which would be run when it is loaded: "
                "build the model of layers that hold none, and train it again")
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
