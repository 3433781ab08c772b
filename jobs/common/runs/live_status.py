"""What a run says of itself while it trains, for `trainyard status` and `watch`."""

from typing import Any

from cluster.monitoring.run_status import RunStatus, RunStatusPublisher
from jobs.common.config import Config
from jobs.common.declared_metrics import figure
from jobs.common.execution.generation_state import GenerationState
from jobs.common.execution.run_state import RunState
from jobs.common.training.rendezvous import Heartbeat


def publisher_of_job() -> RunStatusPublisher:
    """In the driver of a Ray job, which is connected."""
    import ray

    context: Any = ray.get_runtime_context()
    return RunStatusPublisher(context.gcs_address, context.get_job_id())


def status_of(job: str, config: Config, current: GenerationState, run_state: RunState) -> RunStatus:
    """How a run goes now."""
    beat, slow = current.heartbeat or Heartbeat(), current.pacing.present
    return RunStatus(name=config.run.name, job=job, storage=config.run.storage, phase=beat.phase or "starting",
                     step=beat.step, total_steps=beat.total_steps or 0, step_s=beat.median_step_s,
                     goodput=run_state.goodput, restarts=run_state.restarts,
                     ranks=tuple(each for _, each in sorted(current.times.items())),
                     scores=" ".join(f"{name} {figure(value)}" for name, value in beat.scores.items()),
                     straggler=slow.slow.rank if slow else None, stuck=current.stuck)
