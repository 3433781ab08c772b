"""The text classifier of an artifact as an ONNX file."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from torch import Tensor

from jobs.common.artifact.artifact import Artifact
from jobs.pytorch.onnx_export import onnx_file
from jobs.transformer.model import Classifier, load


def to_onnx(artifact: Artifact) -> bytes:
    """From token ids and mask, both (B, T) int64, to probabilities (B, K)."""
    loaded = load(artifact)
    assert isinstance(loaded, Classifier), "a language model has no classes"
    model = loaded.model

    def logits(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model(input_ids=input_ids, attention_mask=attention_mask).logits

    # with padding: where there is none, a model may leave out what masks it
    example = loaded.encode(["a text of some words to be traced with", "another", ""])
    return onnx_file(model, logits, example, ("rows", "tokens"))
