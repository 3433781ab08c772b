"""What the ranks agree on with each call of a job's step: whether to stop, to save,
and how many steps the next call makes.

Each rank has wishes of its own, and a step adds them up along with what it sums anyway, so that all ranks read the
same. Rank 0 says how many steps come next: as many as take a quarter of a second, and none beyond where a checkpoint is
due. What is computed does not depend on it.
"""

import time
from collections.abc import Sequence

from jobs.common.training.session import Session
from jobs.common.training.train_state import TrainState

CALL_S = 0.25
"""Seconds that a call of many steps should take."""


class StepBatcher:
    """Says how many steps a call makes, what this rank wishes, and what all ranks have agreed on.
    One step a call by default."""

    def __init__(self, session: Session, state: TrainState, most_steps: int | None, agree_on_checkpoints: bool) -> None:
        """most_steps: that a call may make; None: each call makes one, and nobody wishes for a number."""
        self._session, self._state, self._most_steps = session, state, most_steps
        self._agree_on_checkpoints = agree_on_checkpoints
        self._count, self._next, self._step_s, self._began = 1, 1, 0.0, 0.0
        self._agreed: Sequence[float] = ()

    def count(self, last: int) -> int:
        """How many steps the next call makes: none beyond `last`, and none that is left out of training."""
        if self._most_steps is not None:
            self._began, step = time.perf_counter(), self._state.step
            left_out = [excluded - step for excluded in self._session.excluded_steps if excluded > step]
            self._count = min(self._next, last - step, *left_out)
        return self._count

    def wishes(self) -> list[float]:
        """This rank's own: to stop, and where the ranks agree on them, for a checkpoint, and for a number of steps."""
        session = self._session
        wishes = [float(session.peers.stop_wanted)]
        if self._agree_on_checkpoints:
            wishes.append(float(session.checkpoints.checkpoint_due(self._state.step + self._count)))
        if self._most_steps is not None:
            wishes.append(float(self._wish(self._most_steps)))
        return wishes

    def made(self, agreed: Sequence[float]) -> None:
        """After a call. agreed: the wishes of all ranks, added up."""
        self._agreed = agreed
        if self._most_steps is not None:
            self._step_s, self._next = (time.perf_counter() - self._began) / self._count, int(agreed[-1])

    @property
    def stop_agreed(self) -> bool:
        """Whether any rank wants to stop."""
        return self._agreed[0] > 0

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is to be taken now that `step` steps are done."""
        return self._agreed[1] > 0 if self._agree_on_checkpoints else self._session.checkpoints.checkpoint_due(step)

    def _wish(self, most_steps: int) -> int:
        """How many steps rank 0 wishes for after this call."""
        if self._session.rank:
            return 0
        fit = int(CALL_S / self._step_s) if self._step_s else 1
        return max(1, min(fit, most_steps, self._session.checkpoints.room(self._state.step + self._count)))
