"""The routes of the endpoint and /openapi.json are one definition, and what they answer is what it says."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from jobs.common.artifact.manifest import Embedding
from serving.core.settings import EndpointSettings, ModelSettings, routes
from serving.endpoint.http import Endpoint
from serving.text.generation import PromptUsage
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Table
from tests.unit.test_http import ABOUT, Replicas, ask, keyed

OF_VECTORS = ABOUT | {"max_tokens": 9, "embedding": Embedding(pooling="mean", normalize=True, dimensions=2)}


async def writing(method: str, *arguments: Any) -> Any:
    if method == "about":
        return ABOUT | {"explanation": (), "max_tokens": 9, "chats": True, "tool_calls": None}
    return text() if method == "generate" else await Replicas().ask(method, *arguments)


async def text() -> AsyncGenerator[Any]:
    yield PromptUsage(tokens=3, cached=0)
    yield [(0, "pass", 1, "stop", None)]


class Explaining(Replicas):
    async def ask(self, method: str, *arguments: Any) -> Any:
        if method == "explain":
            (asked,) = arguments
            first = asked["x"][:, 0]
            return {"predicted": first.astype("int64"), "label": first.astype(str).astype(object), "difference": first,
                    "gap": first, "attributions": asked["x"]}
        if method == "embed":
            return [{"embedding": np.ones((len(asked["input"]), 2), np.float32), "tokens": np.array([3])}
                    for asked in arguments[0]]
        if method == "about":
            return OF_VECTORS
        return await super().ask(method, *arguments)


def endpoint() -> Endpoint:
    """One model in two versions that explains itself and offers vectors, and one that writes text."""
    made, measures = EndpointSettings(auth=False), EndpointMetrics()
    table = Table(made, lambda model: (writing if model.generates else Explaining().ask, lambda: True), measures.batch)
    versions = {"m": {"1": 0.5, "2": 0.5}, "lm": {"1": 1.0}}
    table.change(routes(versions, {f"{name}-{version}": ModelSettings(name=name, version=version, uri="", digest="d",
                                                                      generates=name == "lm", embeds=name == "m")
                                   for name, shares in versions.items() for version in shares})["models"])
    return Endpoint(made, table, measures)


def described(app: Endpoint) -> dict[str, Any]:
    return asyncio.run(ask(app, "/openapi.json", method="GET"))[2]


def test_every_route_is_described_and_whatever_is_described_is_a_route() -> None:
    app = endpoint()
    paths = described(app)["paths"]
    for path, methods in paths.items():
        (operation,) = [each for each in app.operations if each.path_regex.match(path)]
        assert operation.include_in_schema, path
        assert list(methods) == [operation.allowed[0].lower()], path
    browsers = {each.path for each in app.operations if not any(map(each.path_regex.match, paths))}
    assert browsers == {"/", "/docs", "/openapi.json", "/live", "/v2/"}
    names = [about["operationId"] for methods in paths.values() for about in methods.values()]
    assert len(names) == len(set(names)) == 28


def test_each_route_answers_as_it_is_described() -> None:
    app = endpoint()
    whole = described(app)

    def fits(document: Any, content: dict[str, Any]) -> None:
        schema = content["content"]["application/json"]["schema"]
        jsonschema.validate(document, {**schema, "components": whole["components"]})

    for path, methods in whole["paths"].items():
        for method, about in methods.items():
            body = b""
            if asked := about.get("requestBody"):
                example = asked["content"]["application/json"]["example"]
                fits(example, asked)
                body = json.dumps(example).encode()
            status, headers, answer = asyncio.run(ask(app, path, body, method.upper()))
            assert (status, headers["content-type"]) == (200, "application/json"), (path, answer)
            fits(answer, about["responses"]["200"])
            for refused in about["responses"].keys() - {"200"}:
                fits(asyncio.run(ask(app, path, method="DELETE"))[2], about["responses"][refused])


def test_a_key_is_wanted_where_the_description_says_so(tmp_path: Path) -> None:
    app, key = keyed(tmp_path)
    whole = asyncio.run(ask(app, "/openapi.json", method="GET", headers={"Authorization": f"Bearer {key}"}))[2]
    for path, methods in whole["paths"].items():
        for method, about in methods.items():
            status = asyncio.run(ask(app, path, method=method.upper()))[0]
            assert status == (200 if about.get("security") == [] else 401), path
    for operation in app.operations:
        if not operation.include_in_schema:
            assert asyncio.run(ask(app, operation.path, method="GET"))[0] == 401
