"""The way of a request through the ingress, without Ray: an ASGI application that is called as a server calls it."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from cluster.core.storage import Store
from jobs.common.artifact.artifact import Probe
from jobs.common.artifact.tensor_spec import TensorSpec
from serving.__main__ import main
from serving.commands.deploy_config import find
from serving.core.api_keys import new_key
from serving.core.settings import EndpointSettings, ModelSettings, routes
from serving.endpoint.http import Endpoint
from serving.hardening.serve_patches import ignore_trailers
from serving.model.explanations import specs
from serving.traffic import rate_limit
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Table
from tests import kept
from tests.clock import Clock

ABOUT = {"inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
         "outputs": (TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
         "labels": (), "task": "sum", "job": "test", "picture": {"picture_fit": "crop"}, "chats": False,
         "explanation": specs((TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)),
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
    made, measures = EndpointSettings(**{"auth": False} | settings), EndpointMetrics()
    return Endpoint(made, table_of(replicas, made, measures, weights), measures)


def table_of(replicas: Replicas, settings: EndpointSettings, measures: EndpointMetrics,
             weights: dict[str, float] | None = None) -> Table:
    table = Table(settings, lambda model: (replicas.ask, lambda: True), measures.batch)
    shares = weights or {"1": 1.0}
    table.change(routes({"m": shares}, models_of(shares))["models"])
    return table


def models_of(versions: Iterable[str]) -> dict[str, ModelSettings]:
    return {f"m-{version}": ModelSettings(name="m", version=version, uri="", digest=f"digest{version}", run="first",
                                          report="/runs/first/report.html") for version in versions}


async def ask(app: Endpoint, path: str = "/v2/models/m/infer", body: bytes = BODY, method: str = "POST",
              headers: dict[str, str] | Sequence[tuple[str, str]] = (), receive: Callable[[], Any] | None = None,
              ) -> tuple[int, dict[str, str], Any]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    raw = [(name.lower().encode(), value.encode())
           for name, value in (headers.items() if isinstance(headers, dict) else headers)]
    await app({"type": "http", "path": path, "method": method, "headers": raw}, receive or whole, send)
    return (sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]},
            json.loads(sent[1]["body"] or "null"))


def test_a_request_goes_to_the_model_and_its_answer_says_which() -> None:
    status, headers, answer = asyncio.run(ask(endpoint(Replicas())))
    assert status == 200
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1], "data": [3.5]}]
    assert (answer["model_version"], answer["parameters"]["artifact_digest"]) == ("1", "digest1")
    assert headers["x-artifact-digest"] == "digest1"


def test_the_smallest_of_all_deadlines_holds() -> None:
    async def took(**asked: Any) -> tuple[int, float]:
        replicas = Replicas()
        replicas.wait_s = 60.0
        app = endpoint(replicas, timeout_s=asked.pop("server", 10.0))
        began = time.perf_counter()
        status, _, _ = await ask(app, **asked)
        return status, time.perf_counter() - began

    micro = json.loads(BODY) | {"parameters": {"timeout": 50_000}}
    for asked in ({"server": 0.05}, {"headers": {"X-Request-Timeout-Seconds": "0.05"}},
                  {"body": json.dumps(micro).encode()},
                  {"server": 9.0, "headers": {"X-Request-Timeout-Seconds": "8"}, "body": json.dumps(micro).encode()}):
        status, seconds = asyncio.run(took(**asked))
        assert status == 504, asked
        assert 0.03 < seconds < 30, asked


def test_a_model_without_a_replica_does_not_hold_a_request_beyond_its_deadline() -> None:
    replicas = Replicas()
    replicas.start_s = 60.0
    began = time.perf_counter()
    assert asyncio.run(ask(endpoint(replicas), headers={"X-Request-Timeout-Seconds": "0.05"}))[0] == 504
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize("path", ["/v2/models/m", "/v2/models", "/openapi.json"])
def test_what_only_describes_a_model_has_a_deadline_too(path: str) -> None:
    replicas = Replicas()
    replicas.start_s = 60.0
    began = time.perf_counter()
    assert asyncio.run(ask(endpoint(replicas), path, method="GET",
                           headers={"X-Request-Timeout-Seconds": "0.05"}))[::2] == (
        504, {"error": "not answered within 0.0475 s"})
    assert time.perf_counter() - began < 30


def test_a_body_that_does_not_end_is_given_up() -> None:
    async def drop_by_drop() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError("it was waited for")

    app = endpoint(Replicas(), timeout_s=0.2, max_request_bytes=10**6)
    status, _, said = asyncio.run(ask(app, receive=never))
    assert (status, said) == (504, {"error": "the body did not come within 0.2 s"})
    status, _, said = asyncio.run(ask(endpoint(Replicas()), headers={"X-Request-Timeout-Seconds": "0.1"},
                                      receive=never))
    assert (status, said) == (504, {"error": "the body did not come within 0.095 s"})
    assert asyncio.run(ask(app, receive=drop_by_drop))[0] == 504
    assert asyncio.run(ask(app, receive=gone))[0] == 400
    assert asyncio.run(ask(endpoint(Replicas(), max_request_bytes=5), receive=drop_by_drop))[0] == 413


def test_a_page_learns_how_files_become_a_models_images() -> None:
    found = asyncio.run(ask(endpoint(Replicas()), "/v2/models/m", method="GET"))[2]["properties"]
    assert found == {"task": "sum", "artifact_digest": "digest1", "picture_fit": "crop"}


def test_a_page_learns_which_run_made_a_model_and_without_keys_where_its_report_is() -> None:
    for auth, report in ((False, "/runs/first/report.html"), (True, "")):
        table = table_of(Replicas(), EndpointSettings(auth=auth), EndpointMetrics())
        (found,) = asyncio.run(table.all_described())
        assert (found["run"], found["report"]) == ("first", report)


def test_the_report_of_a_run_is_found_beside_the_artifact_that_is_served(tmp_path: Path) -> None:
    storage = kept.storage(tmp_path / "storage")
    for there in (False, True):
        found = find(f"m={storage}/mlp/artifact", None, Store.open(str(storage)))
        assert (found.run, found.report) == ("mlp", f"{storage}/mlp/report.html" if there else "")
        (storage / "mlp/report.html").touch()


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
    app = Endpoint(made, table, EndpointMetrics())
    listed = asyncio.run(ask(app, "/v2/models", method="GET"))[2]["models"]
    assert ([each["name"] for each in listed], replicas.most) == ([f"m{n}" for n in range(1000)], 16)
    status, _, answer = asyncio.run(ask(app, "/v2/models/x/infer"))
    assert status == 404 and answer["error"].endswith("m18, m19 and 980 more")


def test_our_own_mistake_is_said_without_its_details() -> None:
    replicas = Replicas()
    replicas.broken = True
    assert asyncio.run(ask(endpoint(replicas)))[::2] == (500, {"error": "internal error"})


def test_a_key_that_asks_too_often_has_to_wait_and_the_others_do_not(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    (one, line), (other, more) = new_key("one"), new_key("other")
    (tmp_path / "keys").write_text(f"{line}\n{more}")

    async def scene() -> None:
        app = endpoint(Replicas(), auth=True, keys_file=str(tmp_path / "keys"), requests_per_s=5.0)
        seen = [await ask(app, headers={"Authorization": f"Bearer {one}"}) for _ in range(10)]
        assert Counter(status for status, _, _ in seen) == {200: 5, 429: 5}
        assert int(seen[-1][1]["retry-after"]) >= 1
        assert (await ask(app, headers={"Authorization": f"bearer {other}"}))[0] == 200
        clock.now += 0.25
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
    models = models_of("12")
    app.table.change(routes({"m": {"1": 0.5, "2": 0.5}}, models)["models"])
    assert app.table.route("m", "1") is before
    assert before.weight == 0.5
    app.table.change(routes({"m": {"2": 1.0}}, models)["models"])
    assert asyncio.run(ask(app, "/v2/models/m/versions/1/infer"))[0] == 404


# ── what a request may say, and who may send it ──
def keyed(folder: Path) -> tuple[Endpoint, str]:
    key, line = new_key("one")
    (folder / "keys").write_text(line)
    return endpoint(Replicas(), auth=True, keys_file=str(folder / "keys")), key


def test_of_two_keys_neither_is_taken(tmp_path: Path) -> None:
    app, key = keyed(tmp_path)
    for pair in ([key, "wrong"], ["wrong", key], [key, key]):
        assert asyncio.run(ask(app, headers=[("Authorization", f"Bearer {each}") for each in pair]))[0] == 401
    assert asyncio.run(ask(app, headers=[("Authorization", f"Bearer {key}")]))[0] == 200


@pytest.mark.parametrize(("headers", "status"), [
    ({"Inference-Header-Content-Length": "9" * 5000}, 400), ({"Inference-Header-Content-Length": "٣"}, 400),
    ({"Inference-Header-Content-Length": "-1"}, 400), ({"Content-Length": "9" * 5000}, 400),
    ({"Content-Length": "9" * 18}, 413),
    ({"X-Request-Timeout-Seconds": "9" * 5000}, 200), ({"X-Request-Timeout-Seconds": "nan"}, 200),
    ({"X-Request-Id": "9" * 5000}, 200),
    ({"Content-Encoding": "gzip"}, 415), ({"Content-Encoding": "IDENTITY"}, 200),
    ({"Content-Encoding": "identity, gzip"}, 415),
])
def test_a_header_that_is_not_what_it_should_be_is_the_callers_mistake(headers: dict[str, str], status: int) -> None:
    found, said, body = asyncio.run(ask(endpoint(Replicas()), headers=headers))
    assert found == status, body
    assert said.get("accept-encoding") == ("identity" if status == 415 else None)


@pytest.mark.parametrize("path", ["/v2/models/m/infer/", "/v2/models/m/", "/v2/models/", "/v2/nothing",
                                  "/v1/completions/", "/v1", "/v1/", "/v1/embeddings/", "/v1/chat/completions/",
                                  "/v1/models/", "/v1/models/m/", "/docs/", "/v3", "//", "/v2/models/m/infer/x",
                                  "/v2/health", "/v2/health/live/", "/docs\n", "/v2/models/m/infer\n"])
def test_there_is_nothing_at_an_unknown_path_whatever_the_method(path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        status, headers, said = asyncio.run(ask(endpoint(Replicas()), path, method=method))
        assert (status, headers.get("allow")) == (404, None), method
        message = "there is nothing at this path: see /docs"
        if f"{path}/".startswith("/v1/"):
            assert (said["error"]["message"], said["error"]["type"]) == (message, "invalid_request_error")
        else:
            assert said == {"error": message}


@pytest.mark.parametrize(("path", "allowed"), [
    ("/v2/models/m/infer", "POST"), ("/v2/models/m/explain", "POST"), ("/v2/models/m", "GET, HEAD"),
    ("/v1/completions", "POST"), ("/v1/chat/completions", "POST"),
    ("/v2/", "GET, HEAD"), ("/v2/health/live", "GET, HEAD")])
def test_a_path_says_which_methods_it_takes(path: str, allowed: str) -> None:
    status, headers, _ = asyncio.run(ask(endpoint(Replicas()), path, method="DELETE"))
    assert (status, headers["allow"]) == (405, allowed)


# ── browsers ──
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1:8000",
                                  "localhost.evil.example", "[::2]:8000", "", "a:b:c", "[",
                                  "user@localhost@evil.example"])
def test_without_keys_an_endpoint_is_not_asked_by_another_name(host: str) -> None:
    for path, method in (("/v2/models/m/infer", "POST"), ("/v2/models", "GET"), ("/", "GET")):
        status, _, said = asyncio.run(ask(endpoint(Replicas()), path, method=method, headers={"Host": host}))
        assert status == 403, path
        assert "localhost or 127.0.0.1" in said["error"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000",
                                  "box:8000", None])
def test_without_keys_an_endpoint_is_asked_by_loopbacks_names_and_its_own(host: str | None) -> None:
    headers = {} if host is None else {"Host": host, "Origin": f"http://{host}"}
    assert asyncio.run(ask(endpoint(Replicas(), host="box"), headers=headers))[0] == 200


@pytest.mark.parametrize("origin",
                         ["http://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:8000", "file://",
                          ""])
def test_without_keys_a_page_elsewhere_cannot_post_blindly(origin: str) -> None:
    headers = {"Host": "localhost:8000", "Origin": origin, "Content-Type": "text/plain"}
    status, _, said = asyncio.run(ask(endpoint(Replicas()), headers=headers))
    assert (status, "--cors-origin" in said["error"]) == (403, True)


def test_a_page_of_a_named_origin_asks_and_reads(tmp_path: Path) -> None:
    key, line = new_key("one")
    (tmp_path / "keys").write_text(line)
    page, other = "https://shop.example", "https://evil.example"
    guarded = endpoint(Replicas(), cors_origins=[page], auth=True, keys_file=str(tmp_path / "keys"))
    for app, keys in ((endpoint(Replicas(), cors_origins=[page]), {}), (guarded, {"Authorization": f"Bearer {key}"})):
        asked = {"Host": "localhost", "Origin": page, "Access-Control-Request-Method": "POST"}
        status, told, _ = asyncio.run(ask(app, method="OPTIONS", headers=asked))
        assert (status, told["access-control-allow-origin"]) == (200, page)
        assert told["access-control-allow-methods"] == "GET, POST"
        assert "authorization" in told["access-control-allow-headers"]
        status, told, _ = asyncio.run(ask(app, headers={"Host": "localhost", "Origin": page, **keys}))
        assert (status, told["access-control-allow-origin"], told["vary"]) == (200, page, "origin")
        assert "x-model-version" in told["access-control-expose-headers"]
        for method in ("OPTIONS", "POST"):
            status, told, _ = asyncio.run(ask(app, method=method, headers={"Host": "localhost", "Origin": other}))
            assert status == (401 if keys else 403)
            assert "access-control-allow-origin" not in told
    status, told, _ = asyncio.run(ask(guarded, headers={"Origin": page}))
    assert (status, told["access-control-allow-origin"]) == (401, page), "a page can read why it is refused"
    behind_a_proxy = {"Host": "shop.example", "Origin": page}  # which keeps the name by which it is asked
    assert asyncio.run(ask(endpoint(Replicas(), cors_origins=[page]), headers=behind_a_proxy))[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_key_that_a_browser_remembers_is_not_for_other_pages(site: str, tmp_path: Path) -> None:
    app, key = keyed(tmp_path)
    basic = {"Authorization": "Basic " + base64.b64encode(f"x:{key}".encode()).decode()}
    assert asyncio.run(ask(app, headers=basic | {"Sec-Fetch-Site": site}))[0] == 401
    assert asyncio.run(ask(app, headers=basic | {"Sec-Fetch-Site": "same-origin"}))[0] == 200


def test_an_endpoint_is_given_out_under_a_path() -> None:
    app = endpoint(Replicas(), root_path="/models")
    # proxies that leave it there, and that take it away
    for path in ("/models/v2/models/m/infer", "/v2/models/m/infer"):
        assert asyncio.run(ask(app, path))[0] == 200
    assert asyncio.run(ask(app, "/modelsv2/models/m/infer"))[0] == 404
    assert asyncio.run(ask(app, "/models", method="GET"))[:2][1]["location"] == "/models/"
    assert asyncio.run(ask(app, "/models/openapi.json", method="GET"))[2]["servers"] == [{"url": "/models"}]


@pytest.mark.parametrize("flags",
                         [["--cors-origin", "*"], ["--cors-origin", "https://a.example/"], ["--cors-origin", "null"],
                          ["--cors-origin", "a.example"], ["--root-path", "models"], ["--root-path", "/models/"],
                          ["--root-path", "/"]])
def test_what_no_browser_or_proxy_would_send_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--model", "m=/none", "--no-auth", *flags]) == 2
    assert f"{flags[0]} {flags[1]}: it must " in capsys.readouterr().err


# ── over HTTP, as Serve listens ──
@contextmanager
def listening(app: Endpoint) -> Generator[int]:
    """The port. Nothing is asked before an ingress has called `ignore_trailers`."""
    with pytest.MonkeyPatch.context() as patch:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        patch.setattr(HttpToolsProtocol, "on_headers_complete", HttpToolsProtocol.on_headers_complete)
        ignore_trailers()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", loop="asyncio"))
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join(20)


def said(port: int, *pieces: str) -> bytes:
    """What is answered to pieces that come apart."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        answer = b""
        with suppress(ConnectionError):  # it may be answered before all has come
            for piece in pieces:
                connection.sendall(piece.encode())
                time.sleep(0.05 if len(pieces) > 1 else 0)
        while found := connection.recv(4000):
            answer += found
    return answer


def test_what_follows_a_body_is_no_header(tmp_path: Path) -> None:
    app, key = keyed(tmp_path)
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    chunk = f"{len(BODY):x}\r\n{BODY.decode()}\r\n0\r\n"
    right, wrong = f"Authorization: Bearer {key}\r\n", "Authorization: Bearer wrong\r\n"
    with listening(app) as port:
        for pieces in ((f"{head}\r\n{chunk}{right}\r\n",), (f"{head}\r\n", chunk, f"{right}\r\n")):
            assert said(port, *pieces).startswith(b"HTTP/1.1 401 "), "a key that comes afterwards"
        assert said(port, f"{head}{wrong}\r\n{chunk}{right}\r\n").startswith(b"HTTP/1.1 401 ")
        assert said(port,
                    f"{head}{right}\r\n{chunk}{wrong}\r\n").startswith(b"HTTP/1.1 200 "), "it does not undo one either"
        assert b"X-Request-Id: b" not in said(port, f"{head}{right}X-Request-Id: a\r\n\r\n{chunk}X-Request-Id: "
                                                    "b\r\n\r\n")


def test_a_websocket_is_answered_as_the_request_that_it_begins_with(tmp_path: Path) -> None:
    app, key = keyed(tmp_path)
    upgrade = ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
               "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    with listening(app) as port:
        right = f"Authorization: Bearer {key}\r\n"
        for path, keys, status in (("/", "", 401), ("/v2/models/m/infer", "", 401), ("/v2", right, 200),
                                   ("/v2/models/m/infer", right, 405)):
            answer = said(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{keys}{upgrade}")
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
            assert status == 200 or b'{"error":' in answer
