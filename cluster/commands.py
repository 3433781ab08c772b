"""The commands of `python -m cluster`. Each returns its exit code and raises TrainyardError for what the user can mend."""

import argparse
import ipaddress
import os
import shlex
import time

from rich.console import Console

from cluster import local
from cluster.auth import token_file
from cluster.connect import authenticate_for, control_store, probe
from cluster.errors import ClusterError
from cluster.signals import exit_when_told
from cluster.status import read_status, show

_SUBMIT = "ray job submit --working-dir . -- python -m jobs.mlp"


def up(options: argparse.Namespace) -> int:
    exit_when_told()
    began = time.monotonic()
    cluster = local.up(nodes=options.nodes, cpus_per_node=options.cpus_per_node, dashboard_host=options.dashboard_host,
                       port=options.port, dashboard_port=options.dashboard_port)
    cpus = sum(node.num_cpus for node in cluster.nodes)
    print(f"cluster up in {time.monotonic() - began:.1f} s: {len(cluster.nodes)} node(s), {cpus} CPUs, at {cluster.address}")
    print(f"dashboard: {cluster.dashboard_url} (it asks for the token in {token_file()})")
    if not _is_loopback(options.dashboard_host):
        print(f"warning: {options.dashboard_host} may be reached from the network, guarded by the token only, without TLS")
    print("\nto use it, in a shell:\n")
    print('  eval "$(python -m cluster env)"')
    print(f"  {_SUBMIT}\n\nwhich sets:\n")
    print("\n".join(f"  {line}" for line in exports(cluster)))
    return 0


def env(options: argparse.Namespace) -> int:
    print("\n".join(exports(_local_cluster())))
    return 0


def status(options: argparse.Namespace) -> int:
    """0: all is well; 1: there are problems."""
    wanted = options.address or os.environ.get("RAY_ADDRESS")
    cluster = local.current()
    if wanted in (None, "local"):
        wanted = _local_cluster().address
    address = control_store(wanted)
    with authenticate_for(address):
        probe(address)
        found = read_status(address, cluster if cluster is not None and cluster.address == address else None)
    show(found, Console())
    return 1 if found.problems else 0


def down(options: argparse.Namespace) -> int:
    ended = local.down()
    print(f"cluster down: {ended} processes ended" if ended else "there is no local cluster to end")
    return 0


def _local_cluster() -> local.LocalCluster:
    cluster = local.current()
    if cluster is None:
        raise ClusterError("there is no local cluster, and RAY_ADDRESS is not set: start one with `python -m cluster up`, or give "
                           "--address")
    if not cluster.nodes:
        raise ClusterError(local.CUT_OFF)
    return cluster


def exports(cluster: local.LocalCluster) -> list[str]:
    """RAY_AUTH_TOKEN is unset because Ray takes it before any file."""
    return [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment().items()] + ["unset RAY_AUTH_TOKEN"]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
