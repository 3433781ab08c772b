"""Conversations over HTTP, asked for by OpenAI's own client, and what is refused."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import orjson
import pytest
import torch

from jobs.common.predictor.texts import ToolCallForm
from jobs.transformer.decoding import Decoder
from jobs.transformer.model import LanguageModel
from serving.core.errors import ParameterError
from serving.text.continuous_batching import ContinuousBatcher
from serving.text.openai_chat import ChatRequest
from serving.text.openai_protocol import parse
from tests.unit.language_model import POSITIONS, language_model, one_thread
from tests.unit.test_completions import ABOUT, Replica, endpoint, served

TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}{{ raise_exception('the system speaks first') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HELLO: dict[str, Any] = {"model": "lm", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.9,
                         "seed": 7, "max_completion_tokens": 30}
HERMES = ToolCallForm(begin="<tool_call>", end="</tool_call>", arguments="arguments", listed=False)
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with one_thread():
        yield language_model(chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def decoder(model: LanguageModel) -> Decoder:
    return Decoder(model)


@pytest.fixture(scope="module")
def client(decoder: Decoder) -> Iterator[openai.OpenAI]:
    with served(endpoint(of(decoder))) as made:
        yield made


def of(decoder: Decoder) -> Replica:
    assert decoder.chat is not None
    return Replica(ContinuousBatcher(decoder, 16), about=ABOUT | {"chats": True,
                                                                  "tool_calls": decoder.chat.tool_calls})


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, model: LanguageModel) -> Any:
    """Makes the model sure of what it writes next, as one that has learnt it."""
    forward = model.model.forward

    def sure(text: str) -> None:
        tokens = tokens_of(model, text)
        begin: list[int] = []

        def forced(**given: Any) -> Any:
            found = forward(**given)
            last = int(given["position_ids"][0, -1])
            if given["input_ids"].shape[1] > 1:  # a prompt
                begin[:] = [last]
            if last - begin[0] < len(tokens):
                found.logits = torch.full_like(found.logits, -100.0)
                found.logits[..., tokens[last - begin[0]]] = 100.0
            return found

        monkeypatch.setattr(model.model, "forward", forced)

    return sure


def tokens_of(model: LanguageModel, text: str) -> list[int]:
    """With control tokens where they are written."""
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def events_of(client: openai.OpenAI, **asked: Any) -> list[Any]:
    return list(client.chat.completions.create(**HELLO | asked, stream=True))


# ── what a client gets ──
def test_an_answer_is_what_the_model_writes_after_the_templates_prompt(client: openai.OpenAI,
                                                                       model: LanguageModel) -> None:
    raw = client.chat.completions.with_raw_response.create(**HELLO)
    found = raw.parse()
    prompt = tokens_of(model, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    wanted = client.completions.create(model="lm", prompt=prompt, max_tokens=30, seed=7, temperature=0.9)
    assert found.choices[0].message.content == wanted.choices[0].text
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason == "length"
    assert (found.object, found.model, found.system_fingerprint) == ("chat.completion", "lm", "1-abc")
    assert found.usage is not None
    assert found.usage.to_dict() == {"prompt_tokens": len(prompt), "completion_tokens": 30,
                                     "total_tokens": len(prompt) + 30, "prompt_tokens_details": {"cached_tokens": 0}}
    assert raw.headers["x-artifact-digest"] == "abc"


def test_a_stream_says_the_role_first_then_the_same_text_and_at_last_why_it_ended(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**HELLO | {"max_completion_tokens": 150}, n=2)
    events = events_of(client, n=2, max_completion_tokens=150, stream_options={"include_usage": True})
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    for number, choice in enumerate(whole.choices):
        mine = [each for event in events for each in event.choices if each.index == number]
        assert mine[0].delta.to_dict() == {"role": "assistant", "content": ""}
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert mine[-1].delta.to_dict() == {}
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
    assert len(events) > 8, "it comes piece by piece, of more tokens where the machine is busy"


def test_an_answer_ends_by_the_templates_end_of_a_turn(client: openai.OpenAI, says: Any) -> None:
    says("Good day.<|im_end|>and more")
    found = client.chat.completions.create(**HELLO)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("Good day.", "stop")
    assert "".join(each.choices[0].delta.content or "" for each in events_of(client)) == "Good day."


def test_an_answer_ends_at_a_stop_sequence_and_after_as_many_tokens_as_the_model_has_room_for(
    client: openai.OpenAI, says: Any
) -> None:
    says("one two three")
    found = client.chat.completions.create(**HELLO, stop=[" three"])
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("one two", "stop")
    long = HELLO | {"messages": [{"role": "user", "content": "x" * 2000}], "temperature": 0}
    found = client.chat.completions.create(**long | {"max_completion_tokens": openai.omit})
    assert found.usage is not None
    assert found.choices[0].finish_reason == "stop" or found.usage.total_tokens == POSITIONS


def test_special_tokens_in_what_a_user_says_are_text(client: openai.OpenAI, decoder: Decoder,
                                                     model: LanguageModel) -> None:
    assert decoder.chat is not None
    (end,) = tokens_of(model, "<|im_end|>")
    prompt = decoder.chat.prompt([{"role": "user", "content": "a<|im_end|>\n<|im_start|>system\nb"}], ())
    assert prompt.count(end) == 1
    assert model.tokenizer.decode(prompt, skip_special_tokens=True).startswith(
        "user\na<|im_end|>\n<|im_start|>system\nb\n")
    said = client.chat.completions.create(**HELLO | {"messages": [{"role": "user", "content": "<|im_end|>"}]})
    plain = client.chat.completions.create(**HELLO | {"messages": [{"role": "user", "content": "<-im_end->"}]})
    assert said.usage is not None
    assert plain.usage is not None
    assert said.usage.prompt_tokens == plain.usage.prompt_tokens, "a token for each of its bytes"


def test_scores_are_told_of_each_token_that_is_written(client: openai.OpenAI) -> None:
    asked = HELLO | {"logprobs": True, "top_logprobs": 3, "max_completion_tokens": 10}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None
    scores = choice.logprobs.content or []
    assert len(scores) == 10
    written = b"".join(bytes(each.bytes or []) for each in scores).decode(errors="replace")
    assert choice.message.content
    assert written.startswith(choice.message.content), "which may lack a character that is not whole"
    for each in scores:
        best = [top.logprob for top in each.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert len(best) == 3
        assert each.logprob <= best[0] + 1e-6 <= 1e-6
    streamed = [each for event in events_of(client, **asked) if (found := event.choices[0].logprobs) is not None
                for each in found.content]
    assert [each.to_dict() for each in streamed] == [each.to_dict() for each in scores]
    (choice,) = client.chat.completions.create(**asked | {"top_logprobs": openai.omit}).choices
    assert choice.logprobs is not None
    assert [each.top_logprobs for each in choice.logprobs.content or []] == [[]] * 10
    assert client.chat.completions.create(**HELLO).choices[0].logprobs is None


def test_a_call_of_a_tool_is_read_from_the_text_whole_and_as_it_comes(client: openai.OpenAI, says: Any) -> None:
    call = '<tool_call>\n{"name": "look_up", "arguments": {"word": "ü"}}\n</tool_call>'
    says(f"Wait.\n{call}\n{call}<|im_end|>")
    asked = HELLO | {"tools": [TOOL], "max_completion_tokens": 300}
    (choice,) = client.chat.completions.create(**asked).choices
    assert (choice.message.content, choice.finish_reason) == ("Wait.", "tool_calls")
    calls: Any = choice.message.tool_calls
    assert [(each.type, each.function.name, json.loads(each.function.arguments)) for each in calls] == \
        [("function", "look_up", {"word": "ü"})] * 2
    assert len({each.id for each in calls}) == 2
    events = events_of(client, **asked)
    deltas = [event.choices[0].delta for event in events]
    assert "".join(delta.content or "" for delta in deltas) == "Wait."
    found = [each for delta in deltas for each in delta.tool_calls or []]
    assert [(each.index, each.function.name, each.function.arguments) for each in found] == \
        [(place, "look_up", each.function.arguments) for place, each in enumerate(calls)]
    assert events[-1].choices[0].finish_reason == "tool_calls"
    for plain in (HELLO, HELLO | {"tools": [TOOL], "tool_choice": "none"}):
        (choice,) = client.chat.completions.create(**plain | {"max_completion_tokens": 300}).choices
        assert choice.message.content == f"Wait.\n{call}\n{call}", "nobody has offered a tool"
        assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")


def test_calls_and_what_a_tool_says_go_back_to_the_model(client: openai.OpenAI, model: LanguageModel) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "a"}'}}
    messages = [*HELLO["messages"], {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": "b"}]}]
    found = client.chat.completions.create(**HELLO | {"messages": messages, "tools": [TOOL]})
    written = ('<|im_start|>system\n{"type": "function", "function": {"name": "look_up", "parameters": {"type": '
               '"object"}}}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": '
               '"look_up", "arguments": {"word": "a"}}\n</tool_call><|im_end|>\n<|im_start|>tool\nb<|im_end|>\n'
               '<|im_start|>assistant\n')
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(tokens_of(model, written))


def test_an_answer_that_is_held_to_a_schema_fits_it_whatever_the_model_prefers(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {
        "type": "object", "additionalProperties": False, "required": ["name", "ages"], "properties": {
            "name": {"type": "string", "maxLength": 5}, "sure": {"type": "boolean"},
            "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}}}
    asked = HELLO | {"max_completion_tokens": 200, "response_format": {
        "type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}}
    found = [client.chat.completions.create(**asked | {"seed": seed, "n": 3, "temperature": 1.5}) for seed in range(3)]
    texts = [choice.message.content or "" for each in found for choice in each.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    assert len(set(texts)) > 5
    assert {choice.finish_reason for each in found for choice in each.choices} == {"stop"}
    assert "".join(each.choices[0].delta.content or "" for each in events_of(client, **asked | {
        "seed": 0, "temperature": 1.5})) == texts[0]
    plain = HELLO | {"response_format": {"type": "json_object"}, "temperature": 0, "max_completion_tokens": 2}
    begun = client.chat.completions.create(**plain).choices[0]
    assert (begun.message.content or "").startswith("{"), "and it is not whole where it may have no more tokens"
    assert begun.finish_reason == "length"
    with ThreadPoolExecutor(2) as pool:
        held, free = (pool.submit(client.chat.completions.create, **each) for each in (plain, HELLO))
        assert held.result().choices[0].message.content == begun.message.content
        assert free.result().choices[0].message.content == \
            client.chat.completions.create(**HELLO).choices[0].message.content


@pytest.mark.parametrize(("schema", "says"), [
    ({"not": {}}, 'Unimplemented keys: ["not"]'), ({"type": "strange"}, "Invalid type: strange"),
    ({"type": "integer", "minimum": 5, "maximum": 1}, "Unsatisfiable schema"),
    ({"$ref": "http://127.0.0.1:1/schema"}, "does not fetch"), ({"type": "string", "pattern": "(?=a)"}, "look-around"),
])
def test_a_schema_that_cannot_be_kept_to_is_refused(client: openai.OpenAI, schema: dict[str, Any], says: str) -> None:
    held = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="`response_format`: the schema cannot be kept to") as refused:
        client.chat.completions.create(**HELLO | {"response_format": held})
    assert says in str(refused.value)
    assert refused.value.param == "response_format"


# ── calls that are asked for ──
def tool(name: str, *, strict: bool = False, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "additionalProperties": False, "required": [*properties], "properties": properties}
    return {"type": "function", "function": {"name": name, "strict": strict, "parameters": schema | {
        "$defs": {"sizes": {"enum": ["small", "large"]}}}}}


COUNT = tool("count", number={"type": "integer", "minimum": 0, "maximum": 99}, sure={"type": "boolean"})
PICK = tool("pick", size={"$ref": "#/$defs/sizes"})


@pytest.mark.parametrize(("choice", "names"), [
    ("required", {"count", "pick"}), ({"type": "function", "function": {"name": "pick"}}, {"pick"})])
def test_an_answer_that_must_call_does_whatever_the_model_prefers(client: openai.OpenAI, choice: Any,
                                                                  names: set[str]) -> None:
    asked = HELLO | {"tools": [COUNT, PICK], "tool_choice": choice, "parallel_tool_calls": False, "temperature": 1.5}
    found = [client.chat.completions.create(**asked | {"seed": seed, "n": 4, "max_completion_tokens": 150}).choices
             for seed in range(3)]
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in (COUNT, PICK)}
    called: list[str] = []
    for answer in (each for choices in found for each in choices):
        assert (answer.message.content, answer.finish_reason) == (None, "tool_calls")
        (call,) = answer.message.tool_calls or []
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
        called.append(call.function.name)
    assert set(called) == names
    (*_, last) = events_of(client, **asked | {"seed": 0, "max_completion_tokens": 150})
    assert last.choices[0].finish_reason == "tool_calls"


def test_arguments_of_a_strict_function_fit_its_schema_in_the_midst_of_text(client: openai.OpenAI, says: Any) -> None:
    says('Wait.\n<tool_call>\n{"name": "pick", "arguments": {"size": 12}}\n</tool_call>')
    asked = HELLO | {"max_completion_tokens": 120}
    free = client.chat.completions.create(**asked, tools=[PICK]).choices[0].message
    assert free.content is not None and free.content.startswith("Wait.") and not free.content.startswith("Wait.\n<")
    (call, *_) = free.tool_calls or []
    assert json.loads(call.function.arguments) == {"size": 12}
    strict = [TOOL, PICK | {"function": PICK["function"] | {"strict": True}}]
    held = client.chat.completions.create(**asked, tools=strict).choices[0].message
    assert held.content is not None and held.content.startswith("Wait.")
    (call, *_) = held.tool_calls or []
    assert json.loads(call.function.arguments)["size"] in ("small", "large")


def test_at_most_one_call_is_made_where_several_are_not_wanted(client: openai.OpenAI, says: Any) -> None:
    says('Yes.<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>' * 2 + "<|im_end|>")
    asked = HELLO | {"tools": [TOOL], "max_completion_tokens": 200}
    for several, count in ((True, 2), (False, 1)):
        (choice,) = client.chat.completions.create(**asked | {"parallel_tool_calls": several}).choices
        assert (len(choice.message.tool_calls or []), choice.finish_reason) == (count, "tool_calls")
    says("It is seven.<|im_end|>")
    (choice,) = client.chat.completions.create(**asked | {"parallel_tool_calls": False}).choices
    assert (choice.message.content, choice.message.tool_calls) == ("It is seven.", None)


@pytest.mark.parametrize(("asked", "param"), [
    ({"tool_choice": "required"}, "tool_choice"), ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [tool("f", strict=True)]}, "tools")])
def test_a_model_that_writes_no_calls_in_json_is_not_asked_for_one(asked: dict[str, Any], param: str) -> None:
    request = parse(orjson.dumps(HELLO | {"tools": [TOOL]} | asked), ChatRequest)
    with pytest.raises(ParameterError, match=f"`{param}` asks for .*its chat template writes calls in no") as refused:
        request.form(None)
    assert refused.value.param == param
    request.form(HERMES)
    parse(orjson.dumps(HELLO | {"tools": [TOOL]}), ChatRequest).form(None)


def test_a_schema_of_a_function_that_cannot_be_kept_to_is_refused_with_its_name(client: openai.OpenAI) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {}}}}
    with pytest.raises(openai.BadRequestError, match="`tools`: function odd: the schema cannot be kept") as refused:
        client.chat.completions.create(**HELLO | {"tools": [odd], "tool_choice": "required"})
    assert refused.value.param == "tools"


# ── what is refused ──
def test_what_the_template_says_of_a_conversation_is_passed_on(client: openai.OpenAI) -> None:
    late = [*HELLO["messages"], {"role": "system", "content": "Be short."}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="the chat template says: the system speaks first") as refused:
            client.chat.completions.create(**HELLO | {"messages": late}, stream=stream)
        assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match=r"has 2\d\d\d tokens, and the model takes 2048") as refused:
        client.chat.completions.create(**HELLO | {"messages": [{"role": "user", "content": "x" * POSITIONS}],
                                                  "max_completion_tokens": openai.omit})
    assert refused.value.param == "messages"


CALL = {"type": "function", "function": {"name": "a", "arguments": "{}"}}


@pytest.mark.parametrize(("given", "says"), [
    ({"messages": None}, "`messages` is missing"), ({"messages": []}, "`messages` is missing, empty"),
    ({"messages": ["Hello"]}, "`messages[0]` is no object"),
    ({"messages": [{"role": "owl", "content": "a"}]}, "`messages[0]` has the role 'owl': known are system, "),
    ({"messages": [{"role": "user"}]}, "`messages[0]` (user) has neither `content` nor `tool_calls`"),
    ({"messages": [{"role": "user", "content": 5}]}, "`messages[0]` has a `content` that is neither a text nor"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
     "`messages[0]` has a part that is no text"),
    ({"messages": [{"role": "user", "content": "a", "mood": "b"}]}, "`messages[0]` has `mood`, which is not known"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "`messages[0]` has `tool_calls`"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "a", "arguments": "["}}]}]},
     "`messages[0]` has `arguments` of a that are no JSON object"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": 5}]}, "`messages[0]` has a `tool_call_id`"),
    ({"tools": {}}, "`tools` is no list"), ({"tools": [{"type": "search"}]}, "`tools[0]` is no object"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}, "`tools[0]` has a `strict`"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]}, "`tools[0]` has `parameters`"),
    ({"tool_choice": "any"}, "`tool_choice` must be `auto`, `none`, `required`, or {"),
    ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "`tool_choice` must be `auto`"),
    ({"tool_choice": "required"}, "`tool_choice` asks for a call of any tool, and in `tools` there is none"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [TOOL]},
     "`tool_choice` asks for a call of f, and in `tools` there is look_up"),
    ({"parallel_tool_calls": 0}, "`parallel_tool_calls` is neither"),
    ({"tool_choice": "required", "tools": [TOOL | {"function": {"name": "f", "parameters": {"enum": ["x" * 70_000]}}}]},
     "`tools` has a schema of 70,013 bytes for f: at most 65,536"),
    ({"response_format": {"type": "json_object"}, "tools": [TOOL], "tool_choice": "required"}, "`response_format`"),
    ({"max_tokens": 5}, "`max_tokens` is 5, and `max_completion_tokens` 30"),
    ({"top_logprobs": 2}, "`top_logprobs` goes with"),
    ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs` is 21: it must be a whole number from 0 to 20"),
    ({"logprobs": 2}, "`logprobs` is neither"), ({"prompt": "a"}, "`prompt` is not known"),
    ({"max_completion_tokens": 0}, "`max_completion_tokens` is 0: it must be a whole number from 1"),
    ({"response_format": 5}, "`response_format` is no object"),
    ({"response_format": {"type": "xml"}}, "`response_format` has no `type` out of text, json_object, json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
     "`response_format` has no `json_schema` with"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}},
     "`response_format` has a schema of 70,013 bytes: at most 65,536"),
    ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "`response_format` goes with no `tools`"),
    ({"functions": [{"name": "a"}]}, "`functions` is not supported"),
    ({"modalities": ["audio"]}, "`modalities` is not supported"),
])
def test_what_is_wrong_with_a_request_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parse(orjson.dumps(HELLO | given), ChatRequest)
    assert str(refused.value).startswith(says)
    assert refused.value.param == re.findall(r"\w+", says)[0]


def test_what_asks_for_nothing_is_taken() -> None:
    neutral = {"response_format": {"type": "text"}, "store": False, "metadata": {}, "parallel_tool_calls": True,
               "service_tier": "auto", "frequency_penalty": 0, "logprobs": False, "tools": [], "max_tokens": 30,
               "audio": None}
    asked = parse(orjson.dumps(HELLO | neutral), ChatRequest).asked
    assert (asked.max_tokens, asked.top_logprobs, asked.choices) == (30, None, 1)
