"""From an artifact to the code that answers by it: the predictor.py of the job that its manifest names.

A manifest is data from elsewhere, and importing a module runs it. So what a manifest names is imported only if it is a
job of Trainyard itself, or one of `jobs`: packages that whoever loads the artifact has named, word for word.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import cast

from cluster.core.errors import ArtifactError
from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import is_onnx
from jobs.common.predictor.predictor import Explaining, Predictor
from jobs.common.training.house import house_names, package_of


def load_predictor(artifact: Artifact, jobs: Sequence[str] = (), base: str = "") -> Predictor:
    """The predictor of a verified artifact, with its model.

    jobs: packages outside Trainyard whose code may be imported. base: of a job that has adapters, the artifact whose
    weights the model shares with others of this process. Raises: ArtifactError where the artifact's job is none of
    `jobs`, or gives no predictor, or its model cannot be loaded.
    """
    load = module_of(artifact, jobs).PREDICTOR.load
    return cast(Predictor, load(artifact, base) if base else load(artifact))


def explains(artifact: Artifact, jobs: Sequence[str] = ()) -> bool:
    """Whether its predictor explains: it has classes, and there is code for it. Raises: as `load_predictor`."""
    if is_onnx(artifact):
        return False  # nothing leads back through its graph to the inputs
    return bool(artifact.manifest.description.labels) and issubclass(module_of(artifact, jobs).PREDICTOR, Explaining)


def check_allowed(artifact: Artifact, jobs: Sequence[str]) -> None:
    """Raises: ArtifactError for an artifact of a job that is neither Trainyard's nor one of `jobs`. Imports nothing."""
    job, own = artifact.manifest.description.job, house_names()
    if job not in own and job not in jobs:
        raise ArtifactError(f"artifact {artifact.uri} is of the job {job!r}, which is none of Trainyard's own "
                            f"({', '.join(own)}), and no artifact decides which code is imported: pass --job {job} if "
                            "you trust that package")


def module_of(artifact: Artifact, jobs: Sequence[str] = ()) -> ModuleType:
    """The predictor.py of an artifact's job.

    Raises: ArtifactError where it may not be imported, is missing, or needs a package that is not installed.
    """
    check_allowed(artifact, jobs)
    job = artifact.manifest.description.job
    name = f"{package_of(job)}.predictor"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ArtifactError(f"artifact {artifact.uri} is of the job {job}, which needs the package {error.name}: "
                                "install what the job's extra names") from error
        raise ArtifactError(f"artifact {artifact.uri} is of the job {job!r}, and there is no module {error.name}: run "
                            f"this where Python finds {package_of(job)}, with a predictor.py in it") from error
    if not hasattr(found, "PREDICTOR"):
        raise ArtifactError(f"artifact {artifact.uri} is of the job {job!r}, whose predictor.py has no PREDICTOR")
    return found
