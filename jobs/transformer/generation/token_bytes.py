"""The bytes that each token of a tokenizer stands for, which may be a part of a character."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import json
import re
from typing import TYPE_CHECKING

from cluster.core.documents import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Of one tokenizer."""

    def __init__(self, backend: "Tokenizer") -> None:
        about = parse_json(backend.to_str())
        decoder = json.dumps(about.get("decoder"))
        self._backend, self._by_letters = backend, "ByteLevel" in decoder
        self._spaces = "▁" in decoder
        self._added = {token["id"] for token in about["added_tokens"]}

    def __call__(self, token: int) -> bytes:
        text = self._backend.id_to_token(token)
        if text is None:  # the model has more than its tokenizer
            return b""
        if token in self._added:
            return text.encode()
        if self._by_letters:
            return bytes(map(_bytes_of_letters().__getitem__, text))
        if fallback := _FALLBACK.fullmatch(text):
            return bytes.fromhex(fallback[1])
        return (text.replace("▁", " ") if self._spaces else text.removeprefix("##")).encode()


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """By the letter that byte-level tokenizers write for it (GPT-2): its own where it can be seen, else the next free
    one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
