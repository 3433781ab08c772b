"""From the best checkpoint to what is handed over: evaluation, artifact, registry, report, result.json, summary."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import psutil

from cluster.core.documents import JsonObject
from jobs.common import config as configs
from jobs.common.artifact import artifact
from jobs.common.artifact.manifest import lineage
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.command_line import flatten
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset
from jobs.common.declared_metrics import chosen, headlines
from jobs.common.execution.run_state import RunState
from jobs.common.execution.time_account import JUDGING, REGISTERING, REPORTING
from jobs.common.extras import Extras
from jobs.common.provenance import code_version, machine, used_libraries
from jobs.common.report.data_report import DATA_FILE
from jobs.common.report.html import Section
from jobs.common.report.profile import profile_section
from jobs.common.report.run_report import REPORT_FILE, ReportContent, RunFacts, left_out_section, write_report
from jobs.common.runs.console import duration
from jobs.common.runs.origin import noted, recorded
from jobs.common.runs.run_folder import RunFolder
from jobs.common.runs.tracking import Tracking
from jobs.common.step_profile import missing, tables
from jobs.common.training.job import EvaluationResult, Job, TrainingResult
from jobs.common.training.predictions import read_extras


def finish(job: Job, config: Config, folder: RunFolder, dataset: Dataset, run_state: RunState, tracking: Tracking,
           startup: dict[str, float]) -> str:
    """Hands a trained run over. Returns the summary, whose last line is `artifact: <uri>`."""
    trained = _trained(job, config, folder, dataset)
    verdict = job.judge(trained)
    files = job.files(trained)
    origins = recorded(folder.record)
    description = replace(job.describe(trained, verdict), libraries=used_libraries(trained.best.environment),
                          started_from=origins)
    made = artifact.write_artifact(folder.store, "artifact", description=description, probe=verdict.probe, files=files,
                                   reference=verdict.reference)
    run_state.account.done(JUDGING)
    flat = {f"{split}_{name}": value for split, values in verdict.metrics.items() for name, value in values.items()}
    version = tracking.register(made, flat, run_state.highest_step)
    run_state.account.done(REGISTERING)
    run_state.save(ended=True)
    profiled = tables(folder.store)
    not_profiled = missing(config.run, profiled)
    own = tuple(job.sections(trained, verdict, made)) if job.sections else ()
    extras = trained.extras.account
    _report(job, trained, verdict, folder, run_state, made,
            [*own, *profile_section(profiled, not_profiled), *left_out_section(extras, config.eval.extras_budget)])
    for page in (REPORT_FILE, DATA_FILE):
        tracking.attach(page, folder.store.read_text(page))
    run_state.account.done(REPORTING)
    result = run_state.result("done", 0, folder.attempt) | {
        "metrics": verdict.metrics, "declared_metrics": [asdict(each) for each in job.metrics(config)],
        "artifact": made.uri, "artifact_digest": made.digest, "model_version": version,
        "report": folder.store.location(REPORT_FILE), "startup_s": startup,
        "extras": {"budget_s": config.eval.extras_budget_s, "spent_s": round(extras.spent_s, 2),
                   "left_out": list(extras.left_out)},
    } | noted(origins)
    if profiled or not_profiled:
        result["profile"] = {"traces": [folder.store.location(each.trace) for each in profiled],
                             "missing": not_profiled}
    folder.write_result(result)
    return summary(result, headlines(job.metrics(config), verdict.metrics["test"]))


def _trained(job: Job, config: Config, folder: RunFolder, dataset: Dataset) -> TrainingResult:
    checkpoints = Checkpoints(folder.store.child("checkpoints"))
    generation, best = checkpoints.current_generation(), checkpoints.best()
    assert generation is not None, "training ended without a generation"
    assert best is not None, "training ended without an evaluated checkpoint"
    return TrainingResult(job=job.name, config=config, dataset=dataset, store=folder.store, generation=generation,
                          best=best, extras=Extras(config.eval.extras_budget_s, read_extras(folder.store, generation)))


def _report(job: Job, trained: TrainingResult, verdict: EvaluationResult, folder: RunFolder, run_state: RunState,
            made: artifact.Artifact, sections: Sequence[Section]) -> None:
    config, best = trained.config, trained.best
    write_report(folder.store, REPORT_FILE, ReportContent(
        title=f"{job.name}: {config.run.name}",
        run=RunFacts(name=config.run.name, status="done", started=float(folder.record["created"]),
                     duration_s=run_state.wall_s,
                     restarts=run_state.restarts, lost_steps=run_state.lost_steps,
                     skipped_steps=run_state.skipped_steps,
                     goodput=run_state.goodput, time_s=run_state.account.seconds(),
                     cost=run_state.account.cost(run_state.price) if run_state.price is not None else {},
                     samples_per_s=run_state.samples_per_s, recovery_s=tuple(run_state.recovery_s),
                     events=tuple(run_state.events)),
        metrics=verdict.metrics, declared=job.metrics(config), evaluations=dict(verdict.evaluations),
        history=_with_rates(config, trained.dataset, run_state), mistakes=verdict.mistakes,
        chosen=f"The model is the checkpoint of step {best.step:,} (epochs done: {best.epoch}): the best by validation "
               f"{chosen(job.metrics(config), config.metric).label}.",
        config=flatten(configs.to_dict(config)), data=trained.dataset.describe(),
        environment={**({"began with": lineage(made.manifest.description.started_from)} if recorded(folder.record)
                        else {}),
                     "command": shlex.join(sys.argv), "code": code_version(), "attempt": folder.attempt,
                     "MLflow run": folder.record.get("registry_run_id") or "none", **machine(),
                     "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB", **used_libraries(best.environment)},
        data_page=DATA_FILE, index=folder.index, artifact=made.uri,
        sections=sections,
    ))


def _with_rates(config: Config, dataset: Dataset, run_state: RunState) -> list[JsonObject]:
    """The history, and where the config's own schedule says it, the learning rate of 200 steps and not of evaluations
    alone."""
    rate = getattr(getattr(config, "optim", None), "learning_rate", None)
    own = getattr(config, "own", None)
    if rate is None or (own is not None and (own.method("schedule") or own.method("optimizer"))):
        return run_state.history
    train = config.train
    total = train.total_steps(dataset.splits["train"].num_rows // train.global_batch_size)
    steps = sorted({round(step) for step in np.linspace(0, run_state.highest_step - 1, 200)})
    return [*({name: value for name, value in row.items() if name != "learning_rate"} for row in run_state.history),
            *({"step": step + 1, "learning_rate": rate(step, total)} for step in steps)]


def summary(result: JsonObject, figures: Sequence[tuple[str, str]]) -> str:
    """The table that ends a run. figures: of the model, what and how much."""
    rows = [*figures,
            ("samples/s", f"{result['samples_per_s']:.0f}"),
            ("restarts, steps lost", f"{result['restarts']}, {result['lost_steps']}"),
            ("time", duration(result["wall_s"])),
            ("model version", str(result["model_version"] or "not registered")),
            ("report", result["report"])]
    if left_out := result["extras"]["left_out"]:
        rows.append(("left out", f"{', '.join(left_out)} (--eval.extras-budget)"))
    profile = result.get("profile", {"traces": [], "missing": []})
    rows += [("profile", trace) for trace in profile["traces"]]
    rows += [("not profiled", steps) for steps in profile["missing"]]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return f"\nresult\n{table}\nartifact: {result['artifact']}"
