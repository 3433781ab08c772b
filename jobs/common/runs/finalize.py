"""From the best checkpoint to what is handed over: evaluation, artifact, registry, report, result.json, summary."""

from collections.abc import Sequence
from typing import Any

from jobs.common import config as configs
from jobs.common.artifact import artifact
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset
from jobs.common.execution.run_state import Ledger
from jobs.common.provenance import library_versions, machine
from jobs.common.report.run_report import ReportContent, RunFacts, write_report
from jobs.common.runs.console import duration
from jobs.common.runs.run_folder import RunFolder
from jobs.common.runs.tracking import Tracking
from jobs.common.training.job import Job, Trained, Verdict


def finish(job: Job, config: Config, folder: RunFolder, dataset: Dataset, ledger: Ledger, tracking: Tracking,
           startup: dict[str, float]) -> str:
    """Hands a trained run over. Returns the summary, whose last line is `artifact: <uri>`."""
    trained = _trained(job, config, folder, dataset)
    verdict = job.judge(trained)
    made = artifact.write_artifact(folder.store, "artifact", description=job.describe(trained, verdict), probe=verdict.probe,
                                   files=job.files(trained), reference=verdict.reference)
    flat = {f"{split}_{name}": value for split, values in verdict.metrics.items() for name, value in values.items()}
    version = tracking.register(made, flat, ledger.highest_step)
    ledger.save(ended=True)
    _report(job, trained, verdict, folder, ledger, made)
    result = ledger.result("done", 0, folder.attempt) | {
        "metrics": verdict.metrics, "artifact": made.uri, "artifact_digest": made.digest, "model_version": version,
        "report": folder.store.location("report.html"), "startup_s": startup,
    }
    folder.write_result(result)
    return summary(result, verdict.headlines)


def _trained(job: Job, config: Config, folder: RunFolder, dataset: Dataset) -> Trained:
    checkpoints = Checkpoints(folder.store.child("checkpoints"))
    generation, best = checkpoints.current_generation(), checkpoints.best()
    assert generation is not None, "training ended without a generation"
    assert best is not None, "training ended without an evaluated checkpoint"
    return Trained(job=job.name, config=config, dataset=dataset, store=folder.store, generation=generation, best=best)


def _report(job: Job, trained: Trained, verdict: Verdict, folder: RunFolder, ledger: Ledger, made: artifact.Artifact) -> None:
    config, best = trained.config, trained.best
    write_report(folder.store, "report.html", ReportContent(
        title=f"{job.name}: {config.run.name}",
        run=RunFacts(name=config.run.name, status="done", started=float(folder.record["created"]), duration_s=ledger.wall_s,
                     restarts=ledger.restarts, lost_steps=ledger.lost_steps, skipped_steps=ledger.skipped_steps,
                     goodput=ledger.goodput,
                     samples_per_s=ledger.samples_per_s, recovery_s=tuple(ledger.recovery_s), events=tuple(ledger.events)),
        evaluations=dict(verdict.evaluations), history=tuple(ledger.history), mistakes=verdict.mistakes,
        chosen=f"The model is the checkpoint of step {best.step:,} (epochs done: {best.epoch}): the best by validation "
               f"{config.metric}.",
        config=configs.flatten(configs.to_dict(config)), data=trained.dataset.describe(),
        environment={**machine(), **library_versions()}, artifact=made.uri,
        sections=tuple(job.sections(trained, verdict, made)) if job.sections else (),
    ))


def summary(result: dict[str, Any], headlines: Sequence[tuple[str, str]]) -> str:
    """The table that ends a run."""
    rows = [*headlines,
            ("samples/s", f"{result['samples_per_s']:.0f}"),
            ("restarts, steps lost", f"{result['restarts']}, {result['lost_steps']}"),
            ("time", duration(result["wall_s"])),
            ("model version", str(result["model_version"] or "not registered")),
            ("report", result["report"])]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return f"\nresult\n{table}\nartifact: {result['artifact']}"
