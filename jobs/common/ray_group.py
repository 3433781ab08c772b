"""What the Ray Train binding plugs into Ray Train: a backend whose workers are replaced one by one, and a callback."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false

from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
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
    """Without the actor that hands out Ray Data sets: the loop reads its own shards, and a process less is started."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]


class Introduce(ControllerCallback):
    """Tells the run's coordinator which actor controls the group, so that the driver can end one that hangs."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def after_controller_start(self, train_run_context: Any) -> None:
        controller = ray.get_runtime_context().current_actor
        ray.get(self._coordinator.describe.remote({"controller": controller}))
