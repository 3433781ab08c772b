"""What `python -m serving optimize` makes of a normally trained model of each job: size,
latency with one thread, accuracy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.common.artifact.artifact import open_artifact
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, python, run

TITLE = "variants of trained classifiers: size, latency and accuracy beside their parents'"
FLAGS: dict[str, tuple[str, ...]] = {
    "mlp": (),
    "cnn": (),
    "transformer": ("--config", str(ROOT / "jobs/transformer/languages.yaml"), "--run.workers", "2"),
}
VARIANTS = {"mlp": ("onnx", "onnx-int8"), "cnn": ("onnx", "onnx-int8", "compiled"),
            "transformer": ("onnx", "onnx-int8")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    max_steps: int | None = None
    seconds: float = 4.0
    """Of timing each model with one row, and with 64."""


QUICK = Settings(max_steps=60, seconds=0.2)
NOTES = (
    "The default presets on the digits, and `--config jobs/transformer/languages.yaml`; trained whole. One thread, as "
    "a replica with one CPU has; medians, by turns with the parent. A row's way: tensors, decode, predict, encode, "
    "tensors; of the Transformer it begins with a text. The parents: PyTorch's eager mode, and Keras's call of the "
    "model, as they are served.",
    "Size: all files but probe and card. The CNN's parent holds its ONNX file too, beside Keras's.",
    "Accuracy: points on the test split, of which 0.5 may be lost (`--max-loss`).",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for job, variants in VARIANTS.items():
        for name, variant in _optimised(job, variants, settings, workspace / "storage").items():
            samples[f"{job}, {name}"] = {"figures": variant.figures, "parent_figures": variant.parent_figures,
                                         "largest_difference": variant.largest_difference}
            figures += _shown(job, name, variant.parent_figures, variant.figures, parent=name == variants[0])
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def _optimised(job: str, variants: tuple[str, ...], settings: Settings, storage: Path) -> dict[str, Any]:
    limit = ["--train.max-steps", str(settings.max_steps)] if settings.max_steps else []
    with run(storage / job, "--run.tracking-uri", "none", "--eval.robustness-rows", "0", *FLAGS[job], *limit, job=job,
             quick=False) as trained:
        artifact = trained.finished(3600)["artifact"]
    command = ["optimise", artifact, "--storage", str(storage), "--seconds", str(settings.seconds), "--max-loss", "100"]
    with python("serving", *command, folder=storage) as made:
        assert made.wait(1200) == 0, made.text
    return {name: open_artifact(f"{artifact}-{name}").manifest.description.variant for name in variants}


def _shown(job: str, name: str, before: Any, after: Any, *, parent: bool) -> list[Figure]:
    kinds = (("1 row", "latency_ms_1_row"), ("64 rows", "latency_ms_64_rows"))
    figures: list[Figure] = []
    if parent:
        figures = [Figure(name=f"{job}: {what}", value=before[key], unit="ms") for what, key in kinds]
        figures += [Figure(name=f"{job}: size", value=before["size_bytes"] / 1000, unit="kB"),
                    Figure(name=f"{job}: accuracy", value=before["test_accuracy"])]
    figures += [Figure(name=f"{job}, {name}: {what}", value=after[key], unit="ms") for what, key in kinds]
    figures += [Figure(name=f"{job}, {name}: {what}, times as fast", value=before[key] / after[key], at_least=1.0)
                for what, key in kinds]
    share = after["size_bytes"] / before["size_bytes"]
    return [*figures,
            Figure(name=f"{job}, {name}: share of the size", value=share, at_most=0.5 if name == "onnx-int8" else None),
            Figure(name=f"{job}, {name}: accuracy, points",
                   value=100 * (after["test_accuracy"] - before["test_accuracy"]),
                   at_least=-0.5)]
