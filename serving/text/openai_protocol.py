"""OpenAI's protocol for text: requests from JSON, refusals in its form, and how /openapi.json describes it.

https://platform.openai.com/docs/api-reference/completions. What may be asked for there and is not given here is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from serving.core.errors import ParameterError, RefusedError, UnknownModelError
from serving.protocols.open_inference_json import json_object, shown
from serving.text.continuous_batching import GenerationRequest

MOST_CHOICES, MOST_STOPS, MOST_TEMPERATURE = 8, 4, 2.0
MOST_STOP_CHARACTERS = 1000
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "logit_bias": ({},), "logprobs": (), "presence_penalty": (0,),
    "suffix": ("",)}
"""What is not supported, and the values at which it asks for nothing, as null does."""
_MUST = {
    "model": "is missing, or no string", "user": "is no string", "stream": "is neither true nor false",
    "prompt": "is missing, empty or mixed: it must be a string, a list of strings, a list of tokens, or a list of such lists",
    "stop": f"must be a string of 1 to {MOST_STOP_CHARACTERS} characters, or a list of up to {MOST_STOPS}",
    "stream_options": "must be an object, and goes with `stream`: true"}
"""What is said of a parameter that is wrong, where it has no bounds to name."""
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


_Token = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0})]  # the replica says which tokens there are
_Tokens = Annotated[list[_Token], Field(min_length=1, fail_fast=True)]
_Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]


class Body(BaseModel):
    """What may be asked for."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str
    prompt: Annotated[str | Annotated[list[str], Field(min_length=1, fail_fast=True)] | _Tokens
                      | Annotated[list[_Tokens], Field(min_length=1, fail_fast=True)], Field(union_mode="left_to_right")]
    max_tokens: int = Field(16, ge=1, le=1 << 31)
    temperature: float = Field(1, ge=0, le=MOST_TEMPERATURE, description="0: likeliest")
    top_p: float = Field(1, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] = Field(default_factory=list[_Stop])
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | SkipJsonSchema[None] = Field(
        None, description="the same request with it gives the same text")
    stream: bool = False
    stream_options: Annotated[dict[str, Any] | None, WithJsonSchema(
        {"type": "object", "properties": {"include_usage": {"type": "boolean"}}, "description": "with stream"})] = None
    user: str | SkipJsonSchema[None] = Field(None, description="changes nothing")


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A request that is well formed; whether its prompt fits the model, a replica says."""

    model: str
    asked: GenerationRequest
    stream: bool
    include_usage: bool


# ── from JSON ──
def parse(body: bytes) -> CompletionRequest:
    """Raises: BadRequestError, with the remedy."""
    message = json_object(body, '{"model": …, "prompt": …}')
    given = {name: value for name, value in message.items() if value is not None}
    _refuse_unsupported(given)
    try:
        fits = Body(**given)
    except ValidationError as error:
        raise _wrong(str(error.errors()[0]["loc"][0]), given) from None
    one = isinstance(fits.prompt, str) or isinstance(fits.prompt[0], int)
    asked = GenerationRequest(
        prompts=cast(list[str | list[int]], [fits.prompt] if one else fits.prompt), n=fits.n, max_tokens=fits.max_tokens,
        temperature=fits.temperature, top_p=fits.top_p, seed=fits.seed,
        stop=[fits.stop] if isinstance(fits.stop, str) else fits.stop)
    return CompletionRequest(model=fits.model, asked=asked, stream=fits.stream, include_usage=_include_usage(fits))


def _wrong(name: str, given: Mapping[str, Any]) -> ParameterError:
    """What is said of a parameter that does not fit."""
    if name in _MUST:
        return ParameterError(f"`{name}` {_MUST[name]}", name)
    value, bounds = given[name], Body.model_json_schema()["properties"][name]
    least, most = bounds.get("minimum", 0), bounds["maximum"]
    if name == "top_p" and value == 0:
        must = "more than 0, up to 1"
    elif bounds["type"] == "integer":
        must = f"a whole number from {least} to {most}"
    else:
        must = f"a number from {least:g} to {most:g}"
    return ParameterError(f"`{name}` is {shown(value)}: it must be {must}", name)


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name] or isinstance(value, bool) != isinstance(_NEUTRAL[name][0], bool):
                raise ParameterError(f"`{name}` is not supported by this endpoint: leave it out", name)
        elif name not in Body.model_fields:
            raise ParameterError(f"`{name[:60]}` is not known: there are {', '.join(sorted(Body.model_fields))}", name[:60])


def _include_usage(body: Body) -> bool:
    if body.stream_options is None:
        return False
    if not body.stream:
        raise ParameterError(f"`stream_options` {_MUST['stream_options']}", "stream_options")
    for name, value in body.stream_options.items():
        if name != "include_usage" and value not in (None, False):
            raise ParameterError(f"`stream_options.{name[:60]}` is not supported by this endpoint: leave it out", "stream_options")
    found = body.stream_options.get("include_usage", False)
    if not isinstance(found, bool):
        raise ParameterError("`include_usage` is neither true nor false", "include_usage")
    return found


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


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: dict[Literal["prompt_tokens", "completion_tokens", "total_tokens"], int]


class Event(TypedDict):
    """`data` is the next of the text, as a completion in JSON; an error; at last `[DONE]`."""

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
    code = "model_not_found" if isinstance(error, UnknownModelError) and error.param else _CODES.get(error.status, error.cause)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": error.param, "code": code}})


# ── as /openapi.json describes it ──
def described(models: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a request to the models (`Table.described`) that write text, and an example."""
    names = [model["name"] for model in models]
    example = {"model": names[0], "prompt": "def ", "max_tokens": 20, "temperature": 0, "seed": 0}
    made = Body.model_json_schema()
    properties = {name: {key: value for key, value in each.items() if key != "title" and value is not None}
                  for name, each in made["properties"].items()}
    return {**{key: made[key] for key in ("type", "required", "additionalProperties")}, "examples": [example],
            "properties": properties | {"model": {"enum": names}}}, example
