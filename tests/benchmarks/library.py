"""Python's own standard library: bits a byte after 10 minutes of training,
beside what gzip and xz make of the same test files."""

import gzip
import lzma
from dataclasses import dataclass
from pathlib import Path

from jobs.common.config import parse
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import read_texts
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, run

TITLE = "the standard library's source: bits a byte on unseen files"
RECIPE = ("--config", str(ROOT / "jobs/transformer/library.yaml"), "--run.workers", "2", "--run.tracking-uri", "none")


@dataclass(frozen=True, kw_only=True)
class Settings:
    max_steps: int | None = None


QUICK = Settings(max_steps=10)
NOTES = (
    "`--config jobs/transformer/library.yaml --run.workers 2`: two local processes with a thread each. Seconds: all of "
    "the run without preparing, artifact and report.",
    "gzip -9 and xz -9e have all test files in one stream, which favours them; the model sees at most one row (its "
    "context) of them at a time, but has seen the training files. Its own size is not counted.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    limit = ["--train.max-steps", str(settings.max_steps)] if settings.max_steps else []
    with run(workspace / "storage/library", *RECIPE, *limit, job="transformer", quick=False) as job:
        found = job.finished(1800)
    texts = read_texts(parse(TransformerConfig, list(RECIPE), "library"))
    data = "".join(texts.texts[i] for i in texts.of("test")).encode()
    sizes = {"gzip -9": len(gzip.compress(data, 9)), "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))}
    test = found["metrics"]["test"]
    figures = (
        Figure(name="bits a byte", value=test["bits_per_byte"], aim_at_most=8 * sizes["xz -9e"] / len(data)),
        *(Figure(name=f"{name}: bits a byte", value=8 * size / len(data)) for name, size in sizes.items()),
        Figure(name="perplexity of a token", value=test["perplexity"]),
        Figure(name="test files", value=len(data) / 1e6, unit="MB"),
        Figure(name="seconds", value=found["wall_s"], unit="s", at_most=600),
        Figure(name="steps", value=found["steps"]),
    )
    return Outcome(figures=figures, samples={"result": found, "bytes": {"test": len(data), **sizes}}, notes=NOTES)
