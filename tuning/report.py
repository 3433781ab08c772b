"""report.html of a search: what was found, how sure that is, which fields matter, and what early stopping saved."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.core.storage import Store
from jobs.common.command_line import flatten
from jobs.common.config import Config, to_dict
from jobs.common.formatting import shown
from jobs.common.provenance import library_versions, machine, without_secrets
from jobs.common.report.html import Section, escape, facts, figure, figures, note, page, table, tiles
from jobs.common.runs.console import duration
from tuning import charts, results
from tuning.journal import STATUSES, Trial
from tuning.parameter import Parameter
from tuning.search import Search
from tuning.space import Space

_FEW, _MOST_ROWS, _MOST_SLICES = 8, 50, 16
"""With fewer trials nothing is said about importance."""


def write_report(store: Store, search: Search, base: Config, space: Space, status: str, why: str) -> None:
    """why: what ended the search. Raises: StorageError, StorageFullError."""
    store.write_text("report.html", render(search, base, space, status, why))


def render(search: Search, base: Config, space: Space, status: str, why: str) -> str:
    """The report as one HTML document."""
    kind = "status" if status == "done" else "status other"
    lead = (f'<p class="lead"><span class="{kind}">{escape(status)}</span>{len(search.trials)} trials · ended: {escape(why)} · '
            f"took {escape(duration(search.journal.elapsed_s))}</p>")
    trials = [search.trials[number] for number in sorted(search.trials)]
    judged = [trial for trial in trials if search.goal.best_row(trial)]
    shares = importances(search, judged, space)
    drawn = (parameter for name, parameter in space.parameters.items() if any(name in trial.values for trial in judged))
    parameters = sorted(drawn, key=lambda parameter: -shares.get(parameter.name, 0.0))
    sections = [_summary(search, trials), *_pareto(search, judged), *_curves(search, judged), *_importance(shares, judged),
                *_values(search, judged, parameters), _leaderboard(search, trials), *_moves(trials), *_failures(trials),
                _setup(search, base, space)]
    return page(f"Search: {base.run.name}", lead, sections)


def importances(search: Search, judged: Sequence[Trial], space: Space) -> dict[str, float]:
    """Share of each field in being among the best tenth (PED-ANOVA, Watanabe et al. 2023); {} where there are too few trials.

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
        study.add_trial(create_trial(value=-search.goal.score(row), params=known.params, distributions=known.distributions))
    try:
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=max(0.1, 3 / len(judged)))))
    except (RuntimeError, ValueError):  # all trials alike
        return {}


def _summary(search: Search, trials: Sequence[Trial]) -> Section:
    goal, best = search.goal, results.best_trial(search)
    row = goal.best_row(best) if best else None
    states = [trial.status for trial in trials]
    spent, whole = search.epochs_done, len(trials) * search.epochs
    cards = [(f"best {goal.first}", f"{row[goal.first]:.4f}", f"trial {best.number}, epoch {row['epoch']}")] if best and row else []
    kinds = ", ".join(f"{states.count(state)} {state}" for state in STATUSES if state in states)
    cards += [("trials", str(len(trials)), kinds),
              ("epochs", f"{spent:,}", f"of {whole:,} without early stopping"),
              ("saved", f"{100 * (1 - spent / whole):.0f}%" if whole else "–", "of the epochs of all trials")]
    said = ""
    if best and row:
        said = facts({**best.values, **{name: row[name] for name in [*goal.metrics][1:]}})
        if goal.constraints:
            said += note(f"It keeps {', '.join(map(str, goal.constraints))}.")
        said += note("This is the best of many on the validation rows, so it is flattering: train it with other seeds "
                     "(--then-train) to see how good it is.")
    else:
        said = note("No trial has come to a result that keeps the constraints.")
    return Section(title="Summary", html=tiles(cards) + said)


def _pareto(search: Search, judged: Sequence[Trial]) -> list[Section]:
    if len(search.goal.metrics) < 2 or not judged:
        return []
    front = search.goal.pareto(judged)
    names = list(search.goal.metrics)
    fields = _fields(front)
    rows: list[list[Any]] = [
        [str(trial.number), *(row[name] for name in names), *(trial.values.get(field) for field in fields)]
        for trial in front if (row := search.goal.best_row(trial))]
    rows.sort(key=lambda row: -float(row[1]) if search.goal.metrics[names[0]] == "max" else float(row[1]))
    ways = ", ".join(f"{name} ({'more' if way == 'max' else 'less'} is better)" for name, way in search.goal.metrics.items())
    picture = figures([figure(charts.pareto_front(judged, front, search.goal), "Each dot is a trial.")])
    said = note(f"No other trial is better in one of {ways} without being worse in another.")
    return [Section(title="Pareto front", html=said + picture + table(["trial", *names, *fields], rows))]


def _curves(search: Search, judged: Sequence[Trial]) -> list[Section]:
    if not judged:
        return []
    best = results.best_trial(search)
    curves = charts.learning_curves(judged, search.goal, best)
    pictures = [figure(curves, "Learning curves; a trial that was stopped ends where it was."),
                figure(charts.progress(judged, search.goal), "Each trial's best epoch, and the best so far.")]
    return [Section(title="Trials", html=figures(pictures))]


def _importance(shares: Mapping[str, float], judged: Sequence[Trial]) -> list[Section]:
    title = "Which fields matter"
    if not shares:
        return [Section(title=title, html=note(f"Said from {_FEW} trials on; there are {len(judged)}."))] if judged else []
    how = ("How much of being among the best each field decides, by PED-ANOVA; a trial that was stopped counts with what it had "
           "reached. With few trials this is rough.")
    return [Section(title=title, html=figures([figure(charts.importance(shares), how)]))]


def _values(search: Search, judged: Sequence[Trial], parameters: Sequence[Parameter]) -> list[Section]:
    if len(judged) < 2:
        return []
    axes = charts.parallel_coordinates(parameters, judged, search.goal)
    lines = figure(axes, "All trials, a line each; bright lines are good ones.")
    slices = [figure(charts.slice_of(p, judged, search.goal), p.name, above=True) for p in parameters[:_MOST_SLICES]]
    pairs = [figure(charts.contour(a, b, judged, search.goal), f"{a.name} and {b.name}", above=True)
             for a, b in itertools.combinations(parameters[:3], 2)]
    said = note("Each dot is a trial's best epoch, later trials darker; trials far behind are out of the picture, or at its edge.")
    ground = note("Colour is a mean of the trials, those near a point counting most; where there are no dots it means little.")
    return [Section(title="Parallel coordinates", html=f'<div class="broad">{lines}</div>'),
            Section(title="Slices", html=said + figures(slices)), Section(title="Contours", html=ground + figures(pairs))]


def _leaderboard(search: Search, trials: Sequence[Trial]) -> Section:
    goal, ranked, names = search.goal, search.goal.ranked(trials), _fields(trials)
    rows: list[list[object]] = []
    for trial in ranked[:_MOST_ROWS]:
        row = goal.best_row(trial)
        status = trial.status if row is None or goal.feasible(row) else f"{trial.status}, beyond a constraint"
        rows.append([f"{trial.number}", status, trial.epoch, *(row[name] if row else None for name in goal.metrics),
                     *(trial.values.get(name) for name in names)])
    more = note(f"The first {_MOST_ROWS} of {len(trials)}; all are in {results.LEADERBOARD}.") if len(trials) > _MOST_ROWS else ""
    return Section(title="Leaderboard", html=more + table(["trial", "status", "epochs", *goal.metrics, *names], rows))


def _moves(trials: Sequence[Trial]) -> list[Section]:
    fields = _fields(trials)
    rows = [(f"{trial.number}", move["epoch"], move["source"], *(move["values"].get(field) for field in fields))
            for trial in trials for move in trial.moves]
    if not rows:
        return []
    said = note("A member of the worst quarter goes on from a copy of the weights of one of the best, with values near its.")
    moves = table(["member", "after epoch", "copied", *fields], rows)
    return [Section(title="Moves in the population", html=said + moves)]


def _failures(trials: Sequence[Trial]) -> list[Section]:
    lines = [f"trial {trial.number}: {message}" for trial in trials for message in trial.failures]
    items = "".join(f"<li>{escape(without_secrets(line))}</li>" for line in lines[:200])
    return [Section(title="Failures", html=f'<ul class="events">{items}</ul>')] if lines else []


def _setup(search: Search, base: Config, space: Space) -> Section:
    searched = {name: _distribution(parameter) for name, parameter in space.parameters.items()}
    options = {key: value for key, value in search.journal.about.get("options", {}).items() if value not in (None, [], ())}
    hidden = ("run.name", *space.parameters)
    config = {key: without_secrets(value) for key, value in flatten(to_dict(base)).items() if key not in hidden}
    parts = {"Space": searched, "Pinned": search.pinned, "Search": options, "Config of all trials": config,
             "Environment": {**machine(), **library_versions()}}
    shown_parts = (f"<h3>{title}</h3>{facts(values)}" for title, values in parts.items() if values)
    return Section(title="How it was searched", html="".join(shown_parts))


def _distribution(parameter: Parameter) -> str:
    kind = parameter.kind.replace("_", " ")
    is_choice = parameter.kind == "choice"
    ends = (" or " if is_choice else " to ").join(shown(value) or "nothing" for value in parameter.values)
    when = "".join(f", if {name} is {shown(value)}" for name, value in parameter.when.items())
    return f"{kind} {ends}{f' by {parameter.step:g}' if parameter.step else ''}{when}"


def _fields(trials: Sequence[Trial]) -> list[str]:
    """Those that any of them has a value for."""
    return list(dict.fromkeys(name for trial in trials for name in trial.values))
