"""Explanations: they add up, leave out what never changes, are what a formula says of a linear model,
and reach the report."""

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader
from jobs.common.report.attributions import ImageAttribution, TextAttribution, image_section, overlay, text_section
from jobs.common.report.html import Section, render
from jobs.common.training.predictions import Predictions
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.job import explained_rows
from jobs.mlp.model import Mlp, load
from jobs.mlp.model import classifier as of_perceptron
from jobs.pytorch.attribution import integrated_gradients, log_odds
from jobs.pytorch.images.classifier import Classifier
from tests import runs

EVIL = "<script>alert('x')</script>\"&"


def classifier(shape: tuple[int, int, int] = (6, 5, 2), hidden: tuple[int, ...] = (32, 16),
               mean: float = 90.0) -> Classifier:
    torch.manual_seed(0)
    return of_perceptron(Mlp(shape, 4, hidden, 0.5, (mean,) * shape[2], (60.0,) * shape[2]), shape,
                         ["a", "b", "c", "d"])


def some_images(count: int = 12, shape: tuple[int, int, int] = (6, 5, 2)) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def odds(model: Classifier, images: npt.NDArray[Any], classes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with torch.no_grad():
        logits = model.model(torch.from_numpy(images.astype(np.float32)))
    return log_odds(logits, torch.from_numpy(classes)).numpy()


def assert_complete(attributions: npt.NDArray[Any], change: npt.NDArray[Any]) -> None:
    """Within 2% of the change, or 0.01."""
    missed = np.abs(attributions.reshape(len(change), -1).sum(1, dtype=np.float64) - change)
    assert (missed <= np.maximum(0.02 * np.abs(change), 1e-2)).all(), (missed, change)


# ── what is computed ──
def test_log_odds_are_those_of_the_probability_and_stay_exact_where_it_is_almost_one() -> None:
    logits, target = torch.randn(50, 6, generator=torch.manual_seed(3)), torch.arange(50) % 6
    p = torch.softmax(logits.double(), 1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, target).double(), torch.log(p / (1 - p)), atol=1e-5, rtol=1e-5)
    sure = log_odds(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([0]))
    assert sure.item() == pytest.approx(60 - np.log(2), abs=1e-4)
    assert log_odds(torch.tensor([[7.0]]), torch.tensor([0])).tolist() == [7.0]


def test_of_a_model_of_two_classes_that_is_linear_they_are_weight_times_difference() -> None:
    weight = torch.randn(2, 9, generator=torch.manual_seed(0))
    inputs, baseline = torch.randn(5, 9), torch.randn(1, 9)
    target = torch.tensor([0, 1, 1, 0, 1])
    found, gaps, _ = integrated_gradients(lambda rows: rows @ weight.T, inputs, baseline, target)
    expected = (weight[target] - weight[1 - target]) * (inputs - baseline)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (gaps.shape, bool((gaps < 1e-4).all())) == ((5,), True)


def test_how_the_rows_are_batched_and_what_goes_with_them_changes_no_row() -> None:
    mask = (torch.rand(7, 9, generator=torch.manual_seed(0)) > 0.3).float()
    inputs, target = torch.randn(7, 9), torch.arange(7) % 3
    weight = torch.randn(3, 9)

    def forward(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return torch.tanh(rows * kept) @ weight.T

    together, *_ = integrated_gradients(forward, inputs, torch.zeros(1, 9), target, context=(mask,),
                                        rows_per_pass=10_000)
    apart, *_ = integrated_gradients(forward, inputs, torch.zeros(1, 9), target, context=(mask,), rows_per_pass=1)
    torch.testing.assert_close(together, apart)
    assert bool((together[mask == 0] == 0).all())
    assert integrated_gradients(forward, inputs[:0], torch.zeros(1, 9), target[:0], context=(mask[:0],
                                                                                             ))[0].shape == (0, 9)


@pytest.mark.parametrize("changes",
                         [{"target": torch.zeros(2)}, {"baselines": torch.zeros(2, 4)},
                          {"baselines": torch.zeros(1, 3)},
                          {"context": (torch.zeros(2),)}])
def test_rows_that_do_not_match_are_refused(changes: dict[str, Any]) -> None:
    fits: dict[str, Any] = {"inputs": torch.zeros(3, 4), "baselines": torch.zeros(1, 4), "target": torch.zeros(3)}
    with pytest.raises(ValueError, match="one"):
        integrated_gradients(lambda rows: rows, **{**fits, **changes})


# ── the perceptron ──
@pytest.mark.parametrize("mean", [90.0, 0.0])
def test_a_perceptrons_attributions_add_up_to_what_its_log_odds_gain_over_the_baseline(mean: float) -> None:
    model, images = classifier(mean=mean), some_images()
    said = model.predict(images).argmax(1)
    attributions, gaps, differences = model.explain(images)
    assert attributions.shape == images.shape and attributions.dtype == np.float32
    change = odds(model, images, said) - odds(model, np.full_like(images, mean), said)
    assert_complete(attributions, change)
    sums = attributions.reshape(len(images), -1).sum(1)
    np.testing.assert_allclose(gaps, np.abs(sums - change), atol=1e-4)
    np.testing.assert_allclose(differences, change, atol=1e-4)
    other, *_ = model.explain(images, (said + 1) % 4)
    assert not np.allclose(other, attributions)


def test_a_pixel_that_never_changes_counts_for_nothing() -> None:
    model, images = classifier(), some_images()
    images[:, 2, 3] = 17
    attributions, *_ = model.explain(images, baseline=images.mean(axis=0))
    assert (attributions[:, 2, 3] == 0).all()
    assert (np.delete(attributions.reshape(12, -1), [26, 27], axis=1) != 0).any(axis=0).all()


def test_explaining_leaves_the_model_and_the_callers_images_as_they_were() -> None:
    model, images = classifier(), some_images()
    before, kept = model.predict(images), images.copy()
    model.explain(images)
    assert np.array_equal(model.predict(images), before) and np.array_equal(images, kept)
    assert all(p.grad is None for p in model.model.parameters())


def test_rows_that_are_right_come_from_different_classes_and_the_surest_mistakes_follow() -> None:
    labels = np.array([0, 0, 1, 2, 1, 2, 0])
    said = np.array([0, 0, 1, 0, 1, 2, 1])
    probabilities = np.full((7, 3), 0.1, np.float32)
    probabilities[np.arange(7), said] = [0.5, 0.5, 0.5, 0.6, 0.5, 0.5, 0.8]
    test = Predictions(row_ids=np.arange(7), labels=labels, probabilities=probabilities)
    assert explained_rows(test).tolist() == [0, 2, 5, 1, 4, 6, 3]
    perfect = Predictions(row_ids=np.arange(7), labels=said, probabilities=probabilities)
    assert explained_rows(perfect).tolist() == [0, 2, 5, 1, 3], "no mistakes, and more than one row of a class"


# ── the report ──
def test_a_runs_report_explains_test_rows_of_its_artifact(tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", "--train.epochs", "2") as job:
        job.finished()
    document = (job.folder / "report.html").read_text()
    found = re.search(r"<h2>What the answers rest on</h2>(.*?)</section>", document, re.DOTALL)
    assert found
    assert found[1].count("<figure>") == 10 and found[1].count("data:image/png") == 20
    assert found[1].count("recognised") == 5 == found[1].count("taken for")
    missed = re.search(r"at most ([\d.e-]+)\.", found[1])
    assert missed and float(missed[1]) < 0.05
    model = load(job.folder / "artifact")
    dataset = Dataset.load(Store.open(str(next(tmp_path.rglob("dataset.json")).parent)))
    reader = Reader.open(dataset, "test", ImageDataConfig())
    images = reader.rows(0, 40)["image"]
    reader.close()
    said = model.predict(images).argmax(1)
    attributions, *_ = model.explain(images)
    assert_complete(attributions, odds(model, images, said) - odds(model, even_image(model, images), said))


def even_image(model: Classifier, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    even = (-model.model.offset / model.model.scale).item()
    return np.full(images.shape, even, np.float32)


def image_row(**changes: Any) -> ImageAttribution:
    rng = np.random.default_rng(0)
    fields = {"pixels": rng.integers(0, 256, (8, 8, 1), np.uint8), "attribution": rng.normal(size=(8, 8)),
              "label": "seven",
              "predicted": "one", "confidence": 0.931, "gap": 0.002}
    return ImageAttribution(**{**fields, **changes})


def text_row(**changes: Any) -> TextAttribution:
    fields = {"tokens": ["un", "kind", " words"], "attributions": np.array([-1.0, 0.0, 0.5]), "label": "bad",
              "predicted": "bad",
              "confidence": 0.8, "gap": None}
    return TextAttribution(**{**fields, **changes})


def test_red_is_for_blue_is_against_and_gray_is_neither() -> None:
    picture = overlay(np.full((1, 3, 1), 255, np.uint8), np.array([[2.0, -2.0, 0.0]])).astype(int)
    (red, _, blue), (red_against, _, blue_against), gray = picture[0]
    assert red > blue + 100 and blue_against > red_against + 100
    assert len(set(gray)) == 1


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 2), (8, 8, 3), (8, 8, 4), (90, 70, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_any_kind_are_drawn(shape: tuple[int, int, int], dtype: type) -> None:
    pixels = (np.random.default_rng(0).random(shape) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    for attribution in (np.ones(shape), np.zeros(shape[:2]), np.full(shape[:2], np.nan)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            html = image_section([image_row(pixels=pixels, attribution=attribution)]).html
        assert html.count("data:image/") == 2 and "<b>seven</b> taken for <b>one</b>, 93.1% sure" in html


def test_a_token_has_its_number_and_a_colour_by_sign_and_strength() -> None:
    html = text_section([text_row()]).html
    spans = re.findall(r'<span style="([^"]*)" title="([^"]*)">([^<]*)</span>', html)
    assert [(title, token) for _, title, token in spans] == [("-1.0000", "un"), ("+0.0000", "kind"),
                                                             ("+0.5000", " words")]
    against, neither, speaking = (style for style, _, _ in spans)
    assert "series-0) 50%" in against and "background" not in neither and "series-4) 25%" in speaking
    assert "<b>bad</b>, recognised, 80.0% sure" in html
    assert "miss that by" not in html, "where no gap is known"


def test_text_of_the_users_stays_text() -> None:
    tokens = [EVIL, "\x00\u202e\ud800", "\n", "<b>"]
    evil = {"label": EVIL, "predicted": "<i>"}
    parts = [text_section([text_row(tokens=tokens, attributions=np.arange(4.0), **evil)], baseline=EVIL, title=EVIL),
             image_section([image_row(**evil)], baseline=EVIL, title=EVIL)]
    document = render("page.html", title="t", sections=parts)
    document.encode()
    assert not re.search(r"<script|<i>|\x00|\u202e|alt=\"[^\"]*<", document)
    assert document.count("&lt;script&gt;") >= 7


def test_a_long_text_is_cut_and_says_so() -> None:
    html = text_section([text_row(tokens=["a"] * 1450, attributions=np.ones(1450))]).html
    assert html.count("title=") == 256 and "… and 1,194 more tokens" in html


def test_the_greatest_gap_is_told() -> None:
    section: Section = image_section([image_row(gap=0.001), image_row(gap=0.25), image_row(gap=None)])
    assert "at most 0.25." in section.html


def test_attributions_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="8, 7"):
        image_section([image_row(attribution=np.ones((8, 7)))])
    with pytest.raises(ValueError, match="2 attributions for 3 tokens"):
        text_section([text_row(attributions=np.ones(2))])


def test_nothing_of_it_imports_a_framework_before_it_explains() -> None:
    code = ("import sys, jobs.mlp.data, jobs.common.report.attributions; assert not {'torch', 'captum', 'PIL'} & "
            "set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, check=True)
