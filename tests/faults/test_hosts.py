"""Several hosts: trained and served across them, while links are cut, hosts are drained, and the head dies,
with Redis and without.

One cluster serves all, in this order; a head of 1 CPU and two hosts of 2, so that 3 workers never fit on one of them. A
run must equal the local binding's uninterrupted one bit for bit.
"""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.config import parse
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import prepare
from serving.core.api_keys import new_key
from tests import runs
from tests.faults import ray_hosts
from tests.faults import test_transformer_faults as transformer
from tests.faults.conftest import FLAGS, same_result
from tests.faults.hosts import Host
from tests.faults.ray_hosts import Cluster
from tests.faults.test_serving_faults import Client

pytestmark = [
    ray_hosts.needs_hosts(),
    pytest.mark.in_order,
    pytest.mark.timeout(900),
    # Ray Serve's, of Pydantic
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
]
INTERVAL = 8
STEP_MBIT_PER_S = 30
"""So that a step takes some 70 ms, and the run lasts long enough for all that is done to it."""
NOTICED_S = 90
RECOVERED_S = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_hosts.cluster([1, 2, 2]) as made:
        made.await_nodes()
        yield made


def started(cluster: Cluster, folder: Path, on: Host, *flags: str) -> AbstractContextManager[runs.Job]:
    return runs.run(folder, *FLAGS, *flags, engine="ray", env=cluster.environment(), on=on.command())


def places(cluster: Cluster, job: runs.Job) -> dict[int, Host]:
    """Rank -> the host on which it is, or was last."""
    newest = sorted((job.folder / "logs/workers").glob("*.json"))[-1]
    return {int(rank): cluster.host_of(worker["node"]) for rank, worker in json.loads(newest.read_text()).items()}


def trained_by(job: runs.Job) -> int:
    """How many groups of workers, up to now."""
    return job.text.count("training on 3 workers")


@contextmanager
def standing_still(cluster: Cluster, job: runs.Job) -> Iterator[None]:
    """A worker is stopped, so that no step is taken, in the block; the run is told to bear that for two minutes."""
    host, pid = places(cluster, job)[0], str(job.workers()[0])
    host.run("kill", "-STOP", pid)
    yield
    host.run("kill", "-CONT", pid)


def test_text_is_prepared_by_all_hosts_though_one_dies_and_trained_on_by_them(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(12):
        lines = (json.dumps({"text": f"{number} {i} " + "all of a sudden " * 50}) for i in range(1100))
        (tmp_path / f"in/{number}.jsonl").write_text("\n".join(lines))
    flags = ["--task", "generate", "--data.uri", str(tmp_path / "in"), "--data.piece-mb", "1", "--data.tokenizer",
             "bpe", "--data.vocab-size", "300", "--data.max-length", "64", "--model.layers", "1", "--model.width", "16",
             "--model.heads", "1", "--train.max-steps", "2", "--train.global-batch-size", "6", "--eval.batch-size",
             "4096"]
    config = parse(TransformerConfig, flags, "test")
    here = prepare(config, Store.open(str(tmp_path / "here")), use_ray=False)
    with runs.run(tmp_path / "run", *flags, "--run.workers", "3", job="transformer", engine="ray", quick=False,
                  env=cluster.environment(), on=cluster.head.command()) as job:
        job.until(lambda: len(list(tmp_path.glob("data/*/blocks-*/done/*.json"))) > 3)
        cluster.net.kill(cluster.workers[0])
        assert "pieces on" not in job.text, "it is at work"
        job.finished(300)
    assert "12 pieces on 3 hosts" in job.text
    assert json.loads((job.folder / "run.json").read_text())["data"]["fingerprint"] == here.fingerprint
    cluster.replace(cluster.workers[0])
    cluster.await_nodes()


def test_cut_links_a_drained_host_and_a_head_that_dies_change_nothing_of_the_result(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for host in cluster.workers:
        cluster.net.limit(host, STEP_MBIT_PER_S)
    patient = ["--run.max-failures", "-1", "--run.hang-timeout-s", "120", "--run.wait", "120"]
    with started(cluster, folder, cluster.head, *patient) as job:
        job.until_past_a_checkpoint(20)
        before = places(cluster, job)
        assert len(set(before.values())) > 1, "it trains across hosts"
        rank, cut = next((rank, host) for rank, host in before.items() if host is not cluster.head)
        other = next(host for host in cluster.workers if host is not cut)
        groups = trained_by(job)
        cluster.net.cut(cut)
        began = time.monotonic()
        job.until(lambda: f"{rank} on {cut.ip}" in job.text, NOTICED_S)
        job.until(lambda: cut.ip not in {node.ip for node in cluster.nodes()}, NOTICED_S)
        noticed_s = time.monotonic() - began
        job.until(lambda: trained_by(job) >= groups + 1, RECOVERED_S)
        print(f"noticed after {noticed_s:.1f} s, trained on after {time.monotonic() - began:.1f} s")
        assert cut not in places(cluster, job).values()
        job.until_past_a_checkpoint(job.step() + INTERVAL)
        cluster.net.cut(other)
        job.until(lambda: "waiting up to 120 s for room for 3 workers" in job.text, RECOVERED_S)
        cluster.net.mend(cut)
        cluster.net.mend(other)
        print(f"back {cluster.await_nodes():.1f} s after their links")
        job.until(lambda: trained_by(job) >= groups + 2, RECOVERED_S)
        leaving = next(host for host in places(cluster, job).values() if host is not cluster.head)
        staying = next(host for host in cluster.workers if host is not leaving)
        with standing_still(cluster, job):
            since = time.time()
            job.until(lambda: (folder / "progress.json").stat().st_mtime > since, 30)  # it is written every few seconds
            lost = runs.progress(folder)["lost_steps"]  # by the cuts
            cluster.drain(leaving)
        job.until(lambda: trained_by(job) >= groups + 3, RECOVERED_S)
        assert set(places(cluster, job).values()) == {cluster.head, staying}, "hosts that were cut off are used again"
        assert runs.progress(folder)["lost_steps"] == lost, "who leaves a drained host has lost no step"
        job.until_past_a_checkpoint(job.step() + INTERVAL)
        cluster.net.kill(cluster.head)
        job.process.wait(60)
    cluster.replace(cluster.head)
    cluster.replace(leaving)  # `ray start --block` goes on where its raylet has ended after a drain
    print(f"all hosts are back {cluster.await_nodes():.1f} s after a head without Redis")
    with started(cluster, folder, cluster.head) as again:
        result = again.finished(RECOVERED_S)
        assert "continuing at step" in again.text
    assert result["lost_steps"] <= 4 * INTERVAL
    same_result(folder, reference)


@pytest.fixture
def redis(cluster: Cluster) -> None:
    """From now on the control store keeps its state in Redis, and the head has no CPUs, as on a real cluster."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server: see .ci/debian-packages")
    cluster.start_redis()
    cluster.cpus[0] = 0
    cluster.replace(cluster.head)
    cluster.await_nodes()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformer.written_text(tmp_path_factory.mktemp("text"))


@dataclass
class KeyedClient(Client):
    """Asks with a key, some fifty times a second, so that cores are left for the rest."""

    key: str = ""

    def once(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with urllib.request.urlopen(urllib.request.Request(self.url, self.body, headers), timeout=10) as response:
            json.load(response)
        time.sleep(0.02)


@contextmanager
def served(cluster: Cluster, artifact: Path, folder: Path) -> Iterator[list[KeyedClient]]:
    """A replica on each of the two hosts, and for each a client that asks all the time."""
    key, line = new_key("test")
    (folder / "keys").write_text(line + "\n")
    command = ["up", "--model", f"digits={artifact}", "--host", "0.0.0.0", "--keys", str(folder / "keys"),
               "--placement", "ingress",
               "--min-replicas", "2", "--max-replicas", "2", "--access-log", "/dev/shm/access"]  # each host's own
    with runs.python("serving", *command, folder=folder, env=cluster.environment(),
                     on=cluster.workers[0].command()) as job:
        job.until(lambda: "ready: " in job.text, RECOVERED_S)
        pixels = open_artifact(str(artifact)).probe().inputs["image"][:1]
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        for host in cluster.workers:
            # its HAProxy has checked the replicas
            job.until(lambda host=host: healthy(f"http://{host.ip}:8000/-/healthz"), 30)
        yield [KeyedClient(f"http://{host.ip}:8000/v2/models/digits/infer", body, key=key) for host in cluster.workers]


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def asking(clients: Sequence[Client]) -> Iterator[None]:
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for client in clients:
            client._stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.usefixtures("redis")
def test_with_redis_a_dead_head_comes_back_and_meanwhile_endpoints_answer_and_a_run_goes_on(
    cluster: Cluster, reference: Path, text: Path, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    flags = [*transformer.flags_of("zero3", text, 2), "--train.epochs", "6", "--run.max-failures", "-1"]
    with runs.run(whole, *flags, quick=False, job="transformer") as job:
        job.finished()
    driver = cluster.workers[1].command()
    with served(cluster, reference / "artifact", tmp_path) as clients, asking(clients), \
            runs.run(folder, *flags, quick=False, job="transformer", engine="ray", env=cluster.environment(),
                     on=driver) as job:
        job.until_step(20)
        assert set(places(cluster, job).values()) == set(cluster.workers)
        before = [client.answers for client in clients]
        cluster.net.kill(cluster.head)
        killed = time.monotonic()
        time.sleep(3)  # there is no head now
        while_away = [client.answers for client in clients]
        cluster.replace(cluster.head)
        cluster.await_nodes()
        print(f"the head is back after {time.monotonic() - killed:.1f} s")
        result = job.finished(RECOVERED_S)
    answers = [client.answers for client in clients]
    first = [each for client in clients for each in client.first_failures]
    print(f"{sum(answers)} answers, {len(first)} failures without a second try: {sorted(set(first))}; "
          f"{result['events']}")
    assert all(b < w < a for b, w, a in zip(before, while_away, answers, strict=True)), "each host answers throughout"
    assert [each for client in clients for each in client.failures] == []
    assert len(first) < 20
    for host in cluster.workers:
        assert int(host.run("wc", "-l", "/dev/shm/access").split()[0]) > 100, "a replica on each host has answered"
    transformer.same(folder, whole)
