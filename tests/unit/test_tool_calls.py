"""Calls of tools: how each family of models writes them, how they are read and held to, and by what answers end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.common.predictor.call_forms import KNOWN, calls_in
from jobs.common.predictor.texts import CallRule, ToolCallForm
from jobs.transformer.chat.answers import end_of_answer, ends_of, tool_call_form
from jobs.transformer.chat.constraint import Constraints
from jobs.transformer.chat.conversation import Conversation
from jobs.transformer.chat.sandbox import ChatTemplateError
from jobs.transformer.chat.template import ChatTemplate, special_in
from jobs.transformer.chat.turns import turns_of
from jobs.transformer.model import LanguageModel
from serving.text.tool_calls import ToolCallReader
from tests.unit.language_model import language_model, one_thread
from tests.unit.test_chat_answers import HERMES, TEMPLATE, tokens_of
from tests.unit.test_chat_templates import PUBLIC, markers_of, sources


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with one_thread():
        yield language_model(chat_template=TEMPLATE)


# ── calls in a text ──
LLAMA = ToolCallForm(begin="", end="", arguments="parameters", listed=False)
MISTRAL = ToolCallForm(begin="[TOOL_CALLS]", end="", arguments="arguments", listed=True)
ONE = '{"name": "f", "arguments": {"a": 1}}'


@pytest.mark.parametrize(("form", "text", "content", "calls"), [
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", "", 1),
    (HERMES, f"Yes. \n<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>\n", "Yes.", 2),
    (HERMES, f"<tool_call>{ONE}", "", 1),
    (HERMES, "a < b, <tool> and <tool_call", "a < b, <tool> and <tool_call", 0),
    (HERMES, " <tool_call>{}</tool_call> ", " <tool_call>{}</tool_call> ", 0),
    (HERMES, ONE.join(("<tool_call>", "</tool_call>")).replace('"f"', '"g"'),
     '<tool_call>{"name": "g", "arguments": {"a": 1}}</tool_call>', 0),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "", 1),
    (HERMES, "  plain text \n", "  plain text \n", 0),
    (LLAMA, '{"name": "f", "parameters": {}}', "", 1),
    (LLAMA, '{"name": "f", "parameters": {}}{"name": "f", "parameters": {"a": 1}}', "", 2),
    (LLAMA, '{"name": "f", "parameters": {}', '{"name": "f", "parameters": {}', 0),
    (LLAMA, '{"any": "JSON"}', '{"any": "JSON"}', 0),
    (LLAMA, 'As JSON: {"name": "f", "parameters": {}}', 'As JSON: {"name": "f", "parameters": {}}', 0),
    (MISTRAL, f"[TOOL_CALLS] [{ONE}, {ONE}]", "", 2),
    (MISTRAL, f"[TOOL_CALLS][{ONE}", f"[TOOL_CALLS][{ONE}", 0),
    (MISTRAL, "[1, 2]", "[1, 2]", 0),
])
def test_calls_are_told_from_text_however_it_comes(form: ToolCallForm, text: str, content: str, calls: int) -> None:
    for size in (1, 3, len(text)):
        reader = ToolCallReader(form, {"f": {}})
        passed = [reader.through(text[place:place + size]) for place in range(0, len(text), size)]
        assert ("".join(passed) + reader.rest(), len(reader.calls)) == (content, calls)
        assert calls or "".join(passed).strip() == content.strip() or "{" in text or "<" in text


@pytest.mark.parametrize(("form", "required", "several", "text", "fits"), [
    (HERMES, True, True, f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{ONE}</tool_call>", True),
    (HERMES, True, False, f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{ONE}</tool_call>", False),
    (HERMES, True, True, f"Well: <tool_call>{ONE}</tool_call>", False),
    (HERMES, False, True, f"Well: <tool_call>{ONE}</tool_call> and <tool_call>{ONE}</tool_call>.", True),
    (HERMES, False, True, "Well: <tool_call>no", False), (HERMES, False, True, "Well: <tool", True),
    (HERMES, False, False, f"Well: <tool_call>{ONE}</tool_call> and", False),
    (HERMES, False, True, '<tool_call>{"name": "h", "arguments": {}}</tool_call>', False),
    (LLAMA, True, False, ONE.replace("arguments", "parameters"), True),
    (LLAMA, True, True, 2 * ONE.replace("arguments", "parameters"), True),
    (LLAMA, False, False, 2 * ONE.replace("arguments", "parameters"), False),
    (LLAMA, False, True, '{"any": "JSON"}', False), (LLAMA, False, True, 'As JSON: {"any": 5}', True),
    (LLAMA, False, True, "", True), (LLAMA, True, True, "", False),
    (MISTRAL, True, True, f"[TOOL_CALLS] [{ONE}, {ONE}]", True), (MISTRAL, True, False, f"[TOOL_CALLS][{ONE}]", True),
    (MISTRAL, True, False, f"[TOOL_CALLS][{ONE}, {ONE}]", False), (MISTRAL, True, True, f"[{ONE}]", False),
    (MISTRAL, False, True, f"Yes. [TOOL_CALLS][{ONE}]", True), (MISTRAL, False, True, "Yes.", True),
    (MISTRAL, False, True, "Yes. [TOOL_CALLS]no", False),
])
def test_an_answer_is_held_to_calls_as_each_family_writes_them(
        model: LanguageModel, form: ToolCallForm, required: bool, several: bool, text: str, fits: bool) -> None:
    tokenizer = model.tokenizer
    ends = tokens_of(model, "<|im_end|>")
    made = Constraints(tokenizer.backend_tokenizer.to_str(), len(tokenizer), ends).calls(CallRule(
        required=required, several=several, arguments={"f": {"type": "object"}, "g": {"type": "object"}}), form)
    for token in [*tokens_of(model, text), *ends]:
        if not made.allowed(len(tokenizer))[token]:
            assert not fits
            return
        made.take(token)
    assert fits


# ── what templates say ──
def template_of(name: str) -> ChatTemplate:
    source = sources()[name]
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, markers_of(source))


@pytest.mark.parametrize(("name", "ends", "form"), [
    ("built-in chatml", {"<|im_end|>"}, None), ("built-in qwen", {"<|im_end|>"}, HERMES),
    ("built-in mistral", {"</s>"}, None),
    ("trl/qwen3", {"<|im_end|>"}, HERMES), ("axolotl/qwen_25", {"<|im_end|>"}, HERMES),
    ("trl/llama3_1", {"<|eot_id|>"}, LLAMA), ("axolotl/mistral_v3_tekken", {"</s>"}, MISTRAL),
    ("axolotl/mistral_v2v3", {"</s>"}, MISTRAL), ("trl/gptoss", {"<|call|>", "<|return|>"}, None),
    ("trl/glm4moe", {"<|user|>", "<|observation|>"}, KNOWN[2]), ("trl/gemma", {"<end_of_turn>"}, None),
    ("trl/deepseekv3", {"<｜end▁of▁sentence｜>", "<｜tool▁calls▁end｜>"}, KNOWN[3]),
    ("trl/qwen3_5_think", {"<|im_end|>"}, KNOWN[1]), ("chujiezheng/amberchat", set(), None),
    ("axolotl/command_a_tool_use", {"<|END_RESPONSE|>", "<|END_ACTION|>"}, KNOWN[0]),
    ("chujiezheng/llama-2-chat", {"</s>"}, None),
])
def test_a_template_says_by_what_answers_end_and_how_tools_are_called(name: str, ends: set[str],
                                                                      form: ToolCallForm | None) -> None:
    if name not in sources():
        pytest.skip("needs the templates of public models, which are not here")
    assert (ends_of(template_of(name)), tool_call_form(template_of(name))) == (ends, form)


SAYS_ALL = {"city": 'Zürich, "old" town: {it}', "days": 3, "wide": True, "tags": ["a", "b: c"], "number": "5"}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {
    "type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "wide": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}}, "number": {"type": "string"}}}}}


def written_calls(template: ChatTemplate, count: int) -> str | None:
    """What a template writes for an assistant's calls, up to the token that ends them."""
    calls = [{"id": f"abcdefgh{number}", "type": "function", "function": {
        "name": "weather", "arguments": SAYS_ALL | {"days": number}}} for number in range(count)]
    asked = {"role": "user", "content": "How is it?"}
    try:
        whole = template.trace(Conversation((asked, {"role": "assistant", "content": "", "tool_calls": calls}),
                                            (WEATHER,)))
    except ChatTemplateError:
        return None
    text = whole.text[whole.previous_other(1, whole.of(1)[0][0]):]
    prompt = template.render(Conversation((asked,), (WEATHER,)), add_generation_prompt=True)
    text = whole.text[len(prompt):] if whole.text.startswith(prompt) else text
    form = tool_call_form(template)
    assert form is not None
    begin = text.index(form.begin) if form.begin else text.index("{")
    places = [place for end in ends_of(template) if (place := text.find(end, begin)) >= 0]
    return text[begin:min(places, default=len(text))]


def test_calls_are_read_back_as_every_public_template_writes_them() -> None:
    """Of each that is said to be read: one call, and two where it writes two, with values of every kind."""
    read: set[str] = set()
    several: set[str] = set()
    for name in sources():
        template = template_of(name)
        form = tool_call_form(template)
        if form is None:
            continue
        for count in (1, 2):
            text = written_calls(template, count)
            if text is None and count == 2:
                continue
            assert text is not None
            reader = ToolCallReader(form, {"weather": WEATHER["function"]["parameters"]})
            passed = "".join(map(reader.through, text)) + reader.rest()
            wanted = [SAYS_ALL | {"days": number} for number in range(count)]
            assert [json.loads(call.arguments) for call in reader.calls] == wanted, (name, text)
            assert "weather" not in passed, name
            (read, several)[count - 1].add(name)
    if PUBLIC.exists():
        assert len([name for name in read if "/" in name]) == 44, "of 107, as serving/README.md says"
        assert len(several) > 35


@pytest.mark.parametrize(("form", "text", "calls"), [
    (KNOWN[1], "<function=f>\n<parameter=a>\ntwo\nlines\n</parameter>\n</function>", [{"a": "two\nlines"}]),
    (KNOWN[1], "<function=f>\n</function>", [{}]), (KNOWN[1], "<function=f>", []),
    (KNOWN[1], "<function=f>\n<parameter=n>\n5\n</parameter>\n</function> and", []),
    (KNOWN[1], "<function=f><parameter=n>[1, 2]</parameter><parameter=b>5</parameter></function>",
     [{"n": [1, 2], "b": "5"}]),
    (KNOWN[2], "f", [{}]), (KNOWN[2], "g", []), (KNOWN[2], "f<arg_key>a</arg_key>", []),
    (KNOWN[4], "call:f{}", [{}]), (KNOWN[4], 'call:f{a:{b:[<|"|>x<|"|>,null]}}', [{"a": {"b": ["x", None]}}]),
    (KNOWN[4], "call:f{a}", []), (KNOWN[5], "[f(), f(a='x', n=-1.5)]", [{}, {"a": "x", "n": -1.5}]),
    (KNOWN[5], "[f('x')]", []), (KNOWN[5], "[f(**{'a': 1})]", []), (KNOWN[5], "[f(a=open('x'))]", []),
    (KNOWN[5], "[f(a={1, 2})]", []), (KNOWN[5], "[f(a=1e999)]", []),
    (KNOWN[5], "f(a=1", []), (KNOWN[5], "(" * 500, []), (KNOWN[0], '[{"tool_name": "f", "parameters": {}}]', [{}]),
    (KNOWN[0], '[{"tool_name": "f"}]', []), (KNOWN[0], "[5]", []),
])
def test_what_only_looks_like_a_call_is_none(form: ToolCallForm, text: str, calls: list[Any]) -> None:
    functions = {"f": {"properties": {"b": {"type": ["string", "null"]}}}}
    assert calls_in(form, text, functions) == [("f", arguments) for arguments in calls]


def test_an_answer_ends_by_what_a_model_learns_to_end_it_by() -> None:
    said = Conversation(tuple({"role": role, "content": "x"} for role in ("user", "assistant")))
    known = 0
    for name in sources():
        template = template_of(name)
        try:
            whole, (turn,) = turns_of(template, said, "last")
        except ChatTemplateError:
            continue
        behind = whole.text[whole.of(1)[-1][1]:turn.ranges[-1][1]]
        learnt = next((behind[start:stop] for start, stop in special_in(behind, template.specials)), None)
        known += learnt is not None
        assert learnt in (None, end_of_answer(template)), name
        assert end_of_answer(template) in (None, *ends_of(template)), name
    assert known > 5
