"""`python -m serving optimise ARTIFACT`: variants of a trained classifier, each an artifact of its own that says what it gained and lost.

    find ─► judge the parent as its manifest does ─► make each variant ─► judge it ─► time all by turns ─► write those that keep
    the accuracy

A variant is loaded from a draft on this machine's disk as a replica would load it, so what is measured is what is served.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from cluster.errors import ArtifactError, ConfigError, RegistryError
from cluster.storage import Store
from jobs.common.artifact import CARD, MANIFEST, PROBE, Artifact, Content, Probe, open_artifact, write_artifact
from jobs.common.artifact_manifest import Description, Variant
from jobs.common.provenance import code_version, library_versions, machine
from jobs.common.registry import Registry
from serving.judging import Data, Judged, check_reproduced
from serving.predictor import Predictor, load_predictor
from serving.replica import answers, check_probe, use_threads
from serving.variants import COMPILED, Workshop, recipe_of

BATCH_ROWS = 64
_CALIBRATION_ROWS = 512
_FEWEST_CALLS = 5
_HOW_TO_LOAD = """from jobs.common.artifact import open_artifact
from serving.predictor import load_predictor
artifact = open_artifact("ARTIFACT")
predictor = load_predictor(artifact)
outputs = predictor.encode(predictor.predict(predictor.decode(artifact.probe().inputs)))  # or inputs of your own, by name"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model that variants are made of."""

    artifact: Artifact
    registered: str
    """The registry's name of the model; empty for an artifact's path."""
    version: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that has been judged; of a variant that was refused, only why."""

    name: str
    files: Mapping[str, Content]
    predictor: Predictor
    judged: Judged

    @property
    def size_bytes(self) -> int:
        """Of its files, without probe and card."""
        return sum(_size(content) for content in self.files.values())


def optimise(options: argparse.Namespace) -> int:
    """Raises: ConfigError, RegistryError, DataError, ArtifactError; the latter also where a variant was refused, after the others."""
    _check(options)
    storage = Store.open(options.storage)
    source = _source(options, storage)
    recipe = recipe_of(source.artifact)
    names = _names(options.variants, source.artifact, recipe.variants)
    places = _places(source.artifact, options.output, names)
    use_threads(max(1, int(options.cpus_per_replica)))
    data = Data.of(source.artifact, recipe.column, storage, _elsewhere(options), say=print)
    parent = _parent(source.artifact, data)
    workshop = Workshop(source.artifact, recipe, data.training_rows(_CALIBRATION_ROWS))
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="trainyard-optimise-") as folder:
        kept: list[Candidate] = []
        for name in names:
            print(f"making {name}", flush=True)
            try:
                kept.append(_judged(name, workshop, source.artifact, data, Store.open(folder)))
                _check_loss(parent, kept[-1], options.max_loss)
            except ArtifactError as error:
                refused[name] = str(error)
        timed = latencies({each.name: each.predictor for each in (parent, *kept)}, source.artifact.probe(), options.seconds)
        figures = {each.name: _figures(each, timed[each.name]) for each in (parent, *kept)}
        written = {each.name: _written(each, parent, figures, source, places[each.name]) for each in kept if each.name not in refused}
    registered = {name: _registered(artifact, source, options, storage) for name, artifact in written.items()} \
        if options.register else {}
    print(table(figures, written, registered, refused))
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
        raise ConfigError(f"--register: {options.artifact} is a path, and no registered model: pass models:/NAME@ALIAS or "
                          "models:/NAME/VERSION, of which variants become versions")


def _source(options: argparse.Namespace, storage: Store) -> Source:
    where = options.artifact
    if not where.startswith("models:/"):
        return Source(artifact=open_artifact(where), registered="", version="")
    found = Registry.open(options.tracking_uri, storage, "").resolve(where)
    return Source(artifact=open_artifact(found.uri, found.digest), registered=found.name, version=str(found.version))


def _names(asked: str | None, artifact: Artifact, offered: Sequence[str]) -> list[str]:
    names = list(offered) if asked is None else list(dict.fromkeys(asked.split(",")))
    if unknown := [name for name in names if name not in offered]:
        raise ConfigError(f"--variants {asked}: for models of the job {artifact.manifest.description.job} there is no {unknown[0]!r}: "
                          f"there is {', '.join(offered)}")
    return names


def _places(artifact: Artifact, output: str | None, names: Sequence[str]) -> dict[str, tuple[Store, str]]:
    """Store and folder of each variant: beside the parent, where no other place was asked for. Raises: ConfigError if one is taken."""
    uri, mark, rest = artifact.uri.partition("?" if "://" in artifact.uri else "\0")
    beside, _, own = uri.rpartition("/")
    places = {name: (Store.open(output), name) if output else (Store.open(beside + mark + rest), f"{own}-{name}") for name in names}
    for store, path in places.values():
        if store.exists(f"{path}/{MANIFEST}"):  # an endpoint may be serving it
            raise ConfigError(f"{store.location(path)} is an artifact already: pass another --output, or delete it if nothing serves it")
    return places


def _elsewhere(options: argparse.Namespace) -> dict[str, str]:
    given = {"uri": options.data_uri, "val_uri": options.data_val_uri, "test_uri": options.data_test_uri}
    return {name: value for name, value in given.items() if value is not None}


# ── making and judging ──
def _parent(artifact: Artifact, data: Data) -> Candidate:
    """Raises: ArtifactError if it does not do what its manifest says."""
    predictor = load_predictor(artifact)
    judged = data.judge(predictor)
    check_reproduced(artifact, judged)
    return Candidate(name="parent", files=_contents(artifact), predictor=predictor, judged=judged)


def _judged(name: str, workshop: Workshop, parent: Artifact, data: Data, drafts: Store) -> Candidate:
    """A variant as its artifact will hold it, but for the figures. Raises: ArtifactError if it cannot be made or loaded."""
    about = replace(parent.manifest.description, variant=_variant(name, parent.digest))
    draft = write_artifact(drafts, name, description=about, probe=parent.probe(), files=workshop.files(name))
    predictor = load_predictor(draft)
    return Candidate(name=name, files=_contents(draft), predictor=predictor, judged=data.judge(predictor))


def _check_loss(parent: Candidate, made: Candidate, max_loss: float) -> None:
    before, after = (each.judged.metrics["accuracy"] for each in (parent, made))
    if 100 * (before - after) > max_loss + 1e-9:
        raise ArtifactError(f"{made.name} is refused: its test accuracy is {after:.4f}, {100 * (before - after):.2f} points less than the "
                            f"parent's {before:.4f}, and --max-loss is {max_loss:g}: it was not written")


def latencies(predictors: Mapping[str, Predictor], probe: Probe, seconds: float) -> dict[str, dict[int, float]]:
    """By model and number of rows, the median milliseconds from tensors to tensors. By turns, so that whatever else the machine does
    hits all alike. seconds: of each model and size."""
    found: dict[str, dict[int, float]] = {name: {} for name in predictors}
    for rows in (1, BATCH_ROWS):
        inputs = {name: np.resize(values, (rows, *values.shape[1:])) for name, values in probe.inputs.items()}
        taken: dict[str, list[float]] = {name: [] for name in predictors}
        for predictor in predictors.values():
            answers(predictor, [inputs])
        until = time.perf_counter() + seconds * len(predictors)
        while time.perf_counter() < until or len(taken[next(iter(taken))]) < _FEWEST_CALLS:
            for name, predictor in predictors.items():
                answers(predictor, [inputs])  # brings its weights back into the processor's caches
                began = time.perf_counter()
                answers(predictor, [inputs])
                taken[name].append(time.perf_counter() - began)
        for name, times in taken.items():
            found[name][rows] = 1000 * median(times)
    return found


def _figures(made: Candidate, timed: Mapping[int, float]) -> dict[str, float]:
    times = {f"latency_ms_{rows}_row{'s' if rows > 1 else ''}": round(ms, 4) for rows, ms in timed.items()}
    return {"size_bytes": made.size_bytes, **times, **{f"test_{name}": value for name, value in made.judged.metrics.items()}}


# ── the artifact ──
def _written(made: Candidate, parent: Candidate, figures: Mapping[str, Mapping[str, float]], source: Source,
             place: tuple[Store, str]) -> Artifact:
    """Checked as a replica checks it. Raises: ArtifactError, StorageError."""
    before = source.artifact.manifest.description
    difference = float(np.abs(made.judged.probabilities - parent.judged.probabilities).max())
    version = f"{source.registered}/{source.version}" if source.registered else ""
    variant = replace(_variant(made.name, source.artifact.digest), parent_version=version, largest_difference=difference,
                      parent=figures["parent"], variant=figures[made.name])
    inputs = source.artifact.probe().inputs
    (outputs,) = answers(made.predictor, [inputs])
    assert isinstance(outputs, Mapping), outputs
    store, path = place
    artifact = write_artifact(store, path, description=_described(before, variant, made.judged),
                              probe=Probe(inputs=inputs, outputs=outputs), files=made.files)
    check_probe(load_predictor(open_artifact(artifact.store, artifact.digest)), artifact)
    return artifact


def _variant(name: str, parent_digest: str) -> Variant:
    """Without what is found out later."""
    return Variant(name=name, parent_digest=parent_digest, parent_version="", largest_difference=0.0, machine=machine(), parent={},
                   variant={})


def _described(parent: Description, variant: Variant, judged: Judged) -> Description:
    how = {COMPILED: "compiled when it is loaded"}.get(variant.name, "for ONNX Runtime" + ", in 8 bits" * variant.name.endswith("int8"))
    return replace(parent, variant=variant, metrics={"test": dict(judged.metrics)}, about=f"{parent.about} Made of the trained model "
                   f"{variant.parent_digest[:12]}, {how}.", how_to_load=_HOW_TO_LOAD, code=code_version(), libraries=library_versions())


def _contents(artifact: Artifact) -> dict[str, Content]:
    return {path: artifact.read(path) for path in artifact.manifest.paths if path not in (PROBE, CARD)}


def _size(content: Content) -> int:
    assert isinstance(content, bytes)
    return len(content)


def _registered(artifact: Artifact, source: Source, options: argparse.Namespace, storage: Store) -> str:
    """The version that it becomes. Raises: RegistryError."""
    variant = artifact.manifest.description.variant
    assert variant is not None
    registry = Registry.open(options.tracking_uri, storage, source.registered)
    registry.start(f"{variant.name} of version {source.version}", {}, {"variant": variant.name, "parent_version": source.version})
    registry.log({**variant.variant}, 0)
    version = registry.register(artifact)
    registry.finish("done" if version else "failed")
    if version is None:
        raise RegistryError(registry.problem or f"{artifact.uri} was not registered")
    return version


# ── what is printed ──
def table(figures: Mapping[str, Mapping[str, float]], written: Mapping[str, Artifact], registered: Mapping[str, str],
          refused: Mapping[str, str]) -> str:
    """A line a model."""
    head = ("VARIANT", "SIZE KB", "1 ROW MS", f"{BATCH_ROWS} ROWS MS", "ACCURACY", "CHANGE", "VERSION", "WHERE")
    base = figures["parent"]["test_accuracy"]
    rows = [head]
    for name in (*figures, *(name for name in refused if name not in figures)):
        of = figures.get(name)
        numbers = ("-",) * 5 if of is None else (
            f"{of['size_bytes'] / 1000:,.0f}", f"{of['latency_ms_1_row']:.3f}", f"{of[f'latency_ms_{BATCH_ROWS}_rows']:.3f}",
            f"{of['test_accuracy']:.4f}", "" if name == "parent" else f"{100 * (of['test_accuracy'] - base):+.2f}")
        rows.append((name, *numbers, registered.get(name, ""), "refused" if name in refused
                     else written[name].uri if name in written else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
