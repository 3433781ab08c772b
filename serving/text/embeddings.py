"""OpenAI's embeddings: `POST /v1/embeddings`, a vector for each text.

https://platform.openai.com/docs/api-reference/embeddings. Texts of like length go to a replica together, as many at a
time as a batch may have, whatever order a request has them in.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import orjson
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from jobs.common.arrays import Array
from jobs.common.artifact import manifest
from jobs.common.predictor.predictor import MOST_CHARACTERS
from serving.core.errors import ParameterError
from serving.text.openai_protocol import MOST_TOKENS, ModelRequest, Token
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Route

MOST_INPUTS = 2048
"""Of one request, as OpenAI has it."""
_SOME = Field(min_length=1, fail_fast=True)
_Text = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[list[Token], _SOME]
_MANY = Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)


class EmbeddingRequest(ModelRequest):
    EXAMPLE: ClassVar[str] = '{"model": …, "input": …}'
    MUST: ClassVar[Mapping[str, str]] = {
        **ModelRequest.MUST,
        "input": "is missing, empty or mixed: it must be a string, a list of strings, a list of tokens, or a list of "
                 f"such lists, of up to {MOST_INPUTS} texts, none of them empty",
        "encoding_format": "must be `float` or `base64`"}
    input: Annotated[_Text | Annotated[list[_Text], _MANY] | _Tokens | Annotated[list[_Tokens], _MANY],
                     Field(union_mode="left_to_right")]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | SkipJsonSchema[None] = Field(
        None, description="the model's own, if at all")

    @property
    def texts(self) -> Sequence[str | Sequence[int]]:
        """Or their tokens."""
        one = isinstance(self.input, str) or isinstance(self.input[0], int)
        return cast(Sequence[str | Sequence[int]], [self.input] if one else self.input)

    def check(self) -> None:
        characters = sum(len(text) for text in self.texts if isinstance(text, str))
        if characters > MOST_CHARACTERS:
            raise ParameterError(f"the texts have {characters:,} characters: at most {MOST_CHARACTERS:,} in one "
                                 "request", "input")


async def answer(asked: EmbeddingRequest, route: Route, timeout_s: float, measures: EndpointMetrics) -> bytes:
    """Raises: RefusedError."""
    about: manifest.Embedding = (await route.about())["embedding"]
    if asked.dimensions not in (None, about.dimensions):
        raise ParameterError(f"`dimensions` is {asked.dimensions}, and vectors of model {route.settings.name!r} have "
                             f"{about.dimensions}: leave it out", "dimensions")
    vectors, tokens = await _vectors(asked.texts, route, timeout_s)
    measures.rows(route, len(vectors))
    measures.tokens(route, tokens, 0)
    encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() if asked.encoding_format == "base64"
               else vector for vector in vectors]
    return orjson.dumps({
        "object": "list", "model": route.settings.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "data": [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(encoded)],
    }, option=orjson.OPT_SERIALIZE_NUMPY)


async def _vectors(texts: Sequence[str | Sequence[int]], route: Route, timeout_s: float) -> tuple[Array, int]:
    """(B, D) in their order, and how many tokens were read. Raises: RefusedError."""
    given = np.empty(len(texts), object)
    for place, text in enumerate(texts):  # all at once, lists of one length would become a matrix
        given[place] = text
    order = np.argsort([len(text) for text in texts], kind="stable")
    most = route.settings.max_batch_rows
    parts = [order[begin : begin + most] for begin in range(0, len(order), most)]
    found = await asyncio.gather(*(route.embeddings.infer({"input": given[part]}, len(part), timeout_s)
                                   for part in parts))
    vectors = np.concatenate([each["embedding"] for each in found])
    return vectors[np.argsort(order)], sum(int(each["tokens"].sum()) for each in found)


# ── answers ──
class Embedding(TypedDict):
    """`embedding` is a list of numbers, or base64 of as many float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Embeddings(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
