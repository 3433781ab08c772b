"""What is asked and answered over HTTP by the Open Inference Protocol, as /openapi.json has it.

Requests are read by open_inference_json.py, which is faster than a general validator and says what to send instead.
"""

from collections.abc import Sequence
from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # Pydantic takes Python's own from 3.12 on

from cluster.core.documents import JsonObject
from jobs.common.artifact.tensor_spec import DTYPES


class Error(TypedDict):
    error: str


class Server(TypedDict):
    name: str
    version: str
    extensions: list[str]


class ModelReady(TypedDict):
    name: str
    ready: bool


class TensorMetadata(TypedDict):
    name: str
    datatype: Annotated[str, Field(json_schema_extra={"enum": list(DTYPES)})]
    shape: list[int]


class ModelMetadata(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: JsonObject


class ModelDescription(ModelMetadata):
    """What a page shows of a model, beside the protocol's metadata."""

    version: str
    labels: list[str]
    weights: dict[str, float]
    example: JsonObject
    explanation: list[TensorMetadata]
    generates: bool
    chats: bool
    embeds: bool
    run: str
    report: str


class OutputTensor(TensorMetadata):
    """It has `data`, or its bytes follow the JSON."""

    data: NotRequired[list[object]]
    parameters: NotRequired[JsonObject]


class InferResponse(TypedDict):
    model_name: str
    model_version: str
    id: NotRequired[str]
    parameters: NotRequired[JsonObject]
    outputs: list[OutputTensor]


def infer_request(models: Sequence[JsonObject], outputs: str = "outputs") -> tuple[JsonObject, JsonObject]:
    """The schema of a request to one model (`Table.described`), and an example.
    BYTES stands for an image file or a text.

    outputs: the field of the description that has the tensors which may be asked for.
    """
    (model,) = models
    names = [tensor["name"] for tensor in model["inputs"]]
    tensor = {
        "type": "object", "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"enum": names},
            "datatype": {"enum": sorted({each["datatype"] for each in model["inputs"]} | {"BYTES"})},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "data": {"type": "array", "items": {"type": ["number", "string", "boolean", "array"]}},
            "parameters": {"type": "object"},
        },
    }
    return {
        "type": "object", "required": ["inputs"],
        "properties": {
            "id": {"type": "string"}, "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": len(names), "maxItems": len(names)},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"enum": [each["name"] for each in model[outputs]]}, "parameters": {"type": "object"}}}},
        },
        "examples": [model["example"]],
    }, model["example"]
