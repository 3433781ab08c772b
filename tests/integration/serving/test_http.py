"""An endpoint over HTTP, asked by clients that others wrote."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import schemathesis
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tritonclient.utils import InferenceServerException

from cluster.core.network import free_port
from serving.core.api_keys import new_key
from tests import runs
from tests.integration.serving.shared import MODELS, Endpoint, one_image, tensors
from tests.unit.test_tls import certificate

# MLflow's, of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")


@pytest.mark.parametrize("job", MODELS)
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_models_own_answers(endpoint: Endpoint, job: str, binary: bool) -> None:
    artifact, client = endpoint.artifacts[job], endpoint.client()
    metadata = client.get_model_metadata(job, headers=endpoint.headers)
    about = artifact.manifest.description
    assert metadata["inputs"] == [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)}
                                  for s in about.inputs]
    assert client.is_model_ready(job, "1", headers=endpoint.headers)
    asked = [triton.InferRequestedOutput(spec.name, binary_data=binary) for spec in about.outputs]
    got = client.infer(job, tensors(artifact, binary=binary), outputs=asked, request_id="mine",
                       headers=endpoint.headers)
    response = got.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (job, "1", "mine")
    assert response["parameters"]["artifact_digest"] == artifact.digest
    for name, wanted in artifact.probe().outputs.items():
        np.testing.assert_allclose(got.as_numpy(name), wanted, atol=1e-6)
    if about.labels:
        likeliest = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
        found = client.infer(job, tensors(artifact, binary=binary), outputs=likeliest, headers=endpoint.headers)
        wanted = artifact.probe().outputs["probabilities"].argmax(1)
        assert [(int(place), label) for _, place, label in (
            (value.decode() if binary else value).split(":") for value in found.as_numpy("probabilities")[:, 0])] == [
            (place, about.labels[place]) for place in wanted]


def test_a_client_that_asks_for_nothing_in_particular_gets_all(endpoint: Endpoint) -> None:
    got = endpoint.client().infer("mlp", tensors(endpoint.artifacts["mlp"], binary=True), headers=endpoint.headers)
    assert got.as_numpy("probabilities").shape == endpoint.artifacts["mlp"].probe().outputs["probabilities"].shape


def test_the_server_says_what_it_is(endpoint: Endpoint) -> None:
    client = endpoint.client()
    assert client.is_server_live()
    assert client.is_server_ready() is True or endpoint.ask("/v2/health/ready", headers={})[0] == 200
    assert client.get_server_metadata(headers=endpoint.headers)["extensions"] == ["binary_tensor_data",
                                                                                  "classification"]
    status, _, body = endpoint.ask("/v2/models")
    assert status == 200
    assert {model["name"] for model in json.loads(body)["models"]} == set(MODELS)


def test_an_image_file_of_any_size_and_a_text_are_taken(endpoint: Endpoint) -> None:
    picture = Image.new("RGB", (300, 200), "white")
    file = io.BytesIO()
    picture.save(file, "PNG")
    body = one_image(endpoint, datatype="BYTES", shape=[1], data=[base64.b64encode(file.getvalue()).decode()],
                     parameters={"content_type": "base64"})
    answers: dict[str, Any] = {}
    for job in ("mlp", "cnn"):
        status, _, data = endpoint.ask(f"/v2/models/{job}/infer", body)
        assert status == 200, data
        answers[job] = json.loads(data)["outputs"][0]["data"]
    white = one_image(endpoint, data=[255] * 784)
    assert json.loads(endpoint.ask("/v2/models/mlp/infer", white)[2])["outputs"][0]["data"] == answers["mlp"]
    text = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["Donnerstag", "jeudi"]}]}
    status, _, data = endpoint.ask("/v2/models/transformer/infer", text)
    assert json.loads(data)["outputs"][0]["shape"] == [2, 33]
    body["inputs"][0]["data"] = [base64.b64encode(b"GIF89a no image").decode()]
    assert endpoint.refused("/v2/models/mlp/infer", body) == (
        400, "an image file of the request cannot be decoded as an image (unknown or broken): give a whole PNG, JPEG "
        "or WEBP file, or leave it out")


def test_who_has_no_key_learns_nothing(endpoint: Endpoint) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"},
                    {"Authorization": endpoint.key}):
        for path, body in (("/v2", None), ("/v2/models/mlp", None), ("/v2/models/mlp/infer", one_image(endpoint)),
                           ("/", None),
                           ("/v2/models/none", None), ("/openapi.json", None), ("/nothing", None)):
            status, message = endpoint.refused(path, body, headers=headers)
            assert status == 401, path
            assert "mlp" not in message
    head, right = " HTTP/1.1\r\nHost: x\r\n", f"Authorization: Bearer {endpoint.key}\r\n"
    websocket = ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                 "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")
    for text in (f"GET /{head}Authorization: Bearer wrong\r\n{right}\r\n", f"GET /{head}{websocket}\r\n",
                 f"POST /v2/models/mlp/infer{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n{right}\r\n"):
        assert spoken(endpoint, text).startswith(b"HTTP/1.1 401 "), text
    basic = base64.b64encode(f"anyone:{endpoint.key}".encode()).decode()
    assert endpoint.ask("/", headers={"Authorization": f"Basic {basic}"})[0] == 200
    assert endpoint.ask("/", headers={"Authorization": f"Basic {basic}", "Sec-Fetch-Site": "cross-site"})[0] == 401


def spoken(endpoint: Endpoint, text: str) -> bytes:
    """The first of what is answered to that."""
    host, _, port = endpoint.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(text.encode())
        return connection.recv(10_000)


def test_keys_change_without_a_restart(endpoint: Endpoint) -> None:
    """And a file that is emptied, damaged or deleted lets nobody in."""
    before = endpoint.keys_file.read_text()
    key, line = new_key("another")
    new = {"Authorization": f"Bearer {key}"}
    try:
        for text, status in ((f"{before}\n{line}\n", 200), (f"{line[:-1]}\n{before}", 401), (line, 200), ("", 401),
                             (line, 200),
                             (None, 401)):
            endpoint.keys_file.unlink() if text is None else endpoint.keys_file.write_text(text)
            until(lambda status=status: endpoint.ask("/v2", headers=new)[0] == status)
        assert endpoint.ask("/v2")[0] == 401, "nor with the key that was there from the start"
    finally:
        endpoint.keys_file.write_text(before)
    until(lambda: endpoint.ask("/v2")[0] == 200)
    assert endpoint.ask("/v2", headers=new)[0] == 401


def until(condition: Callable[[], bool]) -> None:
    """The endpoint looks at its keys again within a second."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_answered_is_refused_in_the_protocols_form(endpoint: Endpoint) -> None:
    infer = "/v2/models/mlp/infer"
    assert endpoint.refused("/v2/models/mpl/infer", one_image(endpoint)) == (
        404, "there is no model 'mpl': there is mlp, cnn, transformer, lm")
    assert endpoint.refused("/v2/models/mlp/versions/9/infer", one_image(endpoint)) == (
        404, "model 'mlp' has no version '9': it has 1")
    assert endpoint.refused("/v2/models/../../etc/passwd")[0] == 404
    assert endpoint.refused(infer)[0] == 405
    assert endpoint.refused("/v2", {})[0] == 405
    assert endpoint.refused(infer, b"x" * ((1 << 20) + 1)) == (413, "the body has 1048577 bytes: at most 1048576")
    assert endpoint.refused(infer, b"{}", headers=endpoint.headers | {"Content-Encoding": "gzip"})[0] == 415
    assert endpoint.refused(infer, b"{}",
                            headers=endpoint.headers | {"Inference-Header-Content-Length": "9" * 5000})[0] == 400
    assert endpoint.refused(f"{infer}/", one_image(endpoint))[0] == 404
    for seconds in ("0.000001", "0.001"):
        assert endpoint.refused(infer, one_image(endpoint),
                                headers=endpoint.headers | {"X-Request-Timeout-Seconds": seconds})[0] == 504
    assert endpoint.refused(infer, one_image(endpoint, shape=[65, 28, 28, 1], data=[0] * (65 * 784))) == (
        400, "65 rows in one request: at most 64 (--max-batch-rows). Send them in several requests")
    late = one_image(endpoint) | {"parameters": {"timeout": 1}}
    assert endpoint.refused(infer, late)[0] == 504
    assert endpoint.refused(infer, one_image(endpoint),
                            headers=endpoint.headers | {"X-Request-Timeout-Seconds": "soon"})[0] == 400
    assert endpoint.refused(infer, one_image(endpoint) | {"parameters": {"timeout": "soon"}})[0] == 400
    assert endpoint.refused(infer, one_image(endpoint) | {"parameters": {"timeout": -5}})[0] == 400
    text = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}
    head = json.dumps(text).encode()
    wrong = endpoint.headers | {"Inference-Header-Content-Length": str(len(head))}
    assert endpoint.refused("/v2/models/transformer/infer", head + b"\x01\0\0\0\xff", headers=wrong) == (
        400, "an element of the input is no UTF-8")


def test_every_answer_says_which_model_gave_it_and_carries_the_requests_id(endpoint: Endpoint) -> None:
    _, headers, _ = endpoint.ask("/v2/models/mlp/infer", one_image(endpoint),
                                 headers=endpoint.headers | {"X-Request-Id": "abc-1"})
    assert headers["x-request-id"] == "abc-1"
    assert headers["x-model-version"] == "1"
    assert headers["x-artifact-digest"] == endpoint.artifacts["mlp"].digest
    assert len(endpoint.ask("/v2")[1]["x-request-id"]) == 36


def test_the_access_log_has_a_line_for_each_request_and_nothing_of_what_is_in_it(endpoint: Endpoint) -> None:
    text = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["confidential"]}]}
    access = endpoint.keys_file.parent / "access.log"
    endpoint.ask("/v2/models/transformer/infer", text, headers=endpoint.headers | {"X-Request-Id": "to-be-found"})
    until(lambda: "to-be-found" in access.read_text())  # a line is written after the answer
    before = len(access.read_text().splitlines())
    endpoint.ask("/v2/models/none", headers={})
    until(lambda: len(access.read_text().splitlines()) > before)
    log = access.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    (mine,) = [line for line in lines if line["id"] == "to-be-found"]
    assert (mine["status"], mine["caller"], mine["path"], mine["method"]) == (200, "tester",
                                                                              "/v2/models/transformer/infer", "POST")
    assert mine["ms"] > 0
    assert (lines[-1]["status"], lines[-1]["caller"]) == (401, "-")
    assert "confidential" not in log
    assert endpoint.key not in log


def test_the_documentation_describes_the_models_with_examples_that_work(endpoint: Endpoint) -> None:
    described = json.loads(endpoint.ask("/openapi.json")[2])
    tried = 0
    for path, methods in described["paths"].items():
        if "post" in methods:
            example = methods["post"]["requestBody"]["content"]["application/json"]["example"]
            status, _, data = endpoint.ask(path, example)
            assert status == 200, data
            tried += 1
        else:
            assert endpoint.ask(path)[0] == 200, path
    assert tried == 17


def test_requests_that_do_not_come_hold_nobody_up(endpoint: Endpoint) -> None:
    """Hundreds of half-sent headers, and a body, which waits with a key."""
    host, _, port = endpoint.host.partition(":")
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(600)]
        for each in slow[1:]:
            each.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Half: ")
        slow[0].sendall(f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.key}\r\n"
                        "X-Request-Timeout-Seconds: 1\r\nContent-Length: 100\r\n\r\n{".encode())
        began = time.monotonic()
        assert endpoint.ask("/v2/models/mlp/infer", one_image(endpoint))[0] == 200
        assert time.monotonic() - began < 20, "and `ask` gives up after 30 s"
        answer = b""
        while not answer.endswith(b"}"):
            piece = slow[0].recv(1000)
            assert piece, answer
            answer += piece
    assert answer.startswith(b"HTTP/1.1 504 ") and b'{"error":"the body did not come within 0.95 s"}' in answer


def test_nothing_of_an_endpoint_can_be_reached_from_elsewhere(endpoint: Endpoint) -> None:
    """Ray's own processes are looked at in test_cluster.py."""
    below = {process.pid: process for process in psutil.Process(endpoint.job.process.pid).children(recursive=True)}
    open_ports = {(connection.laddr.ip, below[connection.pid].name()) for connection in psutil.net_connections("tcp")
                  if connection.pid in below and connection.status == psutil.CONN_LISTEN}
    assert len(open_ports) >= 2
    elsewhere = {each for each in open_ports if each[0] not in ("127.0.0.1", "::ffff:127.0.0.1")}
    assert elsewhere == set()
    sockets = [Path(connection.laddr) for process in below.values() if process.name() == "haproxy"
               for connection in process.net_connections("unix") if connection.laddr]
    assert sockets
    assert all(any(parent.stat().st_mode & 0o077 == 0 for parent in path.parents)
               for path in sockets), "others cannot reach them"


def test_many_at_a_time_are_answered_each_with_its_own(endpoint: Endpoint) -> None:
    from concurrent.futures import ThreadPoolExecutor

    probe = endpoint.artifacts["mlp"].probe()
    images, wanted = probe.inputs["image"], probe.outputs["probabilities"]

    def one(k: int) -> float:
        row = k % len(images)
        body = one_image(endpoint, data=images[row].ravel().tolist())
        status, _, data = endpoint.ask("/v2/models/mlp/infer", body)
        assert status == 200, data
        return float(np.abs(np.array(json.loads(data)["outputs"][0]["data"]) - wanted[row]).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(one, range(200))) < 1e-6


def test_a_model_that_does_not_verify_or_cannot_be_found_is_refused_before_anything_starts(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from serving.__main__ import main

    whole = endpoint.artifacts["mlp"]
    copy = whole.copy_to(tmp_path / "copy")
    weights = copy.store.local_path("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    taken = endpoint.host.rpartition(":")[2]
    free = str(free_port())
    for flags, message in (
        (["--model", f"digits={copy.uri}"], "model.safetensors differs from its sha256"),
        (["--model", f"digits={tmp_path}/none"], "it has no manifest.json"),
        (["--model", "digits"], "it must be NAME=models:/MODEL@ALIAS or NAME=PATH"),
        (["--model", f"Digits={copy.uri}"], "NAME of a-z, 0-9, -, _ and ."),
        (["--model", "digits=models:/none@champion", "--storage", str(tmp_path)], "none"),
        (["--model", f"digits={copy.uri}", "--host", "0.0.0.0"], "answers on loopback only"),
        (["--model", f"digits={copy.uri}", "--max-batch-rows", "0"], "--max-batch-rows 0: it must be more than 0"),
        (["--model", f"digits={whole.uri}", "--port", taken], f"--port {taken} of 127.0.0.1 is taken by process"),
        (["--model", f"digits={whole.uri}", "--grpc-port", taken],
         f"--grpc-port {taken} of 127.0.0.1 is taken by process"),
        (["--model", f"digits={whole.uri}", "--grpc-port", free], f"--grpc-port {free}: it is --port already"),
        (["--model", f"digits={copy.uri}", "--tls-cert", "cert.pem"], "--tls-cert and --tls-key go together"),
    ):
        assert main(["up", "--no-auth", "--port", free, *flags]) == 2, flags
        assert message in capsys.readouterr().err, flags
    assert main(["up", "--port", free, "--model", f"digits={copy.uri}"]) == 2
    assert "TRAINYARD_API_KEYS: it has no keys" in capsys.readouterr().err
    assert os.environ.get("TRAINYARD_API_KEYS") is None


def test_any_request_is_answered_or_refused_as_documented(endpoint: Endpoint) -> None:
    """Bodies, headers and queries that fit the description and that do not, 50 for each of 10 operations."""
    checks = [schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance,
              response_schema_conformance]
    described = schemathesis.openapi.from_dict(json.loads(endpoint.ask("/openapi.json")[2]))
    chosen = described.include(path_regex="^/v2(/health/.*|/models(/(mlp|transformer)(/infer|/explain|/ready)?)?)?$")
    operations = [found.ok() for found in chosen.get_all_operations()]
    assert len(operations) == 12
    for operation in operations:
        @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def tried(case: Any) -> None:
            case.call_and_validate(base_url=f"http://{endpoint.host}", headers=endpoint.headers, checks=checks)

        tried()


def test_a_single_model_is_computed_in_the_ingress_itself_and_answers_over_tls(endpoint: Endpoint,
                                                                               tmp_path: Path) -> None:
    artifact, port, grpc_port = endpoint.artifacts["mlp"], free_port(), free_port()
    cert, key = certificate(tmp_path)
    with runs.python("serving", "up", "--model", f"digits_v1.2={artifact.uri}", "--no-auth", "--port", str(port),
                     "--grpc-port", str(grpc_port), "--tls-cert", str(cert), "--tls-key", str(key), "--root-path",
                     "/models",
                     "--cors-origin", "https://shop.example", folder=tmp_path,
                     env={"TRAINYARD_HOME": str(tmp_path)}) as job:
        job.until(lambda: f"ready: https://127.0.0.1:{port} " in job.text, 120)
        replicas = [process.name() for process in psutil.Process(job.process.pid).children(recursive=True)
                    if "ServeReplica" in process.name()]
        assert [name.split(".")[0] for name in replicas] == ["ray::ServeReplica:endpoint:Ingress"]  # .method, at times
        wanted = artifact.probe().outputs["probabilities"]
        over_http = triton.InferenceServerClient(f"127.0.0.1:{port}", ssl=True, ssl_options={"ca_certs": str(cert)})
        got = over_http.infer("digits_v1.2", tensors(artifact, binary=True))
        np.testing.assert_allclose(got.as_numpy("probabilities"), wanted, atol=1e-6)
        assert got.get_response()["parameters"]["artifact_digest"] == artifact.digest
        over_grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}", ssl=True, root_certificates=str(cert))
        got = over_grpc.infer("digits_v1.2", tensors(artifact, binary=True, of=triton_grpc))
        np.testing.assert_allclose(got.as_numpy("probabilities"), wanted, atol=1e-6)
        check_only_tls(port, grpc_port, cert)
        check_browsers(f"https://localhost:{port}/models", ssl.create_default_context(cafile=str(cert)))
        job.process.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0, "as Ctrl-C does"


def check_only_tls(port: int, grpc_port: int, cert: Path) -> None:
    """Who knows the certificate gets an answer; who does not, or speaks plainly, does not."""
    url = f"https://127.0.0.1:{port}/v2/health/ready"
    with urllib.request.urlopen(url, timeout=10, context=ssl.create_default_context(cafile=str(cert))) as response:
        assert response.status == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(url, timeout=10)
    with pytest.raises((OSError, http.client.HTTPException)):
        urllib.request.urlopen(url.replace("https", "http"), timeout=10)
    with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}").is_server_live(client_timeout=10)


def check_browsers(url: str, context: ssl.SSLContext) -> None:
    """Of an endpoint without keys, which a proxy gives out under a path."""
    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(url + path, b"{}" if method == "POST" else None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            error.close()
            return error.code, error.headers

    assert ask("/v2")[0] == ask("/")[0] == 200
    assert ask("/v2", Host="evil.example")[0] == 403
    for origin, status in (("https://evil.example", 403), ("https://shop.example", 400),
                           (url.removesuffix("/models"), 400)):
        assert ask("/v2/models/digits_v1.2/infer", "POST", Origin=origin)[0] == status, origin
    status, headers = ask("/v2/models/digits_v1.2/infer", "OPTIONS", Origin="https://shop.example")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://shop.example")
