"""The textbook network as tutorials train it: `model.fit` in one process, on images in memory.

    python -m tests.benchmarks.keras_fit SETTINGS.json

Nothing of this project is in it but the turns.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}

import keras
import numpy as np
import pyarrow.parquet as pq

from tests.benchmarks.turns import Turns


def images_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a file of tests.benchmarks.images: (rows, 28, 28, 1) from 0 to 1, and (rows,)."""
    table = pq.read_table(path)
    pixels = table["image"].combine_chunks().flatten().to_numpy().reshape(len(table), 28, 28, 1)
    return pixels.astype("float32") / 255, table["label"].to_numpy()


def run(settings: dict) -> dict:
    """Epochs by turns. Returns the seconds of each, and the accuracy on the validation rows after each."""
    folder = Path(settings["folder"])
    images, labels = images_of(folder / "train-0.parquet")
    validation = images_of(folder / "validation.parquet")
    turns = Turns(Path(settings["turns"][0]), *settings["turns"][1:])
    keras.utils.set_random_seed(settings["seed"])
    model = keras.Sequential([
        keras.Input((28, 28, 1)), keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10, activation="softmax")])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    legs: list[dict] = []
    accuracies: list[float] = []
    for _ in range(settings["epochs"]):
        turns.begin()
        cpu, began = time.process_time(), time.perf_counter()
        model.fit(images, labels, batch_size=settings["batch_size"], epochs=1, verbose=0)
        legs.append({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu,
                     "steps": -(-len(labels) // settings["batch_size"])})
        accuracies.append(float(model.evaluate(*validation, batch_size=1024, verbose=0)[1]))
    turns.leave()
    return {"legs": legs, "accuracies": accuracies}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["out"]).write_text(json.dumps(run(asked)))
