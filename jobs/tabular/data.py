"""What goes into the model for tables, and what comes out of it. Imports no torch."""

from cluster.core.storage import Store
from jobs.common.artifact import artifact
from jobs.common.artifact.manifest import Description
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import Say
from jobs.common.declared_metrics import chosen
from jobs.common.own_code import function_of_yours
from jobs.common.predictor.onnx_model import MODEL
from jobs.common.report.html import Section
from jobs.common.tables.info import TableInfo
from jobs.common.tables.judging import metrics
from jobs.common.tables.prepare import prepare
from jobs.common.tables.report import describe_table, table_sections
from jobs.common.training.job import EvaluationResult, TrainingResult, require_package
from jobs.tabular.config import TabularConfig

HOW_TO_LOAD = """from jobs.tabular.model import load  # imports {build}
model = load("ARTIFACT")
encoded = model.info.schema.encode(columns)  # columns: an Arrow array by name
answers = model.predict(encoded.numbers, encoded.categories)"""


def check(config: TabularConfig) -> None:
    """Raises: ConfigError for a package that is not installed, or a function that is not there."""
    require_package("torch", "torch")
    chosen(metrics(config), config.metric)
    if ":" in config.model.loss:
        function_of_yours("--model.loss", config.model.loss)


def prepare_table(config: TabularConfig, storage: Store, *, use_ray: bool, say: Say) -> Dataset:
    return prepare(config.data, storage, use_ray=use_ray, say=say)


def describe(trained: TrainingResult, verdict: EvaluationResult) -> Description:
    """The artifact's manifest."""
    return describe_table(trained, verdict, how_to_load=HOW_TO_LOAD.format(build=trained.config.model.build))


def files(trained: TrainingResult) -> dict[str, bytes]:
    """The weights of the best checkpoint; and, if it can be written, their graph, by which an endpoint answers."""
    from jobs.pytorch.tables.model import graph_of

    tensors = trained.checkpoints.load(trained.best)
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    config = trained.config
    graph = graph_of(config.own, TableInfo.of(trained.dataset, config.model), own)
    return {artifact.WEIGHTS: artifact.weights_file(own)} | ({MODEL: graph} if graph else {})


def sections(trained: TrainingResult, verdict: EvaluationResult, made: artifact.Artifact) -> list[Section]:
    """Of the report, by the model as it is loaded back from its artifact."""
    from jobs.tabular.model import load

    return table_sections(trained, verdict, load(made).predict)
