"""Explanations beside predictions: their tensors, their limits, and their way through the ingress."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from jobs.common.artifact.tensor_spec import TensorSpec
from serving.core.errors import BadRequestError, DeadlineError, OverloadedError
from serving.model import explanations as explaining
from serving.model.explanations import Explanations, put_together, specs
from tests.unit.test_http import ABOUT, BODY, Replicas, ask, endpoint

EXPLAIN = "/v2/models/m/explain"


def row(*pieces: str, predicted: int = 0) -> dict[str, Any]:
    return {"predicted": np.array([predicted]), "attributions": np.ones((1, len(pieces)), np.float32),
            "pieces": np.array([pieces], object).reshape(1, -1)}


def test_an_explanation_has_the_inputs_shape_and_of_texts_a_value_for_each_piece() -> None:
    image = {spec.name: spec for spec in specs((TensorSpec(name="image", datatype="UINT8", shape=(-1, 28, 28, 1)),))}
    assert image["attributions"] == TensorSpec(name="attributions", datatype="FP32", shape=(-1, 28, 28, 1))
    assert "pieces" not in image
    text = {spec.name: spec for spec in specs((TensorSpec(name="text", datatype="BYTES", shape=(-1,)),))}
    assert text["attributions"].shape == text["pieces"].shape == (-1, -1)


def test_rows_of_different_lengths_are_filled_up() -> None:
    made = put_together([row("a", "bc", predicted=1), row(), row("d")], ["no", "yes"])
    assert made["pieces"].tolist() == [["a", "bc"], ["", ""], ["d", ""]]
    assert made["attributions"].tolist() == [[1, 1], [0, 0], [1, 0]]
    assert made["label"].tolist() == ["yes", "no", "no"]


def test_only_so_many_are_computed_at_a_time_and_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "MOST_WAITING", 3)
    running: list[int] = []
    at_once: list[int] = []

    async def slow(method: str, inputs: Any) -> Any:
        running.append(1)
        at_once.append(len(running))
        await asyncio.sleep(0.02)
        running.pop()
        return {}

    async def scene() -> None:
        explanations = Explanations(slow, 2)
        found = await asyncio.gather(*(explanations.explain({}, 5.0) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in found] == [dict, dict, dict, OverloadedError, OverloadedError]
        assert await explanations.explain({}, 5.0) == {}, "there is room again"

    asyncio.run(scene())
    assert max(at_once) == 2


def test_at_the_deadline_the_computation_is_called_off_and_the_next_one_begins() -> None:
    called_off: list[str] = []

    async def endless(method: str, inputs: Any) -> Any:
        try:
            await asyncio.sleep(0 if inputs else 60)
        except asyncio.CancelledError:
            called_off.append(method)
            raise
        return BadRequestError("no image")

    async def scene() -> None:
        explanations = Explanations(endless, 1)
        with pytest.raises(DeadlineError, match=r"within 0\.02 s"):
            await explanations.explain({}, 0.02)
        with pytest.raises(BadRequestError, match="no image"):
            await explanations.explain({"image": np.zeros(1)}, 5.0)

    asyncio.run(scene())
    assert called_off == ["explain"]


class Explaining(Replicas):
    """Explains when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.about = asyncio.Event(), ABOUT

    async def ask(self, method: str, *arguments: Any) -> Any:
        if method == "about":
            return self.about
        if method != "explain":
            return await super().ask(method, *arguments)
        await self.let.wait()
        x = arguments[0]["x"]
        return {"predicted": np.zeros(len(x), np.int64), "label": np.array(["sum"] * len(x), object), "attributions": x,
                "difference": x.sum(1), "gap": np.zeros(len(x), np.float32)}


def test_a_prediction_does_not_wait_for_an_explanation() -> None:
    async def scene() -> None:
        replicas = Explaining()
        app = endpoint(replicas)
        explanation = asyncio.create_task(ask(app, EXPLAIN))
        await asyncio.sleep(0.01)
        assert [(await ask(app))[0] for _ in range(5)] == [200] * 5
        assert not explanation.done()
        replicas.let.set()
        status, headers, answer = await explanation
        assert (status, headers["x-artifact-digest"], answer["model_version"]) == (200, "digest1", "1")
        assert {each["name"]: each["data"] for each in answer["outputs"]} == {
            "predicted": [0], "label": ["sum"], "attributions": [1.5, 2.0], "difference": [3.5], "gap": [0.0]}
        assert app.table.live()["queued"] == {"m": 0}

    asyncio.run(scene())


def test_what_cannot_be_explained_is_refused() -> None:
    async def scene() -> None:
        replicas = Explaining()
        replicas.let.set()
        app = endpoint(replicas)
        nine = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [9, 2], "data": [1] * 18}]}
        assert (await ask(app, EXPLAIN, json.dumps(nine).encode()))[::2] == (400, {
            "error": "9 rows in one request: at most 8 (explanations). Send them in several requests"})
        asked = json.loads(BODY) | {"outputs": [{"name": "label"}]}
        assert [each["name"]
                for each in (await ask(app, EXPLAIN, json.dumps(asked).encode()))[2]["outputs"]] == ["label"]
        assert (await ask(app, EXPLAIN, method="GET"))[0] == 405
        assert (await ask(app, "/v2/models/m/versions/1/explain"))[0] == 200
        assert (await ask(app, "/v2/models/m/versions/2/explain"))[0] == 404
        replicas.about = {**ABOUT, "explanation": ()}
        assert (await ask(endpoint(replicas),
                          EXPLAIN))[::2] == (404, {"error": "model 'm' does not explain its answers"})

    asyncio.run(scene())


def test_explanations_are_not_among_the_times_of_predictions() -> None:
    async def scene() -> None:
        replicas = Explaining()
        replicas.let.set()
        app = endpoint(replicas)
        for path in (EXPLAIN, EXPLAIN, "/v2/models/m/infer"):
            assert (await ask(app, path))[0] == 200
        live = (await ask(app, "/live", method="GET"))[2]
        assert live["requests_per_s"] == 1.0

    asyncio.run(scene())
