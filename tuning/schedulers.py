"""Which trials end before their last epoch (`Stopping`), and which go on from copies of better ones (`Population`).

Ray Tune's schedulers are asked about evaluations by number. They keep what they know in memory and Ray does not save
it; here they are told again of every evaluation when a search goes on, and see a stand-in for each trial, so that one
that is started again is the same to them.

Population based training (Jaderberg et al. 2017): the worst members go on from copies of the best, with values near
theirs. Ray Tune's own clones what Ray saved of a trial. Here a member that moves gets a copy of the other's checkpoint,
file by file, and goes on as a run of its own from there. All members rest after the same epochs, so that who moves
where, and from which weights, is a function of the seed and not of who was faster;
a search that was killed moves the same members to the same places.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportArgumentType=false

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from tuning.journal import Journal, Trial
from tuning.objective import Goal
from tuning.space import Space, Values

_SCORE = "score"
_QUANTILE = 0.25
_EXCLUDED_STEPS = "excluded_steps.json"


class _StandIn:
    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


class Stopping:
    """`--scheduler asha`, `median`, or one that never ends a trial."""

    def __init__(self, kind: str, goal: Goal, *, epochs: int, grace_epochs: int, reduction_factor: int) -> None:
        self._goal, self._scheduler = goal, _scheduler(kind, epochs, min(grace_epochs, epochs), reduction_factor)
        self._stand_ins: dict[int, _StandIn] = {}

    def stops(self, number: int, row: Mapping[str, float]) -> bool:
        """Whether a trial ends with this evaluation.
        Each is to be asked about once, in the order in which they were heard of."""
        from ray.tune.schedulers import TrialScheduler

        if self._scheduler is None:
            return False
        if number not in self._stand_ins:
            self._stand_ins[number] = _StandIn(number)
            self._scheduler.on_trial_add(None, self._stand_ins[number])
        result = {"epoch": row["epoch"], _SCORE: self._goal.score(row)}
        return self._scheduler.on_trial_result(None, self._stand_ins[number], result) == TrialScheduler.STOP


def _scheduler(kind: str, epochs: int, grace_epochs: int, reduction_factor: int) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    if kind == "asha":
        return AsyncHyperBandScheduler(time_attr="epoch", metric=_SCORE, mode="max", max_t=epochs,
                                       grace_period=grace_epochs,
                                       reduction_factor=reduction_factor, stop_last_trials=False)
    if kind == "median":  # it would pause a trial to let others run, which here have their own turn
        return MedianStoppingRule(time_attr="epoch", metric=_SCORE, mode="max", grace_period=grace_epochs,
                                  min_time_slice=math.inf)
    return None


class Population:
    """Says how far each member may go, and moves the worst when all have come so far."""

    def __init__(self, journal: Journal, trials_store: Store, goal: Goal, space: Space, base: Values, *, size: int,
                 epochs: int, every: int, seed: int) -> None:
        self._journal, self._store, self._goal, self._space, self._base = journal, trials_store, goal, space, base
        self._size, self._epochs, self._every, self._seed = size, epochs, every, seed

    def until_epoch(self) -> int:
        """The epoch after which members rest, having moved those whose turn it is where all have come to rest."""
        trials = self._journal.trials.values()
        alive = [trial for trial in trials if trial.status == "running"]
        if not alive or len(trials) < self._size:
            return min(self._every, self._epochs)
        rest = min(member.paused for member in alive)
        if rest:
            self._move_the_worst(rest)
        return min(rest + self._every, self._epochs)

    def _move_the_worst(self, epoch: int) -> None:
        """Whoever came to rest there is ranked, whatever became of it since: called again,
        it finds the same and moves nobody."""
        paused = [trial for trial in self._journal.trials.values() if epoch in trial.rests]
        scores = {trial.number: self._goal.score(_row_after(trial, epoch)) for trial in paused}
        ranked = sorted(paused, key=lambda trial: (-scores[trial.number], trial.number))
        count = min(math.ceil(len(ranked) * _QUANTILE), len(ranked) // 2)
        best, worst = ranked[:count], ranked[len(ranked) - count :]
        for member in worst:
            if member.status != "running" or any(move["epoch"] == epoch for move in member.moves):
                continue
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch, member.number])))
            source = best[int(random.integers(len(best)))]
            values = self._space.perturb(source.values, random, self._base)
            target = member.folder_after(len(member.moves) + 1)
            checkpoint = copy_checkpoint(self._store.child(source.folder), self._store.child(target), epoch)
            self._journal.add(member.number, kind="moved", source=source.number, epoch=epoch, step=checkpoint.step,
                              values=values)


def _row_after(trial: Trial, epoch: int) -> Mapping[str, float]:
    return [row for row in trial.evaluations if row["epoch"] == epoch][-1]


def copy_checkpoint(source: Store, target: Store, epoch: int) -> Checkpoint:
    """The newest checkpoint of a run after so many epochs becomes the first one of another run.

    Its files keep their names and hashes, so it is verified like any other when the run goes on.
    Raises: CheckpointError.
    """
    kept = [each for each in Checkpoints(source.child("checkpoints")).committed() if each.epoch == epoch]
    if not kept:
        raise CheckpointError(f"{source.location()} has no checkpoint after epoch {epoch}: it was deleted or is "
                              "damaged")
    files = [*(entry.path for entry in kept[0].files), kept[0].name.manifest]  # the manifest last: it commits
    paths = [f"checkpoints/{path}" for path in files]
    if source.exists(_EXCLUDED_STEPS):
        paths.insert(0, _EXCLUDED_STEPS)
    for path in paths:
        source.copy_to(target, path, path)
    return kept[0]
