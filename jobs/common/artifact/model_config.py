"""What the JSON files of a Hugging Face folder may not ask for: code that runs, and files elsewhere.

Whatever `trust_remote_code` is, transformers takes from a `config.json` which attention kernels to fetch from the hub
and run (CVE-2026-4372), and which package unpacks quantised weights.
So these files are read here first, in training and in serving.
"""

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import cast

from cluster.core.documents import JSON_VALUE, DocumentError, parse_json

_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Their keys are tokens, which may be any text."""
_NAMES = ("label2id", "id2label")
"""Fields of a config whose keys are names of classes."""
_INDEX = ".safetensors.index.json"
_CODE = {
    "auto_map": "names Python code that would be run",
    "trust_remote_code": "asks for Python code of the model's own to be run",
    "quantization_config": "asks for quantised weights, whose package may fetch code",
}
_KERNELS = ("attn_implementation", "experts_implementation")


def refusal(path: str, data: bytes, beside: Collection[str] | None = None) -> str | None:
    """Why a JSON file may not be in a model's folder, to follow its name; None if it may.

    beside: the names of the files in its folder, where they are known.
    """
    name = PurePosixPath(path).name
    try:
        values = parse_json(data, JSON_VALUE)
    except DocumentError as error:
        return f"is not JSON, or is damaged ({error})"
    if name.endswith(_INDEX):
        return _index_refusal(values, beside)
    return None if name in _VOCABULARIES else next((f"has {field}, which {why}" for field, why in _asked(values)), None)


def _asked(values: object) -> Iterator[tuple[str, str]]:
    """Each field that asks for something that is refused, and what it asks for."""
    if isinstance(values, list):
        for each in cast(list[object], values):
            yield from _asked(each)
    if isinstance(values, dict):
        for field, value in cast(dict[str, object], values).items():
            if field in _CODE and value:
                yield field, _CODE[field]
            elif any(kind in field for kind in _KERNELS) and any("/" in each for each in _texts(value)):
                yield field, "would fetch compiled code from the hub and run it"
            elif field not in _NAMES:
                yield from _asked(value)


def _texts(value: object) -> list[str]:
    given = list(cast(dict[str, object], value).values()) if isinstance(value, dict) else [value]
    return [each for each in given if isinstance(each, str)]


def _index_refusal(values: object, beside: Collection[str] | None) -> str | None:
    places = cast(dict[str, object], values).get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict):
        return "has no weight_map"
    for place in cast(dict[str, object], places).values():
        if not isinstance(place, str) or "/" in place or not place.endswith(".safetensors"):
            return f"names {str(place)[:60]!r}, which is not a .safetensors file beside it"
        if beside is not None and place not in beside:
            return f"names {place}, which is not there"
    return None
