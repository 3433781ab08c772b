"""From the best checkpoint to what is handed over: evaluation, artifact, registry, report, result.json, summary."""

from typing import Any

import numpy as np

from cluster.errors import TrainingFailedError
from jobs.common import artifact, predictions
from jobs.common import config as configs
from jobs.common.checkpoint import Checkpoint, Checkpoints
from jobs.common.config import Config
from jobs.common.dataset import Dataset
from jobs.common.evaluation import Evaluation, evaluate, worst_mistakes
from jobs.common.job import Job
from jobs.common.ledger import Ledger
from jobs.common.predictions import Predictions
from jobs.common.progress import duration
from jobs.common.provenance import library_versions, machine
from jobs.common.report import Mistakes, ReportContent, RunFacts, write_report
from jobs.common.run_folder import RunFolder
from jobs.common.tracking import Tracking

_PROBE_ROWS = 4


def finish(job: Job, config: Config, folder: RunFolder, dataset: Dataset, ledger: Ledger, tracking: Tracking,
           startup: dict[str, float]) -> str:
    """Hands a trained run over. Returns the summary, whose last line is `artifact: <uri>`."""
    generation = Checkpoints(folder.store.child("checkpoints")).current_generation()
    assert generation is not None, "training ended without a generation"
    predicted = {split: predictions.read(folder.store, generation, split) for split in ("validation", "test")
                 if dataset.splits[split].num_rows}
    _require_finite(predicted)
    judged = {split: _judge(p, dataset, config) for split, p in predicted.items()}
    metrics = {split: evaluation.scalars() for split, evaluation in judged.items()}
    best = _best(folder)
    made = _artifact(job, config, folder, dataset, metrics, predicted["test"], best)
    flat = {f"{split}_{name}": value for split, values in metrics.items() for name, value in values.items()}
    version = tracking.register(made, flat, ledger.highest_step)
    ledger.save(ended=True)
    _report(job, config, folder, dataset, ledger, judged, predicted["test"], made.uri, best)
    result = ledger.result("done", 0, folder.attempt) | {
        "metrics": metrics, "artifact": made.uri, "artifact_digest": made.digest, "model_version": version,
        "report": folder.store.location("report.html"), "startup_s": startup,
    }
    folder.write_result(result)
    return summary(result, judged["test"])


def _best(folder: RunFolder) -> Checkpoint:
    best = Checkpoints(folder.store.child("checkpoints")).best()
    assert best is not None, "training ended without an evaluated checkpoint"
    return best


def _require_finite(predicted: dict[str, Predictions]) -> None:
    for split, share in predicted.items():
        if bad := int((~np.isfinite(share.probabilities)).any(axis=1).sum()):
            raise TrainingFailedError(
                f"the model's predictions for {bad} of {len(share.labels)} {split} rows are not finite: look at these rows "
                "for extreme values, or at the loss for signs of divergence (--optim.lr)"
            )


def _judge(predicted: Predictions, dataset: Dataset, config: Config) -> Evaluation:
    return evaluate(predicted.probabilities, predicted.labels, dataset.class_names, top_k=config.eval.top_k,
                    bootstrap_samples=config.eval.bootstrap_samples)


def _artifact(job: Job, config: Config, folder: RunFolder, dataset: Dataset, metrics: dict[str, dict[str, float]],
              test: Predictions, best: Checkpoint) -> artifact.Artifact:
    count = min(_PROBE_ROWS, len(test.labels))
    reader = dataset.reader("test", config.data)
    images = reader.rows(0, count)["image"]
    reader.close()
    probe = artifact.Probe(inputs={"image": images}, outputs={"probabilities": test.probabilities[:count]})
    return artifact.write_artifact(folder.store, "artifact", description=job.describe(config, dataset, metrics), probe=probe,
                                   weights=job.weights(Checkpoints(folder.store.child("checkpoints")).load(best)))


def _report(job: Job, config: Config, folder: RunFolder, dataset: Dataset, ledger: Ledger, judged: dict[str, Evaluation],
            test: Predictions, artifact_uri: str, best: Checkpoint) -> None:
    worst = worst_mistakes(test.probabilities, test.labels)
    reader = dataset.reader("test", config.data)
    images = reader.take(worst)["image"]
    reader.close()
    predicted = test.probabilities[worst].argmax(1)
    mistakes = Mistakes(images=images, labels=test.labels[worst], predictions=predicted,
                        confidences=test.probabilities[worst, predicted])
    write_report(folder.store, "report.html", ReportContent(
        title=f"{job.name}: {config.run.name}",
        run=RunFacts(name=config.run.name, status="done", started=float(folder.record["created"]), duration_s=ledger.wall_s,
                     restarts=ledger.restarts, lost_steps=ledger.lost_steps, skipped_steps=ledger.skipped_steps,
                     goodput=ledger.goodput,
                     samples_per_s=ledger.samples_per_s, recovery_s=tuple(ledger.recovery_s), events=tuple(ledger.events)),
        evaluations=dict(judged), history=tuple(ledger.history), mistakes=mistakes,
        chosen=f"The model is the checkpoint of step {best.step:,} (epochs done: {best.epoch}): the best by validation "
               f"{config.eval.metric}.",
        config=configs.flatten(configs.to_dict(config)), data=dataset.describe(),
        environment={**machine(), **library_versions()}, artifact=artifact_uri,
    ))


def summary(result: dict[str, Any], test: Evaluation) -> str:
    """The table that ends a run."""
    rows = [("test accuracy", f"{test.accuracy:.4f} (95% interval {test.accuracy_low:.4f} to {test.accuracy_high:.4f})"),
            ("macro-F1", f"{test.macro_f1:.4f}"), ("log loss", f"{test.log_loss:.4f}"),
            (f"top-{test.top_k} accuracy", f"{test.top_k_accuracy:.4f}"),
            ("calibration error", f"{test.expected_calibration_error:.4f}"),
            ("samples/s", f"{result['samples_per_s']:.0f}"),
            ("restarts, steps lost", f"{result['restarts']}, {result['lost_steps']}"),
            ("time", duration(result["wall_s"])),
            ("model version", str(result["model_version"] or "not registered")),
            ("report", result["report"])]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return f"\nresult\n{table}\nartifact: {result['artifact']}"


