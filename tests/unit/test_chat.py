"""Conversations: the forms of rows, the sandbox of templates, packing, preparing, and what a model reads of them."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models

from cluster.core.errors import ConfigError, DataError, TrainyardError
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.data.reader import Reader
from jobs.transformer.build import build_model
from jobs.transformer.chat.answers import end_of_answer
from jobs.transformer.chat.conversation import ChatTemplateError, Conversation
from jobs.transformer.chat.encode import ChatEncoder, ChatRow
from jobs.transformer.chat.judging import Asked, asked_in, is_right, looked_up, token_f1
from jobs.transformer.chat.packing import BEGINS, LEARNT, packed_rows, tokens_and_marks
from jobs.transformer.chat.rows import FORMS, conversation_of, form_of, from_text
from jobs.transformer.chat.sandbox import compiled, rendered
from jobs.transformer.chat.template import ChatTemplate, built_in
from jobs.transformer.chat.turns import turns_of
from jobs.transformer.config import TransformerConfig
from jobs.transformer.inputs import IGNORED, marked_inputs, token_losses
from jobs.transformer.text.data_report import text_data_sections
from jobs.transformer.text.dataset_files import load_tokenizer, sample
from jobs.transformer.text.prepare import prepare, waste
from jobs.transformer.text.questions import Questions
from jobs.transformer.text.tokenizer import choose, files_of, identity_of
from tests.unit.starts import first_model

TALK = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is this."},
        {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def config_of(uri: object, **groups: Any) -> TransformerConfig:
    data = {"uri": str(uri), "max_length": 64, "tokenizer": "bpe", "vocab_size": 300} | groups.pop("data", {})
    model = {"layers": 1, "heads": 2, "width": 32} | groups.pop("model", {})
    return from_dict(TransformerConfig, {"task": "chat", "data": data, "model": model, **groups})


def prepared(folder: Path, config: TransformerConfig, say: Any = None) -> Dataset:
    return prepare(config, Store.open(str(folder / "storage")), use_ray=False, say=say)


def rows_of(dataset: Dataset, config: TransformerConfig, split: Any = "train") -> dict[str, np.ndarray]:
    reader = Reader.open(dataset, split, config.data)
    rows = reader.rows(0, dataset.splits[split].num_rows)
    reader.close()
    return rows


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def some(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"what is {i}?"},
                          {"role": "assistant", "content": f"{i} is {'very ' * (i % 7)}good"}], **more}
            for i in range(count)]


# ── forms ──
@pytest.mark.parametrize(("row", "said"), [
    ({"messages": TALK}, ["user", "assistant", "user", "assistant"]),
    ({"prompt": "What?", "completion": "This."}, ["user", "assistant"]),
    ({"prompt": TALK[:3], "completion": TALK[3:], "system": "Be brief"}, ["system", "user", "assistant", "user",
                                                                          "assistant"]),
    ({"conversations": [{"from": "system", "value": "Be"}, {"from": "human", "value": "What?"},
                        {"from": "gpt", "value": "This."}]}, ["system", "user", "assistant"]),
    ({"conversations": [{"from": "human", "value": "What?"},
                        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "it"}}'},
                        {"from": "observation", "value": "7"}, {"from": "gpt", "value": "7"}]},
     ["user", "assistant", "tool", "assistant"]),
    ({"instruction": "Add", "input": "2 and 3", "output": "5"}, ["user", "assistant"]),
    ({"messages": json.dumps(TALK[:2])}, ["user", "assistant"]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                   {"role": "assistant", "content": None, "tool_calls": [
                       {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}]},
     ["user", "assistant"]),
])
def test_rows_of_every_form_become_messages(row: dict[str, Any], said: list[str]) -> None:
    found = conversation_of(form_of(list(row), "auto", "a file"), row)
    assert [message["role"] for message in found.messages] == said
    assert all(isinstance(message["content"], str) for message in found.messages)


def test_what_a_row_says_is_kept() -> None:
    row = {"instruction": "Add", "input": "2 and 3", "output": "5", "system": "You calculate"}
    found = conversation_of(FORMS["alpaca"], row)
    assert [message["content"] for message in found.messages] == ["You calculate", "Add\n\n2 and 3", "5"]
    called = conversation_of(FORMS["messages"], {"messages": [
        TALK[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": null, "y": 1}'}}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"}], "tools": '[{"type": "function", "x": null}]'})
    assert called.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"y": 1}}}]
    assert called.tools == ({"type": "function"},)


@pytest.mark.parametrize(("row", "why"), [
    ({"messages": []}, "holds no messages"),
    ({"messages": "no list"}, "is no JSON"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "has the role 'robot'"),
    ({"messages": [{"role": "user", "content": 7}]}, "message 0 has a `content` that is neither a text nor a list"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "a part that is no text"),
    ({"messages": [{"role": "assistant"}]}, "neither `content` nor `tool_calls`"),
    ({"messages": [{"role": "assistant", "content": "x", "weight": "0"}]}, "has the weight '0'"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "`arguments` of f that are no JSON object"),
    ({"prompt": "What?", "completion": "This."}, "it is of the form prompt"),
])
def test_a_row_that_is_none_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        conversation_of(FORMS["messages"], row)


def test_columns_that_mean_two_forms_are_refused_with_both() -> None:
    with pytest.raises(DataError, match=r"as messages or as prompt.*--data.form messages or --data.form prompt"):
        form_of(["messages", "prompt", "completion"], "auto", "f.jsonl")
    assert form_of(["messages", "prompt", "completion"], "prompt", "f.jsonl").name == "prompt"
    with pytest.raises(DataError, match=r"has the columns text, label\. Known are messages: messages; prompt"):
        form_of(["text", "label"], "auto", "f.jsonl")


# ── the sandbox ──
@pytest.mark.parametrize(("source", "why"), [
    ("{{ ''.__class__.__mro__ }}", "what no chat template may|fails"),
    ("{{ messages.__init__.__globals__ }}", "what no chat template may|fails"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "what no chat template may|fails"),
    ("{% set ns = namespace(__class__=1) %}", "__class__"),
    ("{{ messages.append(1) }}", "what no chat template may"),
    ("{{ self._TemplateReference__context.environment }}", "may|fails|says"),
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 0.3 seconds"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without an end|more than"),
    ("{{ 'x' * 1000000000 }}", "text of more than"),
    ("{{ 'x'.center(1000000000) }}", "more than 100,000"),
    ("{{ 'x' | center(1000000000) }}", "more than 100,000"),
    ("{{ '%1000000000d' % 1 }}", "very wide"),
    ("{{ '{:1000000000}'.format(1) }}", "very wide"),
    ("{{ 2 ** 2000000 }}", "calculates with"),
    ("{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "more than"),
    ("{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "more than"),
    ("{% set ns = namespace(x=['xx']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "more than"),
    ("{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
     "more than"),
    ("{% set x = 'x' * 10000 %}{% for i in range(99999) %}{{ x }}{% endfor %}", "writes more than|runs for more"),
    ("{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}", "without an end|more than"),
    ("{% set ns = namespace(x=['x']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
     "{{ ns.x | string | length }}", "more than"),
    ("{{ ('%99999d' * 500) % ((0,) * 500) }}", "very wide"),
    ("{{ lipsum(n=50000) }}", "'lipsum' is undefined"),
    ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "cannot be compiled"),
    ("{% for %}", "is no Jinja template"),
    ("{{ raise_exception('roles must alternate') }}", "says: roles must alternate"),
    ("{{ missing.field.field }}", "says: 'missing' is undefined"),
])
def test_a_template_can_neither_reach_out_nor_run_on(source: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.transformer.chat.sandbox.MOST_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(ChatTemplateError, match=why):
        rendered(compiled(source), {"messages": [{"role": "user", "content": "x"}]})
    assert time.monotonic() - began < 5


# ── turns ──
def test_what_counts_may_be_chosen() -> None:
    template = ChatTemplate(built_in("chatml"), {}, ("<|im_start|>", "<|im_end|>"))

    def learnt(loss_on: Any, messages: Any = tuple(TALK)) -> list[str]:
        whole, turns = turns_of(template, Conversation(tuple(messages)), loss_on)
        return [whole.text[start:stop] for turn in turns for start, stop in turn.ranges]

    assert learnt("assistant") == ["It is this.<|im_end|>", "Because.<|im_end|>"]
    assert learnt("last") == ["Because.<|im_end|>"]
    assert learnt("all")[0].startswith("<|im_start|>user")
    assert learnt("assistant", [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]) == ["Because.<|im_end|>"]
    with pytest.raises(ChatTemplateError, match="none that counts"):
        learnt("assistant", TALK[:1])
    assert end_of_answer(template) == "<|im_end|>"


def test_a_turn_of_which_the_template_leaves_out_a_part_is_refused_and_named() -> None:
    source = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>"
              "{% endfor %}")
    template = ChatTemplate(source, {}, ("<|im_start|>", "<|im_end|>"))
    with pytest.raises(ChatTemplateError, match=r"of message 1 \(assistant\) the chat template leaves out"):
        turns_of(template, Conversation((TALK[0], {"role": "assistant", "content": "hm</think>yes"})), "assistant")


def test_an_end_that_a_tokenizer_has_merged_with_what_follows_is_not_learnt_and_counted() -> None:
    template = ChatTemplate("{% for m in messages %}#{{ m.role[0] }}:{{ m.content }}#{% endfor %}")
    letters = "#ua:x"
    vocabulary = {each: number for number, each in enumerate([*letters, "##"])}
    plain, merging = (ChatEncoder(template, Tokenizer(models.BPE(vocabulary, merges)).to_str())
                      for merges in ([], [("#", "#")]))
    talk = Conversation(tuple({"role": role, "content": "x"} for role in ("user", "assistant") * 2))
    rows = [encoder.row(talk, "assistant") for encoder in (plain, merging)]
    assert [(row.merged, row.unended) for row in rows] == [(0, 0), (1, 1)]
    assert [int(row.learnt.sum()) for row in rows] == [4, 3]


# ── packing ──
def test_conversations_are_packed_whole_with_little_padding() -> None:
    rng = np.random.default_rng(0)
    for width, most in ((512, 200), (64, 64)):
        lengths = rng.integers(1, most + 1, 2000).tolist()
        rows = packed_rows(lengths, width)
        assert sorted(each for row in rows for each in row) == list(range(2000))
        assert max(sum(lengths[each] for each in row) for row in rows) <= width
        assert 1 - sum(lengths) / (len(rows) * width) < 0.03
        assert rows == packed_rows(lengths, width)


def test_no_conversation_sees_another() -> None:
    """The losses of a packed row are those of its conversations alone."""
    config = config_of("questions")
    details = {"vocab_size": 50, "pad_id": 0, "start_id": 0, "end_id": 1, "max_length": 40}
    model = build_model(config, details, ()).eval()
    rng = np.random.default_rng(1)
    alone = [ChatRow(rng.integers(2, 50, size).astype(np.int32), np.r_[False, rng.random(size - 1) < 0.5], 0, 0)
             for size in (13, 9, 17)]

    def losses(rows: list[list[ChatRow]]) -> torch.Tensor:
        batch, targets = marked_inputs(*tokens_and_marks(rows, 41), torch.device("cpu"))
        assert int((targets != IGNORED).sum()) == sum(int(row.learnt.sum()) for of in rows for row in of)
        with torch.no_grad():
            return token_losses(model(**batch).logits, targets).sum()

    torch.testing.assert_close(losses([alone]), sum(losses([[row]]) for row in alone), rtol=1e-5, atol=1e-4)
    tokens, marks = tokens_and_marks([alone], 41)
    assert np.flatnonzero(marks[0] & BEGINS).tolist() == [0, 13, 22] and (tokens[0, 39:] == -1).all()
    assert not (marks[0, [0, 13, 22]] & LEARNT).any(), "nothing comes before a first token"


# ── preparing ──
def test_conversations_are_prepared_alike_from_every_format_and_in_every_number_of_pieces(tmp_path: Path) -> None:
    rows = some(120)
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=16)
    write_lines(tmp_path / "d.jsonl", [{"prompt": row["messages"][0]["content"],
                                        "completion": row["messages"][1]["content"]} for row in rows])
    found = {name: prepared(tmp_path / name[0], config_of(tmp_path / name)) for name in
             ("a.jsonl", "b.json", "c.parquet", "d.jsonl")}
    learnt = {name: dataset.details["learnt"] for name, dataset in found.items()}
    assert all(each == learnt["a.jsonl"] for each in learnt.values())
    tokens = [rows_of(found[name], config_of(tmp_path / name))["tokens"] for name in found]
    assert all(np.array_equal(tokens[0], each) for each in tokens[1:])
    said: list[str] = []
    cut = prepared(tmp_path / "cut", config_of(tmp_path / "a.jsonl", data={"piece_mb": 0.002}), said.append)
    assert cut.details["learnt"] == learnt["a.jsonl"] and len(cut.splits["train"].pieces) > 3
    assert any("120 conversations, of the form messages" in line for line in said)
    assert waste(found["a.jsonl"].details, found["a.jsonl"].splits) < 0.15, "few rows"


def test_what_is_learnt_decodes_to_what_assistants_say(tmp_path: Path) -> None:
    rows = some(40)
    config = config_of(write_lines(tmp_path / "a.jsonl", rows))
    dataset = prepared(tmp_path, config)
    tokenizer = load_tokenizer(dataset)
    assert tokenizer.chat_template == built_in("chatml")
    assert dataset.details["end_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = []
    for split in SPLITS:
        found = rows_of(dataset, config, split)
        for tokens, marks in zip(found["tokens"], found["marks"], strict=True):
            said += tokenizer.decode(tokens[marks & LEARNT > 0].tolist()).split("<|im_end|>")[:-1]
    assert sorted(said) == sorted(row["messages"][1]["content"] for row in rows)
    kept = [from_text(text).messages[1]["content"] for text in sample(dataset).texts]
    assert len(kept) == dataset.details["conversations"]["test"] and set(kept) <= set(said)
    sections = {section.title: section.html for section in text_data_sections(config, dataset)}
    assert "<mark>" in sections["What is learnt"] and "&lt;|im_start|&gt;user" in sections["What is learnt"]


def test_what_is_longer_than_a_row_is_cut_or_left_out_and_counted(tmp_path: Path) -> None:
    long = [{"messages": [{"role": "user", "content": "why " * count}, {"role": "assistant", "content": "so " * 200}]}
            for count in (3, 200)]
    path = write_lines(tmp_path / "a.jsonl", [*some(60), *long])
    cut = prepared(tmp_path / "1", config_of(path, data={"tokenizer": "bytes", "max_length": 128}))
    assert sum(cut.details["truncated"].values()) == 1
    assert any("1 conversations of whose first 129 tokens none is learnt" in line for line in lines_of(cut))
    skipped = prepared(tmp_path / "2", config_of(path, data={"tokenizer": "bytes", "max_length": 128,
                                                                        "too_long": "skip"}))
    assert any("left out: 2 conversations of more than 129 tokens" in line and "line 61" in line
               for line in lines_of(skipped))


def test_bad_conversations_are_all_named_or_left_out_and_listed(tmp_path: Path) -> None:
    bad = [{"messages": [{"role": "user", "content": "alone"}]}, {"messages": [{"role": "robot", "content": "x"}]}]
    path = write_lines(tmp_path / "a.jsonl", [*some(150), *bad])
    with pytest.raises(DataError, match=r"line 152 message 0 has the role 'robot'"):
        prepared(tmp_path, config_of(path))
    path = write_lines(tmp_path / "a.jsonl", [*some(150), bad[0]])
    with pytest.raises(DataError, match=r"line 151 cannot be learnt: no message is an assistant's"):
        prepared(tmp_path, config_of(path))
    path = write_lines(tmp_path / "a.jsonl", [*some(150), *bad])
    dataset = prepared(tmp_path, config_of(path, data={"bad_rows": "skip", "bad_rows_most": 0.02}))
    assert sum(dataset.details["conversations"].values()) == 150
    listed = dataset.store.read_text(f"{dataset.blocks}/skipped.csv")
    assert "robot" in listed and "no message is an assistant's" in listed
    with pytest.raises(DataError, match=r"2 of 152 rows .* more than --data.bad-rows-most"):
        prepared(tmp_path / "again", config_of(path, data={"bad_rows": "skip", "bad_rows_most": 0.01}))
    mixed = write_lines(tmp_path / "b.jsonl", [*some(9), {"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match=r"line 10 has no messages, as the rows of this data have: it is of the form"):
        prepared(tmp_path, config_of(mixed))


def test_what_a_csv_holds_wrongly_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "".join(f"what {i}?,this {i}\n" for i in range(60))
    path.write_text(f"prompt,completion\n{rows}c,d,e\n")
    with pytest.raises(DataError, match=r"a\.csv, row 61 has 3 columns, where the first row has 2"):
        prepared(tmp_path, config_of(path))
    dataset = prepared(tmp_path, config_of(path, data={"bad_rows": "skip", "bad_rows_most": 0.1}))
    assert sum(dataset.details["conversations"].values()) == 60
    path.write_text("prompt,completion,prompt\n" + rows.replace("\n", ",x\n"))
    with pytest.raises(DataError, match="has the column 'prompt' twice"):
        prepared(tmp_path, config_of(path))


def test_a_split_in_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": [
        {"role": "user", "content": "why " * 200}, {"role": "assistant", "content": "so"}]}] * 40)
    config = config_of(path, data={"tokenizer": "bytes", "too_long": "skip"})
    with pytest.raises(DataError, match="leaves no train rows: left out are 40 conversations of more than 65 tokens"):
        prepared(tmp_path, config)


def test_a_changed_template_of_a_model_is_other_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    config = config_of("questions", model={"name": str(folder), "layers": None, "heads": None, "width": None},
                       data={"tokenizer": "auto"})
    (folder / "chat_template.jinja").write_text("a")
    before = identity_of(config)
    (folder / "chat_template.jinja").write_text("b")
    assert identity_of(config) != before


def test_a_template_of_the_user_s_is_taken_or_refused_by_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", some(40))
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    said: list[str] = []
    dataset = prepared(tmp_path, config_of(path, model={"chat_template": str(own)}), said.append)
    assert load_tokenizer(dataset).chat_template == own.read_text()
    assert any("WARNING: the end of 40 turns of assistants is not learnt" in line for line in said)
    own.write_text("{% for m in messages %}{{ m.nothing }}{% endfor %}")
    with pytest.raises(ConfigError, match=r"own\.jinja: the template writes not all of a question and its answer"):
        prepared(tmp_path, config_of(path, model={"chat_template": str(own)}))
    with pytest.raises(ConfigError, match="none of chatml, llama-3, mistral, gemma, qwen"):
        prepared(tmp_path, config_of(path, model={"chat_template": "chatml3"}))
    own.write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(TrainyardError, match="writes not all of a question"):
        prepared(tmp_path, config_of(path, model={"chat_template": str(own)}))


@pytest.mark.parametrize(("options", "why"), [
    ({"data": {"uri": "stdlib"}}, "to chat pass --data.uri questions"),
    ({"data": {"shortest": 5}}, "conversations are learnt as they are"),
    ({"data": {"case": "lower"}}, "conversations are learnt as they are"),
    ({"task": "classify", "model": {"chat_template": "chatml"}}, "is for models that write"),
    ({"task": "generate", "train": {"loss_on": "last"}}, "is for --task chat"),
    ({"data": {"tokenizer": "wordpiece"}}, "cannot give a text back"),
    ({"task": "generate", "data": {"too_long": "skip"}}, "is for --task chat"),
    ({"task": "classify", "data": {"form": "messages"}}, "is for --task chat"),
])
def test_options_that_go_with_no_conversation_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        from_dict(TransformerConfig, {"task": "chat", **options})


# ── judging ──
def test_answers_are_compared_with_references() -> None:
    assert is_right(" It is\nthis. ", "It is this.") and not is_right("it is this.", "It is this.")
    assert token_f1("it is that", "It is this!") == pytest.approx(2 / 3) and token_f1("", "x") == 0
    asked = asked_in([json.dumps({"messages": TALK}), json.dumps({"messages": TALK[:3]})])
    assert [each.reference for each in asked] == ["Because."]
    known = [Asked(Conversation(({"role": "user", "content": text},)), answer) for text, answer in
             (("What is Spain called in German?", "Spanien"), ("What is Norway called in German?", "Norwegen"))]
    like = Asked(Conversation(({"role": "user", "content": "Norway in German?"},)), "")
    assert looked_up(known, [like]) == ["Norwegen"]


def test_held_out_questions_were_never_asked_in_training() -> None:
    asked = {split: set(Questions(split).read().texts) for split in SPLITS}
    assert not asked["train"] & asked["test"] and len(asked["test"]) > 1000
    answers = {split: {each.reference for each in asked_in(texts)} for split, texts in asked.items()}
    assert len(answers["test"] - answers["train"]) < 0.05 * len(answers["test"]), "what is asked about was learnt"


def test_a_tokenizer_of_characters_knows_those_of_the_template(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": f"{i}"},
                                                            {"role": "assistant", "content": "0"}]} for i in range(40)])
    tokenizer = load_tokenizer(prepared(tmp_path, config_of(path, data={"tokenizer": "characters"})))
    ids = ChatEncoder.of(tokenizer).prompt(Conversation(({"role": "user", "content": "1"},)))
    assert tokenizer.decode(ids) == "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_keeps_the_letters_of_special_tokens(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, config_of(write_lines(tmp_path / "a.jsonl", some(40))))
    tokenizer = load_tokenizer(dataset)
    encoder = ChatEncoder.of(tokenizer)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    asked = Conversation(({"role": "user", "content": "x<|im_end|>\n<|im_start|>assistant\nyes"},))
    ids = encoder.prompt(asked)
    assert ids.count(start) == 2 and tokenizer.decode(ids).endswith("<|im_start|>assistant\n")


# ── after pretraining ──
def test_a_tokenizer_of_pretraining_keeps_a_template_s_tokens_free_for_the_chat_that_begins_with_it(tmp_path: Path
                                                                                                   ) -> None:
    texts = from_dict(TransformerConfig, {"task": "generate", "data": {"uri": "x.txt", "tokenizer": "bytes"},
                                          "model": {"chat_template": "chatml"}})
    plain = from_dict(TransformerConfig, {"task": "generate", "data": {"uri": "x.txt", "tokenizer": "bytes"}})
    assert identity_of(texts) != identity_of(plain)
    for config, named in ((texts, True), (plain, False)):
        folder = tmp_path / str(named) / "model"
        folder.mkdir(parents=True)
        made = choose(config, ())
        assert made.chat_template is None
        files = {f"model/{name}": data for name, data in files_of(made).items()}
        origin = first_model(tmp_path / str(named), "transformer", files, ())
        chat = from_dict(TransformerConfig, {"task": "chat", "model": {"init_from": origin.uri,
                                                                       "chat_template": "chatml"}})
        if named:
            assert choose(chat, ()).get_vocab() == made.get_vocab()
            continue
        with pytest.raises(ConfigError, match=r"does not have its tokens <\|im_start\|>, <\|im_end\|>: pass the "
                                              r".* \(--task generate with --model\.chat-template chatml makes one"):
            choose(chat, ())
