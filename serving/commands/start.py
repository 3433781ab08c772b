"""What `python -m serving` does."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import ipaddress
import os
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import yaml

from cluster.core.documents import JsonObject
from cluster.core.errors import ClusterError, ConfigError
from cluster.core.signals import Told, on_stop_signal
from cluster.core.storage import Store
from serving.commands.deployment_record import START_TIMEOUT_S, Running
from serving.core import api_keys as keys
from serving.core.settings import EndpointSettings, ModelSettings, SharedSettings
from serving.endpoint import cross_origin as browsers
from serving.hardening import haproxy, tls


def key(options: argparse.Namespace) -> int:
    made, line = keys.new_key(options.name)
    print(f"key:   {made}\nline:  {line}\nThe key is not kept anywhere; the line goes into the --keys file, or "
          f"{keys.VARIABLE}.")
    return 0


def config(options: argparse.Namespace) -> int:
    made = _config(options)
    if files := tls.wanted(options.tls_cert, options.tls_key):
        print(f"# TLS: each node's processes need RAY_SERVE_HAPROXY_BINARY_PATH (serving/hardening/haproxy.py there), "
              f"{haproxy.CERT}={files[0]} and {haproxy.KEY}={files[1]}")
    if options.engine == "vllm":
        from serving.text import vllm

        print(vllm.NOTES, end="")
    print(yaml.safe_dump(made, sort_keys=False), end="")
    return 0


def up(options: argparse.Namespace) -> int:
    if files := tls.wanted(options.tls_cert, options.tls_key):
        tls.check(*files)
    made = _config(options)
    with tempfile.TemporaryDirectory(prefix="ty-", dir="/tmp") as folder, _environment(Path(folder), options):
        _end_left(options.port)
        _check_port(options.host, options.port, "--port")
        if options.grpc_port is not None:
            _check_port(options.host, options.grpc_port, "--grpc-port")
        return _serve(options, made)


def _end_left(port: int) -> None:
    """Ends what an `up` that was killed has left at this port. Raises: ClusterError if one is at work there."""
    from serving.commands.manage import end_left

    if (record := Running.find(port)) is None:
        return
    if (process := record.process()) is not None:
        raise ClusterError(f"--port {port}: an endpoint of yours runs there already (process {process.pid}): end it "
                           f"with `python -m serving down --port {port}`, or pass another --port")
    if end_left(record):
        print(f"ended the endpoint on port {port} that an `up` which was killed had left", flush=True)


@contextmanager
def _environment(folder: Path, options: argparse.Namespace) -> Generator[None]:
    """Of a cluster that is started in the block. Serve is to be imported there first: it reads it then, here too."""
    from serving.commands.deploy_config import SERVE_SETTINGS
    from serving.hardening.serve_patches import haproxy_settings

    before = dict(os.environ)
    files = tls.wanted(options.tls_cert, options.tls_key)
    os.environ.update(SERVE_SETTINGS | haproxy_settings(folder, files) | before)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(options: argparse.Namespace, made: JsonObject) -> int:
    stop = Told()
    on_stop_signal(lambda name: stop.set())
    from cluster.connect import connect, disconnect

    cluster = connect(options.address)
    on_stop_signal(lambda name: stop.set())  # again: `ray.init` has taken SIGTERM
    try:
        _refuse_second(cluster.address)
        with _deployed(Running(port=options.port, pid=os.getpid(), address=cluster.address, config=made)):
            from serving.commands import serve_client

            serve_client.await_ready(made, stop, START_TIMEOUT_S)
            _say_ready(options, made)
            while not stop.wait(0.5):
                pass
            print("ending", flush=True)
        return 0
    finally:
        disconnect()


@contextmanager
def _deployed(record: Running) -> Generator[None]:
    """Gives an endpoint inside the block, and leaves nothing of it, however the block ends.

    Its record is there from before the first step to after the last one: with it `down` and `up` end what is left
    where this process is killed.
    """
    from serving.commands import serve_client

    record.save()
    try:
        serve_client.deploy(record.config)
        yield
    finally:
        serve_client.end()
        record.forget()


def _refuse_second(address: str) -> None:
    """Raises: ClusterError if the cluster serves already: it has one Serve, and deploying replaces what that serves."""
    from serving.commands import serve_client

    if (port := serve_client.served_at()) is not None:
        raise ClusterError(f"the Ray cluster at {address} serves already, on port {port}, and has one Serve at most: "
                           f"end that with `python -m serving down --port {port}` (`serve shutdown`, if `up` did not "
                           "start it), or leave --address and RAY_ADDRESS out, for a cluster of this endpoint's own")


def _say_ready(options: argparse.Namespace, made: JsonObject) -> None:
    from serving.commands import serve_client

    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    if options.tls_cert:
        tls.check_spoken(host, options.port)
    url = f"http{'s' if options.tls_cert else ''}://{host}:{options.port}"
    calls = "" if options.grpc_port is None else f"   gRPC: {host}:{options.grpc_port}"
    print(f"ready: {url} serves {', '.join(_names(made))}", flush=True)
    print(f"playground: {url}/   documentation: {url}/docs{calls}", flush=True)
    print(f"metrics: {' '.join(serve_client.metrics_urls())}", flush=True)


def optimize(options: argparse.Namespace) -> int:
    from serving.variants.optimize import optimize as carry_out

    return carry_out(options)


def _names(made: JsonObject) -> list[str]:
    ingress = next(each for app in made["applications"] for each in app.get("deployments", []))
    return list(ingress["user_config"]["models"])


def _config(options: argparse.Namespace) -> JsonObject:
    """Raises: ConfigError, RegistryError, ArtifactError."""
    from serving.commands import deploy_config

    endpoint = EndpointSettings(
        auth=not options.no_auth, keys_file=os.path.abspath(options.keys) if options.keys else None,  # noqa: PTH100
        max_request_bytes=int(options.max_request_mib * (1 << 20)), max_queued=options.max_queued,
        timeout_s=options.timeout_s,
        requests_per_s=options.requests_per_s, min_replicas=options.ingress_replicas,
        max_replicas=options.ingress_replicas,
        downscale_delay_s=options.downscale_delay_s, host=options.host, cors_origins=options.cors_origin,
        root_path=options.root_path,
        access_log=os.path.abspath(options.access_log) if options.access_log else None)  # noqa: PTH100
    _check(options, endpoint)
    storage = Store.open(options.storage)
    served, adapters = ([deploy_config.find(spec, options.tracking_uri, storage, options.job, flag) for spec in specs]
                        for flag, specs in (("--model", options.model), ("--adapter", options.adapter)))
    served = deploy_config.with_adapters(served, adapters)
    if len({each.name for each in served}) < len(served):
        raise ConfigError("--model: two models have the same name: give each a name of its own")
    models = [ModelSettings(
        name=each.name, version=each.version, uri=each.uri, digest=each.digest, registered=each.registered,
        run=each.run, report=each.report, generates=each.generates, embeds=each.embeds,
        min_replicas=options.min_replicas,
        max_replicas=max(options.max_replicas, options.min_replicas, 1), cpus=options.cpus_per_replica,
        gpus=options.gpus_per_replica, max_batch_rows=options.max_batch_rows, batch_wait_ms=options.batch_wait_ms,
        prefix_cache_bytes=int(options.prefix_cache_mib * (1 << 20)),
        downscale_delay_s=options.downscale_delay_s, jobs=options.job, shared=_is_shared(options),
        base=each.base)
        for each in served]
    if options.engine == "vllm":
        from serving.text import vllm

        return vllm.config(models, {"host": options.host, "port": options.port}, options.timeout_s, options.accelerator)
    if _in_ingress(options):
        endpoint = replace(endpoint, own=[asdict(model) for model in models], min_replicas=max(1, options.min_replicas),
                           max_replicas=max(1, options.max_replicas, options.min_replicas))
    weights = {model.name: {model.version: 1.0} for model in models}
    return deploy_config.config(models, weights, endpoint, {"host": options.host, "port": options.port},
                                options.grpc_port,
                         _shared(options))


def _shared(options: argparse.Namespace) -> SharedSettings | None:
    if not _is_shared(options):
        return None
    return SharedSettings(max_loaded=options.max_loaded, min_replicas=options.min_replicas,
                          max_replicas=max(options.max_replicas, options.min_replicas, 1),
                          cpus=options.cpus_per_replica,
                          gpus=options.gpus_per_replica, downscale_delay_s=options.downscale_delay_s)


def _is_shared(options: argparse.Namespace) -> bool:
    """Whether models share replicas, as adapters do with their base."""
    return options.placement == "shared" or bool(options.adapter)


def _in_ingress(options: argparse.Namespace) -> bool:
    if _is_shared(options):
        return False
    if options.placement != "auto":
        return options.placement == "ingress"
    return len(options.model) == 1 and not options.gpus_per_replica and options.min_replicas >= 1


def _check(options: argparse.Namespace, endpoint: EndpointSettings) -> None:
    if options.no_auth and not _is_loopback(options.host):
        raise ConfigError(f"--no-auth: without keys an endpoint answers on loopback only, not on {options.host}: pass "
                          "--keys FILE")
    if options.engine == "vllm" and (not options.no_auth or options.keys or options.requests_per_s
                                     or options.access_log):
        raise ConfigError("--engine vllm: Ray's ingress for it checks no keys, limits no rates and writes no access "
                          "log: pass --no-auth, without --keys, --requests-per-s and --access-log, and put a gateway "
                          "in front of it")
    browsers.check(endpoint)
    if endpoint.auth and options.command == "up":
        keys.check(endpoint.keys_file)
    for name in ("max_batch_rows", "max_queued", "max_loaded", "ingress_replicas", "timeout_s", "max_request_mib",
                 "cpus_per_replica"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name):g}: it must be more than 0")
    if options.grpc_port == options.port:
        raise ConfigError(f"--grpc-port {options.grpc_port}: it is --port already: pass another")
    if options.adapter and options.placement not in ("auto", "shared"):
        raise ConfigError(f"--placement {options.placement}: adapters share replicas with their base: leave it out")
    for name in ("min_replicas", "prefix_cache_mib"):
        if not getattr(options, name) >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name):g}: it must be 0 or more")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


def _check_port(host: str, port: int, flag: str) -> None:
    """Raises: ClusterError that names who holds it."""
    from cluster.core.network import is_free

    if not is_free(host, port):
        raise ClusterError(f"{flag} {port} of {host} is taken by {_holder(port)}: end it, or pass another {flag}")


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if (connection.status == psutil.CONN_LISTEN and connection.pid
                and getattr(connection.laddr, "port", 0) == port):
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({' '.join(process.cmdline())[:80]})"
    except psutil.Error:
        pass
    return "another process"
