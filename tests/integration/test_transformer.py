"""Whole runs of the Transformer job: both tasks, from text to an artifact that transformers loads;
DeepSpeed on a Ray cluster."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from jobs.common.artifact.artifact import open_artifact
from jobs.transformer.model import Classifier, LanguageModel, load
from jobs.transformer.predictor import TextPredictor
from tests import runs

SMALL = ["--model.layers", "2", "--model.heads", "2", "--model.width", "32", "--run.tracking-uri", "none",
         "--data.max-length", "32", "--train.global-batch-size", "16", "--run.checkpoint-every-steps", "20"]
ANIMALS, FOOD = ["cat", "dog", "bird", "horse", "mouse", "lion"], ["bread", "cheese", "apple", "soup", "rice", "egg"]


def sentences(path: Path, rows: int = 500) -> str:
    """Rows that are easy to tell apart."""
    rng = random.Random(0)
    words = {"animals": ANIMALS, "food": FOOD}
    with path.open("w") as file:
        for _ in range(rows):
            label = rng.choice(sorted(words))
            text = " ".join(rng.choice([*words[label], "the", "a", "small"]) for _ in range(rng.randint(3, 12)))
            file.write(json.dumps({"text": f"{text} {words[label][0]}", "label": label}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    flags = ["--data.uri", sentences(folder / "rows.jsonl"), "--train.epochs", "4", "--data.vocab-size", "128",
             "--optim.lr", "3e-3", "--optim.warmup", "5", "--eval.bootstrap-samples", "100", "--eval.baseline",
             "--eval.extras-budget", "1h", "--run.profile", "2-3"]
    with runs.run(folder / "run", *SMALL, *flags, quick=False, job="transformer") as job:
        job.finished()
    assert "tokens/s" in job.text
    return folder / "run"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By ZeRO-3 on two workers of a Ray cluster."""
    folder = tmp_path_factory.mktemp("generate")
    rng = random.Random(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(["the", "cat", "sat", "on", "a", "mat"]) for _ in range(6000)))
    flags = ["--task", "generate", "--data.uri", str(folder / "text.txt"), "--data.tokenizer", "characters",
             "--train.epochs", "3",
             "--run.workers", "2", "--scale.strategy", "zero3", "--eval.sample-tokens", "20", "--optim.lr", "3e-3",
             "--optim.warmup", "5", "--eval.extras-budget", "1h", "--run.profile", "2", "--run.profile-ranks", "1"]
    with runs.run(folder / "run", *SMALL, *flags, quick=False, job="transformer", engine="ray") as job:
        job.finished(200)
    return folder / "run"


def test_a_classifier_s_artifact_answers_as_it_was_judged(classified: Path) -> None:
    assert runs.result(classified)["metrics"]["test"]["accuracy"] > 0.95
    model = load(classified / "artifact")
    assert isinstance(model, Classifier)
    probe = open_artifact(classified / "artifact").probe()
    np.testing.assert_allclose(model.predict(list(probe.inputs["text"])), probe.outputs["probabilities"], atol=1e-6)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(classified / "artifact/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(classified / "artifact/model")
    with torch.inference_mode():
        logits = plain(**tokenizer(["a small dog", "the soup"], return_tensors="pt", padding=True)).logits
    assert [plain.config.id2label[int(k)] for k in logits.argmax(1)] == ["animals", "food"]


def test_an_explanation_is_complete_and_finds_the_words_that_count(classified: Path) -> None:
    model = load(classified / "artifact")
    assert isinstance(model, Classifier)
    texts = ["small the lion dog a cat", "soup a cheese the bread", "horse mouse the lion cat"]
    for text, found in zip(texts, model.explain(texts), strict=True):
        assert "".join(found.pieces) == text
        assert found.gap <= max(0.02 * abs(found.difference),
                                1e-2), "completeness: they sum to the difference that they explain"
        telling = [value for piece, value in zip(found.pieces, found.attributions, strict=True)
                   if piece.strip() in ANIMALS + FOOD]
        assert sum(telling) > 0.5 * sum(map(abs, found.attributions))


def test_an_endpoint_explains_as_the_model_does(classified: Path) -> None:
    model, predictor = load(classified / "artifact"), TextPredictor.load(open_artifact(classified / "artifact"))
    assert isinstance(model, Classifier) and isinstance(predictor, TextPredictor)
    for text in ("small the lion dog a cat", ""):
        (wanted,), found = model.explain([text]), predictor.explain(np.array([text], object))
        assert found["pieces"].tolist() == [wanted.pieces]
        assert found["predicted"].tolist() == [wanted.predicted]
        for name in ("attributions", "difference", "gap"):
            np.testing.assert_allclose(found[name][0], getattr(wanted, name), atol=1e-6)


def test_the_classifier_s_report_has_its_pages(classified: Path) -> None:
    text = (classified / "report.html").read_text()
    for title in ("Against a linear model", "What the answers rest on", "Robustness", "typos", "lost case",
                  "lost accents",
                  "shortened", "ROC", 'href="profile/rank-0-steps-2-3.trace.json.gz"', "aten::"):
        assert title in text, title


def test_a_language_model_from_zero3_on_ray_is_one_plain_folder(generated: Path) -> None:
    result = runs.result(generated)["metrics"]["test"]
    assert result["bits_per_byte"] < 1.5
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))
    model = load(generated / "artifact")
    assert isinstance(model, LanguageModel)
    probe = open_artifact(generated / "artifact").probe()
    np.testing.assert_allclose(model.negative_log_likelihood(probe.inputs["tokens"]),
                               probe.outputs["negative_log_likelihood"],
                               rtol=1e-5)
    plain: Any = AutoModelForCausalLM.from_pretrained(generated / "artifact/model")
    assert sum(p.numel() for p in plain.parameters()) > 10_000
    parts = sorted((generated / "checkpoints/data").glob("*/*/rank-*.safetensors"))
    assert {path.name for path in parts} == {"rank-0.safetensors", "rank-1.safetensors"}
    text = (generated / "report.html").read_text()
    assert "Sampled continuations" in text and "bits per byte" in text and "Step 2 of rank 1" in text
