"""`python -m serving optimize ARTIFACT`: variants of a trained classifier,
artifacts of their own that say what they gain and lose.

    find ─► judge the parent, as its manifest does ─► make variants, judge them ─► time all by turns ─► write

A variant is loaded from a draft on this machine's disk as a replica would load it,
so what is measured is what is served.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.core.errors import ArtifactError, ConfigError, RegistryError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import CARD, MANIFEST, PROBE, Artifact, Probe, open_artifact, write_artifact
from jobs.common.artifact.manifest import Description, Variant
from jobs.common.predictor.find import load_predictor
from jobs.common.predictor.loading import check_probe, use_threads
from jobs.common.predictor.predictor import Predictor
from jobs.common.provenance import code_version, machine, used_libraries
from jobs.common.registry.connection import experiment_of, open_named, open_registry
from serving.model.replica import answers
from serving.variants.benchmark import BATCH_ROWS, Data, Judged, check_reproduced, latencies
from serving.variants.variants import MEANING, VariantContext, recipe_of

_CALIBRATION_ROWS = 512
_HOW_TO_LOAD = """from jobs.common.artifact.artifact import open_artifact
from jobs.common.predictor.find import load_predictor
artifact = open_artifact("ARTIFACT")
predictor = load_predictor(artifact)
outputs = predictor.encode(predictor.predict(predictor.decode(artifact.probe().inputs)))  # or inputs of yours"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model that variants are made of."""

    artifact: Artifact
    registered: str
    """The registry's name of the model; empty for an artifact's path."""
    version: str
    """NAME/VERSION there."""
    jobs: Sequence[str]
    """Packages outside Trainyard whose code may be imported, as for `load_predictor`."""

    def predictor(self, artifact: Artifact) -> Predictor:
        """Of this model, or of a variant of it. Raises: ArtifactError."""
        return load_predictor(artifact, self.jobs)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that has been judged. artifact: the parent's, or a variant's draft."""

    name: str
    artifact: Artifact
    predictor: Predictor
    judged: Judged

    @property
    def paths(self) -> list[str]:
        """Its files, without probe and card."""
        return [path for path in self.artifact.manifest.paths if path not in (PROBE, CARD)]

    @property
    def accuracy(self) -> float:
        return self.judged.metrics["accuracy"]

    def figures(self, latency_ms: Mapping[int, float]) -> dict[str, float]:
        """As a manifest holds them."""
        size = sum(entry.size for entry in self.artifact.manifest.files if entry.path in self.paths)
        times = {f"latency_ms_{rows}_row{'s' if rows > 1 else ''}": ms for rows, ms in latency_ms.items()}
        return {"size_bytes": size, **times, **{f"test_{name}": value for name, value in self.judged.metrics.items()}}


def optimize(options: argparse.Namespace) -> int:
    """Raises: ConfigError, RegistryError, DataError;
    ArtifactError, of a variant that is refused after the others are written."""
    _check(options)
    storage = Store.open(options.storage)
    source = _source(options, storage)
    recipe = recipe_of(source.artifact, source.jobs)
    names = _names(options.variants, source.artifact, recipe.variants)
    places = _places(source.artifact, options.output, names)
    use_threads(max(1, int(options.cpus_per_replica)))
    data = Data.of(source.artifact, recipe.column, storage, _elsewhere(options), say=print)
    parent = _parent(source, data)
    context = VariantContext(source.artifact, recipe, data.training_rows(_CALIBRATION_ROWS))
    with tempfile.TemporaryDirectory(prefix="trainyard-optimise-") as folder:
        made, refused = _candidates(names, source, parent, context, data, Store.open(folder), options.max_loss)
        timed = latencies({each.name: each.predictor for each in (parent, *made)}, source.artifact.probe(),
                          options.seconds)
        figures = {each.name: each.figures(timed[each.name]) for each in (parent, *made)}
        written = {each.name: _written(each, parent, figures, source, places[each.name])
                   for each in made if each.name not in refused}
    versions = {name: _registered(artifact, source, options, storage) for name, artifact in written.items()
                if options.register}
    print(table(figures, written, versions, refused))
    if refused:
        raise ArtifactError("\n".join(refused.values()))
    return 0


# ── before anything is made ──
def _check(options: argparse.Namespace) -> None:
    for name in ("seconds", "cpus_per_replica"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name):g}: it must be more than 0")
    if not 0 <= options.max_loss <= 100:
        raise ConfigError(f"--max-loss {options.max_loss:g}: it must be 0 to 100, in points of accuracy")
    if options.register and not options.artifact.startswith("models:/"):
        raise ConfigError(f"--register: {options.artifact} is a path, and no registered model: pass models:/NAME@ALIAS "
                          "or models:/NAME/VERSION, of which variants become versions")


def _source(options: argparse.Namespace, storage: Store) -> Source:
    artifact, found = open_named(options.artifact, options.tracking_uri, storage)
    return Source(artifact=artifact, registered=found.name if found else "",
                  version=f"{found.name}/{found.version}" if found else "", jobs=options.job)


def _names(asked: str | None, artifact: Artifact, offered: Sequence[str]) -> list[str]:
    names = list(offered) if asked is None else list(dict.fromkeys(asked.split(",")))
    if unknown := [name for name in names if name not in offered]:
        job = artifact.manifest.description.job
        raise ConfigError(f"--variants {asked}: a model of the job {job} has no {unknown[0]!r}: it has "
                          f"{', '.join(offered)}")
    return names


def _places(artifact: Artifact, output: str | None, names: Sequence[str]) -> dict[str, tuple[Store, str]]:
    """Store and folder of each variant: beside the parent, if no other is asked for.
    Raises: ConfigError for one that is taken."""
    uri, mark, rest = artifact.uri.partition("?" if "://" in artifact.uri else "\0")
    beside, _, own = uri.rpartition("/")
    places = {name: (Store.open(output), name) if output else (Store.open(beside + mark + rest), f"{own}-{name}")
              for name in names}
    for store, path in places.values():
        if store.exists(f"{path}/{MANIFEST}"):  # an endpoint may be serving it
            raise ConfigError(f"{store.location(path)} is an artifact already: pass another --output, or delete it, if "
                              "nothing serves it")
    return places


def _elsewhere(options: argparse.Namespace) -> dict[str, str]:
    given = {"uri": options.data_uri, "val_uri": options.data_val_uri, "test_uri": options.data_test_uri}
    return {name: value for name, value in given.items() if value is not None}


# ── making and judging ──
def _parent(source: Source, data: Data) -> Candidate:
    """Raises: ArtifactError if it does not do what its manifest says."""
    predictor = source.predictor(source.artifact)
    judged = data.judge(predictor)
    check_reproduced(source.artifact, judged)
    return Candidate(name="parent", artifact=source.artifact, predictor=predictor, judged=judged)


def _candidates(names: Sequence[str], source: Source, parent: Candidate, context: VariantContext, data: Data,
                drafts: Store,
                max_loss: float) -> tuple[list[Candidate], dict[str, str]]:
    """Those that could be made, and by name why some are refused."""
    made: list[Candidate] = []
    refused: dict[str, str] = {}
    for name in names:
        print(f"making {name}", flush=True)
        try:
            made.append(_candidate(name, context, source, data, drafts))
            _check_loss(parent, made[-1], max_loss)
        except ArtifactError as error:
            refused[name] = str(error)
    return made, refused


def _candidate(name: str, context: VariantContext, source: Source, data: Data, drafts: Store) -> Candidate:
    """Loaded from a draft, which lacks the figures alone. Raises: ArtifactError if it cannot be made or loaded."""
    parent = source.artifact
    about = replace(parent.manifest.description, variant=_variant(name, parent.digest), embedding=None)
    draft = write_artifact(drafts, name, description=about, probe=parent.probe(), files=context.files(name))
    predictor = source.predictor(draft)
    return Candidate(name=name, artifact=draft, predictor=predictor, judged=data.judge(predictor))


def _check_loss(parent: Candidate, made: Candidate, max_loss: float) -> None:
    loss = 100 * (parent.accuracy - made.accuracy)
    if loss > max_loss + 1e-9:
        raise ArtifactError(f"{made.name} is refused: its test accuracy is {made.accuracy:.4f}, {loss:.2f} points less "
                            f"than the parent's {parent.accuracy:.4f}, and --max-loss is {max_loss:g}: it was not "
                            "written")


# ── the artifact ──
def _written(made: Candidate, parent: Candidate, figures: Mapping[str, Mapping[str, float]], source: Source,
             place: tuple[Store, str]) -> Artifact:
    """Checked as a replica checks it. Raises: ArtifactError, StorageError."""
    inputs = parent.artifact.probe().inputs
    (outputs,) = answers(made.predictor, [inputs])
    assert isinstance(outputs, Mapping), outputs
    variant = replace(
        _variant(made.name, parent.artifact.digest), parent_version=source.version, figures=figures[made.name],
        parent_figures=figures[parent.name],
        largest_difference=float(np.abs(made.judged.probabilities - parent.judged.probabilities).max()))
    store, path = place
    written = write_artifact(store, path,
                             description=_described(parent.artifact.manifest.description, variant, made.judged),
                             probe=Probe(inputs=inputs, outputs=outputs),
                             files={path: made.artifact.store.local_path(path) for path in made.paths})
    opened = open_artifact(written.store, written.digest)
    check_probe(source.predictor(opened), opened)
    return opened


def _variant(name: str, parent_digest: str) -> Variant:
    """Without what is found out later."""
    return Variant(name=name, parent_digest=parent_digest, parent_version="", largest_difference=0.0, machine=machine(),
                   figures={},
                   parent_figures={})


def _described(parent: Description, variant: Variant, judged: Judged) -> Description:
    about = f"{parent.about} Made of the trained model {variant.parent_digest[:12]}: {MEANING[variant.name]}."
    return replace(parent, variant=variant, embedding=None, metrics={"test": dict(judged.metrics)}, about=about,
                   how_to_load=_HOW_TO_LOAD,
                   code=code_version(), libraries=used_libraries())


def _registered(artifact: Artifact, source: Source, options: argparse.Namespace, storage: Store) -> str:
    """The version that it becomes. Raises: RegistryError."""
    variant = artifact.manifest.description.variant
    assert variant is not None
    experiment = experiment_of(artifact.manifest.description)
    registry = open_registry(options.tracking_uri, storage, source.registered, experiment)
    registry.start(f"{variant.name} of {source.version}", {}, {"variant": variant.name, "parent": source.version})
    registry.log(variant.figures, 0)
    version = registry.register(artifact)
    registry.finish("done" if version else "failed")
    if version is None:
        raise RegistryError(registry.problem or f"{artifact.uri} was not registered")
    return version


# ── what is printed ──
def table(figures: Mapping[str, Mapping[str, float]], written: Mapping[str, Artifact], versions: Mapping[str, str],
          refused: Mapping[str, str]) -> str:
    """A line a model, the parent first."""
    rows = [["VARIANT", "SIZE KB", "1 ROW MS", f"{BATCH_ROWS} ROWS MS", "ACCURACY", "CHANGE", "VERSION", "WHERE"]]
    base = figures["parent"]["test_accuracy"]
    for name, of in figures.items():
        change = "" if name == "parent" else f"{100 * (of['test_accuracy'] - base):+.2f}"
        rows.append([name, f"{of['size_bytes'] / 1000:,.0f}", f"{of['latency_ms_1_row']:.3f}",
                     f"{of[f'latency_ms_{BATCH_ROWS}_rows']:.3f}", f"{of['test_accuracy']:.4f}", change,
                     versions.get(name, ""),
                     "refused" if name in refused else written[name].uri if name in written else ""])
    rows += [[name, "-", "-", "-", "-", "-", "", "refused"] for name in refused if name not in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
