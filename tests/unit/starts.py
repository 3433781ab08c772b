"""Models to begin with, as artifacts, without a run that trained them; and what became of the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.artifact.artifact import WEIGHTS, Artifact, Content, Probe, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec

FIRST = Description(
    job="mlp", task="image-classification", inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),), labels=(), preprocessing={}, metrics={}, config={},
    data={}, about="A model to begin with.")


def first_model(folder: Path, job: str, files: Mapping[str, Content], labels: Sequence[str], **about: Any) -> Artifact:
    """files: as `write_artifact` takes them."""
    nothing = np.zeros(1, np.float32)
    return write_artifact(Store.open(str(folder)), "first", description=replace(FIRST, job=job, labels=tuple(labels),
                                                                                **about),
                          probe=Probe(inputs={"x": nothing}, outputs={"y": nothing}), files=files)


def of_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, Content]:
    """The files of an artifact of a PyTorch job."""
    return {WEIGHTS: weights_file({name: np.asarray(each) for name, each in tensors.items()})}
