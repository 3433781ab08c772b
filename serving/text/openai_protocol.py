"""OpenAI's protocol for text: requests from JSON, refusals in its form, and how /openapi.json describes it.

https://platform.openai.com/docs/api-reference/completions. What may be asked for there and is not given here is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from serving.core.errors import ParameterError, RefusedError, UnknownModelError
from serving.protocols.open_inference_json import json_object, shown
from serving.text.generation import GenerationRequest

MOST_CHOICES, MOST_STOPS, MOST_TEMPERATURE = 8, 4, 2.0
MOST_STOP_CHARACTERS = 1000
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "logit_bias": ({},), "logprobs": (), "presence_penalty": (0,),
    "suffix": ("",)}
"""What is not supported, and the values at which it asks for nothing, as null does."""
_KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "user"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


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
    if not isinstance(given.get("model"), str):
        raise ParameterError("`model` is missing, or no string", "model")
    if not isinstance(given.get("user", ""), str):
        raise ParameterError("`user` is no string", "user")
    stream = _flag(given, "stream")
    asked = GenerationRequest(
        prompts=_prompts(given), n=_whole(given, "n", 1, 1, MOST_CHOICES), max_tokens=_whole(given, "max_tokens", 16, 1, 1 << 31),
        temperature=_number(given, "temperature", 0.0, MOST_TEMPERATURE), top_p=_number(given, "top_p", 0.0, 1.0),
        seed=_whole(given, "seed", 0, -(1 << 63), (1 << 63) - 1) if "seed" in given else None, stop=_stops(given))
    if asked.top_p == 0:
        raise ParameterError("`top_p` is 0: it must be more than 0, up to 1", "top_p")
    return CompletionRequest(model=given["model"], asked=asked, stream=stream, include_usage=_include_usage(given, stream))


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name] or isinstance(value, bool) != isinstance(_NEUTRAL[name][0], bool):
                raise ParameterError(f"`{name}` is not supported by this endpoint: leave it out", name)
        elif name not in _KNOWN:
            raise ParameterError(f"`{name[:60]}` is not known: there are {', '.join(sorted(_KNOWN))}", name[:60])


def _whole(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ParameterError(f"`{name}` is {shown(value)}: it must be a whole number from {least} to {most}", name)
    return value


def _number(given: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = given.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ParameterError(f"`{name}` is {shown(value)}: it must be a number from {least:g} to {most:g}", name)
    return float(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ParameterError(f"`{name}` is neither true nor false", name)
    return value


def _prompts(given: Mapping[str, Any]) -> list[str | list[int]]:
    prompt: Any = given.get("prompt")
    if isinstance(prompt, str) or _are_tokens(prompt):
        return [prompt]
    prompts = cast(list[Any], prompt) if isinstance(prompt, list) else []
    if prompts and (set(map(type, prompts)) == {str} or all(map(_are_tokens, prompts))):
        return prompts
    raise ParameterError("`prompt` is missing, empty or mixed: it must be a string, a list of strings, a list of tokens, or a "
                         "list of such lists", "prompt")


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, cast(list[Any], value))) == {int}


def _stops(given: Mapping[str, Any]) -> list[str]:
    stop = given.get("stop", [])
    stops = cast(list[Any], stop) if isinstance(stop, list) else [stop]
    fit = all(isinstance(each, str) and 0 < len(each) <= MOST_STOP_CHARACTERS for each in stops)
    if len(stops) > MOST_STOPS or not fit:
        raise ParameterError(f"`stop` must be a string of 1 to {MOST_STOP_CHARACTERS} characters, or a list of up to "
                             f"{MOST_STOPS}", "stop")
    return stops


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise ParameterError("`stream_options` must be an object, and goes with `stream`: true", "stream_options")
    for name, value in cast(dict[str, Any], options).items():
        if name != "include_usage" and value not in (None, False):
            raise ParameterError(f"`stream_options.{name[:60]}` is not supported by this endpoint: leave it out", "stream_options")
    return _flag(cast(dict[str, Any], options), "include_usage")


# ── what is answered instead ──
def refusal(error: RefusedError) -> bytes:
    """In OpenAI's form."""
    message = "internal error" if error.status == 500 else str(error)
    code = "model_not_found" if isinstance(error, UnknownModelError) and error.param else _CODES.get(error.status, error.cause)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": error.param, "code": code}})


# ── as /openapi.json describes it ──
def paths(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For the models (`Table.described`) that write text, if there is one."""
    names = [model["name"] for model in models if model["generates"]]
    if not names:
        return {}
    example = {"model": names[0], "prompt": "def ", "max_tokens": 20, "temperature": 0, "seed": 0}
    refused = {"400": "not what the model takes", "401": "no key, or an unknown one", "404": "no such model", "413": "too large",
               "415": "a body that is compressed", "429": "too many requests with this key", "503": "overloaded",
               "504": "not finished in time"}
    answers = {status: {"description": why, "content": {"application/json": {"schema": _ERROR}}} for status, why in refused.items()}
    request = {"schema": _request(names, example), "example": example}
    ask = {"summary": f"Text that goes on with a prompt, of {', '.join(names)}", "operationId": "completions",
           "requestBody": {"required": True, "content": {"application/json": request}},
           "responses": {"200": {"description": "OK", "content": {
               "application/json": {"schema": _COMPLETION}, "text/event-stream": {"schema": _EVENT}}}, **answers}}
    few = {status: answers[status] for status in ("401", "429")}
    made: dict[str, Any] = {"/v1/completions": {"post": ask}, "/v1/models": {"get": {
        "summary": "The models that write text", "operationId": "text-models",
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}, **few}}}}
    for name in names:
        made[f"/v1/models/{name}"] = {"get": {
            "summary": f"What {name} is", "operationId": f"text-model-{name}",
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": _MODEL}}}, **few}}}
    return made


def _request(names: Sequence[str], example: Mapping[str, Any]) -> dict[str, Any]:
    tokens = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
    return {"type": "object", "required": ["model", "prompt"], "additionalProperties": False, "examples": [example], "properties": {
        "model": {"enum": list(names)},
        "prompt": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}, tokens,
                             {"type": "array", "minItems": 1, "items": tokens}]},
        "max_tokens": {"type": "integer", "minimum": 1, "default": 16},
        "temperature": {"type": "number", "minimum": 0, "maximum": MOST_TEMPERATURE, "default": 1, "description": "0: likeliest"},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": MOST_CHOICES, "default": 1},
        "stop": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "maxItems": MOST_STOPS,
                                                               "items": {"type": "string", "minLength": 1}}]},
        "seed": {"type": "integer", "description": "the same request with it gives the same text"},
        "stream": {"type": "boolean", "default": False},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}, "description": "with stream"},
        "user": {"type": "string", "description": "changes nothing"}}}


_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type", "param", "code"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]}}}}}
_MODEL = {"type": "object", "required": ["id", "object", "created", "owned_by"], "properties": {
    "id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": {"type": "string"},
    "max_model_len": {"type": ["integer", "null"]}, "version": {"type": "string"}, "artifact_digest": {"type": "string"}}}
_EVENT: dict[str, Any] = {"type": "object", "required": ["data"], "properties": {
    "data": {"type": "string", "description": "the next of the text, as a completion in JSON; an error; at last `[DONE]`"}}}
_COMPLETION = {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage", "system_fingerprint"],
               "properties": {
    "object": {"const": "text_completion"}, "system_fingerprint": {"type": "string"}, "choices": {"type": "array", "items": {
        "type": "object", "required": ["index", "text", "finish_reason"], "properties": {
            "index": {"type": "integer"}, "text": {"type": "string"}, "finish_reason": {"enum": ["stop", "length"]}}}},
    "usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"]}}}
