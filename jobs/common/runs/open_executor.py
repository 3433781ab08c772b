"""Who starts the workers of a run: connected, and found able to carry it out."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cluster.core.errors import ConfigError, ResourceError
from jobs.common.config import RunConfig
from jobs.common.execution.executors import Executor, InProcessExecutor, ProcessExecutor
from jobs.common.runs.run_folder import RunFolder
from jobs.common.runs.timeline import Timeline

_PROCESSES_PER_CORE = 8

Opened = tuple[Executor, bool]
OpenExecutor = Callable[[RunConfig, Sequence[str], RunFolder, Timeline, Callable[[str], None]],
                        AbstractContextManager[Opened]]
"""Called with the run's options, the modules to preload (see Job), the folder, the timeline, and what says a line.
Gives the executor, and whether Ray is used beside it, too: to prepare data, and to publish how the run goes."""


@contextmanager
def open_executor(run: RunConfig, preload: Sequence[str], folder: RunFolder, timeline: Timeline,
                  say: Callable[[str], None]) -> Generator[Opened]:
    """The executor of `--run.engine`. Raises: ResourceError, ConfigError, ClusterError."""
    if run.engine == "local":
        yield _local(run, preload), False
        return
    from cluster.capacity import Request, preflight
    from cluster.connect import connect, disconnect
    from jobs.common.execution.ray_executor import RayExecutor, claim

    connect(run.address)
    timeline.mark("connected")
    try:
        link = claim(folder.storage.location(), run.name)
        request = Request(num_workers=run.min_workers + run.spares, cpus_per_worker=run.cpus_per_worker,
                          gpus_per_worker=run.gpus_per_worker)
        preflight(request, folder.storage, run.wait, say=say)
        timeline.mark("preflight")
        yield RayExecutor(link, request), True
    finally:
        disconnect()


def _local(run: RunConfig, preload: Sequence[str]) -> Executor:
    if run.gpus_per_worker and not list(Path("/dev").glob("nvidia[0-9]*")):
        raise ResourceError("--run.gpus-per-worker 1: this machine has no GPU: pass 0, or join a cluster that has one")
    if run.gpus_per_worker and run.max_workers > 1:
        raise ConfigError("--run.engine local drives one GPU in one worker: pass --run.workers 1 or --run.engine ray")
    if run.min_workers > (most := _PROCESSES_PER_CORE * (os.cpu_count() or 1)):
        raise ResourceError(f"--run.workers {run.workers}: --run.engine local starts them all on this machine, which "
                            f"bears {most}: pass --run.workers {most}, or --run.engine ray")
    device = "cuda:0" if run.gpus_per_worker else "cpu"
    return InProcessExecutor(device) if run.max_workers == 1 else ProcessExecutor(run.cpus_per_worker, preload)


@contextmanager
def open_executor_in_trial(run: RunConfig, preload: Sequence[str], folder: RunFolder, timeline: Timeline,
                           say: Callable[[str], None]) -> Generator[Opened]:
    """In a trial of Ray Tune, which is connected already and has its resources: more than one worker are a group inside
    the trial's placement group."""
    if run.engine == "local":
        yield _local(run, preload), False
        return
    from cluster.capacity import Request
    from jobs.common.execution.ray_executor import RayExecutor, claim

    request = Request(num_workers=run.min_workers, cpus_per_worker=run.cpus_per_worker,
                      gpus_per_worker=run.gpus_per_worker)
    yield RayExecutor(claim(folder.storage.location(), run.name), request, in_own_group=True), False
