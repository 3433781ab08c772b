"""The hosts that other tests use do what is said of them: tests/faults/hosts.py, wire.py."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults import hosts
from tests.faults.hosts import ROOT, Host, Network

pytestmark = pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not())

ECHO = """
import socket, threading
def answer(link):
    while data := link.recv(1 << 16):
        if data.endswith(b"?"):
            link.sendall(b"!")
server = socket.create_server(("0.0.0.0", 7000))
while True:
    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
"""
ASK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 7000), timeout=2) as link:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size in (1, 1, int(sys.argv[2])):
        began = time.perf_counter()
        link.sendall(b"." * (size - 1) + b"?")
        link.recv(1)
        took = time.perf_counter() - began
        print(took)
"""


@pytest.fixture
def net() -> Iterator[Network]:
    with hosts.network(3) as made:
        made.hosts[1].start(sys.executable, "-c", ECHO)
        wait_for(made.hosts[1])
        yield made


def wait_for(host: Host) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return socket.create_connection((host.ip, 7000), timeout=1).close()
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"{host.name} does not listen")


def asked(host: Host, other: Host, size: int = 1) -> tuple[float, float]:
    """Seconds of a short question and its answer, and of one of so many bytes."""
    _, short, long = host.run(sys.executable, "-c", ASK, other.ip, str(size)).split()
    return float(short), float(long)


def until_answered(host: Host, other: Host) -> None:
    """Asks until there is an answer: a host that found nobody at an address keeps that in mind for a second or so."""
    deadline = time.monotonic() + 30
    while True:
        try:
            asked(host, other)
            return
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def least(host: Host, other: Host, size: int = 1) -> float:
    """Seconds of a question of so many bytes and its answer, of several times the shortest:
    a busy machine only adds to them."""
    return min(asked(host, other, size)[1] for _ in range(3))


def test_hosts_have_a_name_processes_and_shared_memory_of_their_own(net: Network) -> None:
    here, other = net.hosts[0], net.hosts[2]
    assert here.run("hostname").strip() == "host-0"
    here.shell("echo mine > /dev/shm/file")
    assert other.shell("ls /dev/shm") == ""
    assert len([name for name in here.shell("ls /proc").split() if name.isdigit()]) < 5
    assert "127.0.1.1 host-0" in here.run("cat", "/etc/hosts")


def test_a_link_is_delayed_limited_and_straightened(net: Network) -> None:
    here, other, _ = net.hosts
    assert least(here, other) < 0.01
    net.delay(here, 0.05)
    assert 0.05 <= least(here, other) < 0.09, "one way"
    net.delay(other, 0.05)
    assert 0.1 <= least(here, other) < 0.15
    net.straighten(other)
    net.straighten(here)
    assert least(here, other) < 0.01
    net.limit(here, 40)
    assert 0.35 < least(here, other, 2_000_000) < 0.6, "16 Mbit at 40 a second"


def test_a_host_behind_a_cut_link_or_switched_off_does_not_answer_until_it_is_back(net: Network) -> None:
    here, other, _ = net.hosts
    net.cut(other)
    with pytest.raises(AssertionError, match=r"TimeoutError|No route to host"):
        asked(here, other)
    net.mend(other)
    until_answered(here, other)
    before = other.pid
    net.kill(other)
    assert not psutil.pid_exists(before)
    net.boot(other)
    with pytest.raises(AssertionError, match=r"ConnectionRefusedError|No route to host"):
        asked(here, other)
    other.start(sys.executable, "-c", ECHO)
    wait_for(other)
    until_answered(here, other)


def test_nothing_is_left_of_hosts_whose_maker_is_killed() -> None:
    code = ("import time\nfrom tests.faults import hosts\nwith hosts.network(2) as net:\n"
            "    net.hosts[0].start('sleep', '1000')\n    net.delay(net.hosts[0], 0.01)\n"
            "    print(net.hosts[0].pid, flush=True)\n    time.sleep(60)\n")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        first = int(maker.stdout.readline())
        below = psutil.Process(maker.pid).children(recursive=True)
        assert psutil.pid_exists(first) and len(below) > 6
        os.kill(maker.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    assert f"ty{maker.pid}" not in psutil.net_if_addrs()
    with hosts.network(1):
        assert not Path(f"/tmp/ty{maker.pid}").exists(), "the next one removes its files"
