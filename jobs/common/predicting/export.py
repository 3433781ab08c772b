"""A trained model in a format that other programs read: `trainyard export`.

    trainyard export models:/digits@champion --format onnx --out digits.onnx
    trainyard export first --format hf --out MY_MODEL

    onnx    a file for ONNX Runtime and others: models that tell classes or numbers, of every job
    hf      a folder as transformers reads it: models of the Transformer job, an adapter's added to its base
    keras   Keras's own file: the CNN job
    torch   a program (.pt2) that torch.export.load reads: the MLP job

What is written is read back by its own library and asked about the rows that the artifact carries: it appears only if
its answers are the model's, within 1e-3 of each and 1e-5.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.core.errors import ArtifactError, ConfigError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.delivery import delivered
from jobs.common.config import RunConfig
from jobs.common.predictor.find import module_of
from jobs.common.predictor.formats import Formats
from jobs.common.predictor.loading import check_probe
from jobs.common.predictor.onnx_model import is_onnx
from jobs.common.runs.console import fail
from jobs.common.runs.origin import named_artifact

PROG = "python -m jobs.common.predicting.export"
FORMATS = ("onnx", "hf", "keras", "torch")


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Returns the exit code; prints one message for an expected error."""
    asked = parser(prog).parse_args(arguments)
    spare_loopback()
    try:
        storage = Store.open(asked.storage)
        artifact = named_artifact(f"export {asked.model}", asked.model, asked.tracking_uri, storage)
        export(artifact, asked.format, asked.out, overwrite=asked.overwrite, jobs=asked.job)
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    print(f"{asked.format}: {Store.open(asked.out).location()}")
    return 0


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("model", metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION, an artifact's path or URI, or a "
                                       "finished run")
    add("--format", required=True, choices=FORMATS)
    add("--out", required=True, metavar="PATH", help="a file, or of hf a folder")
    add("--overwrite", action="store_true", help="replaces what is there of the same kind")
    add("--job", action="append", default=[], metavar="PACKAGE",
        help="a job outside Trainyard whose code may be imported for its models")
    add("--storage", default=RunConfig.storage, help="folder of the runs (default: %(default)s)")
    add("--tracking-uri", help="MLflow server; by default the SQLite file in the storage")
    return made


def export(artifact: Artifact, name: str, out: str, *, overwrite: bool = False, jobs: Sequence[str] = ()) -> None:
    """name: of the format. Raises: ConfigError for a format that the model cannot have, or a place that is taken;
    ArtifactError where what was written does not answer as the model does."""
    about, offered = artifact.manifest.description, formats_of(artifact, jobs)
    if name not in offered:
        can = f"pass --format {' or '.join(offered)}" if offered else "it has no formats to be exported in"
        raise ConfigError(f"--format {name}: a model of the job {about.job} ({about.task}) cannot be given as {name}: "
                          f"{can}")
    kind = offered[name]
    if not out.endswith(kind.suffix):
        raise ConfigError(f"--out {out}: name a file that ends in {kind.suffix}, as {name} wants it")
    with delivered(out, overwrite=overwrite, mark=kind.mark) as path:
        _write(artifact, name, offered, path)


def formats_of(artifact: Artifact, jobs: Sequence[str] = ()) -> Formats:
    """By name; none of a job whose predictor.py has no `formats`. Raises: ArtifactError."""
    found = getattr(module_of(artifact, jobs), "formats", None)
    offered: Formats = found(artifact) if found else {}
    return {name: each for name, each in offered.items() if name == "onnx" or not is_onnx(artifact)}


def _write(artifact: Artifact, name: str, offered: Formats, path: Path) -> None:
    try:
        offered[name].write(path)
        answering = offered[name].load(path)
    except (TrainyardError, OSError):
        raise
    except Exception as error:  # whatever a framework's exporter raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ArtifactError(f"artifact {artifact.uri} cannot be written as {name}: {reason}") from error
    check_probe(answering, artifact, f"artifact {artifact.uri} was not exported: as {name}")


if __name__ == "__main__":
    sys.exit(main())
