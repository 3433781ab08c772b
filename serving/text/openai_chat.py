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

from cluster.core.documents import JsonObject
from jobs.common.predictor.messages import ROLES, MessageError, message_of
from jobs.common.predictor.texts import CallRule, ToolCallForm
from serving.core.errors import ParameterError
from serving.text.choices import ChatChoice, Form
from serving.text.generation import ChatPrompt, GenerationRequest
from serving.text.openai_protocol import MOST_TOKENS, TextRequest, Written
from serving.text.tool_calls import ToolCallReader

MOST_TOP_LOGPROBS = 20
MOST_SCHEMA_BYTES = 1 << 16
_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")
_TEXT: JsonObject = {"type": "string"}
_MESSAGES: JsonObject = {"type": "array", "minItems": 1, "items": {
    "type": "object", "required": ["role"], "additionalProperties": False, "properties": {
        "role": {"enum": [*ROLES]}, "name": _TEXT, "tool_call_id": _TEXT,
        "content": {"type": ["string", "array"], "description": "a text, or parts of the type `text`"},
        "tool_calls": {"type": "array", "items": {"type": "object"}, "description": "an assistant's"}}}}
_FORMAT: JsonObject = {"type": "object", "properties": {
    "type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}}
_TOOLS: JsonObject = {"type": "array", "items": {"type": "object"}, "description": "of the type `function`"}
_CHOICE: JsonObject = {"anyOf": [{"enum": ["auto", "none", "required"]}, {
    "type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": {
        "type": "object", "required": ["name"], "properties": {"name": _TEXT}}}}]}
_Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)] | SkipJsonSchema[None]


class _FunctionName(TypedDict):
    name: str


class NamedTool(TypedDict):
    """One that is to be called."""

    type: Literal["function"]
    function: _FunctionName


class ChatRequest(TextRequest):
    """Messages go to the model's chat template as they are, which says which roles there are, and in which order."""

    EXAMPLE: ClassVar[str] = '{"model": …, "messages": [{"role": "user", "content": …}]}'
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "audio": (), "frequency_penalty": (0,), "function_call": ("none",), "functions": ([],), "logit_bias": ({},),
        "metadata": ({},), "modalities": (["text"],), "prediction": (),
        "presence_penalty": (0,), "reasoning_effort": (),
        "service_tier": ("auto", "default"), "store": (False,), "verbosity": (), "web_search_options": ()}
    MUST: ClassVar[Mapping[str, str]] = {
        **TextRequest.MUST,
        "messages": "is missing, empty, or no list", "tools": "is no list",
        "tool_choice": 'must be `auto`, `none`, `required`, or {"type": "function", "function": {"name": …}}',
        "parallel_tool_calls": "is neither true nor false",
        "logprobs": "is neither true nor false", "response_format": "is no object with a `type`"}
    messages: Annotated[list[Any], Field(min_length=1), WithJsonSchema(_MESSAGES)]
    max_tokens: _Count = Field(None, description="as max_completion_tokens")
    max_completion_tokens: _Count = Field(None, description="as many as the model has positions for, if it is left out")
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | SkipJsonSchema[None] = Field(
        None, description="with logprobs")
    tools: Annotated[list[Any], WithJsonSchema(_TOOLS)] = Field(default_factory=list[Any])
    tool_choice: Annotated[Literal["auto", "none", "required"] | NamedTool, WithJsonSchema(_CHOICE)] = "auto"
    parallel_tool_calls: bool = Field(True, description="false: at most one call")
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
        if isinstance(self.asked.held_to, str) and self.offered:
            raise ParameterError("`response_format` goes with no `tools`: an answer that is held to a schema calls "
                                 "none", "response_format")
        return self

    @property
    def offered(self) -> Sequence[JsonObject]:
        """The tools that the model may call."""
        return () if self.tool_choice == "none" else self.tools

    @cached_property
    def _schema(self) -> str | None:
        return None if self.response_format is None else _schema(self.response_format)

    @cached_property
    def _rule(self) -> CallRule | None:
        """What an answer is held to call; None: the model calls what it wants, or nothing. Raises: ParameterError."""
        functions = {str(tool["function"]["name"]): cast(JsonObject, tool["function"]) for tool in self.offered}
        named = None if isinstance(self.tool_choice, str) else self.tool_choice["function"]["name"]
        required = named is not None or self.tool_choice == "required"
        if required and (not functions or named not in (None, *functions)):
            raise ParameterError(f"`tool_choice` asks for a call of {named or 'any tool'}, and in `tools` there is "
                                 f"{', '.join(functions) or 'none'}", "tool_choice")
        if not required and self.parallel_tool_calls and not any(each.get("strict") for each in functions.values()):
            return None
        chosen = {name: each for name, each in functions.items() if named in (None, name)}
        return CallRule(required=required, several=self.parallel_tool_calls and named is None, arguments={
            name: _arguments(name, each, required) for name, each in chosen.items()}) if chosen else None

    @property
    def asked(self) -> GenerationRequest:
        return self._asked

    @cached_property
    def _asked(self) -> GenerationRequest:
        tools = [{**tool, "function": {name: value for name, value in tool["function"].items() if name != "strict"}}
                 for tool in self.offered]
        prompt = ChatPrompt(messages=self.messages, tools=tools,
                            characters=len(_text("messages", self.messages)) + len(_text("tools", tools)))
        return GenerationRequest(prompts=[prompt], n=self.n, seed=self.seed, temperature=self.temperature,
                                 max_tokens=self.max_completion_tokens or self.max_tokens, top_p=self.top_p,
                                 stop=self.stops, top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                                 held_to=self._schema or self._rule)

    def form(self, tool_calls: ToolCallForm | None) -> Form:
        """Raises: ParameterError for a rule of calls that the model writes in no form that an answer can be held to."""
        if self._rule is not None and (tool_calls is None or not tool_calls.is_held):
            what = ("tool_choice" if self._rule.required else "parallel_tool_calls" if not self.parallel_tool_calls
                    else "tools")
            asks = {"tool_choice": "a call", "parallel_tool_calls": "one call at most", "tools": "a `strict` function"}
            raise ParameterError(f"`{what}` asks for {asks[what]}, and an answer of this model cannot be held to that: "
                                 "its chat template writes calls in no form of JSON that is known. Leave it out", what)
        return Form(id="chatcmpl", whole="chat.completion", event="chat.completion.chunk",
                    choice=lambda number: ChatChoice(number, self._reader(tool_calls)))

    def _reader(self, form: ToolCallForm | None) -> ToolCallReader | None:
        functions = {str(tool["function"]["name"]): cast(JsonObject, tool["function"].get("parameters") or {})
                     for tool in self.offered}
        return ToolCallReader(form, functions) if form and functions else None


# ── as a chat template takes it ──
def _message(place: str, given: object) -> JsonObject:
    """Raises: ParameterError."""
    about = cast(JsonObject, given) if isinstance(given, dict) else {}
    if unknown := next((name for name, value in about.items() if value is not None and name not in _FIELDS), None):
        raise _wrong("messages", place,
                     f"has `{unknown[:60]}`, which is not known: there are {', '.join(_FIELDS)}")
    for name in ("name", "tool_call_id"):
        if not isinstance(about.get(name) or "", str):
            raise _wrong("messages", place, f"has a `{name}` that is no string")
    try:
        return message_of(cast(object, given), f"`{place}`", ("name", "tool_call_id"))
    except MessageError as error:
        raise ParameterError(str(error), "messages") from None


def _tool(place: str, given: object) -> JsonObject:
    function = _function("tools", place, given)
    if not isinstance(function.get("strict") or False, bool):
        raise _wrong("tools", place, "has a `strict` that is neither true nor false")
    if not isinstance(function.get("parameters") or {}, dict):
        raise _wrong("tools", place, "has `parameters` that are no JSON schema")
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _arguments(name: str, function: JsonObject, required: bool) -> JsonObject:
    """The schema that arguments of a call have to fit, where the answer is held to calls."""
    schema = cast(JsonObject, function.get("parameters") or {})
    if not required and not function.get("strict"):
        return {"type": "object"}
    if (size := len(_text("tools", schema))) > MOST_SCHEMA_BYTES:
        raise ParameterError(f"`tools` has a schema of {size:,} bytes for {name[:60]}: at most {MOST_SCHEMA_BYTES:,}",
                             "tools")
    return {"type": "object", **schema}


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
