"""Many models in replicas that they share: loaded when they are asked for, the least recently used one put out."""

import json
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import psutil
import pytest

from cluster.core.network import free_port
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact
from jobs.common.registry.connection import open_registry
from jobs.transformer.decoding import Decoder
from jobs.transformer.model import LanguageModel, load
from serving.__main__ import main
from serving.core.settings import ModelSettings
from tests import runs
from tests.integration.serving.shared import Endpoint, one_image, written
from tests.unit.adapters import train_adapter

pytestmark = [
    pytest.mark.in_order,  # the first test wants an endpoint that has loaded nothing yet
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    # Ray Serve's, of Pydantic
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
]


@dataclass(frozen=True, kw_only=True)
class Many:
    """An endpoint whose models `a` (registered: version 3 is wrong), `b` and `c` are one artifact, `wrong` is not its
    own, and `one` and `two` are adapters of `lm`."""

    url: str
    where: list[str]
    job: runs.Job
    body: bytes
    texts: dict[str, Artifact]

    def ask(self, model: str) -> tuple[int, Any]:
        request = urllib.request.Request(f"{self.url}/v2/models/{model}/infer", self.body)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def loaded(self) -> set[str]:
        with urllib.request.urlopen(f"{self.url}/live", timeout=10) as response:
            return {name for name, count in json.load(response)["replicas"]["models"].items() if count}

    def until_loaded(self, *models: str) -> None:
        """The ingress hears of it within a second."""
        deadline = time.monotonic() + 60
        while self.loaded() != set(models):
            assert time.monotonic() < deadline, self.loaded()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def many(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Many]:
    folder = tmp_path_factory.mktemp("many")
    right = endpoint.artifacts["mlp"]
    again, wrong = written(right, folder, "again"), written(right, folder, "wrong", shift=1)
    registry = open_registry(None, Store.open(str(folder)), "a")
    registry.start(run_name="test", params={}, tags={})
    assert [registry.register(artifact) for artifact in (right, again, wrong)] == ["1", "2", "3"]
    registry.finish("done")
    base = endpoint.artifacts["lm"]
    adapters = {name: train_adapter(folder / name, base.store.local_path("model"), lora_alpha=64.0, seed=seed)
                for seed, name in enumerate(("one", "two"))}
    models = {"a": "models:/a/1", "b": right.uri, "c": right.uri, "wrong": wrong.uri, "lm": base.uri}
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINYARD_HOME", str(folder))
        with runs.python("serving", "up",
                         *(word for name, which in models.items() for word in ("--model", f"{name}={which}")),
                         *(word for name, made in adapters.items() for word in ("--adapter", f"{name}={made.uri}")),
                         "--placement", "shared", "--max-loaded", "2", "--no-auth", "--port", str(port), "--storage",
                         str(folder),
                         folder=folder) as job:
            job.until(lambda: "ready: " in job.text, 120)
            yield Many(url=f"http://127.0.0.1:{port}", where=["--port", str(port), "--storage", str(folder)], job=job,
                       body=json.dumps(one_image(endpoint)).encode(), texts={"lm": base, **adapters})


def test_the_least_recently_used_model_is_put_out(many: Many, endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"{many.url}/v2/health/ready", timeout=10) as response:
        assert response.status == 200
    with urllib.request.urlopen(f"{many.url}/v2/models", timeout=60) as response:
        assert {model["name"] for model in json.load(response)["models"]} == {"a", "b", "c", "wrong", *many.texts}
    assert many.loaded() == set(), "to be described is not to be loaded"
    wanted = endpoint.artifacts["mlp"].probe().outputs["probabilities"][0]
    for model, loaded in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("b", "bc"), ("c", "bc"), ("a", "ac")):
        status, answer = many.ask(model)
        assert (status, answer["model_name"]) == (200, model)
        np.testing.assert_allclose(answer["outputs"][0]["data"], wanted, atol=1e-6)
        many.until_loaded(*loaded)
    replicas = [process.name() for process in psutil.Process(many.job.process.pid).children(recursive=True)
                if "ServeReplica" in process.name()]
    assert sorted(replicas) == ["ray::ServeReplica:endpoint:Ingress", "ray::ServeReplica:shared:Model"]


def written_by(artifact: Artifact) -> str:
    """What the model, an adapter merged into its base, writes for the seed 3 and by itself."""
    model = load(artifact)
    assert isinstance(model, LanguageModel)
    decoder = Decoder(model)
    row = decoder.row(temperature=1.0, top_p=1.0, random=np.random.default_rng([3, 0]))
    decoder.join(decoder.tokens("the "), [row])
    tokens = [row.token]
    while len(tokens) < 24 and row.token != decoder.end_id:
        decoder.step()
        tokens.append(row.token)
    text = decoder.pieces()
    return "".join(text(token) for token in tokens if token != decoder.end_id)


def test_adapters_are_models_of_their_own_names_that_share_a_replica_with_their_base(many: Many) -> None:
    with openai.OpenAI(base_url=f"{many.url}/v1", api_key="none", max_retries=0) as client:
        assert {model.id for model in client.models.list()} == {"lm", "one", "two"}
        assert not many.loaded() & set(many.texts), "to be listed is not to be loaded"

        def ask(name: str) -> str:
            return client.completions.create(model=name, prompt="the ", max_tokens=24, seed=3).choices[0].text

        wanted = {name: written_by(artifact) for name, artifact in many.texts.items()}
        assert len(set(wanted.values())) == 3
        with ThreadPoolExecutor(6) as pool:  # while one is written, another puts out a third: two are loaded at a time
            names = [*many.texts] * 4
            assert list(pool.map(ask, names)) == [wanted[name] for name in names]
        assert ask("one") == wanted["one"] and ask("two") == wanted["two"]
        many.until_loaded("one", "two")


def test_a_model_that_cannot_be_loaded_fails_alone(many: Many) -> None:
    said = (500, {"error": "model 'wrong' cannot be loaded: the log of its replica says why"})
    assert many.ask("wrong") == said
    assert many.ask("a")[0] == many.ask("b")[0] == 200
    many.until_loaded("a", "b")
    assert many.ask("wrong") == said
    time.sleep(0.3)
    assert many.loaded() == {"a", "b"}, "it is not tried again at once, which would put out another"


def test_versions_change_as_elsewhere(many: Many, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "a", "--weights", "1=50,2=50", *many.where]) == 0
    assert {many.ask("a")[1]["model_version"] for _ in range(30)} == {"1", "2"}
    assert main(["status", *many.where]) == 0
    assert "a                    version 2       50.0 %   running" in capsys.readouterr().out
    assert main(["promote", "a", "3", *many.where]) == 2
    assert "a-3 does not start: artifact" in (said := capsys.readouterr().err)
    assert "its answers for its own probe rows differ" in said
    assert main(["promote", "a", "2", *many.where]) == 0
    assert {many.ask("a")[1]["model_version"] for _ in range(10)} == {"2"}


def test_nothing_is_left_of_a_model_that_is_put_out(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.model import multiplexed_replica, replica

    monkeypatch.setattr(replica, "keep_calls_to_this_node", lambda: None)
    monkeypatch.setattr(replica, "use_threads", lambda count: None)
    settings = ModelSettings(name="a", version="1", uri=endpoint.artifacts["mlp"].uri,
                             digest=endpoint.artifacts["mlp"].digest)
    first: Any = multiplexed_replica._load(settings)
    network = weakref.ref(first._predictor._model.model)
    del first
    multiplexed_replica._load(settings)
    assert network() is None
