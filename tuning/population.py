"""Population based training (Jaderberg et al. 2017): the worst members go on from copies of the best, with values near theirs.

Ray Tune's own PBT clones what Ray saved of a trial. Here a member that moves gets a copy of the other's checkpoint, file by file,
and goes on as a run of its own from there. All members rest after the same epochs, so that who moves where, and from which weights,
is a function of the seed and not of who was faster; a search that was killed moves the same members to the same places.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.errors import CheckpointError
from cluster.storage import Store
from jobs.common.checkpoint import Checkpoint, Checkpoints
from tuning.journal import Journal, Trial
from tuning.objective import Goal
from tuning.space import Space

_QUANTILE = 0.25
_EXCLUDED_STEPS = "excluded_steps.json"


class Population:
    """Says how far each member may go, and moves the worst when all have come so far."""

    def __init__(self, journal: Journal, trials_store: Store, goal: Goal, space: Space, base: Mapping[str, Any], *, size: int,
                 epochs: int, every: int, seed: int) -> None:
        self._journal, self._store, self._goal, self._space, self._base = journal, trials_store, goal, space, base
        self._size, self._epochs, self._every, self._seed = size, epochs, every, seed

    def until_epoch(self) -> int:
        """The epoch after which members rest, having moved those whose turn it is where all have come so far."""
        members = [trial for trial in self._journal.trials.values() if trial.status == "running"]
        if not members or len(self._journal.trials) < self._size:
            return min(self._every, self._epochs)
        slowest = min(member.epoch for member in members)
        rest = slowest // self._every * self._every
        nobody_beyond = all(trial.epoch <= rest for trial in self._journal.trials.values())  # else they have moved already
        if rest and rest < self._epochs and nobody_beyond and all(member.epoch == rest for member in members):
            self._move_the_worst(members, rest)
        return min(rest + self._every, self._epochs)

    def _move_the_worst(self, members: Sequence[Trial], epoch: int) -> None:
        ranked = sorted(members, key=lambda trial: (-self._goal.score(trial.evaluations[-1]), trial.number))
        count = min(-(-len(ranked) * _QUANTILE // 1), len(ranked) // 2)
        best, worst = ranked[: int(count)], ranked[len(ranked) - int(count) :]
        for member in worst:
            if any(move["epoch"] == epoch for move in member.moves):
                continue  # before the driver was killed
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch, member.number])))
            source = best[int(random.integers(len(best)))]
            values = self._space.perturb(source.values, random, self._base)
            target = f"t{member.number:04d}-{len(member.moves) + 1}"
            checkpoint = copy_checkpoint(self._store.child(source.folder), self._store.child(target), epoch)
            self._journal.add(member.number, kind="moved", source=source.number, epoch=epoch, step=checkpoint.step, values=values)


def copy_checkpoint(source: Store, target: Store, epoch: int) -> Checkpoint:
    """The newest checkpoint of a run after so many epochs becomes the first one of another run.

    Its files keep their names and hashes, so it is verified like any other when the run goes on. Raises: CheckpointError.
    """
    kept = [each for each in Checkpoints(source.child("checkpoints")).committed() if each.epoch == epoch]
    if not kept:
        raise CheckpointError(f"{source.location()} has no checkpoint after epoch {epoch}: it was deleted or is damaged")
    files = [*(entry.path for entry in kept[0].files), kept[0].name.manifest]  # the manifest last: it commits
    paths = [f"checkpoints/{path}" for path in files]
    if source.exists(_EXCLUDED_STEPS):
        paths.insert(0, _EXCLUDED_STEPS)
    for path in paths:
        source.copy_to(target, path, path)
    return kept[0]
