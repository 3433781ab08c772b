"""How the job for tables is trained: its mathematics are those of `jobs/pytorch/tables/training.py`.

Run it with `python -m jobs.tabular`.
"""

from jobs.common.declared_metrics import chosen
from jobs.common.tables.info import TableInfo
from jobs.common.tables.judging import metrics
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.trainable import Outcome
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import TorchProfiler, set_up_torch
from jobs.pytorch.tables.training import TableTraining
from jobs.tabular.config import TabularConfig


def train(context: TrainContext, config: TabularConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    device, info = set_up_torch(context, config.run.cpus_per_worker), TableInfo.of(context.dataset, config.model)
    with Group(context, device) as group:
        training = TableTraining(context, config, group, device, own=config.own, loss=config.model.loss, info=info)
        return fit(context, training, context.data_loader(), metric=chosen(metrics(config), config.metric),
                   profiler=TorchProfiler)
