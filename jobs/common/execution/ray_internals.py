"""What the Ray Train executor plugs into Ray Train: a backend whose workers are replaced one by one, and a callback.

All of it is private or undocumented, since Ray Train has no public way to replace one worker, to leave its own actors
out, or to use a placement group that there is. Read in Ray 2.60.0; tests/unit/test_internals.py holds each symbol.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false

from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class _ReplaceOneBackend(Backend):
    has_replica_groups = True


@dataclass
class ReplaceOne(BackendConfig):
    """No process group is made here: a job's loop makes its own, anew in each generation."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _ReplaceOneBackend


class Trainer(DataParallelTrainer):
    """Without the actor that hands out Ray Data sets: the loop reads its own shards, and a process less is started.

    Where the workers take the place of a group that is someone else's,
    also without the actor that removes a dead run's group.
    """

    def _create_default_callbacks(self) -> list[Any]:
        found = super()._create_default_callbacks()
        borrowed = any(isinstance(each, Introduce) and each.placement is not None for each in found)
        unwanted = (DatasetsCallback, PlacementGroupCleanerCallback) if borrowed else DatasetsCallback
        return [each for each in found if not isinstance(each, unwanted)]


class Introduce(ControllerCallback):
    """Tells the run's rendezvous which actor controls the group, so that the driver can end one that hangs.

    placement: the placement group whose bundles the workers are to take. Ray Train always makes one of its own, which
    beside that of a Ray Tune trial would hold everything twice;
    so in the controller's process, where this is called, it is given this one.
    """

    def __init__(self, rendezvous: Any, placement: Any = None) -> None:
        self._rendezvous, self.placement = rendezvous, placement

    def after_controller_start(self, train_run_context: object) -> None:
        controller = ray.get_runtime_context().current_actor
        ray.get(self._rendezvous.describe.remote({"controller": controller}))
        if self.placement is not None:
            setattr(WorkerGroup, "_create_placement_group", self._borrowed)  # noqa: B010

    def _borrowed(self, *_: object) -> "_Borrowed":
        return _Borrowed(self.placement)


class _Borrowed(DefaultPlacementGroupHandle):
    """Not ours to remove."""

    def shutdown(self) -> None:
        pass
