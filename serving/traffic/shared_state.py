"""What all replicas of an ingress know together, in one actor: how versions do whose weights were changed, shadows,
and how often each key asked."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from cluster.core.background import in_background, in_loop, logged
from cluster.core.documents import JsonObject
from cluster.core.errors import TrainyardError
from cluster.core.storage import Store
from jobs.common.registry.connection import open_registry
from jobs.common.registry.registry import CHAMPION
from serving.traffic.canary import Canary, CanaryWindow, ChampionBefore, Tally
from serving.traffic.rate_limit import Buckets
from serving.traffic.routing import Table

_NAME, _NAMESPACE = "trainyard-endpoint", "trainyard"
_EVERY_S = 1.0
_ANSWER_S = 10.0
_log = logging.getLogger(__name__)


class SharedState:
    """The actor. It may die: each ingress tells it again what it has decided."""

    def __init__(self) -> None:
        self._watches: dict[str, CanaryWindow] = {}
        self._shadows: dict[str, tuple[str, str, Counter[str]]] = {}
        self._buckets = Buckets()
        self._champions: dict[str, str] = {}
        """By a change's id, what became of the champion where requests went back."""

    def take(self, name: str, per_s: float, wanted: int) -> tuple[int, float]:
        """Tokens of a key: see limits.Lease."""
        return self._buckets.take(name, per_s, wanted)

    def report(self, model: str, guard: Canary, tallies: Mapping[str, Tally], reason: str | None) -> str | None:
        """Of one ingress, since its last report.
        Returns why the requests are to go back to where they were, if they are."""
        watch = self._watches.get(model)
        if watch is None or watch.guard.id != guard.id:
            watch = self._watches[model] = CanaryWindow(guard)
        known = watch.reason = watch.reason or reason
        found = watch.hear(tallies)
        if found is not None and known is None and guard.champion is not None:
            self._give_back(guard.id, guard.champion, found)
        return found

    def _give_back(self, change: str, champion: ChampionBefore, reason: str) -> None:
        """In a thread of its own: a registry may take its time, and ingresses wait for answers."""
        def give_back() -> None:
            try:
                self._champions[change] = champion_again(champion, reason)
            except TrainyardError as error:
                self._champions[change] = (f"the registry's champion is still version {champion.promoted} ({error}): "
                                           f"trainyard registry promote {champion.name} {champion.version}")
            _log.error("%s: %s", champion.name, self._champions[change])

        in_background("trainyard-champion", give_back).add_done_callback(logged("the champion's way back"))

    def compared(self, model: str, id: str, version: str, outcomes: Counter[str]) -> None:
        """Of one ingress's shadow, since its last report."""
        known = self._shadows.get(model)
        before = known[2] if known is not None and known[0] == id else Counter[str]()
        self._shadows[model] = (id, version, before + outcomes)

    def shadows(self) -> dict[str, JsonObject]:
        """By model: the change's id, the version, and its rows by outcome."""
        return {model: {"id": id, "version": version, "rows": dict(rows)}
                for model, (id, version, rows) in self._shadows.items()}

    def watched(self) -> dict[str, JsonObject]:
        """By model: the change's id, the reason, what became of the champion, and each version's requests, error rate
        and p95 (ms) in the window."""
        return {model: {"id": watch.guard.id, "reason": watch.reason,
                        "champion": self._champions.get(watch.guard.id, ""), "versions": {
            version: {"requests": seen.requests, "error_rate": seen.error_rate, "p95_ms": seen.p95_ms}
            for version in watch.versions if (seen := watch.seen(version))}} for model, watch in self._watches.items()}


def champion_again(champion: ChampionBefore, reason: str) -> str:
    """Gives a registered model the champion that it had. Returns what was done. Raises: TrainyardError."""
    registry = open_registry(champion.tracking_uri, Store.open(champion.storage), champion.name)
    now = next((each.version for each in registry.versions(champion.name) if CHAMPION in each.aliases), None)
    if now != champion.promoted:
        return f"the registry's champion was left as it is: version {now}"
    registry.promote(champion.name, champion.version, f"its requests went back by themselves: {reason}")
    return f"the registry's champion is version {champion.version} again"


@cache
def coordinator() -> Any:
    """Of this cluster's endpoint; made by whoever asks first."""
    import ray

    return ray.remote(SharedState).options(name=_NAME, namespace=_NAMESPACE, get_if_exists=True, lifetime="detached",
                                           num_cpus=0, max_restarts=-1, max_task_retries=1).remote()


async def lease(name: str, per_s: float, wanted: int) -> tuple[int, float]:
    """See limits.Lease. Raises: RayError, TimeoutError."""
    async with asyncio.timeout(_ANSWER_S):
        return await coordinator().take.remote(name, per_s, wanted)


def told(method: str) -> dict[str, JsonObject]:
    """What `SharedState.watched` or `SharedState.shadows` says; empty where there is nothing to say.
    Needs a connected process."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        actor = ray.get_actor(_NAME, _NAMESPACE)
        return ray.get(getattr(actor, method).remote(), timeout=_ANSWER_S)
    except (ValueError, RayError, GetTimeoutError):
        return {}


def forget() -> None:
    """Ends the actor, if there is one. Needs a connected process."""
    import ray

    try:
        ray.kill(ray.get_actor(_NAME, _NAMESPACE))
    except ValueError:
        return


class Reporter:
    """Of one ingress: tells the actor how its versions and shadows do, as long as there is something to tell,
    and hears of it."""

    def __init__(self, table: Table, went_back: Callable[[str, bool], None]) -> None:
        """went_back: is told of each model that is watched, whether its requests went back."""
        self._table, self._went_back = table, went_back
        self._task: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """After a change of the table.
        A replica that has just started hears what was decided before it answers anything."""
        if self._table.guards or self._table.shadows:
            await self._report()
            if self._task is None:
                self._task = in_loop(self._go_on(), "the watch over versions and shadows")

    async def _go_on(self) -> None:
        while self._table.guards or self._table.shadows:
            await asyncio.sleep(_EVERY_S)
            await self._report()
        self._task = None

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._tell(coordinator())
        except Exception:  # noqa: BLE001  (requests are answered all the same, and it is tried again)
            _log.exception("what the replicas of the ingress share does not answer")

    async def _tell(self, actor: Any) -> None:
        for model, guard in self._table.guards.items():
            known = self._table.reason(model)
            reason = await actor.report.remote(model, guard, self._table.tallies(model), known)
            if reason is not None and known is None and self._table.guards.get(model) is guard:
                _log.error("%s: requests go back to the versions that had them: %s", model, reason)
                self._table.go_back(model, guard, reason)
            self._went_back(model, reason is not None)
        for model, shadow in self._table.shadows.items():
            outcomes, shadow.outcomes = shadow.outcomes, Counter()
            await actor.compared.remote(model, shadow.id, shadow.version, outcomes)
