"""The way of a request through the ingress, without Ray: an ASGI application that is called as a server calls it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.common.artifact import Probe
from jobs.common.open_inference import TensorSpec
from serving.explaining import specs
from serving.ingress import Endpoint
from serving.keys import new_key
from serving.measures import Measures
from serving.routing import Table
from serving.settings import EndpointSettings, ModelSettings, routes

ABOUT = {"inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
         "outputs": (TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
         "labels": (), "task": "sum", "job": "test", "explanation": specs((TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)),
         "example": Probe(inputs={"x": np.ones((1, 2), np.float32)}, outputs={"y": np.array([2], np.float32)})}
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]}]}).encode()


class Replicas:
    """Sums rows. wait_s: how long it takes; broken: whether it fails."""

    def __init__(self) -> None:
        self.wait_s, self.start_s, self.broken = 0.0, 0.0, False

    async def ask(self, method: str, *arguments: Any) -> Any:
        if method == "about":
            await asyncio.sleep(self.start_s)
            return ABOUT
        await asyncio.sleep(self.wait_s)
        if self.broken:
            raise RuntimeError("secret of the house")
        return [{"y": request["x"].sum(axis=1)} for request in arguments[0]]


def endpoint(replicas: Replicas, weights: dict[str, float] | None = None, **settings: Any) -> Endpoint:
    made, measures = EndpointSettings(**{"auth": False} | settings), Measures()
    table = Table(made, lambda model: (replicas.ask, lambda: True), measures.batch)
    shares = weights or {"1": 1.0}
    models = {f"m-{version}": ModelSettings(name="m", version=version, uri="", digest=f"digest{version}") for version in shares}
    table.change(routes({"m": shares}, models)["models"])
    return Endpoint(made, table, measures)


async def ask(app: Endpoint, path: str = "/v2/models/m/infer", body: bytes = BODY, method: str = "POST",
              headers: dict[str, str] | None = None, receive: Callable[[], Any] | None = None) -> tuple[int, dict[str, str], Any]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await app({"type": "http", "path": path, "method": method, "headers": raw}, receive or whole, send)
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, json.loads(sent[1]["body"])


def test_a_request_goes_to_the_model_and_its_answer_says_which() -> None:
    status, headers, answer = asyncio.run(ask(endpoint(Replicas())))
    assert status == 200
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1], "data": [3.5]}]
    assert (answer["model_version"], answer["parameters"]["artifact_digest"]) == ("1", "digest1")
    assert headers["x-artifact-digest"] == "digest1"


def test_the_smallest_of_all_deadlines_holds() -> None:
    async def took(**asked: Any) -> tuple[int, float]:
        replicas = Replicas()
        replicas.wait_s = 5.0
        app = endpoint(replicas, timeout_s=asked.pop("server", 10.0))
        began = time.perf_counter()
        status, _, _ = await ask(app, **asked)
        return status, time.perf_counter() - began

    micro = json.loads(BODY) | {"parameters": {"timeout": 50_000}}
    for asked in ({"server": 0.05}, {"headers": {"X-Request-Timeout-Seconds": "0.05"}}, {"body": json.dumps(micro).encode()},
                  {"server": 9.0, "headers": {"X-Request-Timeout-Seconds": "8"}, "body": json.dumps(micro).encode()}):
        status, seconds = asyncio.run(took(**asked))
        assert status == 504, asked
        assert 0.03 < seconds < 2, asked


def test_a_model_without_a_replica_does_not_hold_a_request_beyond_its_deadline() -> None:
    replicas = Replicas()
    replicas.start_s = 5.0
    began = time.perf_counter()
    assert asyncio.run(ask(endpoint(replicas), headers={"X-Request-Timeout-Seconds": "0.05"}))[0] == 504
    assert time.perf_counter() - began < 2


def test_a_body_that_does_not_end_is_given_up() -> None:
    async def drop_by_drop() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    app = endpoint(Replicas(), timeout_s=0.2, max_request_bytes=10**6)
    assert asyncio.run(ask(app, receive=drop_by_drop))[0] == 504
    assert asyncio.run(ask(app, receive=gone))[0] == 400
    assert asyncio.run(ask(endpoint(Replicas(), max_request_bytes=5), receive=drop_by_drop))[0] == 413


def test_a_model_that_cannot_be_described_is_left_out_of_the_list() -> None:
    class Gone(Replicas):
        async def ask(self, method: str, *arguments: Any) -> Any:
            raise FileNotFoundError("manifest.json")

    assert asyncio.run(ask(endpoint(Gone()), "/v2/models", method="GET"))[::2] == (200, {"models": []})
    assert list(asyncio.run(ask(endpoint(Gone()), "/openapi.json", method="GET"))[2]["paths"])[-1] == "/v2/models"
    assert len(asyncio.run(ask(endpoint(Replicas()), "/v2/models", method="GET"))[2]["models"]) == 1


def test_of_a_thousand_models_many_are_described_at_a_time_and_an_error_names_some() -> None:
    class Counting(Replicas):
        now = most = 0

        async def ask(self, method: str, *arguments: Any) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            return ABOUT

    replicas, made = Counting(), EndpointSettings(auth=False)
    table = Table(made, lambda model: (replicas.ask, lambda: True), lambda settings, requests, rows: None)
    models = {f"m{n}-1": ModelSettings(name=f"m{n}", version="1", uri="", digest="d") for n in range(1000)}
    table.change(routes({f"m{n}": {"1": 1.0} for n in range(1000)}, models)["models"])
    app = Endpoint(made, table, Measures())
    listed = asyncio.run(ask(app, "/v2/models", method="GET"))[2]["models"]
    assert ([each["name"] for each in listed], replicas.most) == ([f"m{n}" for n in range(1000)], 16)
    status, _, answer = asyncio.run(ask(app, "/v2/models/x/infer"))
    assert status == 404 and answer["error"].endswith("m18, m19 and 980 more")


def test_our_own_mistake_is_said_without_its_details() -> None:
    replicas = Replicas()
    replicas.broken = True
    assert asyncio.run(ask(endpoint(replicas)))[::2] == (500, {"error": "internal error"})


def test_a_key_that_asks_too_often_has_to_wait_and_the_others_do_not(tmp_path: Path) -> None:
    (one, line), (other, more) = new_key("one"), new_key("other")
    (tmp_path / "keys").write_text(f"{line}\n{more}")

    async def scene() -> None:
        app = endpoint(Replicas(), auth=True, keys_file=str(tmp_path / "keys"), requests_per_s=5.0)
        seen = [await ask(app, headers={"Authorization": f"Bearer {one}"}) for _ in range(10)]
        assert Counter(status for status, _, _ in seen) == {200: 5, 429: 5}
        assert int(seen[-1][1]["retry-after"]) >= 1
        assert (await ask(app, headers={"Authorization": f"bearer {other}"}))[0] == 200
        await asyncio.sleep(0.25)
        assert (await ask(app, headers={"Authorization": f"Bearer {one}"}))[0] == 200
        assert (await ask(app, "/v2/health/live", method="GET"))[0] == 200

    asyncio.run(scene())


@pytest.mark.parametrize("weights", [{"1": 0.9, "2": 0.1}, {"1": 0.0, "2": 1.0}])
def test_requests_are_shared_by_weight_and_a_version_can_be_asked_for(weights: dict[str, float]) -> None:
    async def scene() -> None:
        app = endpoint(Replicas(), weights)
        seen = Counter([(await ask(app))[2]["model_version"] for _ in range(1000)])
        for version, share in weights.items():
            assert abs(seen[version] / 1000 - share) < 0.04
        assert (await ask(app, "/v2/models/m/versions/1/infer"))[2]["model_version"] == "1"

    asyncio.run(scene())


def test_a_change_leaves_what_is_as_it_was_alone() -> None:
    app = endpoint(Replicas(), {"1": 1.0})
    before = app.table.route("m", "1")
    models = {f"m-{v}": ModelSettings(name="m", version=v, uri="", digest=f"digest{v}") for v in "12"}
    app.table.change(routes({"m": {"1": 0.5, "2": 0.5}}, models)["models"])
    assert app.table.route("m", "1") is before
    assert before.weight == 0.5
    app.table.change(routes({"m": {"2": 1.0}}, models)["models"])
    assert asyncio.run(ask(app, "/v2/models/m/versions/1/infer"))[0] == 404
