"""What the endpoint answers over HTTP: its operations, in one table, and what each of them does.

What has no summary is for browsers, and is not described.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Literal

import orjson
from starlette.types import Receive

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import TensorSpec
from serving.core.errors import BadRequestError, CompressedError, TooLargeError
from serving.endpoint.openapi import NOT_YET, REFUSED, Operation, openapi
from serving.endpoint.pipeline import Parse, Request, RequestPipeline
from serving.model.explanations import MOST_ROWS
from serving.protocols import open_inference_json as protocol
from serving.protocols import open_inference_schema as schema
from serving.text import completions, embeddings, openai_chat, openai_models, openai_protocol
from serving.traffic.routing import Route

Headers = tuple[tuple[bytes, bytes], ...]
_JSON, _BINARY, _HTML = b"application/json", b"application/octet-stream", b"text/html; charset=utf-8"
_POLICY = (b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
           b"img-src 'self' blob: data:")
_PROMPT: JsonObject = {"prompt": "def ", "max_tokens": 20, "temperature": 0, "seed": 0}
_CONVERSATION: JsonObject = {"messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 20,
                             "temperature": 0, "seed": 0}
_ATTRIBUTIONS = ("`attributions` say how much each value of the input speaks for the most probable class, or against "
                 "it (integrated gradients of its log odds). They sum to `difference`, the log odds less a baseline's, "
                 "but for `gap`.")


@dataclass(slots=True)
class Answer:
    """What goes back: status, body, and headers beside its type and length.
    text: in place of a body, as it is written."""

    body: bytes
    status: int = 200
    content_type: bytes = _JSON
    headers: Headers = ()
    text: completions.Completion | None = None

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def streams(self) -> bool:
        return self.text is not None


class Operations:
    """Those of one endpoint."""

    def __init__(self, core: RequestPipeline, replicas: Callable[[], Mapping[str, object]]) -> None:
        """replicas: how many run, for the playground."""
        self._core, self._table, self._replicas = core, core.table, replicas
        self.all = self._made()

    def _made(self) -> list[Operation]:
        """In the order in which they are described."""
        infer = partial(Operation, method="POST", refused=REFUSED, returns=schema.InferResponse)
        text = partial(Operation, of=lambda model: model["generates"] or model["embeds"], error=openai_protocol.Refusal)
        write = partial(Operation, error=openai_protocol.Refusal, streams=openai_protocol.Event, method="POST",
                        refused={**REFUSED, 504: "not finished in time"})
        return [
            Operation("/v2/health/live", self._live, "Whether the server lives", "health-live", keyless=True,
                      returns=dict[Literal["live"], bool]),
            Operation("/v2/health/ready", self._ready, "Whether all models answer", "health-ready", keyless=True,
                      returns=dict[Literal["ready"], bool], refused=NOT_YET),
            Operation("/v2", self._server, "The server and its extensions", "server", returns=schema.Server),
            Operation("/v2/", self._server),
            Operation("/v2/models", self._models, "All models with their signatures, labels and examples", "models",
                      returns=dict[Literal["models"], list[schema.ModelDescription]]),
            *(operation for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}") for operation in (
                Operation(path, self._model, "What {name} takes and gives", "metadata", returns=schema.ModelMetadata),
                Operation(f"{path}/ready", self._model_ready, "Whether {name} answers", "ready", refused=NOT_YET,
                          returns=schema.ModelReady),
                infer(f"{path}/infer", self._infer, "Answers of {name} ({properties[task]})", "infer",
                      takes=schema.infer_request),
                infer(f"{path}/explain", self._explain, f"What {{name}}'s answers rest on, of at most {MOST_ROWS} rows",
                      "explain", takes=partial(schema.infer_request, outputs="explanation"), details=_ATTRIBUTIONS,
                      of=itemgetter("explanation")))),
            write("/v1/completions", partial(self._text, openai_protocol.CompletionRequest),
                  "Text that goes on with a prompt, of {names}", "completions",
                  takes=partial(openai_protocol.described, openai_protocol.CompletionRequest, _PROMPT),
                  returns=openai_protocol.Completion, of=itemgetter("generates")),
            write("/v1/chat/completions", partial(self._text, openai_chat.ChatRequest),
                  "The answer to a conversation, of {names}", "chat-completions",
                  takes=partial(openai_protocol.described, openai_chat.ChatRequest, _CONVERSATION),
                  returns=openai_chat.ChatCompletion, of=itemgetter("chats")),
            Operation("/v1/embeddings", self._embed, "A vector for each text, of {names}", "embeddings", method="POST",
                      refused=REFUSED, error=openai_protocol.Refusal, returns=embeddings.Embeddings,
                      takes=partial(openai_protocol.described, embeddings.EmbeddingRequest, {"input": "a text"}),
                      of=itemgetter("embeds")),
            text("/v1/models", self._text_models, "The models that write text or offer embeddings", "text-models",
                 returns=openai_protocol.ModelList),
            text("/v1/models/{model}", self._text_model, "What {name} is", "text-model", returns=openai_protocol.Model),
            Operation("/live", self._shown_live),
            Operation("/openapi.json", self._described),
            Operation("/", partial(_page, "playground.html")),
            Operation("/docs", partial(_page, "docs.html")),
        ]

    async def _live(self) -> Answer:
        return _json({"live": True})

    async def _ready(self) -> Answer:
        return _json({"ready": (there := self._table.is_ready())}, 200 if there else 503)

    async def _server(self) -> Answer:
        return _json(self._table.server())

    async def _models(self) -> Answer:
        return _json({"models": await self._table.all_described()})

    async def _model(self, model: str, version: str | None = None) -> Answer:
        return _json(await self._table.metadata(model, self._table.route(model, version)))

    async def _model_ready(self, model: str, version: str | None = None) -> Answer:
        there = self._table.route(model, version).ready()
        return _json({"name": model, "ready": there}, 200 if there else 503)

    async def _infer(self, request: Request, receive: Receive, model: str, version: str | None = None) -> Answer:
        route = request.route = self._table.route(model, version)
        parse = await self._parser(request, receive, "outputs", route.settings.max_batch_rows, "--max-batch-rows")
        asked, outputs, about = await self._core.infer(request, route, parse)
        return _found(asked, outputs, about["outputs"], route)

    async def _explain(self, request: Request, receive: Receive, model: str, version: str | None = None) -> Answer:
        route = request.route = self._table.route(model, version)
        request.explained = True
        most = min(MOST_ROWS, route.settings.max_batch_rows)
        parse = await self._parser(request, receive, "explanation", most, "explanations")
        asked, outputs, about = await self._core.explain(request, route, parse)
        return _found(asked, outputs, about["explanation"], route)

    async def _parser(self, request: Request, receive: Receive, outputs: str, most: int, limit: str) -> Parse:
        """Of the request's body, once it has come. outputs: which tensors of a model's description are asked for. most:
        rows of a request. limit: what they are limited by, for the message.
        """
        body = await _body(receive, request, self._core.settings.max_request_bytes)
        length = request.headers.get(protocol.HEADER_LENGTH.encode())
        header = None if length is None else length.decode("latin-1")
        return lambda about: protocol.parse_request(body, header, about["inputs"], about[outputs], most, limit)

    async def _text(self, kind: type[openai_protocol.TextRequest], request: Request, receive: Receive) -> Answer:
        timeout_s = self._core.timeout_s(request)
        body = await _body(receive, request, self._core.settings.max_request_bytes)
        asked = await self._core.read(request, openai_protocol.parse, body, kind)
        route = request.route = openai_models.writing(self._table, asked.model)
        form = await completions.form_of(route, asked)
        text = completions.Completion(asked, form, route, timeout_s, self._core.measures)
        if not asked.stream:
            return Answer(await text.whole(), headers=route.headers)
        await text.begin()
        return Answer(b"", headers=route.headers, text=text)

    async def _embed(self, request: Request, receive: Receive) -> Answer:
        body = await _body(receive, request, self._core.settings.max_request_bytes)
        asked = await self._core.read(request, openai_protocol.parse, body, embeddings.EmbeddingRequest)
        route = request.route = openai_models.embedding(self._table, asked.model)
        made = await embeddings.answer(asked, route, self._core.timeout_s(request), self._core.measures)
        return Answer(made, headers=route.headers)

    async def _text_models(self) -> Answer:
        return _json(await openai_models.model_list(self._table))

    async def _text_model(self, model: str) -> Answer:
        route = openai_models.listed(self._table, model)
        return _json(await openai_models.model(route), headers=route.headers)

    async def _shown_live(self) -> Answer:
        return _json({**self._core.measures.live(), **self._table.live(), "replicas": self._replicas()})

    async def _described(self) -> Answer:
        return _json(openapi(self.all, await self._table.all_described(), self._core.settings.root_path))


def _json(message: object, status: int = 200, headers: Headers = ()) -> Answer:
    return Answer(orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY), status, headers=headers)


async def _page(name: str) -> Answer:
    headers = ((b"content-security-policy", _POLICY), (b"x-frame-options", b"DENY"))
    return Answer(_read(name), content_type=_HTML, headers=headers)


@cache
def _read(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()


def _found(request: protocol.InferRequest, outputs: Mapping[str, Array], specs: Sequence[TensorSpec],
           route: Route) -> Answer:
    data, json_length = protocol.answer(request, outputs, specs, route.said)
    if json_length is None:
        return Answer(data, headers=route.headers)
    return Answer(data, content_type=_BINARY,
                  headers=(*route.headers, (protocol.HEADER_LENGTH.encode(), str(json_length).encode())))


async def _body(receive: Receive, request: Request, most: int) -> bytes:
    """Raises: TooLargeError before all of it has come."""
    headers = request.headers
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise CompressedError("the body is compressed: send it as it is")
    length = headers.get(b"content-length", b"0")
    if not re.fullmatch(rb"[0-9]{1,18}", length):
        raise BadRequestError("Content-Length is no number of bytes")
    if int(length) > most:
        raise TooLargeError(f"the body has {int(length)} bytes: at most {most}")
    pieces: list[bytes] = []
    size = 0
    request.comes = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequestError("the caller has gone")
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            raise TooLargeError(f"the body has more than {most} bytes")
        pieces.append(piece)
        if not message.get("more_body", False):
            request.comes, request.size = False, size
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
