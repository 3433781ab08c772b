"""Which network interface collectives use, free ports, and what no proxy is asked for.

gloo takes 127.0.0.1 where a machine's host name resolves to loopback (common in containers), and picks one of several
interfaces by itself; workers elsewhere then never meet. So each worker names the interface that carries the address by
which Ray knows its node.
"""

import ipaddress
import logging
import os
import random
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

logger = logging.getLogger(__name__)

LARGEST_PORT = 65535
_LISTENING_PORTS = range(20000, 30000)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_INTERFACE = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_ADDRESS_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def spare_loopback() -> dict[str, str]:
    """Keeps this process, and those that it starts, from asking a proxy for what listens on loopback: the dashboard,
    endpoints, an MLflow server here. Call it at the start of a command.
    Returns what is set: nothing where no proxy is, or all are spared.

    Python's clients, curl and gRPC take the small name before the capital one, or know only one of them.
    """
    if not any(os.environ.get(name) for proxy in _PROXIES for name in (proxy, proxy.upper())):
        return {}
    spared = [name.strip() for name in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
              if name.strip()]
    if "*" in spared:
        return {}
    both = ",".join([*spared, *(name for name in _LOOPBACK if name not in spared)])
    found = {"no_proxy": both, "NO_PROXY": both}
    os.environ.update(found)
    return found


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]] | None = None) -> str | None:
    """The name of the network interface that carries an IP address (`lo` for any loopback one); None if none does.

    interfaces: what `psutil.net_if_addrs()` returns, which is the default.
    """
    wanted = ipaddress.ip_address(_without_zone(address))
    for name, addresses in (psutil.net_if_addrs() if interfaces is None else interfaces).items():
        found = [ipaddress.ip_address(_without_zone(a.address)) for a in addresses if a.family in _ADDRESS_FAMILIES]
        if wanted in found or (wanted.is_loopback and any(address.is_loopback for address in found)):
            return name
    return None


def set_collective_interface(node_ip: str, interfaces: Mapping[str, Sequence[Any]] | None = None) -> str | None:
    """Points gloo and NCCL at the interface that carries node_ip, where the user has not chosen one.

    Call it in each worker, with its node's Ray address, before a process group is made. Returns the interface; None if
    no interface has the address (a node behind address translation): the libraries then choose, and the log says so.
    """
    interface = interface_of(node_ip, interfaces)
    if interface is None:
        logger.warning("no network interface has %s, the address of this node: gloo and NCCL choose one by themselves; "
                       "if workers do not meet, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME", node_ip)
        return None
    gloo, nccl = _INTERFACE
    os.environ.setdefault(gloo, interface)
    os.environ.setdefault(nccl, f"={interface}")  # without the =, eth1 would mean eth10 too
    return interface


@contextmanager
def collective_interface_kept() -> Generator[None]:
    """After the block there is the choice of before it,
    which workers of a cluster that this process starts later inherit."""
    before = {name: os.environ.get(name) for name in _INTERFACE}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of a local address that nobody listens on now; another process may still take it before you do.

    Below the range from which systems take ports for outgoing connections:
    one of these would often be taken in between.
    """
    for port in random.sample(_LISTENING_PORTS, 100):
        if is_free(host, port):
            return port
    raise OSError(f"100 ports of {host} from {_LISTENING_PORTS.start} on were tried and none can be listened on")


def is_free(host: str, port: int) -> bool:
    """Whether a TCP port of a local address can be listened on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def why_not_local(host: str) -> str | None:
    """None if this machine can listen at a host (a name or an address), else why not."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _without_zone(address: str) -> str:
    return address.split("%", 1)[0]
