"""What a search leaves: leaderboard.csv, best.yaml (a valid --config of the job), result.json."""

import csv
import io
import json

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.config import C, Config, to_yaml
from jobs.common.runs.run_folder import RESULT_FILE
from tuning.journal import STATUSES, Trial
from tuning.options import in_folder
from tuning.search import Search
from tuning.space import with_values

LEADERBOARD, BEST = "leaderboard.csv", "best.yaml"


def best_trial(search: Search) -> Trial | None:
    """The best one that keeps the constraints and has not failed; None if there is none."""
    best = next(iter(search.goal.ranked(list(search.trials.values()))), None)
    row = search.goal.best_row(best) if best else None
    return best if best and row is not None and best.status != "failed" and search.goal.feasible(row) else None


def config_of(base: C, search: Search, trial: Trial) -> C:
    """The job's config with a trial's values."""
    return with_values(base, search.pinned | trial.values)


def write_leaderboard(store: Store, search: Search) -> None:
    """The best first."""
    names = list(dict.fromkeys(name for trial in search.trials.values() for name in trial.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    goal, own = search.goal, ["best_epoch", *search.goal.metrics, "keeps_constraints"]
    writer.writerow(["rank", "trial", "status", "epochs", "failures", *own, *names])
    for rank, trial in enumerate(search.goal.ranked(list(search.trials.values())), 1):
        row = goal.best_row(trial)
        judged = [row["epoch"], *(row[name] for name in goal.metrics), goal.feasible(row)] if row else [""] * len(own)
        values = [json.dumps(v) if isinstance(v := trial.values.get(name, ""), list) else v for name in names]
        writer.writerow([rank, trial.number, trial.status, trial.epoch, len(trial.failures), *judged, *values])
    store.write_text(LEADERBOARD, text.getvalue())


def write_best(store: Store, base: Config, search: Search) -> Trial | None:
    """The best trial's config, to be trained under a name of its own. Returns the trial."""
    if (best := best_trial(search)) is not None:
        config = in_folder(config_of(base, search, best), storage=base.run.storage, name=f"{base.run.name[:58]}-best")
        store.write_text(BEST, to_yaml(config))
    return best


def summary_of(search: Search, status: str, exit_code: int) -> JsonObject:
    """What result.json says."""
    best = best_trial(search)
    states = [trial.status for trial in search.trials.values()]
    return {
        "status": status, "exit_code": exit_code, "trials": {name: states.count(name) for name in STATUSES},
        "epochs": search.epochs_done, "epochs_without_stopping": len(search.trials) * search.epochs,
        "wall_s": round(search.journal.elapsed_s, 1), "objectives": dict(search.goal.metrics),
        "best": {"trial": best.number, "values": best.values, "evaluation": search.goal.best_row(best)}
        if best else None,
        "pareto": [trial.number for trial in search.goal.pareto(list(search.trials.values()))],
    }


def write_result(store: Store, result: JsonObject) -> None:
    store.write_text(RESULT_FILE, json.dumps(result, indent=1))
