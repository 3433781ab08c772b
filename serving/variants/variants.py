"""What can be made of a trained classifier so that it is smaller or answers sooner, and what a job gives for that.

    onnx         the same numbers in ONNX Runtime
    onnx-int8    8 bits, see serving/variants/int8.py
    compiled     the same files; the predictor compiles the model when it loads it. No compiled code is in an artifact
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from cluster.core.errors import ArtifactError, TrainyardError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import CARD, PROBE, Artifact, Content
from jobs.common.predictor.find import module_of
from jobs.common.predictor.onnx_model import MODEL, OnnxModel
from jobs.common.predictor.recipe import COMPILED, INT8, ONNX, Recipe
from serving.variants.int8 import quantised

MEANING = {ONNX: "for ONNX Runtime", INT8: "for ONNX Runtime, in 8 bits", COMPILED: "compiled when it is loaded"}
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".keras", ".onnx")
_MOST_ONNX_BYTES = 1_900_000_000
"""A protobuf message holds 2 GB, and numbers in other files are not taken."""
_CALIBRATION_BATCH = 32


def recipe_of(artifact: Artifact, jobs: Sequence[str] = ()) -> Recipe:
    """The recipe of an artifact's job. jobs: as in `load_predictor`.

    Raises: ArtifactError for a model of which no variants can be made.
    """
    about = artifact.manifest.description
    if about.variant is not None:
        raise ArtifactError(f"artifact {artifact.uri} is the variant {about.variant.name} of another model already: "
                            f"optimise that one, whose digest begins with {about.variant.parent_digest[:12]}")
    if about.base is not None:
        raise ArtifactError(f"artifact {artifact.uri} is an adapter, and no model by itself: train it with "
                            "--export.merge, and optimise that artifact")
    if not about.labels or "accuracy" not in about.metrics.get("test", {}):
        raise ArtifactError(f"artifact {artifact.uri} is for {about.task}: only classifiers are optimised, whose loss "
                            "of accuracy can be told; serve this one as it is")
    recipe = getattr(module_of(artifact, jobs), "RECIPE", None)
    if recipe is None:
        raise ArtifactError(f"artifact {artifact.uri} is of the job {about.job}, whose predictor.py has no RECIPE to "
                            "optimise by")
    return recipe


class VariantContext:
    """Makes variants of one artifact."""

    def __init__(self, artifact: Artifact, recipe: Recipe, calibration: Array) -> None:
        """calibration: some training rows."""
        self._artifact, self._recipe, self._calibration = artifact, recipe, calibration

    def files(self, name: str) -> dict[str, Content]:
        """What a variant's artifact holds, but its probe and card. Raises: ArtifactError if it cannot be made."""
        try:
            graph = None if name == COMPILED else self._onnx if name == ONNX else self._int8()
            made: Mapping[str, bytes] = {MODEL: graph} if graph else {}
        except TrainyardError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ArtifactError(f"the variant {name} of {self._artifact.uri} cannot be made: {reason}") from error
        kept = [path for path in self._artifact.manifest.paths
                if path not in (PROBE, CARD) and (name == COMPILED or not path.endswith(_WEIGHTS))]
        return {**{path: self._artifact.read(path) for path in kept}, **made}

    @cached_property
    def _onnx(self) -> bytes:
        size = sum(entry.size for entry in self._artifact.manifest.files if entry.path.endswith(_WEIGHTS))
        if size > _MOST_ONNX_BYTES:
            raise ArtifactError(f"the weights of {self._artifact.uri} have {size / 1e9:.1f} GB: an ONNX file holds "
                                "less than 2 GB")
        return self._recipe.to_onnx(self._artifact)

    def _int8(self) -> bytes:
        model = OnnxModel(self._artifact, self._recipe.inputs, self._onnx)
        parts = np.array_split(self._calibration, max(1, len(self._calibration) // _CALIBRATION_BATCH))
        return quantised(self._onnx, map(model.feeds, parts))
