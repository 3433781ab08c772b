"""Whether the data will do for a run: its steps, and `--data.check`, which prepares it, says what it found, and keeps
nothing."""

import tempfile
import time

from cluster.core.storage import Store
from jobs.common.config import Config, require
from jobs.common.data.commits import at_commits
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.runs.console import RunConsole
from jobs.common.runs.origin import at_origin
from jobs.common.runs.run_folder import open_storage
from jobs.common.step_profile import check_reached
from jobs.common.training.job import Job


def check_steps(config: Config, dataset: Dataset) -> None:
    """Raises: ConfigError where there are too few rows for a step, or steps are named that there are not."""
    rows, batch = dataset.splits["train"].num_rows, config.train.global_batch_size
    require(rows >= batch, "train.global_batch_size", batch, f"there are {rows} training rows: pass {rows} or less")
    check_reached(config.run, config.train.total_steps(rows // batch))


def check_data(job: Job, config: Config) -> int:
    """Does with the data all that a run would, in a folder that is removed. Returns the exit code.

    Raises: TrainyardError, as preparing does.
    """
    job.check(config)
    say, began = RunConsole().say, time.monotonic()
    config, _ = at_commits(at_origin(job.name, config, open_storage(config.run.storage))[0], {}, say)
    with tempfile.TemporaryDirectory(prefix="trainyard-check-") as folder:
        dataset = job.prepare(config, Store.open(folder), use_ray=False, say=say)
        kept = sum(file.size for file in dataset.store.files())
        say("\n".join(lines_of(dataset)))
    rows = sum(split.num_rows for split in dataset.splits.values())
    say(f"the data is in order: {rows:,} rows, {kept / 1e6:,.1f} MB when prepared, which took "
        f"{time.monotonic() - began:.1f} s; nothing was kept, and no run was begun")
    return 0
