"""Which language is this phrase? The recipe languages.yaml on two workers, against a linear model on the same split."""

from dataclasses import dataclass
from pathlib import Path

from sklearn.metrics import accuracy_score, f1_score

from jobs.common.config import parse
from jobs.transformer.baseline import fitted
from jobs.transformer.config import TransformerConfig
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, run

TITLE = "33 languages, unseen entities: the `tiny` preset against a linear model"
RECIPE = ("--config", str(ROOT / "jobs/transformer/languages.yaml"), "--run.workers", "2", "--run.tracking-uri", "none")


@dataclass(frozen=True, kw_only=True)
class Settings:
    max_steps: int | None = None


QUICK = Settings(max_steps=20)
NOTES = (
    "`--config jobs/transformer/languages.yaml --run.workers 2`: two local processes with a thread each. Seconds: all "
    "of the run, from the start of the workers to the predictions for the test rows, without preparing, artifact and "
    "report.",
    "The linear model: TF-IDF of 1 to 4 characters within words (min_df 2, sublinear), logistic regression (C 10) on "
    "the same training rows (jobs/transformer/baseline.py).",
    "The test rows are of entities that neither saw in training in any language; choices were made on validation rows.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    limit = ["--train.max-steps", str(settings.max_steps)] if settings.max_steps else []
    with run(workspace / "storage/languages", *RECIPE, *limit, job="transformer", quick=False) as job:
        found = job.finished(1800)
    test = found["metrics"]["test"]
    linear = fitted(parse(TransformerConfig, list(RECIPE), "languages"))
    said = linear.probabilities.argmax(1)
    linear_f1 = float(f1_score(linear.labels, said, average="macro"))
    figures = (
        Figure(name="macro-F1", value=test["macro_f1"], at_least=linear_f1, aim_at_least=0.87),
        *(Figure(name=f"macro-F1: {end} end of the 95% interval", value=test[f"macro_f1_{key}"])
          for end, key in (("lower", "low"), ("upper", "high"))),
        Figure(name="accuracy", value=test["accuracy"]),
        Figure(name="linear model: macro-F1", value=linear_f1),
        Figure(name="linear model: accuracy", value=float(accuracy_score(linear.labels, said))),
        Figure(name="seconds", value=found["wall_s"], unit="s", at_most=600),
        Figure(name="steps", value=found["steps"]),
    )
    return Outcome(figures=figures, samples={"result": found}, notes=NOTES)
