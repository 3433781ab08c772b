"""The Ray Train executor: a worker group on the cluster,
in which Ray Train replaces a dead worker and leaves the others be.

Ray Train calls a worker that can be replaced by itself a replica group (made for torchft): `has_replica_groups` makes
each worker one, at its old place in the placement group. Survivors meet the new one at the rendezvous, a zero-CPU actor
of this driver, which is also what keeps a second run of the same name away: its name is the run's. Each group is a
fresh Ray Train run under a name of its own, so Ray's own snapshots are never read.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false
# pyright: reportAttributeAccessIssue=false, reportFunctionMemberAccess=false, reportArgumentType=false

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Literal, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.capacity import Request, draining_nodes, possible_workers, queued, starved_workers
from cluster.core.background import in_background
from cluster.core.documents import JsonObject
from cluster.core.errors import ClusterError, RunConflictError
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store
from jobs.common.execution.executors import GroupLostError, kill_all, stacks
from jobs.common.execution.worker import Place, WorkerSpec, work
from jobs.common.training.rendezvous import (
    Assignment,
    Heartbeat,
    HeartbeatReply,
    Rendezvous,
    RendezvousClient,
    View,
    WorkerExit,
    WorkerInfo,
)

T = TypeVar("T")
NAMESPACE = "trainyard"
CLAIM_TIMEOUT_S = 60.0


class ActorClient:
    """A `RendezvousClient` of the rendezvous that is an actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def register(self, worker: WorkerInfo) -> None:
        _answer(self.actor.register.remote(worker))

    def assignment(self, worker: str) -> Assignment | None:
        return _answer(self.actor.assignment.remote(worker))

    def heartbeat(self, slot: int, worker: str, beat: Heartbeat, reports: list[JsonObject]) -> HeartbeatReply:
        return _answer(self.actor.heartbeat.remote(slot, worker, beat, reports))

    def deregister(self, left: WorkerExit) -> None:
        _answer(self.actor.deregister.remote(left))

    def put(self, generation: str, key: str, value: object) -> None:
        _answer(self.actor.put.remote(generation, key, value))

    def get(self, generation: str, key: str) -> object:
        return _answer(self.actor.get.remote(generation, key))

    def poll(self) -> View:
        return _answer(self.actor.poll.remote())

    def expect(self, group: str) -> None:
        _answer(self.actor.expect.remote(group))

    def begin(self, assignments: dict[str, Assignment], workers: dict[int, str]) -> None:
        _answer(self.actor.begin.remote(assignments, workers))

    def break_up(self) -> None:
        _answer(self.actor.break_up.remote())

    def request_stop(self) -> None:
        _answer(self.actor.request_stop.remote())

    def abort(self) -> None:
        _answer(self.actor.abort.remote())

    def reset(self) -> None:
        _answer(self.actor.reset.remote())

    def describe(self, info: JsonObject) -> None:
        _answer(self.actor.describe.remote(info))

    def description(self) -> JsonObject:
        return _answer(self.actor.description.remote())


def _answer(asked: "ray.ObjectRef[T]") -> T:
    try:
        return ray.get(asked)
    except ray.exceptions.RayActorError as error:
        raise ConnectionError("the rendezvous of this run is gone, with its driver or its cluster") from error


def lock_name(storage: str, name: str) -> str:
    """The name of the actor that a run holds while it lives."""
    digest = hashlib.sha256(f"{storage} {name}".encode()).hexdigest()
    return f"run-{digest[:16]}"


def claim(storage: str, name: str, wait_s: float = 5.0) -> ActorClient:
    """The rendezvous of a run, which dies with this driver. A dead driver's one is waited for, briefly.

    Raises: RunConflictError if another live driver runs it, ClusterError if this node does not start it.
    """
    clock = LoopClock()
    deadline = clock.now + wait_s
    while True:
        try:
            actor = ray.remote(Rendezvous).options(
                name=lock_name(storage, name), namespace=NAMESPACE, num_cpus=0, max_concurrency=16,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
            ).remote()  # on the driver's own node: no other node's death may take it away
            ray.get(actor.describe.remote({"name": name, "storage": storage}), timeout=CLAIM_TIMEOUT_S)
            return ActorClient(actor)
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"this machine's Ray node did not start a process within {CLAIM_TIMEOUT_S:g} s: look at "
                               "it with `python -m cluster status`; it hangs or is overloaded, so restart it or try "
                               "again") from error
        except (ValueError, ray.exceptions.RayActorError) as error:
            if clock.look() > deadline:
                raise RunConflictError(
                    f"run {name!r} in {storage} is being carried out by another job: wait for its end, stop it, "
                    "or pass another --run.name"
                ) from error
            time.sleep(0.25)


class RayExecutor:
    """See the module."""

    can_replace = True

    def __init__(self, rendezvous: ActorClient, request: Request, *, in_own_group: bool = False) -> None:
        """in_own_group: workers take the bundles of the placement group that this process runs in,
        instead of a new one's."""
        self.rendezvous: RendezvousClient = rendezvous
        self._placement = ray.util.get_current_placement_group() if in_own_group else None
        self._actor, self._request = rendezvous.actor, request
        self._fitting: Future[None] | None = None
        self._num_workers = 0

    def start(self, spec: WorkerSpec, num_workers: int) -> None:
        self._num_workers = num_workers
        self.rendezvous.describe({"controller": None})  # the one of the group before is gone
        group = f"group-{uuid.uuid4().hex[:8]}"
        self.rendezvous.expect(group)
        self._fitting = in_background("trainyard-fit", lambda: self._fit(spec, num_workers, group))

    def possible_workers(self) -> int:
        group = None if self._placement is None else self._placement.id.hex()
        return possible_workers(self._request, held=self._num_workers, group=group)

    def queued(self, num_workers: int) -> AbstractContextManager[Callable[[], bool]]:
        if self._placement is not None:  # whose owner sees to its bundles
            return nullcontext(lambda: False)
        return queued(replace(self._request, num_workers=num_workers))

    def leaving(self, members: list[WorkerInfo]) -> Literal["", "workers", "driver"]:
        draining = draining_nodes()
        if ray.get_runtime_context().get_node_id() in draining:
            return "driver"
        return "workers" if draining & {member.node_id for member in members} else ""

    def maintain(self) -> None:
        if self._fitting is not None and self._fitting.done() and (error := self._fitting.exception()) is not None:
            self._fitting = None
            # before it is where, in as many lines
            why = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise GroupLostError(f"Ray Train gave the workers up: {why}") from error

    def ended(self) -> bool:
        return self._fitting is None or self._fitting.done()

    def stacks(self, members: list[WorkerInfo]) -> dict[int, str]:
        return stacks(members)

    def kill(self, members: list[WorkerInfo]) -> None:
        kill_all(members)

    def starved(self, members: list[WorkerInfo]) -> str:
        with suppress(ClusterError):
            if starved_workers() & {(member.node_id, member.pid) for member in members}:
                return "Ray's memory monitor"
        return ""

    def end(self) -> None:
        """Waits for the group to return; after 5 s, kills Ray Train's controller, and with it the group."""
        if self._fitting is not None and not wait([self._fitting], timeout=5).done:
            controller = self.rendezvous.description().get("controller")
            if controller is not None:
                ray.kill(controller)
            wait([self._fitting], timeout=30)
        self._fitting, self._num_workers = None, 0

    def run(self, supervise: Callable[[], T]) -> T:
        return supervise()

    def _fit(self, spec: WorkerSpec, num_workers: int, group: str) -> None:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2 s by default: a death is noticed sooner
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from jobs.common.execution.ray_internals import Introduce, ReplaceOne, Trainer

        resources = {"CPU": float(self._request.cpus_per_worker)}
        if self._request.gpus_per_worker:
            resources["GPU"] = float(self._request.gpus_per_worker)
        trainer = Trainer(
            _train_function, train_loop_config={"spec": spec, "actor": self._actor, "group": group},
            backend_config=ReplaceOne(),
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker=resources,
                                         use_gpu=bool(self._request.gpus_per_worker)),
            run_config=RunConfig(name=group, storage_path=Store.open(spec.run_uri).location("ray"),
                                 failure_config=FailureConfig(max_failures=-1),
                                 callbacks=[Introduce(self._actor, self._placement)]),
        )
        trainer.fit()


def _train_function(settings: JsonObject) -> None:
    context = ray.train.get_context()
    runtime = ray.get_runtime_context()
    gpus = runtime.get_accelerator_ids().get("GPU", [])
    place = Place(slot=context.get_world_rank(), host=ray.util.get_node_ip_address(), node_id=runtime.get_node_id(),
                  device="cuda:0" if gpus else "cpu", group=settings["group"])
    try:
        work(settings["spec"], ActorClient(settings["actor"]), place)
    except ConnectionError:
        os._exit(70)
