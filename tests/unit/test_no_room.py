"""A replica for which there is no room is waited for only where room may come. Serve's answers are made here, in its own words."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ClusterError, StoppedError
from serving import running

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")  # Ray Serve's, of Pydantic
WAITING = ("Deployment 'Model' in application 'digits-2' has 1 replicas that have taken more than 30s to be scheduled. This may be "
           'due to waiting for the cluster to auto-scale or for a runtime environment to be installed. Resources required for each '
           'replica: {"CPU": 1.0}, total resources available: {}. Use `ray status` for more details.')


def wait(monkeypatch: pytest.MonkeyPatch, *, grows: bool, stopped: bool = False) -> None:
    from ray import serve

    deployment = SimpleNamespace(message=WAITING)
    state = SimpleNamespace(status="DEPLOYING", message="", deployments={"Model": deployment})
    stop = threading.Event()
    if stopped:
        stop.set()
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"digits-2": state}))
    monkeypatch.setattr(running, "_grows", lambda: grows)
    config: dict[str, Any] = {"applications": [{"name": "digits-2"}]}
    running.await_ready(config, stop, timeout_s=20.0)


def test_a_cluster_that_cannot_grow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r'digits-2 does not start: a replica needs \{"CPU": 1.0\}.*smaller --cpus-per-replica'):
        wait(monkeypatch, grows=False)


def test_one_that_can_grow_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedError):
        wait(monkeypatch, grows=True, stopped=True)
