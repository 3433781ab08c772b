import asyncio
import logging
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.common.artifact.manifest import Embedding
from serving.core.settings import ModelSettings, SharedSettings
from tests.unit.test_embeddings import small
from tests.unit.test_replica import replica

# Ray Serve's, of Pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")


class Controller:
    """Keeps what Serve's multiplexing tells it, which it tells the ingress."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []

    def record_request_routing_info(self, info: Any) -> None:
        self.told.append(set(info.multiplexed_model_ids))


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    from ray.serve import multiplex

    from serving.model import multiplexed_replica

    found = Controller()
    monkeypatch.setattr(multiplex, "_get_global_client", lambda: found)
    monkeypatch.setattr(multiplex, "_get_internal_replica_context",
                        lambda: SimpleNamespace(app_name="shared", deployment="Model", replica_id="one"))
    monkeypatch.setattr(multiplexed_replica, "keep_calls_to_this_node", lambda: None)
    return found


def test_what_the_ingress_is_told_last_is_what_is_loaded(controller: Controller, monkeypatch: pytest.MonkeyPatch,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    """While one waits for a model that another has had loaded, it may be put out again."""
    from serving.model import multiplexed_replica

    loaded: list[str] = []

    class Loaded:
        def __init__(self, name: str) -> None:
            self.name = name
            loaded.append(name)

        async def infer(self, requests: list[str]) -> list[str]:
            return [f"{self.name}: {each}" for each in requests]

    def load(settings: ModelSettings, kind: object) -> Loaded:
        time.sleep(0.3)  # Serve tells of it every 0.1 s
        return Loaded(settings.name)

    monkeypatch.setattr(multiplexed_replica, "_load", load)

    async def ask_all() -> list[Any]:
        replica = multiplexed_replica.MultiplexedReplica(asdict(SharedSettings(max_loaded=2)))

        async def ask(name: str) -> Any:
            return await replica.infer(asdict(ModelSettings(name=name, version="1", uri="", digest="")), [name])

        answers = await asyncio.gather(*(ask(name) for name in ("a", "b", "c", "a")))
        await asyncio.sleep(0.5)
        return answers

    with caplog.at_level(logging.ERROR):
        answers = asyncio.run(ask_all())
    assert answers == [[f"{name}: {name}"] for name in ("a", "b", "c", "a")]
    assert not caplog.records
    assert controller.told[-1] == {"b-1-", "c-1-"}
    assert loaded == ["a", "b", "c"]


@pytest.mark.usefixtures("controller")
def test_a_model_that_shares_a_replica_offers_its_vectors_there(tmp_path: Path) -> None:
    from serving.model.multiplexed_replica import MultiplexedReplica

    artifact = small(tmp_path, Embedding(pooling="mean", normalize=True, dimensions=16))
    settings = asdict(ModelSettings(name="m", version="1", uri=artifact.uri, digest=artifact.digest))
    asked = {"input": np.array(["one", "two words"], object)}

    async def ask() -> Any:
        return await MultiplexedReplica(asdict(SharedSettings())).embed(settings, [asked])

    (found,) = asyncio.run(ask())
    (wanted,) = asyncio.run(replica(artifact).embed([asked]))
    np.testing.assert_array_equal(found["embedding"], wanted["embedding"])
