"""The formats in which a job's trained models can be handed to programs that know nothing of Trainyard.

A job's predictor.py says by `formats(artifact)` which ones there are of a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import MODEL
from jobs.common.predictor.predictor import Answering


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one model is written in a format, and read back to see whether that is the model."""

    write: Callable[[Path], None]
    """Writes the file, or the folder, of this path. Raises: ArtifactError."""
    load: Callable[[Path], Answering]
    """What answers by that alone, as other programs would."""
    suffix: str = ""
    """Of the file; empty: it is a folder."""
    mark: str | None = None
    """A file that each such folder has."""


Formats = Mapping[str, Format]


def onnx(artifact: Artifact, to_onnx: Callable[[Artifact], bytes], answering: Callable[[bytes], Answering]) -> Formats:
    """The graph in the artifact, or what `to_onnx` makes. answering: by the bytes of a graph."""
    def write(path: Path) -> None:
        path.write_bytes(artifact.read(MODEL) if MODEL in artifact.manifest.paths else to_onnx(artifact))

    return {"onnx": Format(suffix=".onnx", write=write, load=lambda path: answering(path.read_bytes()))}
