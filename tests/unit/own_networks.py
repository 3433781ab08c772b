"""Networks that a user might bring to the CNN job with `--model.build`, good, bad, and for what a test wants to see."""

from typing import Any

from jobs.cnn.framework import keras
from jobs.common.vision.build_info import BuildInfo


def plain(info: BuildInfo) -> Any:
    """Normalises its input by the statistics of the micro-batch, and nothing else but a layer."""
    pixels = keras.Input(info.shape)
    x = keras.layers.BatchNormalization(momentum=0.9)(pixels)
    return keras.Model(pixels, keras.layers.Dense(info.num_classes)(keras.layers.Flatten()(x)))


def dropped(info: BuildInfo) -> Any:
    """Its logits are in large part what dropout draws."""
    pixels = keras.Input(info.shape)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(pixels))
    return keras.Model(pixels, keras.layers.Dense(info.num_classes)(keras.layers.Dropout(0.5)(x)))


def softmax(info: BuildInfo) -> Any:
    return keras.Sequential([keras.Input(info.shape), keras.layers.Flatten(),
                             keras.layers.Dense(info.num_classes, activation="softmax")])


def too_few(info: BuildInfo) -> Any:
    return keras.Sequential([keras.Input(info.shape), keras.layers.Flatten(), keras.layers.Dense(info.num_classes - 1)])


def too_deep(info: BuildInfo) -> Any:
    return keras.Sequential([keras.Input(info.shape), *(keras.layers.MaxPooling2D(4) for _ in range(9)),
                             keras.layers.Flatten(),
                             keras.layers.Dense(info.num_classes)])


def with_lambda(info: BuildInfo) -> Any:
    return keras.Sequential([keras.Input(info.shape), keras.layers.Lambda(lambda x: x / 255), keras.layers.Flatten(),
                             keras.layers.Dense(info.num_classes)])


def smooth(info: BuildInfo) -> Any:
    """Has no kinks, at which rounding would decide which way a gradient goes:
    runs that sum in another order stay together."""
    layers, pixels = keras.layers, keras.Input(info.shape)
    x = layers.BatchNormalization(momentum=0.9)(pixels)
    x = layers.Conv2D(6, 3, activation="tanh")(x)
    x = layers.BatchNormalization(momentum=0.9)(layers.AveragePooling2D(4)(x))
    return keras.Model(pixels, layers.Dense(info.num_classes)(layers.Dropout(0.1)(layers.Flatten()(x))))
