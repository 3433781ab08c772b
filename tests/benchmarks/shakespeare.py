"""Tiny Shakespeare by characters at nanoGPT's setting for a CPU: the recipe shakespeare.yaml."""

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, run

TITLE = "tiny Shakespeare at nanoGPT's setting for a CPU"
SOURCE = ROOT.parent / "shared/data/tinyshakespeare/input.txt"


@dataclass(frozen=True, kw_only=True)
class Settings:
    max_steps: int = 2000


QUICK = Settings(max_steps=20)
NOTES = (
    "4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no dropout: as many tokens as with the command "
    "that nanoGPT's README gives for a CPU, for which it reports a loss of 1.88. The first 90% of the text is for "
    "training; the loss is over all of the rest, in nats a character.",
    "One local worker with one thread. Seconds: all of the run without preparing, artifact and report.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    flags = ["--config", str(ROOT / "jobs/transformer/shakespeare.yaml"), "--data.uri", str(SOURCE),
             "--train.max-steps",
             str(settings.max_steps), "--run.tracking-uri", "none"]
    with run(workspace / "storage/shakespeare", *flags, job="transformer", quick=False) as job:
        found = job.finished(1800)
    return Outcome(
        figures=(Figure(name="validation loss", value=found["metrics"]["validation"]["loss"], at_most=1.88),
                 Figure(name="seconds", value=found["wall_s"], unit="s"), Figure(name="steps", value=found["steps"])),
        samples={"result": found}, notes=NOTES)
