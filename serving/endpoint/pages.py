"""What people look at: the playground, and the description of the models in OpenAPI with a page that shows it."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jobs.common.artifact.tensor_spec import DTYPES
from serving.model.explanations import MOST_ROWS
from serving.text import openai_protocol

_HERE = Path(__file__).parent


@cache
def playground_page() -> bytes:
    return (_HERE / "playground.html").read_bytes()


@cache
def docs_page() -> bytes:
    return (_HERE / "docs.html").read_bytes()


def openapi(models: Sequence[Mapping[str, Any]], root_path: str = "") -> dict[str, Any]:
    """OpenAPI 3.1 of an endpoint with these models (`Table.described`), an example that works for each.

    root_path: what stands before every path, where it is given out by a proxy.
    """
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _get("Whether the server lives", "health-live", security=[])},
        "/v2/health/ready": {"get": _get("Whether all models answer", "health-ready", security=[], also=_NOT_YET)},
        "/v2": {"get": _get("The server and its extensions", "server")},
        "/v2/models": {"get": _get("All models with their signatures, labels and examples", "models")},
    }
    for model in models:
        name = model["name"]
        for version in (None, *model["versions"]):
            base = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")
            suffix = f"{name}-{version}" if version else name
            paths[base] = {"get": _get(f"What {name} takes and gives", f"metadata-{suffix}")}
            paths[f"{base}/ready"] = {"get": _get(f"Whether {name} answers", f"ready-{suffix}", also=_NOT_YET)}
            paths[f"{base}/infer"] = {"post": _infer(model, f"infer-{suffix}")}
            if model["explanation"]:
                paths[f"{base}/explain"] = {"post": _explain(model, f"explain-{suffix}")}
    paths |= openai_protocol.paths(models)
    return {
        "openapi": "3.1.0", "info": {"title": "trainyard", "version": "2", "description": "Open Inference Protocol v2."},
        "servers": [{"url": root_path or "/"}], "security": [{"key": []}], "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": {
            "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}},
    }


def _get(summary: str, operation: str, *, security: list[Any] | None = None,
         also: Mapping[str, Any] | None = None) -> dict[str, Any]:
    answers = {"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}, **(also or {})}
    if security is None:
        answers |= {"401": _error("no key, or an unknown one"), "429": _error("too many requests with this key")}
    open_to_all = {} if security is None else {"security": security}
    return {"summary": summary, "operationId": operation, "responses": answers, **open_to_all}


def _error(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


_NOT_YET = {"503": _error("not yet")}


def _explain(model: Mapping[str, Any], operation: str) -> dict[str, Any]:
    """The body is an inference's."""
    return {**_infer({**model, "outputs": model["explanation"]}, operation),
            "summary": f"What {model['name']}'s answers rest on, of at most {MOST_ROWS} rows",
            "description": "`attributions` say how much each value of the input speaks for the most probable class, or against it "
                           "(integrated gradients of its log odds). They sum to `difference`, the log odds less a baseline's, "
                           "but for `gap`."}


def _infer(model: Mapping[str, Any], operation: str) -> dict[str, Any]:
    """The inputs' names, datatypes and shapes are those of the model; BYTES stands for an image file or a text."""
    names = [tensor["name"] for tensor in model["inputs"]]
    tensor = {
        "type": "object", "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"enum": names}, "datatype": {"enum": sorted({each["datatype"] for each in model["inputs"]} | {"BYTES"})},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "data": {"type": "array", "items": {"type": ["number", "string", "boolean", "array"]}},
            "parameters": {"type": "object"},
        },
    }
    request = {
        "type": "object", "required": ["inputs"],
        "properties": {
            "id": {"type": "string"}, "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": len(names), "maxItems": len(names)},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"enum": [each["name"] for each in model["outputs"]]}, "parameters": {"type": "object"}}}},
        },
        "examples": [model["example"]],
    }
    answer = {
        "type": "object", "required": ["model_name", "model_version", "outputs"],
        "properties": {"model_name": {"const": model["name"]}, "model_version": {"type": "string"}, "id": {"type": "string"},
                       "parameters": {"type": "object"}, "outputs": {"type": "array", "items": {
                           "type": "object", "required": ["name", "shape", "datatype"],
                           "properties": {"name": {"type": "string"}, "datatype": {"enum": list(DTYPES)},
                                          "shape": {"type": "array", "items": {"type": "integer"}}, "data": {"type": "array"}}}}},
    }
    refused = {"400": "not what the model takes", "401": "no key, or an unknown one", "404": "no such model",
               "413": "too large", "415": "a body that is compressed", "429": "too many requests with this key",
               "503": "overloaded", "504": "not answered in time"}
    return {
        "summary": f"Answers of {model['name']} ({model['properties']['task']})", "operationId": operation,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request, "example": model["example"]}}},
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}},
                      **{status: _error(why) for status, why in refused.items()}},
    }
