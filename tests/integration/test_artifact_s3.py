"""An artifact on an object store (a real S3 server): written, verified, copied here, and damage found out."""

import numpy as np
import pytest

from cluster.core.errors import ArtifactError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import WEIGHTS, Probe, open_artifact, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from tests.s3 import BUCKET, s3_server


@pytest.fixture(scope="module", autouse=True)
def server():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def artifact(request):
    scores = TensorSpec(name="scores", datatype="FP32", shape=(-1, 2))
    description = Description(
        job="mlp", task="image-classification", inputs=(scores,), outputs=(scores,), labels=("a", "b"),
        preprocessing={},
        metrics={}, config={}, data={}, about="A test.",
    )
    rows = {"scores": np.zeros((1, 2), np.float32)}
    store = Store.open(f"s3://{BUCKET}/{request.node.name}")
    weights = {"w": np.arange(10, dtype=np.float32)}
    probe = Probe(inputs=rows, outputs=rows)
    return write_artifact(store, "artifact", description=description, probe=probe,
                          files={WEIGHTS: weights_file(weights)})


def test_it_is_verified_there_and_copied_here(artifact, tmp_path):
    assert open_artifact(artifact.uri, artifact.digest).digest == artifact.digest
    here = artifact.copy_to(tmp_path / "here")
    assert (tmp_path / "here" / "model.safetensors").exists()
    np.testing.assert_array_equal(here.weights()["w"], np.arange(10, dtype=np.float32))
    assert here.copy_to(artifact.uri + "-again").digest == artifact.digest


def test_damage_is_named(artifact):
    data = bytearray(artifact.store.read_bytes("model.safetensors"))
    data[-1] ^= 1
    artifact.store.write_bytes("model.safetensors", bytes(data))
    with pytest.raises(ArtifactError, match=r"model\.safetensors differs from its sha256"):
        open_artifact(artifact.uri)
    artifact.store.delete("model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors is missing"):
        open_artifact(artifact.uri)


def test_no_artifact_there_is_said(artifact):
    with pytest.raises(ArtifactError, match=r"no artifact at s3://"):
        open_artifact(f"s3://{BUCKET}/nowhere")
