"""OpenAI's protocol for conversations: requests from JSON, and how /openapi.json describes them and their answers.

https://platform.openai.com/docs/api-reference/chat. A message's content is text: parts of other types are refused.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, NotRequired, cast

import orjson
from pydantic import Field, WithJsonSchema, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from cluster.core.documents import DocumentError, JsonObject, parse_json
from jobs.common.predictor.texts import ToolCallForm
from serving.core.errors import ParameterError
from serving.text.choices import ChatChoice, Form
from serving.text.generation import ChatPrompt, GenerationRequest
from serving.text.openai_protocol import MOST_TOKENS, TextRequest, Written
from serving.text.tool_calls import ToolCallReader

MOST_TOP_LOGPROBS = 20
MOST_SCHEMA_BYTES = 1 << 16
_ROLES = ("system", "developer", "user", "assistant", "tool")
_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")
_TEXT: JsonObject = {"type": "string"}
_MESSAGES: JsonObject = {"type": "array", "minItems": 1, "items": {
    "type": "object", "required": ["role"], "additionalProperties": False, "properties": {
        "role": {"enum": [*_ROLES]}, "name": _TEXT, "tool_call_id": _TEXT,
        "content": {"type": ["string", "array"], "description": "a text, or parts of the type `text`"},
        "tool_calls": {"type": "array", "items": {"type": "object"}, "description": "an assistant's"}}}}
_FORMAT: JsonObject = {"type": "object", "properties": {
    "type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}}
_TOOLS: JsonObject = {"type": "array", "items": {"type": "object"}, "description": "of the type `function`"}
_Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)] | SkipJsonSchema[None]


class ChatRequest(TextRequest):
    """Messages go to the model's chat template as they are, which says which roles there are, and in which order."""

    EXAMPLE: ClassVar[str] = '{"model": …, "messages": [{"role": "user", "content": …}]}'
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "audio": (), "frequency_penalty": (0,), "function_call": ("none",), "functions": ([],), "logit_bias": ({},),
        "metadata": ({},), "modalities": (["text"],), "parallel_tool_calls": (True,), "prediction": (),
        "presence_penalty": (0,), "reasoning_effort": (),
        "service_tier": ("auto", "default"), "store": (False,), "verbosity": (), "web_search_options": ()}
    MUST: ClassVar[Mapping[str, str]] = {
        **TextRequest.MUST,
        "messages": "is missing, empty, or no list", "tools": "is no list",
        "tool_choice": "must be `auto` or `none`: the model itself says whether it calls a tool",
        "logprobs": "is neither true nor false", "response_format": "is no object with a `type`"}
    messages: Annotated[list[Any], Field(min_length=1), WithJsonSchema(_MESSAGES)]
    max_tokens: _Count = Field(None, description="as max_completion_tokens")
    max_completion_tokens: _Count = Field(None, description="as many as the model has positions for, if it is left out")
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | SkipJsonSchema[None] = Field(
        None, description="with logprobs")
    tools: Annotated[list[Any], WithJsonSchema(_TOOLS)] = Field(default_factory=list[Any])
    tool_choice: Literal["auto", "none"] = "auto"
    response_format: Annotated[JsonObject | None, WithJsonSchema(_FORMAT)] = None

    @field_validator("messages")
    @classmethod
    def _read_messages(cls, given: list[Any]) -> list[JsonObject]:
        return [_message(f"messages[{number}]", each) for number, each in enumerate(given)]

    @field_validator("tools")
    @classmethod
    def _read_tools(cls, given: list[Any]) -> list[JsonObject]:
        return [_tool(f"tools[{number}]", each) for number, each in enumerate(given)]

    @model_validator(mode="after")
    def _goes_together(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ParameterError(f"`max_tokens` is {self.max_tokens}, and `max_completion_tokens` "
                                 f"{self.max_completion_tokens}: leave one of them out", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ParameterError("`top_logprobs` goes with `logprobs`: true", "top_logprobs")
        if self.asked.schema is not None and self.offered:
            raise ParameterError("`response_format` goes with no `tools`: an answer that is held to a schema calls "
                                 "none", "response_format")
        return self

    @property
    def offered(self) -> Sequence[JsonObject]:
        """The tools that the model may call."""
        return self.tools if self.tool_choice == "auto" else ()

    @property
    def asked(self) -> GenerationRequest:
        return self._asked

    @cached_property
    def _asked(self) -> GenerationRequest:
        prompt = ChatPrompt(messages=self.messages, tools=self.offered,
                            characters=len(_text("messages", self.messages)) + len(_text("tools", self.offered)))
        return GenerationRequest(prompts=[prompt], n=self.n, seed=self.seed, temperature=self.temperature,
                                 max_tokens=self.max_completion_tokens or self.max_tokens, top_p=self.top_p,
                                 stop=self.stops, top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                                 schema=None if self.response_format is None else _schema(self.response_format))

    def form(self, tool_calls: ToolCallForm | None) -> Form:
        return Form(id="chatcmpl", whole="chat.completion", event="chat.completion.chunk",
                    choice=lambda number: ChatChoice(number, self._reader(tool_calls)))

    def _reader(self, form: ToolCallForm | None) -> ToolCallReader | None:
        names = {tool["function"]["name"] for tool in self.offered}
        return ToolCallReader(form, names) if form and names else None


# ── as a chat template takes it ──
def _message(place: str, given: object) -> JsonObject:
    """Raises: ParameterError."""
    wrong = partial(_wrong, "messages", place)
    if not isinstance(given, dict):
        raise wrong("is no object with `role` and `content`")
    message = {name: value for name, value in cast(JsonObject, given).items() if value is not None}
    if unknown := next((name for name in message if name not in _FIELDS), None):
        raise wrong(f"has `{unknown[:60]}`, which is not known: there are {', '.join(_FIELDS)}")
    if (role := message.get("role")) not in _ROLES:
        raise wrong(f"has no `role` out of {', '.join(_ROLES)}")
    for name in ("name", "tool_call_id"):
        if not isinstance(message.get(name, ""), str):
            raise wrong(f"has a `{name}` that is no string")
    if "tool_calls" in message:
        if role != "assistant" or not isinstance(message["tool_calls"], list):
            raise wrong("has `tool_calls`, which is a list, and an assistant's")
        message["tool_calls"] = [_call(f"{place}.tool_calls[{number}]", each)
                                 for number, each in enumerate(cast(list[object], message["tool_calls"]))]
    if "content" not in message and not message.get("tool_calls"):
        raise wrong("has no `content`")
    message["content"] = _content(f"{place}.content", message.get("content", ""))
    return message


def _content(place: str, given: object) -> str:
    parts = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(parts, list):
        raise _wrong("messages", place, "must be a string, or a list of parts of the type `text`")
    texts = [cast(JsonObject, part).get("text") if isinstance(part, dict) else None
             for part in cast(list[object], parts)]
    if not all(isinstance(text, str) for text in texts):
        raise _wrong("messages", place, "has a part that is no text: this endpoint's models read text alone")
    return "".join(map(str, texts))


def _call(place: str, given: object) -> JsonObject:
    """With its arguments as an object."""
    function = _function("messages", place, given)
    try:
        arguments = parse_json(str(function.get("arguments")))
    except DocumentError as error:
        raise _wrong("messages", place, f"has no `arguments` that are a JSON object, as a string ({error})") from None
    call = cast(JsonObject, given)
    known = {"id": str(call["id"])} if call.get("id") is not None else {}
    return {**known, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tool(place: str, given: object) -> JsonObject:
    function = _function("tools", place, given)
    if function.get("strict"):
        raise _wrong("tools", place, "is `strict`, which is not supported by this endpoint: leave it out")
    if not isinstance(function.get("parameters") or {}, dict):
        raise _wrong("tools", place, "has `parameters` that are no JSON schema")
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _function(param: str, place: str, given: object) -> JsonObject:
    about = cast(JsonObject, given) if isinstance(given, dict) else {}
    function = about.get("function")
    if about.get("type") != "function" or not isinstance(function, dict) or not isinstance(
            cast(JsonObject, function).get("name"), str):
        raise _wrong(param, place, "is no object of the type `function`, with a `function` that has a `name`")
    return cast(JsonObject, function)


def _schema(given: JsonObject) -> str | None:
    """What an answer has to be, in JSON; None: any text."""
    kind, about = given.get("type"), given.get("json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return '{"type": "object"}'
    wrong = partial(_wrong, "response_format", "response_format")
    if kind != "json_schema":
        raise wrong("has no `type` out of text, json_object, json_schema")
    schema = cast(JsonObject, about).get("schema") if isinstance(about, dict) else None
    if not isinstance(schema, dict):
        raise wrong("has no `json_schema` with a `schema` that is an object")
    text = _text("response_format", cast(JsonObject, schema))
    if len(text) > MOST_SCHEMA_BYTES:
        raise wrong(f"has a schema of {len(text):,} bytes: at most {MOST_SCHEMA_BYTES:,}")
    return text


def _text(param: str, value: object) -> str:
    """JSON."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise ParameterError(f"`{param}` cannot be read ({error}): it is nested too deeply", param) from None


def _wrong(param: str, place: str, what: str) -> ParameterError:
    return ParameterError(f"`{place}` {what}", param)


# ── answers ──
class Function(TypedDict):
    name: str
    arguments: str


class Call(TypedDict):
    id: str
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[Call]]


class Logprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Logprob):
    top_logprobs: list[Logprob]


class Logprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class Choice(TypedDict):
    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Written):
    object: Literal["chat.completion"]
    choices: list[Choice]
