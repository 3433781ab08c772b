"""`--then-train N`: the best config on all its epochs, with N seeds, as runs of the job;
the best of them is registered."""

import statistics
from dataclasses import replace

from cluster.core.documents import JsonObject
from cluster.core.errors import TrainyardError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.config import Config
from jobs.common.declared_metrics import Metric, chosen, figure, primary_of
from jobs.common.runs.run import Run
from jobs.common.runs.run_folder import RESULT_FILE, read_record
from jobs.common.training.job import Job
from tuning.options import in_folder
from tuning.tracking import Tracking


def train(job: Job, config: Config, store: Store, trial: int, num_seeds: int, tracking: Tracking) -> JsonObject:
    """trial: whose config it is. Runs that are done already are left as they are.
    Returns what result.json says of them.

    Raises: what a run raises.
    """
    runs: list[JsonObject] = []
    for seed in range(num_seeds):
        print(f"\nfinal training {seed + 1} of {num_seeds}", flush=True)
        name = f"t{trial:04d}-seed-{seed}"
        mine = in_folder(config, storage=store.child("final").location(), name=name)
        mine = replace(mine, run=replace(mine.run, seed=seed, tracking_uri="none"))
        tracking.child(f"final-{name}", {"run.seed": seed}, {"final": str(seed)})
        try:
            Run(job, mine, data_storage=Store.open(config.run.storage)).carry_out()
        except TrainyardError:
            tracking.end(f"final-{name}", "failed")
            raise
        result = read_record(store.child(f"final/{name}"), RESULT_FILE)
        kept = {"artifact": result["artifact"], "digest": result["artifact_digest"], "metrics": result["metrics"]}
        runs.append({"trial": trial, "seed": seed} | kept)
        numbers = {f"{split}_{key}": value for split, found in result["metrics"].items()
                   for key, value in found.items()}
        tracking.log(f"final-{name}", numbers | {"step": result["steps"]})
        tracking.end(f"final-{name}", "completed")
    metric = chosen(job.metrics(config), config.metric)
    if metric.name not in (found := runs[0]["metrics"]["validation"]):  # such as a loss that only workers can compute
        metric = primary_of(job.metrics(config), found)
    best = max(runs, key=lambda run: metric.sign * _of(run, "validation", metric))
    version = tracking.register(open_artifact(best["artifact"], best["digest"]))
    tests = [_of(run, "test", metric) for run in runs]
    spread = (f"test {metric.label} {figure(statistics.median(tests))} (median of {len(tests)}, {figure(min(tests))} "
              f"to {figure(max(tests))}); ")
    return {"final": runs, "artifact": best["artifact"], "model_version": version,
            "final_summary": f"{spread}seed {best['seed']} is model version {version or 'not registered'}"}


def _of(run: JsonObject, split: str, metric: Metric) -> float:
    """A metric of a final run."""
    return float(run["metrics"][split][metric.name])
