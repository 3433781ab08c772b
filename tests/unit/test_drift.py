"""What has not changed gives low figures, and what has gives high ones: real digits, real phrases, real models."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact, write_artifact
from jobs.common.artifact.drift_reference import (
    DRIFTED,
    STABLE,
    Histogram,
    Reference,
    class_edges,
    prediction_features,
    quantile_edges,
)
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset, SplitName
from jobs.common.data.reader import Reader
from jobs.common.predictor.find import load_predictor
from jobs.common.predictor.predictor import Watched
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.features import image_features
from jobs.common.vision.robustness import CHANGES
from jobs.transformer.config import TransformerConfig
from jobs.transformer.predictor import LikelihoodPredictor
from jobs.transformer.text.dataset_files import load_tokenizer, sample
from jobs.transformer.text.embedded import _entities
from jobs.transformer.text.features import TextFeatures
from jobs.transformer.text.prepare import prepare
from serving.core.settings import ModelSettings
from serving.model.drift_monitor import MOST_NOISE, ROWS_A_SECOND, WINDOW_ROWS, Drift, watch
from serving.model.replica import answers
from tests import image_loops, runs

RNG = np.random.default_rng(0)


def psi(reference: Reference, columns: dict[str, Any]) -> dict[str, float]:
    return {name: each.psi(np.bincount(each.places(columns[name]), minlength=len(each.counts)))
            for name, each in reference.features.items()}


# ── the figure ──
def test_the_index_is_the_sum_that_it_is_said_to_be() -> None:
    histogram = Histogram(np.array([1, 2], np.float32), np.array([20, 30, 50]))
    expected, found = [20.5 / 101.5, 30.5 / 101.5, 50.5 / 101.5], [60.5 / 101.5, 0.5 / 101.5, 40.5 / 101.5]
    wanted = sum((a - e) * math.log(a / e) for a, e in zip(found, expected, strict=True))
    assert histogram.psi(np.array([60, 0, 40])) == pytest.approx(wanted, rel=1e-12)
    assert Histogram(histogram.edges, np.array([60, 0, 40])).psi(histogram.counts) == pytest.approx(wanted, rel=1e-12)
    assert histogram.psi(np.array([20, 30, 50])) == 0


def test_without_any_change_its_mean_is_what_noise_says() -> None:
    figures: list[float] = []
    noise = 0.0
    for _ in range(300):
        reference, seen = RNG.normal(size=400), RNG.normal(size=600)
        histogram = Histogram.of(reference, quantile_edges(reference, 10))
        figures.append(histogram.psi(np.bincount(histogram.places(seen), minlength=10)))
        noise = histogram.noise(600)
    assert np.mean(figures) == pytest.approx(noise, rel=0.1)
    assert max(figures) < STABLE


@pytest.mark.parametrize(("values", "counts"), [
    (np.arange(1000), [100] * 10),
    (np.full(1000, 0.1), [0, 1000, 0]),  # less, as it was, more
    (np.concatenate([np.zeros(700), np.linspace(0.1, 1, 300)]), [0, 700, 100, 100, 100]),
    (np.arange(70), [24, 23, 23]),  # as many bins as there are rows for
    (np.arange(34), [34]),
])
def test_bins_hold_like_numbers_of_rows_and_a_value_that_is_frequent_has_its_own(values: Any,
                                                                                 counts: list[int]) -> None:
    edges = quantile_edges(values, 10)
    histogram = Histogram.of(values, edges)
    assert histogram.counts.tolist() == counts
    assert (np.diff(edges) > 0).all()


def test_each_class_has_a_bin_or_shares_one_with_its_neighbours() -> None:
    assert class_edges(np.arange(400) % 10, 10).tolist() == list(range(9))
    assert len(class_edges(RNG.integers(0, 1000, 50_000), 1000)) == 50
    assert len(class_edges(np.arange(175) % 100, 100)) == 5


def test_too_few_rows_give_no_reference() -> None:
    assert Reference.of({"x": np.zeros(34)}, 2) is None


def test_a_reference_is_the_same_after_a_way_through_json() -> None:
    columns = {"a": RNG.normal(size=500).astype(np.float32), "b": RNG.integers(0, 3, 500),
               "c": np.full(500, np.float32(0.1))}
    answers = RNG.dirichlet([1, 2, 3], 500)
    reference = Reference.of(columns | prediction_features(answers), answers.shape[1])
    assert reference is not None
    again = Reference.from_json(json.dumps(reference.to_json()).encode())
    assert set(psi(again, columns | prediction_features(answers)).values()) == {0.0}


# ── images ──
@dataclass(frozen=True)
class Digits:
    """A trained model, and rows that are not those of its reference."""

    predictor: Any
    reference: Reference
    images: Any
    labels: Any

    def psi(self, images: Any) -> dict[str, float]:
        rows = self.predictor.decode({"image": images.astype(np.uint8)})
        return psi(self.reference, self.predictor.features(rows) | prediction_features(self.predictor.predict(rows)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with runs.run(tmp_path_factory.mktemp("runs") / "run", "--train.epochs", "15") as job:
        return open_artifact(job.finished()["artifact"])


@pytest.fixture(scope="module")
def digits(dataset: Dataset, artifact: Artifact) -> Digits:
    reference = artifact.reference()
    assert reference is not None
    images, labels = (np.concatenate([rows_of(dataset, split)[name] for split in ("train", "validation")])
                      for name in ("image", "label"))
    return Digits(load_predictor(artifact), reference, images, labels)


def rows_of(dataset: Dataset, split: SplitName) -> dict[str, Any]:
    return Reader.open(dataset, split, ImageDataConfig()).rows(0, dataset.splits[split].num_rows)


def test_digits_as_trained_on_have_not_drifted(digits: Digits) -> None:
    figures = digits.psi(digits.images)
    assert len(figures) == 9
    assert max(figures.values()) < STABLE, figures


@pytest.mark.parametrize(("change", "features"), [
    ("inverted", {"brightness", "bright_share", "predicted_class", "confidence"}), ("blur", {"contrast", "sharpness"}),
    ("noise", {"sharpness"}), ("moved", {"centre_x"}), ("upside down", {"predicted_class", "confidence"}),
    ("darker", {"brightness", "contrast"}),
])
def test_digits_that_are_changed_have_drifted_in_what_was_changed(digits: Digits, change: str,
                                                                  features: set[str]) -> None:
    images, ids = digits.images, np.arange(len(digits.images))
    changed = {"inverted": lambda: 255 - images, "moved": lambda: np.roll(images, 3, 2),
               "upside down": lambda: images[:, ::-1],
               "darker": lambda: images // 2}
    found = changed[change]() if change in changed else np.clip(CHANGES[change](images, ids, 0, 255.0), 0, 255)
    figures = digits.psi(found)
    assert all(figures[name] > DRIFTED for name in features), figures


def test_a_change_of_the_classes_alone_is_seen_also_if_one_is_new(digits: Digits) -> None:
    assert digits.psi(digits.images[digits.labels == 3])["predicted_class"] > DRIFTED
    few = digits.predictor.predict(digits.images)
    few[:, 7] = 0
    without = Reference.of(prediction_features(few / few.sum(1, keepdims=True)), few.shape[1])
    assert without is not None
    assert without.features["predicted_class"].counts[7] == 0
    figure = psi(without, prediction_features(digits.predictor.predict(digits.images)))["predicted_class"]
    assert DRIFTED < figure < 10


@pytest.mark.filterwarnings("error")
def test_figures_are_finite_whatever_is_asked(digits: Digits) -> None:
    for value in (0, 255, 77, np.nan, np.inf, -np.inf, 3e38):
        images = np.full((50, 28, 28, 1), value, np.float32)
        figures = psi(digits.reference,
                      digits.predictor.features(images) | prediction_features(np.full((50, 10), np.nan)))
        assert np.isfinite(list(figures.values())).all()
        assert figures["brightness"] > DRIFTED
    assert image_features(np.zeros((2, 1, 1, 3), np.uint8), [1, 1, 1])["sharpness"].tolist() == [0, 0]


def test_features_of_an_image_are_what_they_say() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, 3] = (30, 60, 90)
    found = {name: float(column[0]) for name, column in image_features(image, [10, 10, 89]).items()}
    assert found == pytest.approx({
        "brightness": 15, "contrast": math.sqrt(3 / 16 * 60**2), "sharpness": 4 * 60 / 16, "bright_share": 0.25,
        "centre_x": (225 * (0.125 + 0.375 + 0.625) + 2025 * 0.875) / (225 * 3 + 2025), "centre_y": 0.5,
        "channel_0": 7.5, "channel_1": 15, "channel_2": 22.5})
    large = np.repeat(np.repeat(RNG.integers(0, 255, (3, 64, 64, 1), np.uint8), 4, 1), 4, 2)
    assert image_features(large,
                          [77])["brightness"] == pytest.approx(image_features(large[:, ::4, ::4], [77])["brightness"])


# ── texts ──
@dataclass(frozen=True)
class Phrases:
    features: Any
    texts: list[str]
    reference: Reference

    def psi(self, texts: list[str]) -> dict[str, float]:
        return psi(self.reference, self.features(texts))


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> Phrases:
    """Some of the test phrases of 33 languages as the reference, and the others."""
    config = from_dict(TransformerConfig,
                       {"data": {"uri": "languages", "tokenizer": "characters", "max_train_rows": 2000}})
    dataset = prepare(config, Store.open(str(tmp_path_factory.mktemp("phrases"))), use_ray=False)
    features, shown = TextFeatures(load_tokenizer(dataset).backend_tokenizer.to_str()), sample(dataset)
    found = features(shown.texts[:1000])
    made = Reference.of(found | prediction_features(np.full((1000, 2), 0.5)), 2)
    assert made is not None
    return Phrases(features, shown.texts[1000:], Reference({name: made.features[name] for name in found}))


def test_phrases_of_the_same_languages_have_not_drifted(phrases: Phrases) -> None:
    assert max(phrases.psi(phrases.texts).values()) < STABLE


def test_other_languages_and_lengths_have_drifted(phrases: Phrases) -> None:
    for language in ("ru", "ja", "el", "ta"):
        figures = phrases.psi([text for _, text in sorted(_entities(language))])
        assert figures["non_ascii_share"] > DRIFTED and figures["unknown_share"] > DRIFTED, (language, figures)
    pairs = [f"{a}, {b}" for a, b in zip(phrases.texts[::2], phrases.texts[1::2], strict=True)]
    figures = phrases.psi(pairs)
    assert figures["characters"] > DRIFTED and figures["tokens"] > DRIFTED and figures["unknown_share"] < STABLE
    assert np.isfinite(list(phrases.psi(["", " ", "x" * 10**6]).values())).all()


def test_features_of_a_text_are_what_they_say(phrases: Phrases) -> None:
    found = {name: column.tolist() for name, column in phrases.features(["Tür", "猫 a", ""]).items()}
    assert found == {"characters": [3, 3, 0], "tokens": [3, 3, 0], "unknown_share": [0, 1 / 3, 0],
                     "non_ascii_share": [pytest.approx(1 / 3), pytest.approx(1 / 3), 0]}


# ── of an artifact, while it serves ──
@dataclass(frozen=True)
class Served:
    """As a replica does it, without the seconds between."""

    drift: Drift
    predictor: Any
    shown: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        return self.drift.figures()

    def ask(self, images: Any) -> None:
        for start in range(0, len(images), ROWS_A_SECOND):
            tensors = {"image": images[start : start + ROWS_A_SECOND]}
            assert isinstance(answers(self.predictor, [tensors], self.drift)[0], dict)
            self.drift.count()


@pytest.fixture
def served(digits: Digits) -> Served:
    shown: dict[str, float] = {}
    return Served(Drift(digits.reference, digits.predictor, shown.__setitem__), digits.predictor, shown)


def test_the_reference_s_own_rows_have_not_drifted_at_all_when_they_are_served(served: Served,
                                                                               dataset: Dataset) -> None:
    test = rows_of(dataset, "test")["image"]
    served.ask(test)
    assert served.figures == {}, "too few"
    served.ask(test)
    assert len(served.figures) == 9
    assert max(served.figures.values()) < 1e-3, "but for the half rows"


def test_a_figure_is_shown_when_there_are_rows_enough_and_forgets_old_ones(served: Served, digits: Digits) -> None:
    images = np.resize(digits.images, (WINDOW_ROWS, *digits.images.shape[1:]))
    served.ask(images[:320])
    assert served.shown == served.figures == {}
    assert all(each.noise(320) > MOST_NOISE > each.noise(640) for each in digits.reference.features.values())
    served.ask(255 - images[:320])
    assert len(served.figures) == 9
    assert served.figures["brightness"] > DRIFTED
    served.ask(images)
    assert served.figures["brightness"] < STABLE
    assert served.shown == served.figures


def test_what_is_kept_between_two_counts_does_not_grow_with_the_requests(served: Served, digits: Digits) -> None:
    images, drift = digits.images[:40], served.drift
    for _ in range(1000):
        drift.see(images, np.full((40, 10), 0.1, np.float32))
    kept = [rows for rows, _ in drift._kept]
    assert sum(map(len, kept)) == ROWS_A_SECOND
    assert not any(np.shares_memory(rows, images) for rows in kept), "the requests' bodies can go"


def test_an_older_artifact_and_a_language_model_serve_without(artifact: Artifact, tmp_path: Path) -> None:
    assert "reference.json" in artifact.manifest.paths
    older = write_artifact(Store.open(str(tmp_path)), "older", description=artifact.manifest.description,
                           probe=artifact.probe(),
                           files={"model.safetensors": artifact.read("model.safetensors")})
    settings = ModelSettings(name="m", version="1", uri="", digest="")
    assert watch(older, load_predictor(older), settings) is None
    assert watch(artifact, LikelihoodPredictor(None), settings) is None
    assert not isinstance(LikelihoodPredictor(None), Watched)
    assert watch(artifact, load_predictor(artifact), settings) is not None


# ── what is said of metrics ──
def test_the_table_of_metrics_names_what_the_code_makes() -> None:
    made = {(name, kind.lower()) for path in (runs.ROOT / "serving").rglob("*.py")
            for kind, name in re.findall(r'(Counter|Gauge|Histogram)\(\s*"(\w+)"', path.read_text())}
    text = (runs.ROOT / "serving/README.md").read_text()
    table = set(re.findall(r"^\| `ray_(\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert table == made
    assert len(made) >= 7
    for name, kind in made:
        assert re.fullmatch(r"trainyard_serving_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter")
