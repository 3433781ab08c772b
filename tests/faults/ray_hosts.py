"""A Ray cluster on the hosts of tests/faults/hosts.py: `ray start` on each, as an administrator, or KubeRay, starts it.

A node that has ended is started again, as kubelet or systemd would. The control store keeps its state in a Redis on the
switch, where one is asked for.
Its password is on the head's command lines: Ray 2.60 takes it, and hands it on, in no other way.
"""

import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cluster.core import auth
from cluster.core.auth import write_private
from cluster.core.control_store import Gcs, Node, reachable
from cluster.core.errors import ClusterError
from cluster.core.ray_settings import RAY_SETTINGS
from serving.commands.deploy_config import SERVE_SETTINGS
from serving.hardening.serve_patches import haproxy_settings
from tests.faults import hosts
from tests.faults.hosts import ROOT, Host, Network

T = TypeVar("T")
RAY = str(Path(sys.executable).with_name("ray"))
_AGAIN_AND_AGAIN = 'while :; do "$@" || true; echo "ended"; sleep 0.5; done'
_STORE_BYTES = 100 << 20


class Cluster:
    """hosts[0] is the head."""

    def __init__(self, net: Network, cpus: Sequence[int]) -> None:
        self.net, self.cpus, self.redis = net, list(cpus), False
        self.head, *self.workers = net.hosts
        self.address = f"{self.head.ip}:6379"
        self._password = secrets.token_hex(16)
        token = net.folder / "token"
        write_private(token, secrets.token_hex(32))
        self.authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}

    def environment(self) -> dict[str, str]:
        """Of whoever uses it."""
        return {**self.authentication, "RAY_ADDRESS": self.address,
                "RAY_API_SERVER_ADDRESS": f"http://{self.head.ip}:8265",
                "TRAINYARD_HOME": str(self.net.folder / "home"), "PYTHONPATH": str(ROOT)}

    def start(self) -> None:
        """The head first: a node that comes before it ends, and is started once more."""
        self.start_ray(self.head)
        self.await_nodes(1)
        for host in self.workers:
            self.start_ray(host)

    def start_ray(self, host: Host) -> None:
        """Ray's node on a host, from now on."""
        place = self.net.folder / host.name
        serve = place / "s"
        serve.mkdir(parents=True, exist_ok=True)
        number = self.net.hosts.index(host)
        which = (["--address", self.address] if number else
                 ["--head", "--port", "6379", "--dashboard-host", host.ip, "--disable-usage-stats",
                  *(["--redis-password", self._password] if self.redis else [])])
        command = [RAY, "start", "--block", *which, "--node-ip-address", host.ip, "--node-name", host.name,
                   "--num-cpus",
                   str(self.cpus[number]), "--num-gpus", "0", "--temp-dir", str(place), "--object-store-memory",
                   str(_STORE_BYTES)]
        host.start("sh", "-c", _AGAIN_AND_AGAIN, "sh", *command, env=self._node_environment(serve))

    def _node_environment(self, serve: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "NCCL_"))}
        redis = {"RAY_REDIS_ADDRESS": f"{self.net.switch.ip}:6379"} if self.redis else {}
        return {**kept, **self.environment(), **RAY_SETTINGS, **SERVE_SETTINGS, **haproxy_settings(serve), **redis,
                "RAY_gcs_rpc_server_reconnect_timeout_s": "120", "RAY_SERVE_DEFAULT_HTTP_HOST": "0.0.0.0",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start_redis(self) -> None:
        """Heads that are started from now on keep their state there."""
        program = shutil.which("redis-server")
        assert program is not None
        config = self.net.folder / "redis.conf"
        write_private(config, f"bind {self.net.switch.ip}\nport 6379\nrequirepass {self._password}\ndir "
                              f"{self.net.folder}\nappendonly yes\nsave \"\"\n")
        self.net.switch.start(program, str(config))
        within(10, lambda: reachable(f"{self.net.switch.ip}:6379") is None)
        self.redis = True

    def replace(self, host: Host) -> None:
        """Another machine in its place, at its address."""
        self.net.kill(host)
        self.net.boot(host)
        self.start_ray(host)

    def nodes(self) -> list[Node]:
        """Those alive; none while the control store does not answer."""
        try:
            return [node for node in Gcs(self.address, timeout_s=2).nodes() if node.alive] if self._listens() else []
        except ClusterError:
            return []

    def _listens(self) -> bool:
        return reachable(self.address, timeout_s=1) is None

    def await_nodes(self, number: int | None = None, timeout_s: float = 180) -> float:
        """Seconds until so many nodes, by default all, are there."""
        wanted = len(self.net.hosts) if number is None else number
        began = time.monotonic()
        within(timeout_s, lambda: len(self.nodes()) >= wanted and any(node.is_head for node in self.nodes()),
               lambda: "\n".join(f"{host.name}:\n{host.log.read_text()[-2000:]}" for host in self.net.hosts))
        return time.monotonic() - began

    def host_of(self, node_id: str) -> Host:
        (ip,) = {node.ip for node in Gcs(self.address).nodes() if node.node_id == node_id}
        return next(host for host in self.net.hosts if host.ip == ip)

    def drain(self, host: Host) -> None:
        """Tells Ray that a host is about to be taken away."""
        (node,) = [node for node in self.nodes() if node.ip == host.ip]
        self.head.run(RAY, "drain-node", "--address", self.address, "--node-id", node.node_id, "--reason",
                      "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test", "--deadline-remaining-seconds",
                      "600",
                      env={**os.environ, **self.environment()})


@contextmanager
def cluster(cpus: Sequence[int]) -> Iterator[Cluster]:
    """Hosts with so many CPUs each, the head first, and Ray on them."""
    with hosts.network(len(cpus)) as net:
        made = Cluster(net, cpus)
        before = auth.current()
        auth.apply(made.authentication)
        try:
            made.start()
            yield made
        finally:
            auth.apply(before)


def within(seconds: float, condition: Callable[[], T], why: Callable[[], str] = lambda: "") -> T:
    """What the condition gives when it holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s {why()}"
        time.sleep(0.1)
    return found


def needs_hosts() -> Any:
    return pytest.mark.skipif(bool(why := hosts.why_not()), reason=why)
