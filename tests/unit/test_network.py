"""cluster/core/network.py: collectives run over the interface that carries the node's address,
whatever the host name says."""

import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests

from cluster.core.network import (
    collective_interface_kept,
    free_port,
    interface_of,
    is_free,
    set_collective_interface,
    spare_loopback,
)


def card(*addresses: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(family=socket.AF_INET6 if ":" in a else socket.AF_INET, address=a) for a in addresses]


SEVERAL = {
    "lo": card("127.0.0.1", "::1"),
    "eth0": [SimpleNamespace(family=psutil.AF_LINK, address="02:42:ac:11:00:02"), *card("172.17.0.2")],
    "eth1": card("10.0.0.5", "fe80::1%eth1"),
    "docker0": card("172.18.0.1"),
    "ib0": card("10.1.0.5", "fd00::5"),
}


@pytest.fixture(autouse=True)
def no_choice_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "x")  # so that what a test sets is removed after it
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("address", "interface"), [
    ("10.0.0.5", "eth1"), ("10.1.0.5", "ib0"), ("172.17.0.2", "eth0"), ("fd00::5", "ib0"), ("fd00:0:0::5", "ib0"),
    ("fe80::1", "eth1"), ("127.0.0.1", "lo"), ("127.0.1.1", "lo"), ("192.168.9.9", None),
])
def test_the_interface_is_the_one_with_the_node_address(address: str, interface: str | None) -> None:
    assert interface_of(address, SEVERAL) == interface


def test_loopback_is_not_taken_where_the_host_name_resolves_to_it() -> None:
    resolved = socket.gethostbyname("localhost")
    assert interface_of(resolved, SEVERAL) == "lo"
    assert set_collective_interface("10.1.0.5", SEVERAL) == "ib0"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=ib0", "NCCL takes a name for a prefix"


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    set_collective_interface("10.0.0.5", SEVERAL)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth1", "ib0")


def test_a_worker_in_this_process_leaves_no_choice_to_those_that_it_starts_later(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    with collective_interface_kept():
        set_collective_interface("127.0.0.1", SEVERAL)
    assert ("GLOO_SOCKET_IFNAME" in os.environ, os.environ["NCCL_SOCKET_IFNAME"]) == (False, "ib0")


def test_an_address_of_no_interface_sets_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert set_collective_interface("192.168.9.9", SEVERAL) is None
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert "192.168.9.9" in caplog.text


def test_this_machines_loopback_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_a_second_real_interface_is_found() -> None:
    name, address = f"ty{os.getpid() % 100000}", "198.18.77.5"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making a network interface needs root and iproute2")
    kinds = (["dummy"], ["veth", "peer", "name", f"{name}p"])
    made = [subprocess.run(["ip", "link", "add", name, "type", *kind], capture_output=True, check=False)
            for kind in kinds]
    if all(done.returncode for done in made):
        pytest.skip(f"this machine makes no network interfaces: {made[-1].stderr.decode().strip()}")
    try:
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        assert set_collective_interface(address) == name
        assert os.environ["GLOO_SOCKET_IFNAME"] == name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port("127.0.0.1")
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert port < outgoing, "an outgoing connection may take it before it is listened on"
    assert is_free("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free("127.0.0.1", port)
        assert free_port("127.0.0.1") != port


# ── proxies ──
@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What listens on loopback, in a shell without proxies; what a test sets is removed after it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy"):
        for each in (name, name.upper()):
            monkeypatch.setenv(each, "x")
            monkeypatch.delenv(each)
    monkeypatch.chdir(tmp_path)
    with HTTPServer(("127.0.0.1", 0),
                    type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("proxy", ["http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("spared", [None, "no_proxy", "NO_PROXY"])
def test_no_proxy_is_asked_for_what_listens_on_loopback(
    proxy: str, spared: str | None, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    if spared:
        monkeypatch.setenv(spared, "10.0.0.0/8, example.org")
    with pytest.raises(requests.ConnectionError):
        requests.get(served, timeout=5)
    kept = "10.0.0.0/8,example.org," if spared else ""
    assert spare_loopback() == dict.fromkeys(("no_proxy", "NO_PROXY"), f"{kept}localhost,127.0.0.1,::1")
    assert spare_loopback()["no_proxy"] == os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert requests.get(served, timeout=5).status_code == 200
    urllib.request.urlopen(served, timeout=5).close()


@pytest.mark.parametrize("settings", [{}, {"no_proxy": "x"}, {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "*"}])
def test_where_nothing_is_to_be_spared_nothing_is_set(
    settings: dict[str, str], served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert spare_loopback() == {}
    assert dict(os.environ) == before
