"""What an answer rests on, asked of an endpoint."""

import json
import threading
from typing import Any

import numpy as np
import pytest

from tests.integration.serving.shared import MODELS, Endpoint, one_image


def body(endpoint: Endpoint, job: str, rows: int) -> dict[str, Any]:
    """Of the artifact's own probe rows."""
    (spec,) = endpoint.artifacts[job].manifest.description.inputs
    values = np.resize(endpoint.artifacts[job].probe().inputs[spec.name], (rows, *spec.shape[1:]))
    tensor = {"name": spec.name, "datatype": spec.datatype, "shape": list(values.shape),
              "data": values.ravel().tolist()}
    return {"inputs": [tensor]}


def explained(endpoint: Endpoint, job: str, asked: dict[str, Any]) -> dict[str, Any]:
    status, headers, data = endpoint.ask(f"/v2/models/{job}/explain", asked)
    assert status == 200, data
    assert headers["x-artifact-digest"] == endpoint.artifacts[job].digest
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in json.loads(data)["outputs"]}


@pytest.mark.parametrize("job", [name for name in MODELS if name != "lm"])
def test_an_explanation_adds_up(endpoint: Endpoint, job: str) -> None:
    asked = body(endpoint, job, 3)
    found = explained(endpoint, job, asked)
    labels = endpoint.artifacts[job].manifest.description.labels
    answered = json.loads(endpoint.ask(f"/v2/models/{job}/infer", asked)[2])["outputs"][0]
    assert found["predicted"].tolist() == np.array(answered["data"]).reshape(answered["shape"]).argmax(1).tolist()
    assert found["label"].tolist() == [labels[place] for place in found["predicted"]]
    sums = found["attributions"].reshape(3, -1).sum(1)
    np.testing.assert_allclose(np.abs(sums - found["difference"]), found["gap"], atol=1e-4)
    assert found["gap"].max() < 0.1
    assert np.abs(found["difference"]).min() > 0
    if job == "transformer":
        assert ["".join(pieces) for pieces in found["pieces"]] == asked["inputs"][0]["data"]
        assert found["pieces"].shape == found["attributions"].shape
    else:
        assert found["attributions"].shape == (3, 28, 28, 1)


def test_an_explanation_is_the_jobs_own(endpoint: Endpoint) -> None:
    """Of texts: in test_transformer.py, where the model is at hand."""
    from jobs.mlp.model import load

    asked = body(endpoint, "mlp", 3)
    found = explained(endpoint, "mlp", asked)
    images = np.array(asked["inputs"][0]["data"], np.uint8).reshape(3, 28, 28, 1)
    own = load(endpoint.artifacts["mlp"].uri).explain(images)
    for name, wanted in zip(("attributions", "gap", "difference"), own, strict=True):
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


def test_predictions_are_answered_while_an_explanation_is_under_way(endpoint: Endpoint) -> None:
    answers: list[int] = []
    asked = body(endpoint, "cnn", 8)
    under_way = threading.Thread(target=lambda: answers.append(endpoint.ask("/v2/models/cnn/explain", asked)[0]))
    under_way.start()
    meanwhile = 0
    while under_way.is_alive():
        assert endpoint.ask("/v2/models/cnn/infer", one_image(endpoint))[0] == 200
        meanwhile += under_way.is_alive()
    assert answers == [200]
    assert meanwhile >= 2


def test_an_explanation_keeps_the_limits_and_the_key(endpoint: Endpoint) -> None:
    explain = "/v2/models/mlp/explain"
    assert endpoint.refused(explain, body(endpoint, "mlp", 9)) == (
        400, "9 rows in one request: at most 8 (explanations). Send them in several requests")
    assert endpoint.refused(explain, one_image(endpoint), headers={})[0] == 401
    late = body(endpoint, "cnn", 8) | {"parameters": {"timeout": 100_000}}
    assert endpoint.refused("/v2/models/cnn/explain", late)[0] == 504
    wrong = one_image(endpoint, datatype="BYTES", shape=[1], data=["no image"])
    assert endpoint.refused(explain, wrong)[0] == 400
    assert explained(endpoint, "transformer",
                     {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [""]}]})[
        "pieces"].size == 0
