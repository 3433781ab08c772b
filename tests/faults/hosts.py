"""Several hosts on one machine, made of Linux namespaces and joined by a bridge.

    with hosts.network(3) as net:
        net.hosts[1].run("ping", "-c1", net.hosts[0].ip)
        net.cut(net.hosts[1])

A host has network, process numbers, host name and shared memory of its own; files are this machine's. Its first process
is a child of this one: the kernel ends it with this one, and with it all that runs there and its interfaces, so nothing
is left however a test ends. A link can be cut, given a bandwidth (tc tbf),
and a delay and losses (tests/faults/wire.py).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_TEST_NETWORK = "198.18"
"""Set aside for tests of networks (RFC 2544)."""
_ISOLATED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork",
             "--kill-child",
             "--mount-proc")
_FIRST_PROCESS = """
hostname "$1"
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
trap '' CHLD
echo up
exec sleep infinity
"""
"""With SIGCHLD ignored, the kernel reaps the host's orphans."""


@cache
def why_not() -> str:
    """Why there can be no hosts here; empty if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are Linux namespaces, which root alone can make"
    if missing := [name for name in ("ip", "tc", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]:
        return f"hosts need {', '.join(missing)}: see .ci/debian-packages"
    probe = ("ip link add near type veth peer name far && ip link add middle type bridge && "
             "tc qdisc add dev near root tbf rate 100mbit burst 64kb latency 50ms")
    tried = subprocess.run([*_ISOLATED, "sh", "-c", probe], capture_output=True, text=True, check=False)
    return f"this system does not let hosts be made: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One of them, while it is switched on and after."""

    def __init__(self, name: str, ip: str, folder: Path) -> None:
        self.name, self.ip = name, ip
        self.pid = 0
        """Of its first process, in this machine's count."""
        self.log = folder / f"{name}.log"
        """What was started there has written."""
        self._etc_hosts = folder / f"{name}.hosts"
        # as Debian has it: its name is no way to reach it
        self._etc_hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        self._keeper: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def switch_on(self) -> None:
        self._keeper = subprocess.Popen([*_ISOLATED, "sh", "-ec", _FIRST_PROCESS, "sh", self.name,
                                         str(self._etc_hosts)],
                                        text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        assert self._keeper.stdout is not None
        if (said := self._keeper.stdout.readline()) != "up\n":
            raise AssertionError(f"{self.name} does not start: {said}{self._keeper.communicate()[0]}")
        self.pid = psutil.Process(self._keeper.pid).children()[0].pid

    def kill(self) -> None:
        """All its processes end at once, without a word to anybody, and its interface is gone."""
        if self._keeper is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._keeper.wait()
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()
        for process in self._started:
            process.wait()
        self._keeper, self._started = None, []

    def command(self, *arguments: str) -> list[str]:
        """What runs there when it is run here."""
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--ipc", "--mount", "--pid", f"--wd={ROOT}",
                *arguments]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> str:
        """Standard output. Raises: AssertionError with all that it wrote, if it fails."""
        done = subprocess.run(self.command(*arguments), env=env, capture_output=True, text=True, timeout=timeout_s,
                              check=False)
        assert done.returncode == 0, f"{arguments} on {self.name}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, script: str) -> str:
        return self.run("sh", "-ec", script)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Runs until it ends, or the host does."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(self.command(*arguments), env=env, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log)
        self._started.append(process)
        return process


class Network:
    """The hosts, and the switch that joins them, which is a host too. This machine is on the network at `ip`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, subnet = folder, f"{_TEST_NETWORK}.{os.getpid() % 256}"
        self.ip, self._here = f"{subnet}.254", f"ty{os.getpid()}"
        self.switch = Host("switch", f"{subnet}.253", folder)
        self.hosts = [Host(f"host-{n}", f"{subnet}.{n + 1}", folder) for n in range(number)]
        self._wires: dict[str, subprocess.Popen[bytes]] = {}

    def switch_on(self) -> None:
        self.switch.switch_on()
        self.switch.shell(f"ip link add bridge type bridge; ip address add {self.switch.ip}/24 dev bridge; ip link set "
                          "bridge up")
        self._connect("outside", self._here, os.getpid())
        for command in (["address", "add", f"{self.ip}/24", "dev", self._here], ["link", "set", self._here, "up"]):
            subprocess.run(["ip", *command], check=True)
        for host in self.hosts:
            self.boot(host)

    def boot(self, host: Host) -> None:
        """Switches a host on, at its address."""
        host.switch_on()
        self._connect(host.name, "eth0", host.pid)
        card = f"02:00:00:00:00:{int(host.ip.rpartition('.')[2]):02x}"  # the same as before: the others still know it
        host.shell(f"ip link set eth0 address {card}; ip address add {host.ip}/24 dev eth0; ip link set eth0 up")

    def kill(self, host: Host) -> None:
        """Switches a host off. Its cable goes with it: by itself, only some time later."""
        self.straighten(host)
        host.kill()
        self.switch.shell(f"ip link delete {host.name} 2>/dev/null || true")

    def cut(self, host: Host) -> None:
        """Nothing gets through its link any more, and nobody is told."""
        self.switch.run("ip", "link", "set", host.name, "down")

    def mend(self, host: Host) -> None:
        self.switch.run("ip", "link", "set", host.name, "up")

    def limit(self, host: Host, mbit_per_s: float) -> None:
        """The bandwidth of its link, each way."""
        bucket = ["root", "tbf", "rate", f"{mbit_per_s:g}mbit", "burst", "64kb", "latency", "50ms"]
        self.switch.run("tc", "qdisc", "replace", "dev", host.name, *bucket)
        host.run("tc", "qdisc", "replace", "dev", "eth0", *bucket)

    def delay(self, host: Host, seconds: float, loss: float = 0.0) -> None:
        """What the host sends arrives so much later, or with a probability not at all;
        what is sent to it is not delayed."""
        self.straighten(host)
        near, far = host.name, f"{host.name}-w"
        self.switch.shell(f"ip link add {far} type veth peer name {far}b; ip link set {near} nomaster; "
                          f"ip link set {far}b master bridge; ip link set {far}b up; ip link set {far} up")
        self._wires[host.name] = self.switch.start(sys.executable, str(Path(__file__).with_name("wire.py")), near, far,
                                                   str(seconds), str(loss))

    def straighten(self, host: Host) -> None:
        """Without delay and losses."""
        if (wire := self._wires.pop(host.name, None)) is not None:
            for process in psutil.Process(wire.pid).children():
                process.kill()
            wire.wait()
            self.switch.shell(f"ip link delete {host.name}-w; ip link set {host.name} master bridge")

    def switch_off(self) -> None:
        subprocess.run(["ip", "link", "delete", self._here], stderr=subprocess.DEVNULL, check=False)
        for host in (*self.hosts, self.switch):
            host.kill()

    def _connect(self, port: str, interface: str, pid: int) -> None:
        """A cable from a port of the switch to where a process is."""
        subprocess.run(["ip", "link", "add", "name", port, "netns", str(self.switch.pid), "type", "veth", "peer",
                        "name",
                        interface, "netns", str(pid)], check=True)
        self.switch.shell(f"ip link set {port} master bridge; ip link set {port} up")


@contextmanager
def network(number: int) -> Iterator[Network]:
    """So many hosts, switched on; all of it is gone after the block. One at a time in a process."""
    _sweep()
    # short: a socket's path, below it, may have 107 characters, and HAProxy's 97
    folder = Path(f"/tmp/ty{os.getpid()}")
    folder.mkdir(mode=0o700)
    net = Network(folder, number)
    try:
        net.switch_on()
        yield net
    finally:
        net.switch_off()
        shutil.rmtree(folder)


def _sweep() -> None:
    """Removes the files of processes that were killed; the rest of theirs ended with them."""
    for folder in Path("/tmp").glob("ty[0-9]*"):
        pid = folder.name.removeprefix("ty")
        if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)
