"""Calls of tools in a text, in the forms in which models write them, which their chat templates say.

    calls_in(form, '{"name": "f", "arguments": {"a": 1}}', {"f": {}})       # [("f", {"a": 1})]
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from cluster.core.documents import JSON_VALUE, JsonObject, parse_json
from jobs.common.predictor.texts import CallStyle, ToolCallForm

Calls = list[tuple[str, Any]]
"""Names, with their arguments."""

KNOWN: tuple[ToolCallForm, ...] = (
    ToolCallForm(begin="<|START_ACTION|>", end="<|END_ACTION|>", name="tool_name", arguments="parameters", listed=True),
    ToolCallForm(begin="<tool_call>", end="</tool_call>", style="parameters"),
    ToolCallForm(begin="<tool_call>", end="</tool_call>", style="pairs"),
    ToolCallForm(begin="<｜tool▁calls▁begin｜>", end="<｜tool▁calls▁end｜>", style="fenced"),
    ToolCallForm(begin="<|tool_call>", end="<tool_call|>", style="bare_keys"),
    ToolCallForm(begin="<|tool_call_start|>", end="<|tool_call_end|>", style="python"),
)
"""Of Cohere's Command A; Qwen 3.5 and Nemotron 3; GLM 4.5; DeepSeek V3; Gemma 4; LFM 2.5."""
_PARAMETERS = re.compile(r"\s*<function=([^>\n]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
_PAIRS = re.compile(r"\s*([^\s<]+)\s*((?:<arg_key>.*)?)", re.DOTALL)
_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)
_FENCED = re.compile(r"\s*<｜tool▁call▁begin｜>function<｜tool▁sep｜>([^\n]+)\n```json\n(.*?)\n```"
                     r"(?:<｜tool▁call▁end｜>)?\s*", re.DOTALL)
_BARE_KEYS = re.compile(r"\s*call:([^{\s]+)(\{.*\})\s*", re.DOTALL)
_BARE_KEY = re.compile(r"([{,]\s*)([^\s\"{}\[\],:]+)\s*:")
_QUOTE = '<|"|>'
MARKS = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", _QUOTE,
         "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
"""Within calls, beside those that begin and end them: what may be special tokens."""


def calls_in(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """The calls that a text is, between the marks of its form; none where it is not calls of these functions and
    nothing else. functions: by name, the JSON schema of their arguments."""
    try:
        found = _READERS[form.style](form, text.strip(), functions)
        json.dumps(found, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return []
    return found if all(name in functions and isinstance(given, dict) for name, given in found) else []


# ── as each family writes them ──
def _json(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """{"name": "f", "arguments": {…}}, one after the other, or in a list."""
    found: list[Any] = []
    while text:
        value, stop = json.JSONDecoder().raw_decode(text)
        found += value if form.listed and isinstance(value, list) else [value]
        text = text[stop:].strip()
    return [(each[form.name], each[form.arguments]) if isinstance(each, dict) and {form.name, form.arguments} <= {*each}
            else ("", {}) for each in found]


def _parameters(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """<function=f><parameter=a>1</parameter></function>"""
    return [(name, _typed(_all(_PARAMETER, inner), functions.get(name, {}))) for name, inner in _all(_PARAMETERS, text)]


def _pairs(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """f<arg_key>a</arg_key><arg_value>1</arg_value>"""
    return [(name, _typed(_all(_PAIR, inner), functions.get(name, {}))) for name, inner in _all(_PAIRS, text)]


def _fenced(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """The name, and arguments in a block of JSON, each call between marks of its own."""
    return [(name, parse_json(inner, JSON_VALUE)) for name, inner in _all(_FENCED, text)]


def _bare_keys(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """call:f{a:<|"|>text<|"|>,b:1}: JSON whose keys stand without quotes, and texts between special tokens."""
    found: Calls = []
    for name, inner in _all(_BARE_KEYS, text):
        parts = inner.split(_QUOTE)
        quoted = [json.dumps(part) if place % 2 else _BARE_KEY.sub(r'\1"\2":', part)
                  for place, part in enumerate(parts)]
        found.append((name, parse_json("".join(quoted), JSON_VALUE)))
    return found


def _python(form: ToolCallForm, text: str, functions: Mapping[str, JsonObject]) -> Calls:
    """[f(a=1)]"""
    tree = ast.parse(text, mode="eval").body
    found: Calls = []
    for each in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(each, ast.Call) or each.args or any(one.arg is None for one in each.keywords):
            raise ValueError("no call by names")
        found.append((ast.unparse(each.func), {str(one.arg): ast.literal_eval(one.value) for one in each.keywords}))
    return found


_READERS: dict[CallStyle, Callable[[ToolCallForm, str, Mapping[str, JsonObject]], Calls]] = {
    "json": _json, "parameters": _parameters, "pairs": _pairs, "fenced": _fenced, "bare_keys": _bare_keys,
    "python": _python}


def _all(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """Two groups of each match. Raises: ValueError unless matches are all of the text."""
    found: list[tuple[str, str]] = []
    place, text = 0, text.strip()
    while place < len(text):
        match = pattern.match(text, place)
        if match is None or match.end() == place:
            raise ValueError("something else stands there, too")
        found.append((match[1], match[2]))
        place = match.end()
    return found


def _typed(values: list[tuple[str, str]], schema: JsonObject) -> JsonObject:
    """Values that are written without quotes: texts where the schema says so, or where they are nothing else."""
    properties = schema.get("properties")
    known = cast(JsonObject, properties) if isinstance(properties, dict) else {}
    return {name: value if _is_text(known.get(name)) else _value(value) for name, value in values}


def _is_text(schema: object) -> bool:
    kind = cast(JsonObject, schema).get("type") if isinstance(schema, dict) else None
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _value(text: str) -> object:
    try:
        return parse_json({"True": "true", "False": "false", "None": "null"}.get(text, text), JSON_VALUE)
    except ValueError:
        return text
