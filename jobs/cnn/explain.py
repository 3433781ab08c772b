"""What a network's answer rests on: integrated gradients (Sundararajan et al.
2017) and Grad-CAM (Selvaraju et al. 2017).

Shapes: B rows, H × W × C pixels, K classes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import numpy as np
import numpy.typing as npt

from jobs.cnn.framework import keras, tf

Floats = npt.NDArray[np.float32]
STEPS = 50


def integrated_gradients(logits: keras.Model, images: Floats, baselines: Floats, target: npt.NDArray[np.integer],
                         steps: int = STEPS) -> tuple[Floats, Floats, Floats]:
    """How much each pixel moves the log odds of the target class,
    on the straight way from the baseline (their equation 1).

    logits: a model from images, baselines (B, H, W, C) to logits (B, K). target: (B,). steps: points of the
    Gauss-Legendre sum. Returns attributions (B, H, W, C), and of each row the completeness gap, |Σ attributions - (f(x)
    - f(baseline))|, and f(x) - f(baseline) itself.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = ((nodes + 1) / 2).astype(np.float32)
    attributions, gaps, differences = (np.zeros_like(images), np.zeros(len(images), np.float32),
                                       np.zeros(len(images), np.float32))
    for row in range(len(images)):
        change = images[row] - baselines[row]
        gradients = _gradient_of_log_odds(logits, baselines[row] + places[:, None, None, None] * change,
                                          int(target[row]))
        attributions[row] = change * np.tensordot((weights / 2).astype(np.float32), gradients, 1)
        ends = log_odds(logits(np.stack([images[row], baselines[row]]), training=False), int(target[row])).numpy()
        differences[row] = ends[0] - ends[1]
        gaps[row] = abs(attributions[row].sum(dtype=np.float64) - differences[row])
    return attributions, gaps, differences


def log_odds(logits: tf.Tensor, target: int) -> tf.Tensor:
    """ln(p / (1 - p)) of a class, exact also where p is almost 1. logits: (B, K), K at least 2. Returns (B,)."""
    others = tf.concat([logits[:, :target], logits[:, target + 1 :]], 1)
    return logits[:, target] - tf.reduce_logsumexp(others, 1)


def _gradient_of_log_odds(logits: keras.Model, rows: Floats, target: int) -> Floats:
    pixels = tf.constant(rows)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        value = log_odds(tf.cast(logits(pixels, training=False), tf.float32), target)
    return tape.gradient(value, pixels).numpy()


def grad_cam(logits: keras.Model, images: Floats, target: npt.NDArray[np.integer]) -> Floats | None:
    """The region of the last convolution's output that speaks for the target class (their equations 1 and 2), enlarged.

    images: (B, H, W, C). Returns (B, H, W), 0 or more; None of a model without a convolution.
    """
    features = _last_features(logits)
    if features is None:
        return None
    both = keras.Model(logits.input, [features, logits.output])
    pixels = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        features, found = both(pixels, training=False)
        chosen = tf.reduce_sum(tf.gather(tf.cast(found, tf.float32), target, axis=1, batch_dims=1))
    weights = tf.reduce_mean(tape.gradient(chosen, features), axis=(1, 2), keepdims=True)
    region = tf.nn.relu(tf.reduce_sum(tf.cast(weights * features, tf.float32), axis=3, keepdims=True))
    return tf.image.resize(region, images.shape[1:3]).numpy()[..., 0]


def _last_features(logits: keras.Model) -> keras.KerasTensor | None:
    """What the last convolution gives, after its normalisation and activation; None where there is no convolution."""
    convolutions = [place for place, layer in enumerate(logits.layers) if isinstance(layer, keras.layers.Conv2D)]
    if not convolutions:
        return None
    size = logits.layers[convolutions[-1]].output.shape
    outputs = [layer.output for layer in logits.layers[convolutions[-1] :]]
    return next(output for output in reversed(outputs) if getattr(output, "shape", None) == size)
