"""Answers by artifacts of the job for tables: by their graph, so no code of yours is run where they are loaded."""

from jobs.common.artifact.artifact import Artifact
from jobs.common.config import from_dict
from jobs.common.predictor.formats import Formats, onnx
from jobs.common.predictor.onnx_model import MODEL, OnnxModel, require_graph
from jobs.common.tables.predictor import TablePredictor, graph_inputs, info_of
from jobs.tabular.config import TabularConfig


class TabularPredictor(TablePredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "TabularPredictor":
        """Raises: ArtifactError, also for a module that could not be written as a graph."""
        require_graph(artifact)
        return cls.by_graph(artifact)

    @classmethod
    def by_graph(cls, artifact: Artifact, graph: bytes | None = None) -> "TabularPredictor":
        """graph: another one than the artifact's own."""
        settings = from_dict(TabularConfig, {"model": dict(artifact.manifest.description.config["model"])}).model
        info = info_of(artifact, settings)
        return cls(info, OnnxModel(artifact, lambda _, rows: graph_inputs(info, rows), graph))


def formats(artifact: Artifact) -> Formats:
    """Its graph, from normalised numbers and codes of categories to answers as it was trained to give them."""
    require_graph(artifact)
    return onnx(artifact, lambda found: found.read(MODEL), lambda graph: TabularPredictor.by_graph(artifact, graph))


PREDICTOR = TabularPredictor
