"""report.html of a search: what was found, how sure that is, which fields matter, and what early stopping saved."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import itertools
from collections.abc import Mapping, Sequence

from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.command_line import flatten
from jobs.common.config import INDEX_FILE, Config, to_dict
from jobs.common.formatting import shown
from jobs.common.provenance import machine, used_libraries, without_secrets
from jobs.common.report import html
from jobs.common.runs.console import duration
from tuning import charts, results
from tuning.journal import STATUSES, Trial
from tuning.objective import Goal
from tuning.parameter import Parameter
from tuning.search import Search
from tuning.space import Space

_FEW, _MOST_ROWS, _MOST_SLICES, _MOST_FAILURES = 8, 50, 16, 200
"""With fewer trials nothing is said about importance."""


def write_report(store: Store, search: Search, base: Config, space: Space, status: str, why: str) -> None:
    """why: what ended the search. Raises: StorageError, StorageFullError."""
    best = results.best_trial(search)
    made = Checkpoints(store.child(f"trials/{best.folder}/checkpoints")).committed() if best else []
    libraries = used_libraries(made[0].environment if made else None)
    store.write_text("report.html", render(search, base, space, status, why, libraries))


def render(search: Search, base: Config, space: Space, status: str, why: str, libraries: Mapping[str, str]) -> str:
    """The report as one HTML document. libraries: that were used, and their versions."""
    goal, best = search.goal, results.best_trial(search)
    trials = [search.trials[number] for number in sorted(search.trials)]
    judged = [trial for trial in trials if goal.best_row(trial)]
    shares = importances(search, judged, space)
    drawn = (parameter for name, parameter in space.parameters.items() if any(name in trial.values for trial in judged))
    parameters = sorted(drawn, key=lambda parameter: -shares.get(parameter.name, 0.0))
    row = (goal.best_row(best) if best else None) or {}
    found = {**best.values, **{name: row[name] for name in [*goal.metrics][1:]}} if best else {}
    states = [trial.status for trial in trials]
    fields, front = _fields(trials), goal.pareto(judged)
    return html.render(
        "search_report.html", "tuning", title=f"Search: {base.run.name}", index=f"../{INDEX_FILE}",
        search=search, status=status, why=why,
        took=duration(search.journal.elapsed_s), charts=charts, trials=trials, judged=judged, best=best, row=row,
        found=found,
        states=", ".join(f"{states.count(state)} {state}" for state in STATUSES if state in states),
        whole=len(trials) * search.epochs, front=front, front_fields=_fields(front),
        front_rows=_front_rows(goal, front), shares=shares, few=_FEW, parameters=parameters, most_slices=_MOST_SLICES,
        pairs=list(itertools.combinations(parameters[:3], 2)), fields=fields,
        leaders=[_leader(goal, trial, fields) for trial in goal.ranked(trials)[:_MOST_ROWS]],
        moves=[(f"{trial.number}", move["epoch"], move["source"], *(move["values"].get(field) for field in fields))
               for trial in trials for move in trial.moves],
        failures=[f"trial {t.number}: {message}" for t in trials for message in t.failures][:_MOST_FAILURES],
        parts={**_parts(search, base, space), "Environment": {**machine(), **libraries}})


def importances(search: Search, judged: Sequence[Trial], space: Space) -> dict[str, float]:
    """Share of each field in being among the best tenth (PED-ANOVA, Watanabe et al.
    2023); {} where there are too few trials.

    A trial that was stopped counts with what it had reached.
    """
    if len(judged) < _FEW:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    from tuning.sampler import ReplayTrial

    study = optuna.create_study(direction="minimize")
    for trial in judged:
        known = ReplayTrial(trial.values)
        space.suggest(known, search.flat_base)
        row = search.goal.best_row(trial)
        assert row is not None
        study.add_trial(create_trial(value=-search.goal.score(row), params=known.params,
                                     distributions=known.distributions))
    try:
        judge = PedAnovaImportanceEvaluator(target_quantile=max(0.1, 3 / len(judged)))
        return dict(get_param_importances(study, evaluator=judge))
    except (RuntimeError, ValueError):  # all trials alike
        return {}


def _front_rows(goal: Goal, front: Sequence[Trial]) -> list[list[object]]:
    """The best by the first metric first."""
    fields = _fields(front)
    judged = [(trial, row) for trial in front if (row := goal.best_row(trial))]
    return [[str(trial.number), *(row[name] for name in goal.metrics), *(trial.values.get(field) for field in fields)]
            for trial, row in sorted(judged, key=lambda pair: -goal.sign * float(pair[1][goal.first]))]


def _leader(goal: Goal, trial: Trial, fields: Sequence[str]) -> list[object]:
    row = goal.best_row(trial)
    status = trial.status if row is None or goal.feasible(row) else f"{trial.status}, beyond a constraint"
    return [f"{trial.number}", status, trial.epoch, *(row[name] if row else None for name in goal.metrics),
            *(trial.values.get(name) for name in fields)]


def _parts(search: Search, base: Config, space: Space) -> dict[str, Mapping[str, object]]:
    """How it was searched."""
    searched = {name: _distribution(parameter) for name, parameter in space.parameters.items()}
    options = {key: value for key, value in search.journal.about.get("options", {}).items()
               if value not in (None, [], ())}
    hidden = ("run.name", *space.parameters)
    config = {key: without_secrets(value) for key, value in flatten(to_dict(base)).items() if key not in hidden}
    return {"Space": searched, "Pinned": search.pinned, "Search": options, "Config of all trials": config}


def _distribution(parameter: Parameter) -> str:
    kind = parameter.kind.replace("_", " ")
    is_choice = parameter.kind == "choice"
    ends = (" or " if is_choice else " to ").join(shown(value) or "nothing" for value in parameter.values)
    when = "".join(f", if {name} is {shown(value)}" for name, value in parameter.when.items())
    return f"{kind} {ends}{f' by {parameter.step:g}' if parameter.step else ''}{when}"


def _fields(trials: Sequence[Trial]) -> list[str]:
    """Those that any of them has a value for."""
    return list(dict.fromkeys(name for trial in trials for name in trial.values))
