"""Versions of a model change while it is being asked: nobody gets an error,
and what cannot serve never gets a request."""

import asyncio
import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.core.errors import ConfigError
from cluster.core.network import free_port
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.registry.connection import open_registry
from serving.__main__ import main
from serving.commands import deployment_record as versions
from serving.commands import manage
from serving.core.settings import EndpointSettings, ModelSettings, SharedSettings
from serving.traffic.shared_state import lease
from tests import kept, runs
from tests.integration.serving.shared import written
from tests.unit.test_retrain import QUICK, digits
from trainyard.retrain import main as retrain

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    # Ray Serve's, of Pydantic
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
]


# ── the config alone ──
def config() -> dict[str, Any]:
    from serving.commands import deploy_config

    model = ModelSettings(name="digits", version="1", uri="a", digest="b", registered="digits")
    return deploy_config.config([model], {"digits": {"1": 1.0}}, EndpointSettings(), {})


def weights(made: dict[str, Any]) -> dict[str, float]:
    return versions.Running(port=1, pid=1, address="", config=made).weights("digits")


def test_a_version_that_had_requests_stays_for_a_rollback_and_the_one_before_goes() -> None:
    two, three = (ModelSettings(name="digits", version=v, uri="a", digest="b") for v in "23")
    made = versions.with_weights(config(), "digits", {"1": 0.9, "2": 0.1}, [two])
    assert weights(made) == {"1": 0.9, "2": 0.1}
    assert [app["name"] for app in made["applications"]] == ["digits-2", "digits-1", "endpoint"]
    made = versions.with_weights(made, "digits", {"2": 1.0})
    assert weights(made) == {"1": 0.0, "2": 1.0}
    made = versions.with_weights(made, "digits", {"3": 1.0}, [three])
    assert weights(made) == {"2": 0.0, "3": 1.0}
    assert [app["name"] for app in made["applications"]] == ["digits-3", "digits-2", "endpoint"]


def test_models_that_share_replicas_have_one_application_and_so_do_their_versions() -> None:
    from serving.commands import deploy_config

    one, two = (ModelSettings(name="digits", version=v, uri="a", digest="b", shared=True) for v in "12")
    made = deploy_config.config([one], {"digits": {"1": 1.0}}, EndpointSettings(), {},
                                shared=SharedSettings(max_loaded=2))
    assert [app["name"] for app in made["applications"]] == ["shared", "endpoint"]
    assert made["applications"][0]["args"]["max_loaded"] == 2
    made = versions.with_weights(made, "digits", {"2": 1.0}, [two])
    assert weights(made) == {"1": 0.0, "2": 1.0}
    assert [app["name"] for app in made["applications"]] == ["shared", "endpoint"]


@pytest.mark.parametrize("words", ["", "3", "3=x", "3=0", "3=-1,4=2", "3=1,3=2", "3=inf", "3=nan", "3=1=2"])
def test_weights_that_are_none_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="--weights"):
        versions.parse_weights(words)


# ── an endpoint ──
@dataclass
class Caller:
    """Asks all the time, without trying again."""

    url: str
    body: bytes
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers[self.version()] += 1
            except (OSError, ValueError, KeyError) as error:
                self.failures.append(repr(error))

    def version(self) -> str:
        with urllib.request.urlopen(urllib.request.Request(self.url, self.body), timeout=20) as response:
            return json.load(response)["model_version"]

    def seen(self, count: int = 40) -> Counter[str]:
        return Counter(self.version() for _ in range(count))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with three versions of `digits`, of which the third verifies and answers its probe rows wrongly."""
    folder = tmp_path_factory.mktemp("storage")
    one = open_artifact(kept.artifact("mlp"))
    artifacts = [one, written(one, folder, "two"), written(one, folder, "wrong", shift=1)]
    registry = open_registry(None, Store.open(str(folder)), "digits")
    registry.start(run_name="test", params={}, tags={})
    assert [registry.register(artifact) for artifact in artifacts] == ["1", "2", "3"]
    registry.finish("done")
    return folder


@pytest.fixture
def endpoint(storage: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Caller, runs.Job, list[str]]]:
    port = free_port()
    monkeypatch.setenv("TRAINYARD_HOME", str(storage / "home"))
    command = ["up", "--model", "digits=models:/digits/1", "--storage", str(storage), "--no-auth", "--port", str(port),
               "--cpus-per-replica", "0.5"]
    with runs.python("serving", *command, folder=storage) as job:
        job.until(lambda: "ready: " in job.text, 120)
        pixels = open_artifact(kept.artifact("mlp")).probe().inputs["image"][:1]
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        caller = Caller(f"http://127.0.0.1:{port}/v2/models/digits/infer", json.dumps({"inputs": [tensor]}).encode())
        yield caller, job, ["--port", str(port), "--storage", str(storage)]


def said_of(where: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `status` prints, once the ingress has reported."""
    time.sleep(2.5)
    capsys.readouterr()
    assert main(["status", *where]) == 0
    return capsys.readouterr().out


def wait_for(what: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline


def ingress(job: runs.Job) -> list[int]:
    below = psutil.Process(job.process.pid).children(recursive=True)
    return [process.pid for process in below if "endpoint:Ingress" in process.name()]


def test_versions_change_under_load_without_a_failed_request(
    endpoint: tuple[Caller, runs.Job, list[str]], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caller, job, where = endpoint
    before = ingress(job)
    background = threading.Thread(target=caller.run)
    background.start()
    registry = open_registry(None, Store.open(str(storage)), "digits")
    try:
        assert main(["status", *where]) == 0
        assert re.search(r"digits +version 1 +100\.0 % +running", capsys.readouterr().out)

        assert main(["split", "digits", "--weights", "1=50,2=50", *where]) == 0
        assert set(caller.seen()) == {"1", "2"}
        assert main(["rollback", "digits", *where]) == 0
        assert caller.seen() == {"1": 40}

        assert main(["promote", "digits", "2", *where]) == 0
        assert caller.seen() == {"2": 40}
        assert registry.resolve("models:/digits@champion").version == "2"

        capsys.readouterr()
        assert main(["promote", "digits", "3", *where]) == 2
        assert "digits-3 does not start" in (said := capsys.readouterr().err)
        assert "its answers for its own probe rows differ by" in said
        assert "Traceback" not in said
        assert caller.seen() == {"2": 40}
        assert registry.resolve("models:/digits@champion").version == "2"
        assert main(["promote", "digits", "9", *where]) == 2
        assert main(["split", "digitz", "--weights", "1=1", *where]) == 2
        assert "the endpoint has no model 'digitz': it has digits" in capsys.readouterr().err

        assert main(["rollback", "digits", *where]) == 0
        assert caller.seen() == {"1": 40}
        assert registry.resolve("models:/digits@champion").version == "1"

        assert main(["shadow", "digits", "1", *where]) == 2
        assert "version 1 of digits answers requests itself" in capsys.readouterr().err
        assert main(["shadow", "digits", "2", *where]) == 0
        assert caller.seen() == {"1": 40}
        rows = re.search(r"shadow: version 2 is asked 100 % of the requests too; rows: (?:(\d+) dropped, )?(\d+) "
                         r"(?:other|same)", said_of(where, capsys))
        assert rows and int(rows[2]) > 2 * int(rows[1] or 0), "most are compared, on a busy machine too"

        assert main(["promote", "digits", "2", "--max-p95-ms", "0.01", "--min-requests", "20", *where]) == 0
        wait_for(lambda: caller.seen() == {"1": 40})
        wait_for(lambda: "went back by themselves: the p95 of version 2" in registry.promotions("digits")[-1].why)
        assert registry.resolve("models:/digits@champion").version == "1"
        wait_for(lambda: "the registry's champion is version 1 again" in said_of(where, capsys))
        said = said_of(where, capsys)
        assert re.search(r"went back by itself: the p95 of version 2 is [\d.]+ ms: 0.01 ms are allowed", said)
        assert re.search(r"digits +version 1 +100\.0 %", said)
        assert main(["split", "digits", "--weights", "2=1", "--max-error-rate", "0.5", *where]) == 0
        assert caller.seen() == {"2": 40}
        assert main(["rollback", "digits", *where]) == 0
        assert caller.seen() == {"1": 40}
        with manage.connected(versions.Running.load(int(where[1]))):
            began = time.monotonic()
            granted = [asyncio.run(lease("tester", 10.0, 7))[0] for _ in range(3)]
            most = 10 * (1 + time.monotonic() - began)
        assert granted[0] == 7 and 10 <= sum(granted) <= most, "the replicas of the ingress share a second's worth"

        # the loop closes: what a drifted set has trained is promoted here, and watched
        new, holdout = (digits(storage / f"{name}.parquet", rows, 100)
                        for name, rows in (("new", slice(0, 800)), ("holdout", slice(800, 1100))))
        assert retrain(["digits", "--data.uri", str(new), "--holdout", str(holdout), *where, "--", *QUICK]) == 0
        assert caller.seen() == {"4": 40}
        assert registry.resolve("models:/digits@champion").version == "4"
    finally:
        caller._stop.set()
        background.join()
    assert caller.failures == []
    assert set(caller.answers) == {"1", "2", "4"}
    assert ingress(job) == before, "it was never restarted"
    assert main(["down", *where]) == 0
    assert job.wait(60) == 0
    assert main(["status", "--port", "1"]) == 2
    assert "no endpoint of this user runs on port 1" in capsys.readouterr().err
