"""Preferences: pairs of answers, the loss of Direct Preference Optimisation, its reference, and exact resume."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.core.errors import ConfigError, DataError, StorageError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import from_dict
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.training.job import TrainingResult
from jobs.transformer.build import build_model
from jobs.transformer.chat.packing import LEARNT
from jobs.transformer.chat.rows import form_of
from jobs.transformer.config import TransformerConfig
from jobs.transformer.pages import wrong_pairs
from jobs.transformer.preference.config import PreferConfig
from jobs.transformer.preference.loss import answer_counts, log_probabilities, pair_inputs, pair_losses
from jobs.transformer.preference.measures import losses_of, metrics_of, sums_of, warning_of
from jobs.transformer.preference.pairs import as_text, from_text, pair_of
from jobs.transformer.text.data_report import text_data_sections
from jobs.transformer.text.dataset_files import load_tokenizer
from jobs.transformer.text.prepare import prepare
from jobs.transformer.train import train
from tests import image_loops
from tests.unit.test_chat import TALK, rows_of, write_lines

CPU = torch.device("cpu")
ASKED, SAID = TALK[0], TALK[1]
OTHER = {"role": "assistant", "content": "No idea."}
SEVERAL = [PreferConfig(), PreferConfig(beta=0.5), PreferConfig(label_smoothing=0.2), PreferConfig(loss="ipo")]


def some(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {i}?", "chosen": f"{i} is {'very ' * (i % 7)}good",
             "rejected": f"{'no ' * (i % 5)}idea"} for i in range(count)]


def config_of(uri: object, **groups: Any) -> TransformerConfig:
    base: dict[str, Any] = {
        "data": {"uri": str(uri), "max_length": 64, "tokenizer": "bpe", "vocab_size": 300},
        "model": {"layers": 1, "heads": 2, "width": 32}, "optim": {"lr": 1e-3},
        "train": {"global_batch_size": 12, "epochs": 1}, "run": {"workers": "3"}, "eval": {"batch_size": 8}}
    for name, values in groups.items():
        base[name] = base.get(name, {}) | values
    return from_dict(TransformerConfig, {"task": "prefer", **base})


def prepared(folder: Path, config: TransformerConfig, say: Any = None) -> Dataset:
    return prepare(config, Store.open(str(folder / "storage")), use_ray=False, say=say)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TransformerConfig, Dataset]:
    folder = tmp_path_factory.mktemp("pairs")
    config = config_of(write_lines(folder / "a.jsonl", some(90)))
    return config, prepared(folder, config)


# ── rows ──
@pytest.mark.parametrize("row", [
    {"prompt": ASKED["content"], "chosen": SAID["content"], "rejected": OTHER["content"]},
    {"prompt": [ASKED], "chosen": [SAID], "rejected": [OTHER]},
    {"prompt": ASKED["content"], "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, OTHER], "prompt": None},
])
def test_pairs_of_every_form_become_two_conversations(row: dict[str, Any]) -> None:
    pair = pair_of(row)
    assert pair.chosen.messages == (ASKED, SAID) and pair.rejected.messages == (ASKED, OTHER)
    assert from_text(as_text(pair)) == pair
    told = pair_of({**row, "system": "Be brief", "tools": '[{"type": "function"}]'})
    assert [message["role"] for message in told.rejected.messages] == ["system", "user", "assistant"]
    assert told.chosen.tools == told.rejected.tools == ({"type": "function"},) and from_text(as_text(told)) == told


@pytest.mark.parametrize(("row", "why"), [
    ({"prompt": "What?", "chosen": "This."}, "has no rejected"),
    ({"chosen": "This.", "rejected": "That."}, "has no prompt, without which"),
    ({"prompt": "What?", "chosen": "This.", "rejected": "This."}, "are the same"),
    ({"prompt": "What?", "chosen": "This.", "rejected": " "}, "has nothing in column 'rejected'"),
    ({"prompt": "What?", "chosen": [], "rejected": "This."}, "has nothing in column 'chosen'"),
    ({"prompt": "", "chosen": "That.", "rejected": "This."}, "has nothing in column 'prompt'"),
    ({"prompt": [ASKED], "chosen": [{**SAID, "content": ""}], "rejected": [OTHER]}, "chosen is an empty answer"),
    ({"prompt": 7, "chosen": "This.", "rejected": "That."}, "holds int, neither text nor messages, in column 'prompt'"),
    ({"chosen": [ASKED, SAID], "rejected": [TALK[2], OTHER]}, "differ in more than the last message"),
    ({"prompt": [ASKED], "chosen": [SAID, TALK[2]], "rejected": [OTHER]}, "chosen ends with what the user says"),
    ({"prompt": [ASKED], "chosen": [SAID], "rejected": [{"role": "robot", "content": "x"}]},
     "of rejected: message 1 has the role 'robot'"),
])
def test_a_row_that_is_no_pair_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        pair_of(row)


def test_the_answers_are_marked_and_nothing_else(pairs: tuple[TransformerConfig, Dataset]) -> None:
    config, dataset = pairs
    tokenizer, said = load_tokenizer(dataset), []
    for split in SPLITS:
        found = rows_of(dataset, config, split)
        assert found["tokens"].shape[1:] == found["marks"].shape[1:] == (2, 65)
        for tokens, marks in zip(found["tokens"], found["marks"], strict=True):
            said += [tuple(tokenizer.decode(side[mark & LEARNT > 0].tolist()).removesuffix("<|im_end|>")
                           for side, mark in zip(tokens, marks, strict=True))]
            first = int(np.argmax(marks[0] & LEARNT > 0))
            assert np.array_equal(tokens[0, :first], tokens[1, :first]) and first > 5, "the prompt is the same"
    assert sorted(said) == sorted((row["chosen"], row["rejected"]) for row in some(90))
    (section,) = text_data_sections(config, dataset)
    assert section.html.count("<mark>") == 12 and "&lt;|im_start|&gt;user" in section.html


def test_bad_pairs_are_named_or_left_out(tmp_path: Path) -> None:
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    long = same | {"chosen": "no " * 200}
    path = write_lines(tmp_path / "a.jsonl", [*some(150), same])
    with pytest.raises(DataError, match="line 151 chosen and rejected are the same"):
        prepared(tmp_path, config_of(path))
    path = write_lines(tmp_path / "a.jsonl", [*some(150), long])
    with pytest.raises(DataError, match=r"line 151 cannot be learnt: it has \d+ tokens, and --data.max-length 64 takes "
                                        r"65.*too-long skip"):
        prepared(tmp_path, config_of(path))
    said: list[str] = []
    dataset = prepared(tmp_path, config_of(path, data={"too_long": "skip"}), said.append)
    assert any("left out: 1 pairs of more than 65 tokens" in line and "line 151" in line for line in lines_of(dataset))
    assert any(line.startswith("150 pairs, of the form preference") for line in said)
    path = write_lines(tmp_path / "a.jsonl", [*some(150), same])
    dataset = prepared(tmp_path, config_of(path, data={"bad_rows": "skip", "bad_rows_most": 0.01}))
    assert sum(dataset.details["conversations"].values()) == 150
    with pytest.raises(DataError, match="has no columns chosen, rejected"):
        prepared(tmp_path, config_of(write_lines(tmp_path / "b.jsonl", [{"messages": TALK}])))
    with pytest.raises(DataError, match=r"holds pairs of answers.*pass --task prefer"):
        form_of(["prompt", "chosen", "rejected"], "auto", "a.jsonl")
    assert form_of(["messages", "chosen", "rejected"], "auto", "a.jsonl").name == "messages"


@pytest.mark.parametrize(("options", "why"), [
    ({}, "no pairs are embedded"),
    ({"data": {"uri": "questions"}}, "is for --task chat: to prefer pass your own data"),
    ({"data": {"uri": "x", "form": "messages"}}, "is for --task chat"),
    ({"data": {"uri": "x", "case": "lower"}}, "conversations are learnt as they are"),
    ({"data": {"uri": "x"}, "prefer": {"beta": 0}}, "must be more than 0"),
    ({"data": {"uri": "x"}, "prefer": {"loss": "ipo", "label_smoothing": 0.1}}, "is for --prefer.loss sigmoid"),
    ({"task": "chat", "prefer": {"beta": 0.2}}, "is for --task prefer"),
    ({"task": "chat", "data": {"form": "preference"}}, "is for --task prefer"),
])
def test_options_that_go_with_no_preference_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        from_dict(TransformerConfig, {"task": "prefer", **options})


# ── the loss ──
def test_the_losses_are_those_of_the_papers() -> None:
    rng = np.random.default_rng(0)
    gained, counts = rng.normal(0, 20, (50, 2)), rng.integers(1, 30, (50, 2))

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    ratio = gained[:, 0] - gained[:, 1]
    expected = {
        PreferConfig(): -np.log(sigmoid(0.1 * ratio)),
        PreferConfig(label_smoothing=0.2): -0.8 * np.log(sigmoid(0.1 * ratio)) - 0.2 * np.log(sigmoid(-0.1 * ratio)),
        PreferConfig(loss="ipo"): (gained[:, 0] / counts[:, 0] - gained[:, 1] / counts[:, 1] - 5) ** 2}
    for rule, wanted in expected.items():
        np.testing.assert_allclose(losses_of(gained, counts, rule), wanted, rtol=1e-9)
        torch_losses = pair_losses(torch.from_numpy(gained), torch.from_numpy(counts), rule)
        np.testing.assert_allclose(torch_losses.numpy(), wanted, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL asks transformers by its old name
def test_losses_and_gradients_are_those_of_trl(pairs: tuple[TransformerConfig, Dataset], tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # DeepSpeed asks for it, in other tests of this process
    from datasets import Dataset as Rows
    from trl import DPOConfig, DPOTrainer

    config, dataset = pairs
    rows = {name: column[:6] for name, column in rows_of(dataset, config).items()}
    reference = build_model(config, dataset.details, ()).eval()
    with torch.no_grad():
        given = log_probabilities(reference, rows, CPU)
    counts = torch.from_numpy(answer_counts(rows))
    tokens, marks = (np.concatenate([column[:, 0], column[:, 1]]) for column in (rows["tokens"], rows["marks"]))
    batch = {"input_ids": torch.from_numpy(tokens).long().clamp(min=0),
             "attention_mask": torch.from_numpy(tokens >= 0).long(),
             "completion_mask": torch.from_numpy(marks & LEARNT > 0).long()}
    model = deepcopy(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.02 * torch.randn_like(weights)
    theirs = deepcopy(model)
    how = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none",
                    activation_checkpointing=False)
    trainer = DPOTrainer(theirs, ref_model=reference, args=how, train_dataset=Rows.from_list(some(6)),
                         processing_class=load_tokenizer(dataset))
    for rule in (PreferConfig(), PreferConfig(beta=0.5), PreferConfig(loss="ipo")):
        trainer.beta, trainer.loss_types = rule.beta, [rule.loss]
        model.zero_grad()
        theirs.zero_grad()
        own = pair_losses(log_probabilities(model, rows, CPU) - given, counts, rule).mean()
        own.backward()
        found = trainer.compute_loss(trainer.model, batch)
        found.backward()
        assert own.item() == pytest.approx(found.item(), abs=1e-5) and own.item() > 0.1
        for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)
        assert max(float(weights.grad.abs().max()) for weights in model.parameters()) > 1e-3


def test_rows_are_cut_to_the_longest_side_and_scored_as_if_each_were_alone(
    pairs: tuple[TransformerConfig, Dataset]
) -> None:
    config, dataset = pairs
    rows = {name: column[:5] for name, column in rows_of(dataset, config).items()}
    model = build_model(config, dataset.details, ()).eval()
    ids, targets = pair_inputs(rows, CPU)
    assert ids.shape == targets.shape and ids.shape[0] == 10 and ids.shape[1] < 64
    assert int((targets >= 0).sum()) == int(answer_counts(rows).sum())
    with torch.no_grad():
        together = log_probabilities(model, rows, CPU)
        for place in range(5):
            row = {name: column[place : place + 1] for name, column in rows.items()}
            for side in range(2):
                there = row["tokens"][0, side] >= 0
                tokens, learnt = row["tokens"][0, side][there], row["marks"][0, side][there] & LEARNT > 0
                scores = torch.log_softmax(model(input_ids=torch.from_numpy(tokens[None]).long()).logits[0], 1)
                alone = sum(float(scores[i - 1, tokens[i]]) for i in np.flatnonzero(learnt))
                assert float(together[place, side]) == pytest.approx(alone, abs=1e-4)


# ── what is measured ──
@pytest.mark.parametrize("rule", SEVERAL)
def test_metrics_are_means_over_pairs(rule: PreferConfig) -> None:
    values = np.array([[-10.0, -30.0, -12.0, -20.0], [-50.0, -20.0, -40.0, -22.0]], np.float32)
    counts = np.array([[4, 5], [10, 4]])
    found = metrics_of((sums_of(values[:1], counts[:1], rule) + sums_of(values[1:], counts[1:], rule)).tolist())
    gained = np.array([[2.0, -10.0], [-10.0, 2.0]])
    assert found["loss"] == pytest.approx(losses_of(gained, counts, rule).mean())
    assert found["accuracy"] == 0.5 and found["margin"] == pytest.approx(0.0)
    assert found["kl"] == pytest.approx(4.0)
    assert found["logps_chosen"] == -30 and found["reference_logps_chosen"] == -26 and found["logps_rejected"] == -25
    assert "less likely, with a mean log-probability of -30.0, which is -26.0 by" in warning_of(found)
    assert not warning_of(found | {"logps_chosen": -28.0}) and not warning_of(found | {"logps_chosen": -20.0})


# ── training ──
def references(dataset: Dataset) -> list[Path]:
    return sorted(dataset.store.local_path(f"{dataset.blocks}/reference").rglob("*.safetensors"))


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_it_learns_what_is_preferred_and_resumes_bit_for_bit(lora_rank: int | None, tmp_path: Path,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(write_lines(tmp_path / "a.jsonl", some(90)), model={"lora_rank": lora_rank},
                       train={"epochs": 2}, optim={"lr": 1e-2})
    dataset = prepared(tmp_path, config)
    outcome, evaluations = image_loops.train(train, tmp_path / "at once", dataset, config, num_shards=3)
    assert outcome == "finished"
    kept = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in references(dataset)}
    assert len(kept) == 3
    assert image_loops.in_pieces(train, tmp_path / "in pieces", dataset, config, num_shards=3) > 6
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    assert kept == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in references(dataset)}
    first, last = evaluations[0], evaluations[-1]
    assert last["validation_loss"] < first["validation_loss"] < np.log(2)
    assert last["validation_accuracy"] > 0.9 and last["validation_margin"] > 0.01
    assert last["validation_reference_logps_chosen"] == first["validation_reference_logps_chosen"]
    references(dataset)[0].write_bytes(b"x")
    with pytest.raises(StorageError, match="is damaged"):
        image_loops.train(train, tmp_path / "again", dataset, config, num_shards=3)


def test_pairs_taken_the_wrong_way_round_are_shown_as_they_were_said(tmp_path: Path) -> None:
    rows = [{**row, **dict(zip(("rejected", "chosen"), (row["chosen"], row["rejected"]), strict=True))} if number % 2
            else row for number, row in enumerate(some(90))]
    config = config_of(write_lines(tmp_path / "a.jsonl", rows))
    dataset = prepared(tmp_path, config)
    image_loops.train(train, tmp_path, dataset, config, num_shards=3)
    store = Store.open(str(tmp_path))
    checkpoints = Checkpoints(store.child("checkpoints"))
    best, generation = checkpoints.best(), checkpoints.current_generation()
    assert best is not None and generation is not None
    trained = TrainingResult(job="transformer", config=config, dataset=dataset, store=store, generation=generation,
                             best=best)
    (section,) = wrong_pairs(trained)
    values = trained.predictions("test").probabilities
    wrong = (values[:, 0] - values[:, 2] < values[:, 1] - values[:, 3]).sum()
    assert 0 < section.html.count("<b>user</b> what is ") == wrong <= 20
    decode, found = load_tokenizer(dataset).decode, rows_of(dataset, config, "test")
    first = int(np.argmin(values[:, 0] - values[:, 2] - values[:, 1] + values[:, 3]))
    tokens, marks = found["tokens"][first, 1], found["marks"][first, 1]
    shown = section.html.index("</td>\n<td>")
    assert f"<td>{decode(tokens[marks & LEARNT > 0], skip_special_tokens=True)}</td>" in section.html[shown:shown + 200]
