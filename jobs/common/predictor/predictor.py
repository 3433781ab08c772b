"""What answers by a job's artifacts: four small methods, of the class PREDICTOR in the job's predictor.py.

    load(artifact) ─► decode(inputs) ─► predict(rows) ─► encode(predicted)

Rows of several requests go through `predict` together, so what `decode` and `predict` give are arrays of rows. A
predictor of classes may have a fifth method, `explain`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact

MOST_CHARACTERS = 1 << 18
"""Of all texts of a request: a tokenizer takes up to 10 us for each, whatever of the text the model reads then."""


class Predictor(Protocol):
    """See the module. Called by one thread at a time, but for `explain`."""

    @classmethod
    def load(cls, artifact: Artifact) -> "Predictor":
        """The model of a verified artifact. Raises: ArtifactError."""
        ...

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        """A request's tensors as rows of what the model takes. Raises: InputError for what no model could take."""
        ...

    def predict(self, rows: Array) -> Array:
        """One answer a row."""
        ...

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        """Answers as the tensors that the manifest names."""
        ...


@runtime_checkable
class Watched(Predictor, Protocol):
    """A classifier whose requests are compared with its artifact's reference
    (jobs/common/artifact/drift_reference.py)."""

    def features(self, rows: Array) -> dict[str, Array]:
        """Figures of rows as `decode` gives them, as training made those of the reference."""
        ...


@runtime_checkable
class Changing(Predictor, Protocol):
    """A classifier whose inputs can be changed as the world changes them, which its robustness is measured by."""

    @property
    def changes(self) -> Sequence[str]:
        """Their names, as reports have them."""
        ...

    def change(self, name: str, inputs: Mapping[str, Array], row_ids: Array) -> Mapping[str, Array]:
        """A request's tensors, changed: each row by itself and the same way each time, by its id (B,)."""
        ...


class Embedder(Protocol):
    """What makes vectors of texts: the methods of a Predictor. `decode` gets {"input": (B,) of texts, and of lists of
    tokens}; `encode` gives `embedding` (B, D), and `tokens` (B,), which were read."""

    def decode(self, inputs: Mapping[str, Array]) -> Array: ...
    def predict(self, rows: Array) -> Array: ...
    def encode(self, predicted: Array) -> Mapping[str, Array]: ...


@runtime_checkable
class EmbeddingPredictor(Protocol):
    """A predictor that makes vectors of texts, too, where its artifact's manifest has `embedding`."""

    def embedder(self) -> Embedder:
        """Called once."""
        ...


@runtime_checkable
class Explaining(Protocol):
    """A predictor that also says what its answers rest on."""

    def explain(self, row: Array) -> Mapping[str, Array]:
        """row: (1, …). Tensors as serving/model/explanations.py has them, but for `label`.
        Called by a thread of its own."""
        ...
