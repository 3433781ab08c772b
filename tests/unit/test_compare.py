"""Runs side by side: the paired test against what is known of it, what the page says, and what is refused."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from cluster.core.errors import ConfigError
from jobs.common import compare
from jobs.common.compare import compared, main, render
from jobs.common.evaluation.metrics import evaluate
from jobs.common.finished_runs import Finished, aligned
from jobs.common.paired import Paired, PairedErrors, holm, mcnemar, paired_numbers, paired_tokens, sentence
from jobs.common.training.predictions import Predictions
from tests import runs

ROWS = 400
NAMES = ("a", "b", "<i>c</i>")


def finished(name: str, right: float, seed: int, rows: int = ROWS) -> Finished:
    """A run that gets so many of the rows right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    said = np.where(rng.random(rows) < right, labels, (labels + 1) % 3)
    probabilities = np.full((rows, 3), 0.1, np.float32)
    probabilities[np.arange(rows), said] = 0.8
    history = [{"kind": "evaluation", "step": 10 * k, "epoch": k, "validation_loss": 1 / k,
                "validation_accuracy": right}
               for k in (1, 2)]
    return Finished(name=name, config={"optim": {"lr": seed}, "run": {"name": name, "seed": 0, "storage": "/nowhere"}},
                    result={"steps": 20, "samples_per_s": 12.0, "wall_s": 60.0}, history=history,
                    test=Predictions(np.arange(rows), labels, probabilities),
                    evaluation=evaluate(probabilities, labels, NAMES, top_k=2, bootstrap_samples=100))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (3, 9), (10, 10), (5, 25)])
def test_mcnemar_is_a_fair_coin(only_first: int, only_second: int) -> None:
    n, fewer = only_first + only_second, min(only_first, only_second)
    expected = min(1.0, 2 * float(binom.cdf(fewer, n, 0.5))) if only_first != only_second else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(expected)
    assert mcnemar(only_second, only_first) == pytest.approx(expected)


def test_holm_keeps_the_order_and_never_shrinks_a_value() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        both, first, second, neither = rng.multinomial(300, [0.9, 0.02, 0.05, 0.03])
        low, high = Paired(first="a", second="b", both=both, only_first=first, only_second=second, neither=neither,
                           p_value=1.0).difference[1:]
        hits += low <= 0.03 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_a_difference_is_called_real_only_where_it_is() -> None:
    good, like, bad = finished("good", 0.97, 1), finished("like", 0.97, 2), finished("bad", 0.7, 3)
    (pair,) = compared([good, like])
    assert "no real difference is shown" in sentence(pair)
    (pair,) = compared([good, bad])
    assert sentence(pair).startswith("bad is worse than good (difference -2")
    (pair,) = compared([bad, good])
    assert sentence(pair).startswith("good is better than bad (difference +2")
    assert pair.both + pair.only_first + pair.only_second + pair.neither == ROWS


def test_the_page_shows_every_pair_metrics_curves_and_what_differs() -> None:
    three = [finished(name, right, seed) for name, right, seed in (("<b>x</b>", 0.9, 1), ("y", 0.9, 2), ("z", 0.6, 3))]
    pairs = compared(three)
    assert [(p.first, p.second) for p in pairs] == list(itertools.combinations(("<b>x</b>", "y", "z"), 2))
    page = render(three, pairs)
    assert "<b>x</b>" not in page and "<i>c</i>" not in page
    for words in ("Is the difference real?", "Holm", "Validation loss", "optim.lr", "&lt;i&gt;c&lt;/i&gt;", "20"):
        assert words in page, words
    assert "run.seed" not in page, "it is the same"
    assert page.count("<svg") == 2


def test_runs_of_a_command_line_are_compared_and_what_cannot_be_is_refused(tmp_path: Path,
                                                                            capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("one", "0"), ("two", "1")):
        with runs.run(tmp_path / name, "--train.epochs", "1", "--run.seed", seed) as job:
            job.finished()
    out = tmp_path / "page.html"
    place = ["--storage", str(tmp_path), "--out", str(out)]
    assert main(["one", str(tmp_path / "two"), *place]) == 0
    said = capsys.readouterr().out
    assert re.search(r"two (against|is) .*p = ", said)
    assert f"comparison: {out}" in said
    assert "run.seed" in out.read_text()
    for asked, words in ((["one"], "nothing to compare"), (["one", "three"], "no run at"),
                         (["one", "two", "--out", "/nowhere/page.html"], "name a file that can")):
        assert main([*asked, "--storage", str(tmp_path),
                     *([] if "--out" in asked else ["--out", str(tmp_path / "no.html")])]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    assert not (tmp_path / "no.html").exists()
    unfinished(tmp_path / "two")
    assert main(["one", "two", *place]) == 2
    assert "is not done (stopped)" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["row_ids", "labels"])
def test_runs_that_were_tested_on_other_rows_are_refused(change: str) -> None:
    first, other = finished("first", 0.9, 1), finished("other", 0.9, 2)
    moved = {**vars(other.test), change: np.roll(vars(other.test)[change], 1)}
    with pytest.raises(ConfigError, match="'first' and 'other' were not tested on the same rows"):
        aligned([first, replace(other, test=Predictions(**moved))])
    assert aligned([first, other]) == [first, other]


def unfinished(folder: Path) -> None:
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": "stopped"'))


# ── other kinds ──
def numbers(name: str, noise: float, seed: int, rows: int = ROWS) -> Finished:
    """A run whose predictions of two targets are off by so much."""
    true = np.random.default_rng(0).normal(size=(rows, 2))
    predicted = true + noise * np.random.default_rng(seed).normal(size=true.shape)
    return replace(finished(name, 0.5, seed, rows), evaluation=None, test=Predictions(np.arange(rows), true, predicted),
                   result={"steps": 20, "samples_per_s": 12.0, "wall_s": 60.0, "metrics": {"test": {"rmse": noise}},
                           "declared_metrics": [{"name": "rmse", "direction": "min", "title": "RMSE",
                                                 "while_training": "rmse"}]},
                   history=[{"step": 1, "epoch": 1, "validation_rmse": noise}])


def test_numbers_are_compared_by_a_paired_bootstrap_of_their_error() -> None:
    good, like, bad = numbers("good", 1.0, 1), numbers("like", 1.0, 2), numbers("bad", 1.3, 3)
    (pair,) = compared([good, like])
    assert "no real difference is shown (difference of the RMSE" in sentence(pair)
    (pair,) = compared([good, bad])
    assert isinstance(pair, PairedErrors) and pair.p_value < 0.001
    assert sentence(pair).startswith("bad is worse than good (difference of the RMSE +0.")
    gap, low, high = pair.difference
    assert low < gap < high and gap == pytest.approx(0.3, abs=0.08)
    page = render([good, bad], [pair])
    assert "paired bootstrap" in page and "McNemar" not in page and "Validation RMSE" in page and "log loss" not in page


def test_where_nothing_differs_the_bootstrap_seldom_says_so() -> None:
    """Of 100 pairs of equal models, about 5 have a p-value below 0.05; a shared error takes nothing of it."""
    found = [paired_numbers("a", "b",
                            (numbers("a", 1.0, seed, 80).test, numbers("b", 1.0, 1000 + seed, 80).test)).p_value
             for seed in range(100)]
    assert 1 <= sum(p < 0.05 for p in found) <= 12


def test_texts_are_compared_by_the_loss_of_a_token() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 50, 200)
    losses = counts * rng.normal(2.0, 0.3, 200)
    tests = [Predictions(np.arange(200), counts, (losses + more * counts)[:, None]) for more in (0.0, 0.05)]
    pair = paired_tokens("a", "b", (tests[0], tests[1]))
    assert pair.difference == pytest.approx((0.05, 0.05, 0.05)) and pair.p_value < 0.001
    assert sentence(pair).startswith("b is worse than a (difference of the loss, in nats a token +0.0500")


def test_runs_of_different_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a' predicts classes, 'b' numbers"):
        aligned([finished("a", 0.9, 1), numbers("b", 1.0, 1)])


def test_the_same_rows_are_found_by_what_is_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same images in another order of rows, so that each has another id; two of them are alike."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (90, 4, 4), np.uint8), np.arange(90) % 2
    images[3] = images[1]
    for name, order in (("one", np.arange(90)), ("two", np.arange(90)[::-1])):
        (tmp_path / name).mkdir()
        for split, rows in (("train", order[order >= 30]), ("test", order[order < 30])):
            pq.write_table(pa.table({"image": images[rows].tolist(), "label": labels[rows]}),
                           tmp_path / name / f"{split}.parquet")
        flags = ["--data.uri", str(tmp_path / name), "--train.epochs", "1", "--train.global-batch-size", "12"]
        with runs.run(tmp_path / f"of-{name}", *flags) as job:
            job.finished()
    found = [compare.finished(f"of-{name}", str(tmp_path)) for name in ("one", "two")]
    assert not np.array_equal(found[0].test.labels, found[1].test.labels)
    _, moved = aligned(found)
    assert np.array_equal(moved.test.labels, found[0].test.labels)
    assert np.array_equal(moved.test.probabilities[[1, 3]], found[1].test.probabilities[::-1][[1, 3]])
    assert main(["of-one", "of-two", "--storage", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "of-two" in capsys.readouterr().out
