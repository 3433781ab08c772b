"""What `python -m serving` does with an endpoint that runs: says how it is, changes which versions answer,
and ends it."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import psutil

from cluster.core.control_store import reachable
from cluster.core.documents import JsonObject
from cluster.core.errors import ClusterError, ConfigError
from cluster.core.storage import Store
from jobs.common.registry.connection import open_registry
from jobs.common.registry.registry import CHAMPION, Registry
from serving.commands.deployment_record import (
    Running,
    Weights,
    change,
    follow,
    missing,
    new_id,
    parse_weights,
    with_weights,
)
from serving.core.settings import ENDPOINT, SHARED, ModelSettings
from serving.traffic.canary import Canary, ChampionBefore

Told = Mapping[str, JsonObject]
"""What the replicas of the ingress know together, by model: see serving/traffic/shared_state.py."""
_END_TIMEOUT_S = 90.0


def status(options: argparse.Namespace) -> int:
    record = Running.load(options.port)
    with connected(record):
        from serving.commands import serve_client
        from serving.traffic.shared_state import told

        states, troubles = serve_client.states(), serve_client.troubles()
        watched, shadows = told("watched"), told("shadows")
    for name, versions in record.models().items():
        weights = _weights(record, name, watched)
        for each in versions:
            settings = ModelSettings(**each["settings"])
            asked = SHARED if settings.shared else settings.application
            application = asked if asked in states else ENDPOINT
            state = states.get(application, "not there")
            print(f"{name:<20} version {settings.version:<6} {100 * weights[settings.version]:5.1f} %   {state:<10} "
                  f"{settings.digest[:12]}  {settings.uri}")
            if settings.run:
                print(f"{'':<20} made by the run {settings.run}{f', {settings.report}' if settings.report else ''}")
            if (trouble := troubles.get(application)) is not None:
                print(f"{'':<20} {trouble}")
        for line in [*_of_guard(record, name, watched), *_of_shadow(record, name, shadows)]:
            print(f"{'':<20} {line}")
    return 0


def down(options: argparse.Namespace) -> int:
    record = Running.load(options.port)
    if (process := record.process()) is None:
        end_left(record)
    else:
        _end(process)
    print(f"the endpoint on port {options.port} is down")
    return 0


def _end(process: psutil.Process) -> None:
    """Has a `python -m serving up` end its endpoint, and itself."""
    try:
        process.send_signal(signal.SIGINT)
        process.wait(_END_TIMEOUT_S)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise ClusterError(f"process {process.pid} has not ended after {_END_TIMEOUT_S:g} s: look at what it "
                           "prints") from None


def end_left(record: Running) -> bool:
    """Ends the endpoint of an `up` that was killed, which goes on where the cluster was there before.

    Returns whether it still ran. Raises: ClusterError if the cluster is there, and cannot be joined.
    """
    runs = reachable(record.address) is None and _end_at(record)
    record.forget()
    return runs


def _end_at(record: Running) -> bool:
    with connected(record):
        from serving.commands import serve_client

        if runs := serve_client.served_at() == record.port:  # else the address is another cluster's by now
            serve_client.end()
    return runs


def _of_guard(record: Running, name: str, watched: Told) -> list[str]:
    """What is known of a model's last change of weights."""
    guard, seen = record.guard(name), watched.get(name)
    if guard is None or seen is None or seen["id"] != guard.id:
        return []
    lines = [f"version {version}: {each['requests']} requests lately, {100 * each['error_rate']:.1f} % failed, p95 "
             f"{'none' if each['p95_ms'] is None else format(each['p95_ms'], '.3g')} ms"
             for version, each in sorted(seen["versions"].items())]
    if seen["reason"] is not None:
        lines.append(f"went back by itself: {seen['reason']}")
        if seen["champion"]:
            lines.append(seen["champion"])
    return lines


def _of_shadow(record: Running, name: str, shadows: Told) -> list[str]:
    shadow = record.shadow(name)
    if shadow is None:
        return []
    seen = shadows.get(name)
    rows: Mapping[str, int] = seen["rows"] if seen is not None and seen["id"] == shadow["id"] else {}
    found = ", ".join(f"{count} {outcome}" for outcome, count in sorted(rows.items())) or "none yet"
    return [f"shadow: version {shadow['version']} is asked {100 * shadow['share']:g} % of the requests too; rows: "
            f"{found}"]


def _weights(record: Running, name: str, watched: Told) -> Weights:
    """As they are: those before the last change, if it went back by itself."""
    guard, seen = record.guard(name), watched.get(name)
    asked = record.weights(name)
    if guard is None or seen is None or seen["id"] != guard.id or seen["reason"] is None:
        return asked
    return {version: guard.before.get(version, 0.0) for version in asked}


def split(options: argparse.Namespace) -> int:
    return _change(options, parse_weights(options.weights))


def promote(options: argparse.Namespace) -> int:
    record = Running.load(options.port)
    record.weights(options.model)
    registered = record.models()[options.model][0]["settings"]["registered"]

    if not registered:
        return _change(options, {options.version: 1.0})
    registry = _registry(options, registered)
    before = next((each.version for each in registry.versions(registered) if CHAMPION in each.aliases), None)

    def champion() -> None:
        registry.promote(registered, options.version, "trainyard serve promote")

    back = ChampionBefore(name=registered, version=before, promoted=options.version, tracking_uri=options.tracking_uri,
                          storage=Store.open(options.storage).location()) if before else None
    return _change(options, {options.version: 1.0}, champion, back=back)


def rollback(options: argparse.Namespace) -> int:
    """Undoes `promote` in the registry too: if the champion loses all requests to one version,
    that becomes the champion."""
    record = Running.load(options.port)
    lost = _only(record.weights(options.model))
    if options.model not in record.before:
        raise ConfigError(f"the versions of {options.model} have not been changed: there is nothing to go back to")
    before = record.before[options.model]
    registered = record.models()[options.model][0]["settings"]["registered"]

    def champion() -> None:
        version = _only(before)
        if registered and lost is not None and version is not None:
            registry = _registry(options, registered)
            if lost in [each.version for each in registry.versions(registered) if CHAMPION in each.aliases]:
                registry.promote(registered, version, "trainyard serve rollback")

    return _change(options, before, champion, guarded=False)


def _only(weights: Weights) -> str | None:
    """The version that has all requests, if one has."""
    asked = [version for version, weight in weights.items() if weight > 0]
    return asked[0] if len(asked) == 1 else None


def _registry(options: argparse.Namespace, name: str) -> Registry:
    return open_registry(options.tracking_uri, Store.open(options.storage), name)


def shadow(options: argparse.Namespace) -> int:
    if not 0 <= options.share <= 1:
        raise ConfigError(f"--share {options.share:g}: it must be from 0 (no shadow any more) to 1 (all requests)")
    record = Running.load(options.port)
    weights = record.weights(options.model)
    if weights.get(options.version, 0) > 0 and options.share > 0:
        raise ConfigError(f"version {options.version} of {options.model} answers requests itself: a shadow is one that "
                          "does not")
    new = _new(options, record, {options.version: 0.0}) if options.share else []
    with connected(record):
        follow(record, options.model, options.version, options.share, new)
    print(f"{options.model} version {options.version}: a shadow of {100 * options.share:g} % of the requests")
    return 0


def _change(options: argparse.Namespace, weights: Weights, ready: Callable[[], None] = lambda: None, *,
            guarded: bool = True, back: ChampionBefore | None = None) -> int:
    """Gives versions their weights."""
    record = Running.load(options.port)
    new = _new(options, record, weights)
    with connected(record):
        from serving.traffic.shared_state import told

        before = _weights(record, options.model, told("watched"))
        record.config = with_weights(record.config, options.model, before)
        change(record, options.model, weights, new, ready, before,
               _guard(options, before, weights, back) if guarded else None)
    for version, weight in record.weights(options.model).items():
        print(f"{options.model} version {version}: {100 * weight:.1f} %")
    return 0


def _guard(options: argparse.Namespace, before: Weights, weights: Weights,
           champion: ChampionBefore | None) -> Canary | None:
    """Of the versions that get more than before. None if no version does, or no limit is asked for."""
    candidates = [version for version, weight in weights.items() if weight > before.get(version, 0.0)]
    if not candidates or (options.max_error_rate >= 1 and options.max_p95_ms is None):
        return None
    return Canary(id=new_id(), candidates=candidates, before=before, max_error_rate=options.max_error_rate,
                  max_p95_ms=options.max_p95_ms, min_requests=options.min_requests, champion=champion)


def _new(options: argparse.Namespace, record: Running, weights: Weights) -> list[ModelSettings]:
    """Versions that the endpoint does not have: they come from the registry."""
    from serving.commands import deploy_config

    found: list[ModelSettings] = []
    for version in missing(record, options.model, weights):
        like = ModelSettings(**record.models()[options.model][0]["settings"])
        if not like.registered:
            raise ConfigError(f"{options.model} is served from a path, so it has one version: serve it as "
                              "models:/NAME@ALIAS")
        spec = f"{options.model}=models:/{like.registered}/{version}"
        served = deploy_config.find(spec, options.tracking_uri, Store.open(options.storage), like.jobs)
        found.append(replace(like, version=served.version, uri=served.uri, digest=served.digest,
                             run=served.run, report=served.report))
    return found


@contextmanager
def connected(record: Running) -> Generator[None]:
    """To the cluster of an endpoint that runs."""
    from cluster.connect import connect, disconnect

    connect(record.address, own=True)
    try:
        yield
    finally:
        disconnect()
