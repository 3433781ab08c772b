"""An operation of the endpoint: a route of Starlette's router and, from the same definition,
a part of /openapi.json."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from pydantic import TypeAdapter
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster.core.documents import JsonObject
from serving.core.errors import MethodError
from serving.endpoint.pipeline import Request
from serving.protocols.open_inference_schema import Error

Model = JsonObject
"""As `Table.described` gives it."""
WITH_KEY = {401: "no key, or an unknown one", 429: "too many requests with this key"}
NOT_YET = {503: "not yet"}
REFUSED = {400: "not what the model takes", 404: "no such model", 413: "too large", 415: "a body that is compressed",
           503: "overloaded", 504: "not answered in time"}


class Operation(Route):
    """A path with its method, what answers it, whether that needs a key, and what is asked and answered."""

    def __init__(self, path: str, answer: Callable[..., Awaitable[Any]], summary: str = "", name: str = "", *,
                 method: str = "GET", keyless: bool = False, details: str = "", returns: object = None,
                 streams: object = None,
                 takes: Callable[[Sequence[Model]], tuple[object, object]] | None = None,
                 refused: Mapping[int, str] | None = None, error: object = Error,
                 of: Callable[[Model], object] | None = None) -> None:
        """answer: gets the path's parameters, and before them the request and `receive` where a body is taken.
        summary: with fields of a model's description in braces; without one the operation is not described. returns:
        the type of the answer; streams: that of a server-sent event. takes: gives the schema of the body and an example
        that works. refused: by status, why. of: the models that the operation is for.
        """
        super().__init__(path, answer, methods=[method], name=name, include_in_schema=bool(summary))
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")  # `$` also takes a last newline
        self.allowed = ("GET", "HEAD") if method == "GET" else (method,)
        self.answer, self.keyless, self.summary, self.details = answer, keyless, summary, details
        self.returns, self.streams, self.takes, self.error, self.of = returns, streams, takes, error, of
        self.refused = {**({} if keyless else WITH_KEY), **(refused or {})}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Says that it has been found: the endpoint answers when the caller may come in."""
        scope["operation"] = self

    async def respond(self, request: Request, receive: Receive, **parameters: str) -> Any:
        """parameters: those of the path. Raises: RefusedError."""
        if request.method not in self.allowed:
            raise MethodError(self.allowed)
        return await self.answer(*(() if self.takes is None else (request, receive)), **parameters)

    def described(self, models: Sequence[Model], suffix: str, schemas: Mapping[object, object]) -> JsonObject:
        def content(kind: object) -> dict[str, object]:
            return {"application/json": {"schema": schemas[kind]}}

        fields = {**(models[0] if models else {}), "names": ", ".join(model["name"] for model in models)}
        stream = {} if self.streams is None else {"text/event-stream": {"schema": schemas[self.streams]}}
        answers = {"200": {"description": "OK", "content": content(self.returns) | stream}}
        for status, why in self.refused.items():
            answers[str(status)] = {"description": why, "content": content(self.error)}
        made: JsonObject = {"summary": self.summary.format(**fields), "operationId": self.name + suffix,
                            "responses": answers}
        if self.takes is not None:
            schema, example = self.takes(models)
            body = {"application/json": {"schema": schema, "example": example}}
            made["requestBody"] = {"required": True, "content": body}
        if self.details:
            made["description"] = self.details
        return made | ({"security": []} if self.keyless else {})


def openapi(operations: Iterable[Operation], models: Sequence[Model], root_path: str = "") -> dict[str, object]:
    """OpenAPI 3.1 of an endpoint with these models, an example that works for each.

    root_path: what stands before every path, where it is given out by a proxy.
    """
    documented = [operation for operation in operations if operation.include_in_schema]
    types: set[Any] = {each for one in documented for each in (one.returns, one.streams, one.error)} - {None}
    made, parts = TypeAdapter[Any].json_schemas([(each, "validation", TypeAdapter(each)) for each in types],
                                                ref_template="#/components/schemas/{model}")
    schemas = {each: made[each, "validation"] for each in types}
    placed = [found for operation in documented for found in _placed(operation, models, schemas)]
    return {
        "openapi": "3.1.0",
        "info": {"title": "trainyard", "version": "2", "description": "Open Inference Protocol v2."},
        "servers": [{"url": root_path or "/"}], "security": [{"key": []}],
        "paths": {path: described for _, path, described in sorted(placed, key=itemgetter(0))},
        "components": {"schemas": parts["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _placed(operation: Operation, models: Sequence[Model], schemas: Mapping[object, object]) \
        -> Iterator[tuple[tuple[bool, int, int], str, JsonObject]]:
    """Its place in the order, which goes model by model and then version by version;
    each of its paths, and what is there."""
    path, text, method = operation.path, operation.path.startswith("/v1/"), operation.allowed[0].lower()
    meant = [(number, model) for number, model in enumerate(models) if operation.of is None or operation.of(model)]
    if "{model}" not in path:
        if operation.of is None or meant:
            yield (text, -1, 0), path, {method: operation.described([model for _, model in meant], "", schemas)}
        return
    for number, model in meant:
        for place, version in enumerate(model["versions"], 1) if "{version}" in path else ((0, ""),):
            suffix = f"-{model['name']}" + (f"-{version}" if version else "")
            yield ((text, number, place), path.format(model=model["name"], version=version),
                   {method: operation.described([model], suffix, schemas)})
