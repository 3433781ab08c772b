"""Where the time of a run went, by cause: every second has one, so the parts are the whole.

While training, the seconds since the last step wait for what ends them. A step that comes makes them its own, or, where
something broke meanwhile, the recovery's; a hang that is noticed, the hang's. What the workers themselves count inside
steps, waiting for data and for checkpoints, is taken out of the steps at the end.
"""

import time
from collections.abc import Mapping, Sequence

from jobs.common.checkpoint.writer import Timings
from jobs.common.training.rendezvous import Heartbeat

STARTING, DATA, STEPS, REPEATED, WAITING, CHECKPOINTS, EVALUATION, RECOVERY, HANGS, RESIZING, JUDGING, REGISTERING, \
    REPORTING = CAUSES = (
        "starting", "preparing data", "steps that count", "steps done again", "waiting for data",
        "waiting for checkpoints", "evaluation", "recovery from failures", "hangs until noticed", "changing workers",
        "judging and exporting", "registering", "report and end")
LOST = (REPEATED, RECOVERY, HANGS)
"""What failures cost."""
Spent = dict[str, tuple[float, float]]


class TimeAccount:
    """Seconds, and worker-seconds (times the workers that were held meanwhile), of each of `CAUSES`."""

    def __init__(self, spent: Mapping[str, Sequence[float]] | None = None) -> None:
        """spent: of earlier drivers of the run, as `spent` gave it."""
        self._spent: Spent = {cause: (float(both[0]), float(both[1])) for cause, both in (spent or {}).items()}
        self._within: dict[str, float] = {WAITING: 0.0, CHECKPOINTS: 0.0}
        self._waited_s = 0.0
        self._checkpoint: Timings | None = None
        self._at, self._pending = time.monotonic(), (0.0, 0.0)
        self._workers = 0
        self._next: str | None = STARTING
        """What the time up to the next step is due to, where that is not the step."""

    def begin(self, starting_s: float, data_s: float) -> None:
        """Adds what this driver did before training: so many seconds."""
        self._add(STARTING, (starting_s, 0.0))
        self._add(DATA, (data_s, 0.0))
        self._at = time.monotonic()

    def look(self, beat: Heartbeat | None, workers: int) -> None:
        """At each look of the controller. beat: rank 0's latest."""
        passed = self._passed(workers)
        if beat is None:
            self._wait(passed)
            return
        if beat.phase is None:
            self._wait(passed)
        else:
            self._add(EVALUATION, passed)
        self._within[WAITING] += max(0.0, beat.data_wait_s - self._waited_s)
        self._waited_s = beat.data_wait_s  # it begins at zero with each process
        if beat.checkpoint != self._checkpoint:
            self._within[CHECKPOINTS] += beat.checkpoint.blocking_s if beat.checkpoint else 0.0
            self._checkpoint = beat.checkpoint

    def step(self, *, again: bool) -> None:
        """A step has been made. again: one that had been made before."""
        self._settle(self._next or (REPEATED if again else STEPS))
        self._next = None

    def broke(self) -> None:
        """Something failed: the time since the last step, and up to the next one, is the recovery's."""
        self._next = self._next if self._next == STARTING else RECOVERY

    def hung(self) -> None:
        """Workers that hang have been ended."""
        self._settle(HANGS)
        self.broke()

    def restarted(self) -> None:
        """Workers begin from a checkpoint."""
        self._next = self._next or RESIZING

    def done(self, cause: str) -> None:
        """What the driver has done since the last look, with no workers."""
        self._add(cause, self._passed(0))

    def ended(self) -> None:
        """Training has ended: no step follows."""
        self._wait(self._passed(self._workers))
        self._settle(self._next or REPORTING)

    @property
    def spent(self) -> Spent:
        """What there is of each cause so far, with what waits as steps."""
        found = dict(self._spent)
        if any(self._pending):
            cause = self._next or STEPS
            found[cause] = _sum(found.get(cause, (0.0, 0.0)), self._pending)
        for cause, seconds in self._within.items():
            steps = found.get(STEPS, (0.0, 0.0))
            part = min(seconds, steps[0])
            if part > 0:
                both = part, part * steps[1] / steps[0]
                found[STEPS] = steps[0] - both[0], steps[1] - both[1]
                found[cause] = _sum(found.get(cause, (0.0, 0.0)), both)
        return {cause: found[cause] for cause in CAUSES if cause in found}

    @property
    def settled(self) -> Spent:
        """What there is of each cause as it was settled: it only grows. Waits inside steps are among the steps."""
        return dict(self._spent)

    def seconds(self) -> dict[str, float]:
        """By cause, to hundredths, for result.json."""
        return {cause: round(both[0], 2) for cause, both in self.spent.items()}

    def cost(self, price: float) -> dict[str, float]:
        """What the workers cost, and of that what failures lost. price: of a worker for an hour."""
        hours = {cause: both[1] / 3600 for cause, both in self.spent.items()}
        return {"workers": round(price * sum(hours.values()), 4),
                "lost": round(price * sum(hours.get(cause, 0.0) for cause in LOST), 4)}

    def _passed(self, workers: int) -> tuple[float, float]:
        """Since the last look."""
        now = time.monotonic()
        passed, self._at, self._workers = now - self._at, now, workers
        return passed, passed * workers

    def _wait(self, passed: tuple[float, float]) -> None:
        self._pending = _sum(self._pending, passed)

    def _settle(self, cause: str) -> None:
        self._add(cause, self._pending)
        self._pending = 0.0, 0.0

    def _add(self, cause: str, passed: tuple[float, float]) -> None:
        self._spent[cause] = _sum(self._spent.get(cause, (0.0, 0.0)), passed)


def _sum(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]
