"""How a search shows itself: a live table on a terminal,
elsewhere a line every few seconds and one for each trial that ends."""

import time
from collections.abc import Mapping

from rich.table import Table

from jobs.common.formatting import shown
from jobs.common.runs.console import PLAIN_EVERY_S, Screen, duration
from tuning.journal import Trial
from tuning.search import Search

_MOST_ROWS = 12


class SearchConsole(Screen):
    """Shows how a search goes on."""

    def __init__(self, search: Search, *, plain: bool | None = None) -> None:
        super().__init__(plain=plain)
        self._search = search
        self._began = self._shown_at = time.monotonic()

    def tick(self) -> None:
        """Cheap to call often."""
        if self._plain and time.monotonic() - self._shown_at > PLAIN_EVERY_S:
            self._shown_at = time.monotonic()
            self.say(self.line())

    def on_trial_slot_free(self, trial: Trial) -> None:
        if trial.status != "running":
            goal, row = self._search.goal, self._search.goal.best_row(trial)
            result = (f"{goal.first} {row[goal.first]:.4f}" if row else trial.failures[-1] if trial.failures
                      else "no result")
            self.say(f"trial {trial.number} {trial.status} after {trial.epoch} epochs: {result}  "
                     f"{values_text(trial.values)}")

    def line(self) -> str:
        """`trials 12/30 running 2 stopped 7 failed 0 epochs 143 best validation_accuracy 0.9791 (trial 7) 1m20s`."""
        search = self._search
        states = [trial.status for trial in search.trials.values()]
        best = next(iter(search.goal.ranked(list(search.trials.values()))), None)
        row = search.goal.best_row(best) if best else None
        result = (f"best {search.goal.first} {row[search.goal.first]:.4f} (trial {best.number})" if best and row
                  else "no result yet")
        return (f"trials {len(states)}/{search.num_trials} running {len(search.running)} stopped "
                f"{states.count('stopped')} failed {states.count('failed')} epochs {search.epochs_done} {result} "
                f"{duration(time.monotonic() - self._began)}")

    def drawn(self) -> Table:
        """The running trials, and the best of the others."""
        search = self._search
        table = Table(title=self.line(), title_justify="left", box=None, header_style="dim")
        for heading in ("trial", "", "epochs", *search.goal.metrics, "values"):
            table.add_column(heading, justify="left" if heading in ("", "values") else "right",
                             no_wrap=heading != "values")
        running = [search.trials[number] for number in sorted(search.running)]
        others = search.goal.ranked([trial for trial in search.trials.values() if trial.number not in search.running])
        for trial in [*running, *others][:_MOST_ROWS]:
            row = search.goal.best_row(trial)
            status = ("running" if trial.number in search.running else "waiting" if trial.status == "running"
                      else trial.status)
            table.add_row(str(trial.number), status, f"{trial.epoch}/{search.epochs}",
                          *(f"{row[name]:.4f}" if row else "–" for name in search.goal.metrics),
                          values_text(trial.values))
        return table


def values_text(values: Mapping[str, object]) -> str:
    return " ".join(f"{name}={shown(value).replace(', ', ',')}" for name, value in values.items())
