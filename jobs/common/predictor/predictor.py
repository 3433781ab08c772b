"""What serves a job's artifacts: four small methods a job, in `serving/<job>.py`, found by the job's name in the manifest.

    load(artifact) ─► decode(inputs) ─► predict(rows) ─► encode(predicted)

Rows of several requests go through `predict` together, so what `decode` and `predict` give are arrays of rows. A predictor of
classes may have a fifth method, `explain`.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

from numpy.typing import NDArray

from cluster.core.errors import ArtifactError
from jobs.common.artifact.artifact import Artifact

Array = NDArray[Any]
MOST_CHARACTERS = 1 << 18
"""Of all texts of a request: a tokenizer takes up to 10 us for each, whatever of the text the model reads then."""


class Predictor(Protocol):
    """See the module. Called by one thread at a time, but for `explain`."""

    @classmethod
    def load(cls, artifact: Artifact) -> "Predictor":
        """The model of a verified artifact. Raises: ArtifactError."""
        ...

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        """A request's tensors as rows of what the model takes. Raises: BadRequestError for what no model could take."""
        ...

    def predict(self, rows: Array) -> Array:
        """One answer a row."""
        ...

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        """Answers as the tensors that the manifest names."""
        ...


@runtime_checkable
class Watched(Predictor, Protocol):
    """A classifier whose requests are compared with its artifact's reference (jobs/common/artifact/drift_reference.py)."""

    def features(self, rows: Array) -> dict[str, Array]:
        """Figures of rows as `decode` gives them, as training made those of the reference."""
        ...


@runtime_checkable
class Explaining(Protocol):
    """A predictor that also says what its answers rest on."""

    def explain(self, row: Array) -> Mapping[str, Array]:
        """row: (1, …). Tensors as serving/model/explanations.py has them, but for `label`. Called by a thread of its own."""
        ...


def load_predictor(artifact: Artifact) -> Predictor:
    """Raises: ArtifactError where the artifact's job cannot be served."""
    return cast(Predictor, module_of(artifact).PREDICTOR.load(artifact))


def explains(artifact: Artifact) -> bool:
    """Whether its predictor explains: its answers are classes, and there is code for it. Raises: as `load_predictor`."""
    about = artifact.manifest.description
    if about.variant is not None and about.variant.name.startswith("onnx"):
        return False  # nothing leads back through its graph to the inputs
    return bool(about.labels) and issubclass(module_of(artifact).PREDICTOR, Explaining)


def module_of(artifact: Artifact) -> Any:
    """The serving/<job>.py of an artifact. Raises: ArtifactError where there is none, or what it needs is not installed."""
    job = artifact.manifest.description.job
    try:
        found = importlib.import_module(f"serving.{job}") if job.isidentifier() and not job.startswith("_") else None
    except ModuleNotFoundError as error:
        if error.name != f"serving.{job}":
            raise ArtifactError(f"artifact {artifact.uri} is of the job {job}, which needs the package {error.name}: install "
                                "what the job's extra names") from error
        found = None
    if not hasattr(found, "PREDICTOR"):
        raise ArtifactError(f"artifact {artifact.uri} is of the job {job!r}, which has no serving/{job}.py")
    return found
