"""A message of a conversation, as OpenAI's protocol has it and a chat template takes it: of a request, or of a row."""

from collections.abc import Sequence
from typing import cast

from cluster.core.documents import DocumentError, JsonObject, parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")


class MessageError(ValueError):
    """What is wrong with a message; it begins with its place."""


def message_of(given: object, place: str, keep: Sequence[str] = ()) -> JsonObject:
    """Its role, its content as one text, and calls of tools with their arguments as objects. place: of the message, as
    an error names it. keep: other fields that are taken as they are. Raises: MessageError."""
    if not isinstance(given, dict):
        raise MessageError(f"{place} is no object but {given!r:.40}")
    said = {name: value for name, value in cast(JsonObject, given).items() if value is not None}
    role = said.get("role")
    if role not in ROLES:
        raise MessageError(f"{place} has the role {role!r:.40}: known are {', '.join(ROLES)}")
    calls = _calls(said.get("tool_calls", []), place)
    if calls and role != "assistant":
        raise MessageError(f"{place} has `tool_calls`, which are an assistant's, and its role is {role}")
    if "content" not in said and not calls:
        raise MessageError(f"{place} ({role}) has neither `content` nor `tool_calls`")
    made: JsonObject = {"role": role, "content": _content(said.get("content", ""), place)}
    return made | {name: said[name] for name in keep if name in said} | ({"tool_calls": calls} if calls else {})


def _content(given: object, place: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise MessageError(f"{place} has a `content` that is neither a text nor a list of parts ({given!r:.40})")
    texts: list[str] = []
    for part in cast(list[object], given):
        known = cast(JsonObject, part) if isinstance(part, dict) else {}
        if known.get("type", "text") != "text" or not isinstance(known.get("text"), str):
            raise MessageError(f"{place} has a part that is no text ({part!r:.60}): text alone is read")
        texts.append(known["text"])
    return "".join(texts)


def _calls(given: object, place: str) -> list[JsonObject]:
    if not isinstance(given, list):
        raise MessageError(f"{place} has `tool_calls` that are no list ({given!r:.40})")
    return [_call(each, place) for each in cast(list[object], given)]


def _call(given: object, place: str) -> JsonObject:
    call = cast(JsonObject, given) if isinstance(given, dict) else {}
    function = call.get("function", call)
    about = cast(JsonObject, function) if isinstance(function, dict) else {}
    name = about.get("name")
    if not isinstance(name, str):
        raise MessageError(f"{place} has a tool call without the name of a function ({given!r:.60})")
    arguments = about.get("arguments", {})
    try:
        arguments = parse_json(arguments) if isinstance(arguments, str) else arguments
    except DocumentError as error:
        raise MessageError(f"{place} has `arguments` of {name} that are no JSON object ({error})") from error
    if not isinstance(arguments, dict):
        raise MessageError(f"{place} has `arguments` of {name} that are no JSON object ({arguments!r:.60})")
    made: JsonObject = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": str(call["id"]), **made} if call.get("id") is not None else made
