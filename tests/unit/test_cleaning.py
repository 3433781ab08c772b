"""Texts are cleaned as the config says: counted, the same in any pieces, and alike in training and wherever an artifact
reads a text."""

import json
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.errors import ArtifactError, ConfigError, DataError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, Probe, open_artifact, write_artifact
from jobs.common.config import from_dict, to_dict
from jobs.common.config_changes import differences
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.data.reader import Reader
from jobs.common.extras import Extras
from jobs.transformer import evaluate
from jobs.transformer.build import build_model
from jobs.transformer.config import TransformerConfig
from jobs.transformer.data import describe
from jobs.transformer.decoding import Decoder
from jobs.transformer.model import Classifier, LanguageModel, load
from jobs.transformer.predictor import TextPredictor
from jobs.transformer.text.dataset_files import sample, tokenizer_files
from jobs.transformer.text.prepare import prepare, read_texts
from jobs.transformer.text.text_rule import TextRule
from tests.unit.language_model import one_thread

ALL = {"normalise": "nfkc", "control_characters": "drop", "case": "lower"}
DIRTY = "Cafe\u0301 \ufb01n\x00al\x85 GR\u00dc\u00dfE \u00b2"
CLEAN = "caf\u00e9 final gr\u00fc\u00dfe 2"


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


def config_of(task: str = "classify", **data: Any) -> TransformerConfig:
    small = {"max_length": 16, "tokenizer": "characters", "vocab_size": 300}
    return from_dict(TransformerConfig, {"task": task, "data": small | data})


def prepared(folder: Path, config: TransformerConfig) -> Dataset:
    return prepare(config, Store.open(str(folder)), use_ray=False)


def written(path: Path, rows: list[tuple[str, Any]]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


# ── the rule ──
@pytest.mark.parametrize(("options", "text", "clean"), [
    ({}, DIRTY, DIRTY), (ALL, DIRTY, CLEAN),
    ({"normalise": "nfc"}, "e\u0301 \ufb01", "\u00e9 \ufb01"), ({"normalise": "nfkc"}, "e\u0301 \ufb01", "\u00e9 fi"),
    ({"control_characters": "drop"}, "a\r\n\tb\x1b[0m\x7f\x9f\u200d", "a\n\tb[0m\u200d"),
    ({"case": "lower"}, "\u0391\u03a3 \u0130 A", "\u03b1\u03c2 i\u0307 a"),
    ({"normalise": "nfkc", "case": "lower"}, "\u2121", "tel")])
def test_a_rule_does_what_it_says(options: dict[str, Any], text: str, clean: str) -> None:
    assert TextRule(**options)(text) == clean


@given(st.text(max_size=40), st.sampled_from(["keep", "nfc", "nfkc"]), st.sampled_from(["keep", "lower"]))
@settings(max_examples=300, deadline=None)
def test_what_is_clean_stays_as_it_is(text: str, normalise: Any, case: Any) -> None:
    rule = TextRule(normalise=normalise, control_characters="drop", case=case)
    assert rule(rule(text)) == rule(text)


def test_no_text_takes_long_to_clean() -> None:
    began = time.process_time()
    made = TextRule(normalise="nfc")("a" + "\u0301\u0316" * (1 << 17))
    assert time.process_time() - began < 2 and made.count("\u034f") == (1 << 18) // 30


def test_options_left_alone_change_nothing() -> None:
    data = config_of().data
    assert data.choices == [] and data.rule == TextRule() and data.chooses is None
    older = to_dict(config_of())
    for name in (*ALL, "shortest", "longest", "language", "near_duplicates", "near_duplicates_from"):
        del older["data"][name]
    assert differences(older, to_dict(config_of())) == []
    assert differences(older, to_dict(config_of(case="lower"))) == ["data.case: None -> lower"]
    with pytest.raises(ConfigError, match=r"--data\.longest 3: must be at least 1 character, and at least --data.shor"):
        config_of(shortest=4, longest=3)


# ── prepared data ──
def some_rows() -> list[tuple[str, str]]:
    rows = [(f"Row {i} of KIND {'ab'[i % 2]} cafe\u0301", "ab"[i % 2]) for i in range(60)]
    for place in (3, 20, 41):
        rows[place] = ("tiny", "a")
    for place in range(7, 49, 7):
        rows[place] = ("long " * 30, "b")
    rows[30] = ("\x00\x01", "a")
    return rows


def test_rows_of_another_length_are_left_out_counted_and_named(tmp_path: Path) -> None:
    uri = written(tmp_path / "rows.jsonl", some_rows())
    config = config_of(uri=uri, shortest=5, longest=100, **ALL)
    dataset = prepared(tmp_path / "storage", config)
    assert sum(split.num_rows for split in dataset.splits.values()) == 60 - 10
    said = lines_of(dataset)
    named = ", ".join(f"{uri}, row {row}" for row in (3, 20, 41))
    assert f"left out: 3 rows shorter than 5 characters (--data.shortest) ({named})" in said
    assert "left out: 1 rows without text" in said
    (longer,) = [line for line in said if "rows longer than 100 characters (--data.longest)" in line]
    assert longer.startswith("left out: 6 rows") and f"{uri}, row 35 …" in longer and "row 42" not in longer
    texts = read_texts(config).texts
    assert len(texts) == 50 and all(text == text.lower() and "caf\u00e9" in text for text in texts)
    assert set(sample(dataset).texts) <= set(texts)
    with pytest.raises(DataError, match="holds no text: 1 rows without text, 59 rows shorter than 999 characters"):
        prepared(tmp_path / "storage", config_of(uri=uri, shortest=999, **ALL))


def test_rows_in_another_language_are_left_out_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    rows = [(f"the {name} of the town went for a walk in the park, {i} times", "ab"[i % 2])
            for i in range(20) for name in ("baker", "teacher")]
    rows[7] = ("der B\u00e4cker der Stadt ging gestern mit seinem Hund im Park spazieren", "a")
    rows[9] = ("le boulanger de la ville est all\u00e9 se promener dans le parc avec son chien", "b")
    uri = written(tmp_path / "rows.jsonl", rows)
    for language, lost in (("en", "row 7"), ("en,de", "row 9"), ("fr, en, de", "")):
        said = [line for line in lines_of(prepared(tmp_path / "storage", config_of(uri=uri, language=language)))
                if "another language" in line]
        assert len(said) == bool(lost) and all(lost in line for line in said)
    assert any("left out: 2 rows in another language than en (--data.language)" in line for line in lines_of(
        prepared(tmp_path / "storage", config_of(uri=uri, language="en"))))
    with pytest.raises(ConfigError, match=r"--data\.language english: give of these, joined by commas: ace, .* zu, "):
        prepared(tmp_path / "storage", config_of(uri=uri, language="english"))


def test_a_mistake_after_rows_that_are_left_out_is_named_by_its_row(tmp_path: Path) -> None:
    rows: list[tuple[str, Any]] = [("tiny", "a"), *((f"a text, number {i}", "ab"[i % 2]) for i in range(30)),
                                   ("a text of none", None)]
    with pytest.raises(DataError, match=r"rows\.jsonl, row 31: remove the row or label it"):
        prepared(tmp_path, config_of(uri=written(tmp_path / "rows.jsonl", rows), shortest=5))


def test_cleaned_rows_are_the_same_in_any_pieces(tmp_path: Path) -> None:
    uri = written(tmp_path / "rows.jsonl", some_rows())
    found = []
    for piece_mb in (64, 0.0005):
        config = config_of(uri=uri, shortest=5, longest=100, piece_mb=piece_mb, **ALL)
        dataset = prepared(tmp_path / "storage", config)
        found.append((config, dataset))
        if piece_mb < 1:
            assert len(dataset.splits["train"].pieces) > 5
    said = [[line.partition(" (/")[0] for line in lines_of(dataset)] for _, dataset in found]
    assert said[0] == said[1] and len(said[0]) == 5, "but for where a row is said to be"
    for split in SPLITS:
        one, other = ({row: tokens.tolist() for row, tokens in zip(rows["row_id"], rows["tokens"], strict=True)}
                      for config, dataset in found for rows in [taken(dataset, config, split)])
        assert one == other and one


def taken(dataset: Dataset, config: TransformerConfig, split: Any) -> dict[str, np.ndarray]:
    reader = Reader.open(dataset, split, config.data)
    rows = {name: column.copy() for name, column in reader.rows(0, reader.num_rows).items()}
    reader.close()
    return rows


def test_a_piece_of_which_no_row_is_kept_is_none(tmp_path: Path) -> None:
    for number, word in enumerate(("fine", "no", "good")):
        written(tmp_path / f"{number}.jsonl", [(f"{word} {i}", "ab"[i % 2]) for i in range(20)])
    dataset = prepared(tmp_path / "storage", config_of(uri=f"{tmp_path}/*.jsonl", shortest=6, piece_mb=1e-4))
    assert sum(split.num_rows for split in dataset.splits.values()) == 40 and dataset.details["_found"]["repeats"]


def test_what_differs_only_by_what_is_cleaned_is_the_same_content(tmp_path: Path) -> None:
    rows = [(f"row {i} of caf\u00e9", "ab"[i % 2]) for i in range(40)]
    rows += [("ROW 0 of cafe\u0301", "a"), ("row 1\x00 of caf\u00e9", "b")]
    uri = written(tmp_path / "rows.jsonl", rows)
    as_it_is, cleaned = (prepared(tmp_path / "storage", config_of(uri=uri, duplicates="drop", leaks="drop", **options))
                         for options in ({}, ALL))
    counts = [sum(split.num_rows for split in dataset.splits.values()) for dataset in (as_it_is, cleaned)]
    assert counts == [42, 40]


def test_whole_documents_are_measured_and_parts_of_one_text_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(f"a document, number {number}\n" * (1 + 60 * (number % 2)))
    config = config_of("generate", uri=str(folder), piece_mb=0.0005, longest=1000)
    assert any(line.startswith("left out: 20 rows longer than 1,000 characters") for line in lines_of(
        prepared(tmp_path / "storage", config)))
    (tmp_path / "one.txt").write_text("a line of it\n" * 100)
    with pytest.raises(ConfigError, match=r"--data\.longest 1000: .*one\.txt is one text, which has no rows"):
        prepared(tmp_path / "storage", config_of("generate", uri=str(tmp_path / "one.txt"), longest=1000))


# ── the doors ──
def made(folder: Path, dataset: Dataset, config: TransformerConfig, rule: Any = None) -> Artifact:
    """An artifact of a model that has learnt nothing. rule: what its manifest has, where it is not the config's."""
    small = {"name": "tiny", "layers": 1, "heads": 2, "width": 32}
    model = build_model(from_dict(TransformerConfig, to_dict(config) | {"model": small}), dict(dataset.details),
                        dataset.class_names).eval()
    model.save_pretrained(folder / "saved")
    files = tokenizer_files(dataset) | {path.name: path.read_bytes() for path in (folder / "saved").iterdir()}
    judged = {"accuracy": 1.0, "loss": 1.0}
    trained = SimpleNamespace(job="transformer", config=config, dataset=dataset)
    verdict = SimpleNamespace(metrics=dict.fromkeys(("validation", "test"), judged))
    about = describe(cast(Any, trained), cast(Any, verdict))
    if rule is not None:
        about = replace(about, preprocessing={name: value for name, value in about.preprocessing.items()
                                              if name != "text"} | rule)
    name = about.inputs[0].name
    probe = Probe(inputs={name: np.array(["x"], object) if name == "text" else np.zeros((1, 17), np.int32)},
                  outputs={about.outputs[0].name: np.zeros((1, 2) if name == "text" else (1,), np.float32)})
    written = write_artifact(Store.open(str(folder)), "texts", description=about, probe=probe,
                             files={f"model/{name}": data for name, data in files.items()})
    return open_artifact(written.uri)


def test_a_text_has_the_same_tokens_through_every_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"{DIRTY} {i} {'ab'[i % 2]}", "ab"[i % 2]) for i in range(40)]
    config = config_of(uri=written(tmp_path / "rows.jsonl", rows), max_length=24, **ALL)
    dataset = prepared(tmp_path / "storage", config)
    trained = {int(row): tokens[tokens >= 0].tolist() for split in SPLITS
               for found in [taken(dataset, config, split)]
               for row, tokens in zip(found["row_id"], found["tokens"], strict=True)}
    artifact = made(tmp_path, dataset, config)
    assert any("cleaned first" in limit for limit in artifact.manifest.description.limits)
    predictor, model = TextPredictor.load(artifact), load(artifact)
    assert isinstance(predictor, TextPredictor) and isinstance(model, Classifier)
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "_model", SimpleNamespace(predict=seen.extend))
        decoded = predictor.decode({"text": np.array([text.encode() for text, _ in rows], object)})
        predictor.predict(decoded)
    assert [tokens[tokens >= 0].tolist() for tokens in seen] == [trained[row] for row in range(40)]
    encoded = model.encode([text for text, _ in rows])
    assert [ids[mask > 0].tolist() for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
            ] == [trained[row] for row in range(40)]
    assert predictor.features(decoded)["characters"].tolist() == [len(f"{CLEAN} {i} a") for i in range(40)]
    (said,) = model.explain([rows[0][0]], steps=2)
    assert "".join(said.pieces) == f"{CLEAN} 0 a"
    assert predictor.explain(decoded[:1])["pieces"][0].tolist() == said.pieces
    assert perturbed(dataset, config, monkeypatch) == sorted(trained[row] for row in sample(dataset).row_ids.tolist())


def perturbed(dataset: Dataset, config: TransformerConfig, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What a model is judged by where a perturbation takes letters and accents apart."""
    judged: list[list[int]] = []

    def judge(context: Any, model: Any, task: Any, batches: Iterator[Any], count: int) -> Iterator[Any]:
        judged.extend(row[row >= 0].tolist() for batch in batches for row in batch["tokens"])
        return iter(())

    monkeypatch.setattr(evaluate, "judged", judge)
    monkeypatch.setattr(evaluate, "PERTURBATIONS", {"apart": lambda text, _: unicodedata.normalize("NFD", text)})
    context: Any = SimpleNamespace(dataset=dataset, parts=(0,), num_parts=1, extras=Extras())
    evaluate.predict_perturbed(context, cast(Any, None), cast(Any, None), config)
    untouched, apart = judged[: len(judged) // 2], judged[len(judged) // 2 :]
    assert sorted(untouched) == sorted(apart)
    return sorted(apart)


def test_a_prompt_is_cleaned_wherever_it_is_continued(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(20):
        (tmp_path / "in" / f"{number:02}.txt").write_text(f"{DIRTY} {number}")
    config = config_of("generate", uri=str(tmp_path / "in"), tokenizer="bytes", **ALL)
    dataset = prepared(tmp_path / "storage", config)
    cleaning, plain = (load(made(tmp_path / name, dataset, config, rule))
                       for name, rule in (("new", None), ("old", {})))
    assert isinstance(cleaning, LanguageModel) and isinstance(plain, LanguageModel)
    assert Decoder(cleaning).tokens(DIRTY) == Decoder(plain).tokens(CLEAN) != Decoder(plain).tokens(DIRTY)
    assert cleaning.generate(DIRTY, 8, temperature=0.01) == plain.generate(CLEAN, 8, temperature=0.01)


def test_an_artifact_without_a_rule_cleans_nothing_and_one_with_an_unknown_one_is_refused(tmp_path: Path) -> None:
    uri = written(tmp_path / "rows.jsonl", [(f"Row {i} {'ab'[i % 2]}", "ab"[i % 2]) for i in range(40)])
    config = config_of(uri=uri)
    dataset = prepared(tmp_path / "storage", config)
    for name, rule in (("older", {}), ("off", None)):
        artifact = made(tmp_path / name, dataset, config, rule)
        assert ("text" in artifact.manifest.description.preprocessing) == (name == "off")
        found = TextPredictor.load(artifact)
        assert found.decode({"text": np.array([DIRTY], object)}).tolist() == [DIRTY]
        assert not any("cleaned" in limit for limit in artifact.manifest.description.limits)
    with pytest.raises(ArtifactError, match="normalise"):
        TextPredictor.load(made(tmp_path / "newer", dataset, config, {"text": {"normalise": "nfx"}}))
