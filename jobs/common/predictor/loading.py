"""What is done around loading a model, wherever it is to answer: threads are set, and then its own rows are asked."""

import os

import numpy as np

from cluster.core.errors import ArtifactError
from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.predictor import Answering, Embedder, EmbeddingPredictor, Predictor

_PROBE_RTOL, _PROBE_ATOL = 1e-3, 1e-5
"""How far answers for the probe rows may be from the artifact's: other hardware rounds otherwise."""


def use_threads(count: int) -> None:
    """Of the frameworks, which read it when they are imported."""
    # the last: tokenizers
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"


def check_probe(predictor: Answering, artifact: Artifact, fails: str = "") -> None:
    """fails: what begins the message, by default that the artifact does not serve.
    Raises: ArtifactError if the model does not answer the artifact's own rows as the artifact says."""
    fails = fails or f"artifact {artifact.uri} does not serve"
    probe, variant = artifact.probe(), artifact.manifest.description.variant
    # where numbers are rounded to 8 bits, other hardware's last digits may tip some of them over
    atol = max(_PROBE_ATOL, variant.largest_difference if variant else 0.0)
    try:
        found = predictor.encode(predictor.predict(predictor.decode(probe.inputs)))
    except Exception as error:
        raise ArtifactError(f"{fails}: it refuses its own probe rows ({error})") from error
    for name, wanted in probe.outputs.items():
        if not np.allclose(found[name], wanted, _PROBE_RTOL, atol):
            far = float(np.abs(np.asarray(found[name], np.float64) - wanted).max())
            raise ArtifactError(f"{fails}: its answers for its own probe rows differ by {far:.3g} in {name} from those "
                                "in it")


def embedder_of(predictor: Predictor, artifact: Artifact) -> Embedder | None:
    """None where the artifact offers no vectors. Raises: ArtifactError for one that says it does, of a job that makes
    none."""
    if artifact.manifest.description.embedding is None:
        return None
    if not isinstance(predictor, EmbeddingPredictor):
        raise ArtifactError(f"artifact {artifact.uri} has `embedding` in its manifest, and the predictor of the job "
                            f"{artifact.manifest.description.job} has no method `embedder`")
    return predictor.embedder()
