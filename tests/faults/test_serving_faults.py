"""Replicas of an endpoint are killed while it is asked: a client that tries again, as the README says,
sees no failure."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from cluster.core import auth
from cluster.core.control_store import Gcs
from cluster.core.network import free_port, is_free
from cluster.local import cluster as local
from cluster.monitoring.status import Served, read_status
from jobs.common.artifact.artifact import open_artifact
from serving.__main__ import main
from serving.commands import serve_client, waiting
from serving.commands.deployment_record import Running
from serving.commands.manage import connected
from tests import kept, runs
from tests.benchmarks import serving_soak

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    # Ray Serve's, of Pydantic
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
]
ATTEMPTS, WITHIN_S = 3, 2.0
CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")


@dataclass
class Client:
    """Asks all the time; counts what a client without a second try sees,
    and what one with the documented tries does."""

    url: str
    body: bytes
    answers: int = 0
    first_failures: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def once(self) -> None:
        with urllib.request.urlopen(urllib.request.Request(self.url, self.body), timeout=10) as response:
            json.load(response)

    def run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            for attempt in range(ATTEMPTS):
                try:
                    self.once()
                    self.answers += 1
                    break
                except (OSError, ValueError, http.client.HTTPException) as error:  # the last: an answer that breaks off
                    if attempt == 0:
                        self.first_failures.append(repr(error))
                    again = True
                    if isinstance(error, urllib.error.HTTPError):
                        error.close()
                        again = error.code in (500, 502, 503)
                    if not again or attempt == ATTEMPTS - 1 or time.monotonic() - began > WITHIN_S:
                        self.failures.append(repr(error))
                        break
                    time.sleep(min(0.2 * 3**attempt, WITHIN_S - (time.monotonic() - began)))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shutil.copytree(kept.artifact("mlp"), tmp_path_factory.mktemp("run") / "artifact"))


@pytest.fixture
def endpoint(artifact: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[list[Client], runs.Job]]:
    port = free_port()
    served = shutil.copytree(artifact, tmp_path / "artifact")
    command = ["up", "--model", f"digits={served}", "--no-auth", "--port", str(port), "--cpus-per-replica", "0.5",
               *request.param]
    with runs.python("serving", *command, folder=tmp_path, env={"TRAINYARD_HOME": str(tmp_path / "home")}) as job:
        job.until(lambda: "ready: " in job.text, 120)
        pixels = open_artifact(artifact).probe().inputs["image"][:1]
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        yield [Client(f"http://127.0.0.1:{port}/v2/models/digits/infer", body) for _ in range(4)], job


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local.LocalCluster]:
    """A cluster that outlives its endpoints, of one CPU."""
    with runs.cluster(tmp_path / "home", nodes=0, cpus_per_node=1) as made:
        monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        before = auth.current()
        auth.apply(auth.token_environment())
        yield made
        auth.apply(before)


def nothing_is_left(cluster: local.LocalCluster, port: int) -> bool:
    return is_free("127.0.0.1", port) and Running.find(port) is None and not Gcs(cluster.address).has_actor(*CONTROLLER)


def test_what_an_up_began_on_a_cluster_ends_however_the_up_ended(
    artifact: str, cluster: local.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is killed before it is ready, killed afterwards, and gives up for want of room."""
    port = free_port()
    command = ["up", "--no-auth", "--model", f"digits={artifact}", "--port", str(port)]
    with runs.python("serving", *command, "--cpus-per-replica", "0.5", folder=tmp_path) as job:
        job.until(lambda: Gcs(cluster.address).has_actor(*CONTROLLER))
        os.kill(job.process.pid, signal.SIGKILL)  # before it is ready
        job.wait()

    with runs.python("serving", *command, "--cpus-per-replica", "0.5", folder=tmp_path) as job:
        job.until(lambda: "ready: " in job.text)
        assert f"ended the endpoint on port {port} that an `up` which was killed had left" in job.text
        (held,) = read_status(cluster.address).endpoints
        assert held == Served(application="endpoint", replicas=1, cpus=0.5, gpus=0.0)
        assert main(command) == 2
        assert f"an endpoint of yours runs there already (process {job.process.pid})" in capsys.readouterr().err
        assert main([*command[:-1], str(free_port())]) == 2
        assert f"serves already, on port {port}, and has one Serve at most: end that with" in capsys.readouterr().err
        os.kill(job.process.pid, signal.SIGKILL)
        job.wait()
    assert not is_free("127.0.0.1", port), "it goes on without who started it"
    assert main(["down", "--port", str(port)]) == 0
    assert nothing_is_left(cluster, port)

    monkeypatch.setattr(waiting, "NO_ROOM_S", 1.0)
    assert main([*command, "--model", f"more={artifact}", "--cpus-per-replica", "0.6"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"-1 does not start: a replica needs 0\.6 CPU, .* free \(head has 0\.4 of 1 CPU\)", said)
    assert nothing_is_left(cluster, port)


def processes(job: runs.Job, name: str) -> list[psutil.Process]:
    """Those that live."""
    found: list[psutil.Process] = []
    for process in psutil.Process(job.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(victim: psutil.Process) -> None:
    victim.send_signal(signal.SIGKILL)


def run_out_of_memory(victim: psutil.Process) -> None:
    """The kernel kills it for the next memory that it asks for.
    Where this user may not make a cgroup, it is only killed."""
    groups = Path("/sys/fs/cgroup")
    second = (groups / "cgroup.controllers").exists()  # version 2: one tree for all controllers
    group = groups / f"{'' if second else 'memory/'}trainyard-test-{victim.pid}"
    try:
        group.mkdir()
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text("0")
    except OSError:
        kill(victim)
        return
    try:
        (group / "cgroup.procs").write_text(str(victim.pid))
        victim.wait(120)  # it is asked all the time, and asks for memory
        counted = (group / ("memory.events" if second else "memory.oom_control")).read_text()
        assert re.search(r"oom_kill [1-9]", counted), counted
    finally:
        with suppress(OSError):  # of a process that lives on, since this failed
            group.rmdir()


def scale_down(port: int, application: str, deployment: str) -> None:
    """To one replica, as a config that is deployed anew does."""
    record = Running.load(port)
    (app,) = [each for each in record.config["applications"] if each["name"] == application]
    (found,) = app.setdefault("deployments", [{"name": deployment}])
    found["num_replicas"] = 1
    with connected(record):
        serve_client.deploy(record.config)


@pytest.mark.parametrize(("endpoint", "name"), [
    (["--placement", "replicas", "--min-replicas", "2", "--max-replicas", "2"], "digits-1:Model"),
    (["--placement", "ingress", "--min-replicas", "2", "--max-replicas", "2"], "endpoint:Ingress"),
], indirect=["endpoint"])
def test_neither_killed_nor_ended_replicas_are_noticed_by_who_tries_again(
    endpoint: tuple[list[Client], runs.Job], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two is killed, twice, and once by the kernel, for memory; then the deployment is to have one only."""
    clients, job = endpoint
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    try:
        for end in (kill, kill, run_out_of_memory):
            time.sleep(2)
            victims = processes(job, name)
            assert len(victims) == 2
            end(victims[0])
            job.until(lambda gone=victims[0].pid: len([p for p in processes(job, name) if p.pid != gone]) == 2, 60)
        shutil.rmtree(tmp_path / "artifact")  # who serves it has read it; nobody is started any more
        scale_down(int(clients[0].url.split("/")[2].split(":")[1]), *name.split(":"))
        job.until(lambda: len(processes(job, name)) == 1, 60)
        time.sleep(3)
    finally:
        for client in clients:
            client._stop.set()
        for thread in threads:
            thread.join()
    answers, first = (sum(client.answers for client in clients),
                      [each for client in clients for each in client.first_failures])
    print(f"{answers} answers, {len(first)} failures without a second try: {sorted(set(first))}")
    assert answers > 1000
    assert len(first) < 60
    assert [each for client in clients for each in client.failures] == []


def await_answer(client: Client, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.once()
            return
        except urllib.error.HTTPError as error:
            error.close()
            assert error.code == 503
            assert time.monotonic() < deadline, "it recovers within seconds"
            time.sleep(0.1)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: see .ci/debian-packages")
@pytest.mark.parametrize("endpoint", [["--max-queued", "50"]], indirect=True)
def test_more_than_it_can_bear_is_refused_at_once_and_forgotten_at_once(
    endpoint: tuple[list[Client], runs.Job], tmp_path: Path
) -> None:
    """400 connections ask as fast as they can, where 50 may wait."""
    (client, *_), job = endpoint
    (tmp_path / "body").write_bytes(client.body)
    (tmp_path / "post.lua").write_text(f'wrk.method = "POST"\nwrk.body = io.open("{tmp_path}/body", "rb"):read("*a")\n')
    (ingress,) = processes(job, "endpoint:Ingress")
    client.once()
    before = ingress.memory_info().rss
    command = ["wrk", "-t1", "-c400", "-d10s", "--latency", "-s", str(tmp_path / "post.lua"), client.url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    await_answer(client, 30)
    assert ingress.memory_info().rss - before < 100e6
    refused, answered = re.search(r"Non-2xx or 3xx responses: (\d+)", text), re.search(r"(\d+) requests in", text)
    assert refused and answered, text
    assert 0 < int(refused[1]) < int(answered[1]), "some are answered all the same"
    assert processes(job, "endpoint:Ingress") == [ingress]

    proxy, rates = serving_soak.Settings(seconds=20, warm_s=8, every_s=1.0), list[float]()
    while len(rates) < 3 and min(rates, default=5) >= 5:
        _, times, samples = serving_soak.under_load(job, client.url, client.body, proxy, tmp_path)
        rates.append(serving_soak.slope(times, samples["ServeReplica"])[0])
    print(f"{rates} MB a minute of steady load")
    assert min(rates) < 5, "what leaks grows each time, a step of the allocator (as much, in 12 s) does not"
