"""The commands of `python -m cluster`.
Each returns its exit code and raises TrainyardError for what the user can mend."""

import argparse
import contextlib
import ipaddress
import os
import shlex
import time
from collections.abc import Generator

from rich.console import Console

from cluster.connect import authenticate_for, control_store, probe
from cluster.core.auth import token_file
from cluster.core.errors import ClusterError, ConfigError
from cluster.core.signals import exit_when_told
from cluster.local import cluster as local
from cluster.monitoring.status import read_status, show

_SUBMIT = "python -m cluster submit mlp"
_OF_PODS = ("workers", "cpus", "memory", "gpus")
_OF_RAYJOB = ("namespace", "context", "name", "template", "image", *_OF_PODS)


def up(options: argparse.Namespace) -> int:
    exit_when_told()
    began = time.monotonic()
    cluster = local.up(nodes=options.nodes, cpus_per_node=options.cpus_per_node, dashboard_host=options.dashboard_host,
                       port=options.port, dashboard_port=options.dashboard_port,
                       start_timeout_s=options.start_timeout_s)
    cpus = sum(node.num_cpus for node in cluster.nodes)
    print(f"cluster up in {time.monotonic() - began:.1f} s: {len(cluster.nodes)} node(s), {cpus} CPUs, at "
          f"{cluster.address}")
    print(f"dashboard: {cluster.dashboard_url} (it asks for the token in {token_file()})")
    if not _is_loopback(options.dashboard_host):
        print(f"warning: {options.dashboard_host} may be reached from the network, guarded by the token only, without "
              "TLS")
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
    if options.kubernetes is not None:
        return _kube_status(options)
    if options.namespace or options.context:
        raise ConfigError("--namespace and --context are of --kubernetes: pass that too")
    with _reached(options.address) as (address, cluster):
        found = read_status(address, cluster)
    show(found, Console())
    return 1 if found.problems else 0


def _kube_status(options: argparse.Namespace) -> int:
    from cluster.kubernetes.client import Kube
    from cluster.kubernetes.status import read_kube_status, show_kube

    found = read_kube_status(Kube.connect(options.namespace, options.context), options.kubernetes or None)
    show_kube(found, Console())
    return 1 if found.problems else 0


def submit(options: argparse.Namespace) -> int:
    """The job's own exit code; 130 after Ctrl-C, which the job does not notice."""
    if not options.kubernetes:
        if given := [f"--{name}" for name in _OF_RAYJOB if getattr(options, name) is not None]:
            raise ConfigError(f"{', '.join(given)}: of --kubernetes only: pass that too")
        from cluster.submit import submit as carry_out

        return carry_out(options.job, options.flags, address=options.address, submission_id=options.submission_id,
                         wait=not options.no_wait, working_dir=options.working_dir)
    if options.working_dir is not None:
        raise ConfigError("--working-dir is of a Ray cluster: with --kubernetes the code is what --image has, so put "
                          "your folder into an image that is built on it, with PYTHONPATH naming it")
    if options.address or options.submission_id:
        raise ConfigError("--address and --submission-id are of a Ray cluster: with --kubernetes give --context and "
                          "--name")
    if options.template and (given := [f"--{name}" for name in _OF_PODS if getattr(options, name) is not None]):
        raise ConfigError(f"{', '.join(given)}: a --template says that itself: change it there")
    from cluster.kubernetes.client import Kube
    from cluster.kubernetes.rayjob import submit_rayjob

    return submit_rayjob(Kube.connect(options.namespace, options.context), options.job, options.flags,
                         name=options.name,
                         template=options.template, image=options.image, workers=options.workers or 1,
                         cpus=options.cpus or 2,
                         memory=options.memory or "4Gi", gpus=options.gpus or 0, wait=not options.no_wait)


def watch(options: argparse.Namespace) -> int:
    """With --once: 1 if there are alerts. Else until Ctrl-C, then 0."""
    from cluster.monitoring.watch import Watcher
    from cluster.monitoring.watch_view import drawn, keep_showing

    console = Console()
    with _reached(options.address) as (address, cluster):
        watcher = Watcher(address, cluster, options.prometheus)
        if options.once:
            page = watcher.look()
            console.print(drawn(page))
            return 1 if page.alerts else 0
        with contextlib.suppress(KeyboardInterrupt):
            keep_showing(watcher, console, options.every)
    return 0


@contextlib.contextmanager
def _reached(address: str | None) -> Generator[tuple[str, local.LocalCluster | None]]:
    """The control store's address, and the cluster that `up` started, if that is it;
    inside the block with its token."""
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted in (None, "local"):
        wanted = _local_cluster().address
    there, cluster = control_store(wanted), local.current()
    mine = cluster if cluster is not None and cluster.address == there else None
    with authenticate_for(there):
        try:
            probe(there)
        except ClusterError as error:
            if mine is not None and (ended := local.ended_nodes(mine)):
                raise ClusterError("\n".join(ended)) from error
            raise
        yield there, mine


def down(options: argparse.Namespace) -> int:
    there = local.current() is not None
    ended = local.down()
    print(f"cluster down: {ended} processes ended" if there else "there is no local cluster to end")
    return 0


def _local_cluster() -> local.LocalCluster:
    cluster = local.current()
    if cluster is None:
        raise ClusterError("there is no local cluster, and RAY_ADDRESS is not set: start one with `python -m cluster "
                           "up`, or give --address")
    if not cluster.nodes:
        raise ClusterError(local.CUT_OFF)
    return cluster


def exports(cluster: local.LocalCluster) -> list[str]:
    """RAY_AUTH_TOKEN is unset because Ray takes it before any file."""
    return [f"export {name}={shlex.quote(value)}"
            for name, value in cluster.environment().items()] + ["unset RAY_AUTH_TOKEN"]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
