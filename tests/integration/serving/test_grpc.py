"""An endpoint over gRPC, asked by Triton's client and by who would know more than they should."""

import json
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from tritonclient.utils import InferenceServerException

from serving.endpoint.grpc import SERVICE
from serving.protocols import open_inference_grpc as messages
from tests.integration.serving.shared import MODELS, Endpoint, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    # Ray Serve's, of Pydantic
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
]


def key_of(endpoint: Endpoint) -> dict[str, str]:
    return {"authorization": f"Bearer {endpoint.key}"}


def refused(client: Any, model: str, inputs: Any, **asked: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, inputs, **asked)
    return str(error.value.status()).removeprefix("StatusCode."), str(error.value.message())


@pytest.mark.parametrize("job", MODELS)
def test_tritons_client_gets_the_models_own_answers(endpoint: Endpoint, job: str) -> None:
    artifact, client, key = endpoint.artifacts[job], triton.InferenceServerClient(endpoint.grpc), key_of(endpoint)
    about = artifact.manifest.description
    metadata = client.get_model_metadata(job, headers=key)
    assert [(s.name, s.datatype, tuple(s.shape)) for s in metadata.inputs] == [(s.name, s.datatype, s.shape)
                                                                               for s in about.inputs]
    assert client.is_model_ready(job, "1", headers=key)
    asked = [triton.InferRequestedOutput(spec.name) for spec in about.outputs]
    inputs = tensors(artifact, binary=True, of=triton)
    for outputs in (asked, None):
        got = client.infer(job, inputs, outputs=outputs, model_version="1", request_id="mine", headers=key)
        response = got.get_response()
        assert (response.model_name, response.model_version, response.id) == (job, "1", "mine")
        assert response.parameters["artifact_digest"].string_param == artifact.digest
        for name, wanted in artifact.probe().outputs.items():
            np.testing.assert_allclose(got.as_numpy(name), wanted, atol=1e-6)
    if about.labels:
        likeliest = [triton.InferRequestedOutput("probabilities", class_count=1)]
        found = client.infer(job, inputs, outputs=likeliest, headers=key).as_numpy("probabilities")
        assert [value.decode().split(":")[2] for value in found[:, 0]] == [
            about.labels[place] for place in artifact.probe().outputs["probabilities"].argmax(1)]


def test_typed_contents_are_answered_in_kind(endpoint: Endpoint) -> None:
    """As a client has them that does not know NumPy."""
    probe = endpoint.artifacts["mlp"].probe()
    call = messages.message("ModelInferRequest")(model_name="mlp")
    pixels = probe.inputs["image"]
    tensor = call.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    tensor.contents.uint_contents.extend(pixels.ravel().tolist())
    with grpc.insecure_channel(endpoint.grpc) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        data, done = ask.with_call(call.SerializeToString(),
                                   metadata=[*key_of(endpoint).items(), ("x-request-id", "over-grpc")])
    answer = messages.parsed("ModelInferResponse", data)
    wanted = probe.outputs["probabilities"]
    np.testing.assert_allclose(answer.outputs[0].contents.fp32_contents, wanted.ravel(), atol=1e-6)
    assert dict(done.trailing_metadata())["x-request-id"] == "over-grpc"
    log = (endpoint.keys_file.parent / "access.log").read_text()
    (mine,) = [line for line in map(json.loads, log.splitlines()) if line["id"] == "over-grpc"]
    assert (mine["status"], mine["caller"], mine["path"]) == (200, "tester", f"/{SERVICE}/ModelInfer")


def test_the_server_says_what_it_is(endpoint: Endpoint) -> None:
    client = triton.InferenceServerClient(endpoint.grpc)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata(headers=key_of(endpoint)).name == "trainyard"


def test_what_cannot_be_answered_has_the_code_of_its_cause(endpoint: Endpoint) -> None:
    client, key = triton.InferenceServerClient(endpoint.grpc), key_of(endpoint)
    image = tensors(endpoint.artifacts["mlp"], binary=True, of=triton)
    assert refused(client, "mpl", image, headers=key) == (
        "NOT_FOUND", "there is no model 'mpl': there is mlp, cnn, transformer, lm")
    assert refused(client, "mlp", image, model_version="9", headers=key)[0] == "NOT_FOUND"
    rows = triton.InferInput("image", [65, 28, 28, 1], "UINT8").set_data_from_numpy(np.zeros((65, 28, 28, 1), np.uint8))
    assert refused(client, "mlp", [rows], headers=key) == (
        "INVALID_ARGUMENT", "65 rows in one request: at most 64 (--max-batch-rows). Send them in several requests")
    text = triton.InferInput("text", [1], "BYTES").set_data_from_numpy(np.array([b"\xff"], object))
    assert refused(client, "transformer", [text], headers=key) == ("INVALID_ARGUMENT",
                                                                   "an element of the input is no UTF-8")
    assert refused(client, "mlp", image, timeout=1, headers=key)[0] == "DEADLINE_EXCEEDED"
    large = triton.InferInput("image", [2000, 28, 28, 1],
                              "UINT8").set_data_from_numpy(np.zeros((2000, 28, 28, 1), np.uint8))
    for compression in (None, "gzip"):
        code, message = refused(client, "mlp", [large], headers=key, compression_algorithm=compression)
        assert (code, "larger than max" in message) == ("RESOURCE_EXHAUSTED", True)


def test_who_has_no_key_learns_nothing(endpoint: Endpoint) -> None:
    from ray.serve.generated import serve_pb2, serve_pb2_grpc

    client = triton.InferenceServerClient(endpoint.grpc)
    image = tensors(endpoint.artifacts["mlp"], binary=True, of=triton)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": endpoint.key}, {"application": "mlp-1"}):
        code, message = refused(client, "mlp", image, headers=headers)
        assert (code, "mlp" in message) == ("UNAUTHENTICATED", False)
        for ask in (client.get_server_metadata, lambda **asked: client.get_model_metadata("mlp", **asked),
                    lambda **asked: client.is_model_ready("mlp", **asked)):
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                ask(headers=headers)
    with grpc.insecure_channel(endpoint.grpc) as channel:
        serve = serve_pb2_grpc.RayServeAPIServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            serve.ListApplications(serve_pb2.ListApplicationsRequest(), timeout=10)


def test_a_clusters_config_has_it_and_says_what_tls_needs_there(endpoint: Endpoint,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    from ray.serve.schema import ServeDeploySchema

    from serving.__main__ import main

    flags = ["--model", f"digits={endpoint.artifacts['mlp'].uri}", "--no-auth", "--grpc-port", "9000"]
    assert main(["config", *flags, "--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key"]) == 0
    printed = capsys.readouterr().out
    assert "TRAINYARD_TLS_CERT=/tls/tls.crt and TRAINYARD_TLS_KEY=/tls/tls.key" in printed.splitlines()[0]
    options = ServeDeploySchema.model_validate(yaml.safe_load(printed)).grpc_options
    assert (options.port, options.grpc_servicer_functions) == (9000, ["serving.endpoint.grpc:add_to_server"])
    assert not options.enable_reflection, "which would tell anyone"
