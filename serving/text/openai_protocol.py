"""OpenAI's protocol for text: requests from JSON, refusals in its form, and how /openapi.json describes it.

https://platform.openai.com/docs/api-reference/completions. Chats are in openai_chat.py.
What may be asked for there and is not given here is refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from cluster.core.documents import JsonObject
from jobs.common.predictor.texts import ToolCallForm
from serving.core.errors import ParameterError, RefusedError, UnknownModelError
from serving.protocols.open_inference_json import json_object
from serving.protocols.tensor_values import shown
from serving.text.choices import Form, TextChoice
from serving.text.generation import GenerationRequest

MOST_CHOICES, MOST_STOPS, MOST_TEMPERATURE = 8, 4, 2.0
MOST_STOP_CHARACTERS = 1000
MOST_TOKENS = 1 << 31
_MUST = {
    "model": "is missing, or no string", "user": "is no string", "stream": "is neither true nor false",
    "stop": f"must be a string of 1 to {MOST_STOP_CHARACTERS} characters, or a list of up to {MOST_STOPS}",
    "stream_options": "must be an object, and goes with `stream`: true"}
"""What is said of a parameter that is wrong, where it has no bounds to name."""
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
Token = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0})]  # the replica says which tokens there are
_SOME = Field(min_length=1, fail_fast=True)
_Texts = Annotated[list[str], _SOME]
_Tokens = Annotated[list[Token], _SOME]
_TokenLists = Annotated[list[_Tokens], _SOME]
_Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]


class ModelRequest(BaseModel):
    """What may be asked for of any model; whether it fits the model, a replica says."""

    model_config = ConfigDict(strict=True, extra="forbid")
    EXAMPLE: ClassVar[str]
    """A body, for whoever sends none."""
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """What is not supported, and the values at which it asks for nothing, as null does."""
    MUST: ClassVar[Mapping[str, str]] = _MUST
    model: str
    user: str | SkipJsonSchema[None] = Field(None, description="changes nothing")

    def check(self) -> None:
        """Raises: ParameterError for what no single field says."""


class TextRequest(ModelRequest):
    """What may be asked for of any text."""

    temperature: float = Field(1.0, ge=0, le=MOST_TEMPERATURE, description="0: likeliest")
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: _Stop | Annotated[list[_Stop],
                            Field(max_length=MOST_STOPS, fail_fast=True)] = Field(default_factory=list[_Stop])
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | SkipJsonSchema[None] = Field(
        None, description="the same request with it gives the same text")
    stream: bool = False
    stream_options: Annotated[JsonObject | None, WithJsonSchema(
        {"type": "object", "properties": {"include_usage": {"type": "boolean"}}, "description": "with stream"})] = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.get("include_usage"))

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def asked(self) -> GenerationRequest:
        """Raises: ParameterError for what does not go together."""
        raise NotImplementedError

    def form(self, tool_calls: ToolCallForm | None) -> Form:
        """Of the answer. tool_calls: how the model writes them, if it does."""
        raise NotImplementedError

    def check(self) -> None:
        options = self.stream_options or {}
        if self.stream_options is not None and not self.stream:
            raise ParameterError(f"`stream_options` {_MUST['stream_options']}", "stream_options")
        for name, value in options.items():
            if name != "include_usage" and value not in (None, False):
                raise ParameterError(f"`stream_options.{name[:60]}` is not supported by this endpoint: leave it out",
                                     "stream_options")
        if not isinstance(options.get("include_usage", False), bool):
            raise ParameterError("`include_usage` is neither true nor false", "include_usage")


class CompletionRequest(TextRequest):
    EXAMPLE = '{"model": …, "prompt": …}'
    NEUTRAL = {"best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "logit_bias": ({},), "logprobs": (),
               "presence_penalty": (0,), "suffix": ("",)}
    MUST = _MUST | {"prompt": "is missing, empty or mixed: it must be a string, a list of strings, a list of tokens, "
                              "or a list of such lists"}
    prompt: Annotated[str | _Texts | _Tokens | _TokenLists, Field(union_mode="left_to_right")]
    max_tokens: int = Field(16, ge=1, le=MOST_TOKENS)

    @property
    def asked(self) -> GenerationRequest:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return GenerationRequest(
            prompts=cast(list[str | list[int]], [self.prompt] if one else self.prompt), n=self.n, seed=self.seed,
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, stop=self.stops)

    def form(self, tool_calls: ToolCallForm | None) -> Form:
        return Form(id="cmpl", whole="text_completion", event="text_completion", choice=TextChoice)


T = TypeVar("T", bound=ModelRequest)


# ── from JSON ──
def parse(body: bytes, kind: type[T]) -> T:
    """Raises: BadRequestError, with the remedy."""
    message = json_object(body, kind.EXAMPLE)
    given = {name: value for name, value in message.items() if value is not None}
    _refuse_unsupported(given, kind)
    try:
        request = kind(**{name: value for name, value in given.items() if name not in kind.NEUTRAL})
    except ValidationError as error:
        raise _wrong(str(error.errors()[0]["loc"][0]), given, kind) from None
    request.check()
    return request


def _wrong(name: str, given: Mapping[str, object], kind: type[ModelRequest]) -> ParameterError:
    """What is said of a parameter that does not fit."""
    if name in kind.MUST:
        return ParameterError(f"`{name}` {kind.MUST[name]}", name)
    value, bounds = given[name], kind.model_json_schema()["properties"][name]
    least, most = bounds.get("minimum", 0), bounds["maximum"]
    must = f"a number from {least:g} to {most:g}"
    if bounds["type"] == "integer":
        must = f"a whole number from {least} to {most}"
    elif name == "top_p" and type(value) in (int, float) and value == 0:
        value, must = 0, "more than 0, up to 1"
    return ParameterError(f"`{name}` is {shown(value)}: it must be {must}", name)


def _refuse_unsupported(given: Mapping[str, object], kind: type[ModelRequest]) -> None:
    neutral = kind.NEUTRAL
    for name, value in given.items():
        if name in neutral:
            if value not in neutral[name] or isinstance(value, bool) != isinstance(neutral[name][0], bool):
                raise ParameterError(f"`{name}` is not supported by this endpoint: leave it out", name)
        elif name not in kind.model_fields:
            known = ", ".join(sorted(kind.model_fields))
            raise ParameterError(f"`{name[:60]}` is not known: there are {known}", name[:60])


# ── answers ──
class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    version: str
    artifact_digest: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Choice(TypedDict):
    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class PromptDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Written(TypedDict):
    """What every answer has."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class Completion(Written):
    object: Literal["text_completion"]
    choices: list[Choice]


class Event(TypedDict):
    """`data` is the next of the text, in JSON; an error; at last `[DONE]`."""

    data: str


class Problem(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(TypedDict):
    error: Problem


def refusal(error: RefusedError) -> bytes:
    """In OpenAI's form."""
    message = "internal error" if error.status == 500 else str(error)
    code = ("model_not_found" if isinstance(error, UnknownModelError) and error.param
            else _CODES.get(error.status, error.cause))
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": error.param, "code": code}})


# ── as /openapi.json describes it ──
def described(kind: type[ModelRequest], example: JsonObject, models: Sequence[JsonObject]) \
        -> tuple[JsonObject, JsonObject]:
    """The schema of a request to the models (`Table.described`), and an example. example: without the model."""
    names = [model["name"] for model in models]
    made = kind.model_json_schema()
    properties = {name: {key: value for key, value in each.items() if key != "title" and value is not None}
                  for name, each in made["properties"].items()}
    example = {"model": names[0], **example}
    return {**{key: made[key] for key in ("type", "required", "additionalProperties")}, "examples": [example],
            "properties": properties | {"model": {"enum": names}}}, example
