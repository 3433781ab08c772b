"""An endpoint as `python -m serving up` starts it, with a model of each job and one that writes text:
the tests here ask it."""

import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton

from cluster.core.network import free_port
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, Probe, open_artifact, write_artifact
from jobs.common.artifact.manifest import Embedding
from serving.core.api_keys import new_key
from tests import kept, runs

MODELS = ("mlp", "cnn", "transformer", "lm")
CHAT_TEMPLATE = """{% for message in messages %}
{% if message.role == 'system' and not loop.first %}{{ raise_exception('the system speaks first') }}{% endif %}
{{- bos_token + message.content }}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    host: str
    grpc: str
    """Where it answers over gRPC."""
    key: str
    keys_file: Path
    artifacts: dict[str, Artifact]
    job: runs.Job

    def client(self) -> Any:
        return triton.InferenceServerClient(self.host)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None) \
            -> tuple[int, dict[str, str], bytes]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.host}{path}", data,
                                         self.headers if headers is None else headers,
                                         method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def refused(self, path: str, body: Any = None, **asked: Any) -> tuple[int, str]:
        """Status and message of an error, which has the protocol's form."""
        status, headers, data = self.ask(path, body, **asked)
        message = json.loads(data)
        assert headers["content-type"] == "application/json"
        assert list(message) == ["error"]
        return status, message["error"]


@contextmanager
def serving(storage: Path) -> Iterator[Endpoint]:
    """Serves models of an earlier version with keys, in the process group of `python -m serving up`."""
    artifacts = {name: open_artifact(kept.artifact(name)) for name in MODELS}
    artifacts |= {"lm": chatting(artifacts["lm"], storage),
                  "transformer": embedding(artifacts["transformer"], storage)}
    key, line = new_key("tester")
    (storage / "keys").write_text(line)
    host, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = ["up", *(word for job, artifact in artifacts.items() for word in ("--model", f"{job}={artifact.uri}")),
               "--port", host.rpartition(":")[2], "--grpc-port", grpc.rpartition(":")[2], "--keys",
               str(storage / "keys"),
               "--cpus-per-replica", "0.4", "--max-request-mib", "1", "--access-log", str(storage / "access.log")]
    env = {"TRAINYARD_HOME": str(storage / "home"), "RAY_metrics_report_interval_ms": "1000"}
    with runs.python("serving", *command, folder=storage, env=env) as job:
        job.until(lambda: "ready: " in job.text, 120)
        yield Endpoint(host=host, grpc=grpc, key=key, keys_file=storage / "keys", artifacts=artifacts, job=job)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(60) == 0, job.text
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) != 0, "nothing listens any more"


def chatting(artifact: Artifact, folder: Path) -> Artifact:
    """Another one with the same weights, and with a chat template."""
    files = {path: artifact.read(path) for path in artifact.manifest.paths if path.startswith("model/")}
    return write_artifact(Store.open(str(folder)), "chatting", description=artifact.manifest.description,
                          probe=artifact.probe(), files=files | {"model/chat_template.jinja": CHAT_TEMPLATE.encode()})


def embedding(artifact: Artifact, folder: Path) -> Artifact:
    """Another one with the same weights, which offers vectors of texts."""
    about = replace(artifact.manifest.description, embedding=Embedding(pooling="mean", normalize=True, dimensions=32))
    return write_artifact(Store.open(str(folder)), "embedding", description=about, probe=artifact.probe(), files={
        path: artifact.read(path) for path in artifact.manifest.paths if path.startswith("model/")})


def tensors(artifact: Artifact, *, binary: bool, of: Any = triton) -> list[Any]:
    """The probe rows. of: Triton's client over HTTP, or the one over gRPC, where all is binary."""
    made = []
    for spec in artifact.manifest.description.inputs:
        values = artifact.probe().inputs[spec.name]
        tensor = of.InferInput(spec.name, list(values.shape), spec.datatype)
        made.append(tensor.set_data_from_numpy(values, **({"binary_data": binary} if of is triton else {})))
    return made


def written(artifact: Artifact, folder: Path, name: str, shift: int = 0) -> Artifact:
    """Another one with the same weights, which verifies. shift: of the answers in its probe, which are wrong then."""
    probe = artifact.probe()
    answers = {"probabilities": np.roll(probe.outputs["probabilities"], shift, axis=1)}
    return write_artifact(Store.open(str(folder)), name, description=replace(artifact.manifest.description, about=name),
                          probe=Probe(inputs=probe.inputs, outputs=answers),
                          files={"model.safetensors": artifact.read("model.safetensors")})


def one_image(endpoint: Endpoint, **fields: Any) -> dict[str, Any]:
    pixels = endpoint.artifacts["mlp"].probe().inputs["image"][:1]
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return {"inputs": [tensor | fields]}
