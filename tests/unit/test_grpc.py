"""The endpoint over gRPC, asked by Triton's client: a server as Serve starts it in a replica, without Ray."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from serving.core.api_keys import new_key
from serving.endpoint.grpc import METHODS, Calls, add_to_server
from serving.traffic import rate_limit
from tests.clock import Clock
from tests.unit.test_http import Replicas, endpoint

# Ray Serve's, of Pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")


class Servicer:
    """Calls the endpoint as a replica of Serve does."""

    def __init__(self, calls: Calls) -> None:
        for method in METHODS:
            setattr(self, method, self._to(calls, method))

    def _to(self, calls: Calls, method: str) -> Any:
        from ray.serve.grpc_util import RayServegRPCContext

        async def call(data: bytes, context: Any) -> bytes:
            serves = RayServegRPCContext(context)
            reply = await calls(method, data, serves)
            serves._set_on_grpc_context(context)
            return reply.SerializeToString()

        return call


@contextmanager
def serving(replicas: Replicas, **settings: Any) -> Iterator[Any]:
    """A client of an endpoint that runs in a thread."""
    started, port = threading.Event(), 0
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal port
        server = grpc.aio.server()
        add_to_server(Servicer(Calls(endpoint(replicas, **settings).core)), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        started.set()
        await ended.wait()
        await server.stop(0)

    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait(10)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        yield client
    finally:
        client.close()
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


def ask(client: Any, **asked: Any) -> Any:
    values = np.array([[1.5, 2]], np.float32)
    tensor = triton.InferInput("x", list(values.shape), "FP32").set_data_from_numpy(values)
    return client.infer("m", [tensor], **asked)


def refused(client: Any, **asked: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        ask(client, **asked)
    return str(error.value.status()).removeprefix("StatusCode."), str(error.value.message())


def test_a_call_goes_to_the_model_and_its_answer_says_which() -> None:
    with serving(Replicas()) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        got = ask(client, request_id="mine")
        assert got.as_numpy("y").tolist() == [3.5]
        response = got.get_response()
        assert (response.id, response.model_version) == ("mine", "1")
        assert response.parameters["artifact_digest"].string_param == "digest1"
        metadata = client.get_model_metadata("m")
        assert (metadata.platform, list(metadata.versions)) == ("trainyard_test", ["1"])
        assert list(metadata.inputs[0].shape) == [-1, 2]


def test_each_cause_has_a_code_and_the_message_that_http_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "time", Clock())
    replicas = Replicas()
    with serving(replicas) as client:
        assert refused(client, model_version="9") == ("NOT_FOUND", "model 'm' has no version '9': it has 1")
        assert refused(client, outputs=[triton.InferRequestedOutput("z")]) == (
            "INVALID_ARGUMENT", "the model has no output 'z': it has y")
        replicas.broken = True
        assert refused(client) == ("INTERNAL", "internal error")
    key, line = new_key("one")
    (tmp_path / "keys").write_text(line)
    with serving(Replicas(), auth=True, keys_file=str(tmp_path / "keys"), requests_per_s=2.0) as client:
        assert client.is_server_live()
        assert refused(client) == ("UNAUTHENTICATED", "no key: send the header `Authorization: Bearer KEY`")
        assert refused(client, headers={"authorization": "Bearer wrong"}) == ("UNAUTHENTICATED", "the key is not known")
        for _ in range(2):
            ask(client, headers={"authorization": f"Bearer {key}"})
        assert refused(client, headers={"authorization": f"Bearer {key}"})[0] == "RESOURCE_EXHAUSTED"
        call = client._client_stub.ModelInfer.future(triton.service_pb2.ModelInferRequest(model_name="m"),
                                                     metadata=[("authorization", f"Bearer {key}"),
                                                               ("x-request-id", "abc")])
        assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert {"x-request-id": "abc", "retry-after": "1"}.items() <= dict(call.trailing_metadata()).items()


def test_the_smallest_of_all_deadlines_holds() -> None:
    replicas = Replicas()
    replicas.wait_s = 60.0
    for server_s, asked in ((0.05, {}), (9.0, {"timeout": 50_000}),
                            (9.0, {"headers": {"x-request-timeout-seconds": "0.05"}})):
        with serving(replicas, timeout_s=server_s) as client:
            client.is_server_live()
            began = time.perf_counter()
            assert refused(client, **asked)[0] == "DEADLINE_EXCEEDED", asked
            assert 0.03 < time.perf_counter() - began < 30, asked


class Held(Replicas):
    """Answers when it is let. seen: the requests that have come so far."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.seen = threading.Event(), 0

    async def ask(self, method: str, *arguments: Any) -> Any:
        if method == "infer":
            self.seen += len(arguments[0])
            while not self.let.is_set():
                await asyncio.sleep(0.005)
        return await super().ask(method, *arguments)


def test_who_no_longer_waits_for_an_answer_leaves_before_being_batched() -> None:
    replicas = Held()
    with serving(replicas) as client:
        busy = [threading.Thread(target=ask, args=[client]) for _ in range(2)]  # as many calls as may be under way
        for thread in busy:
            thread.start()
        deadline = time.monotonic() + 30
        while replicas.seen < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert refused(client, client_timeout=0.1)[0] == "DEADLINE_EXCEEDED"
        replicas.let.set()
        for thread in busy:
            thread.join()
        ask(client)
    assert replicas.seen == 3, "the one whose deadline came was not computed"


def test_more_than_may_wait_is_unavailable() -> None:
    replicas = Held()
    with serving(replicas, max_queued=1) as client:
        codes: list[str] = []
        threads = [threading.Thread(target=lambda: codes.append(_code(client))) for _ in range(6)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(codes) < 3:  # two are answered when they are let, and one waits
            assert time.monotonic() < deadline, codes
            time.sleep(0.01)
        replicas.let.set()
        for thread in threads:
            thread.join()
        assert set(codes) == {"OK", "UNAVAILABLE"}


def _code(client: Any) -> str:
    try:
        ask(client)
        return "OK"
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode.")
