"""How a run shows itself: a rich progress bar on a terminal, elsewhere a plain line at least every 5 seconds."""

import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from jobs.common.declared_metrics import figure
from jobs.common.training.rendezvous import Heartbeat

PLAIN_EVERY_S = 4.5


class Screen:
    """Says what happens, on a terminal above what is drawn anew there.
    Use it as a context manager around what takes long."""

    def __init__(self, *, plain: bool | None = None) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._plain = not self._console.is_terminal if plain is None else plain
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """One line, at once."""
        if self._plain:
            print(text, flush=True)
        else:
            self._console.print(text, markup=False)

    def drawn(self) -> RenderableType:
        """What a terminal shows now."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        if not self._plain:
            self._live = Live(console=self._console, get_renderable=self.drawn, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()


class RunConsole(Screen):
    """Shows how training goes on."""

    def __init__(self, *, plain: bool | None = None) -> None:
        super().__init__(plain=plain)
        self._shown_at, self._shown_step = 0.0, -1
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"),
                             console=self._console)
        self._task = self._bar.add_task("training", total=None, line="starting")

    def drawn(self) -> RenderableType:
        return self._bar

    def show(self, beat: Heartbeat, *, workers: int, restarts: int) -> None:
        """beat: rank 0's latest. Cheap to call often."""
        now = time.monotonic()
        step = beat.step
        last = step == beat.total_steps and step != self._shown_step
        if now - self._shown_at < (PLAIN_EVERY_S if self._plain else 0.12) and not last:
            return
        self._shown_at, self._shown_step = now, step
        line = progress_line(beat, workers=workers, restarts=restarts)
        if self._plain:
            print(line, flush=True)
        else:
            self._bar.update(self._task, completed=step, total=beat.total_steps, line=line)


def progress_line(beat: Heartbeat, *, workers: int, restarts: int) -> str:
    """`epoch 3/20 step 120/1000 loss 0.1234 validation accuracy 0.9812 loss 0.2211 samples/s 50123 workers 3 restarts 0
    eta 12s`; after the last step, what it does in place of `eta`."""
    if beat.total_steps is None:
        return f"starting workers {workers} restarts {restarts}"
    eta = (beat.total_steps - beat.step) * beat.median_step_s
    parts = [
        f"epoch {beat.epoch + 1}/{beat.epochs}",
        f"step {beat.step}/{beat.total_steps}",
        "loss -" if beat.loss is None else f"loss {beat.loss:.4f}",
        *(["validation"] if beat.scores else []), *(f"{name} {figure(value)}" for name, value in beat.scores.items()),
        f"samples/s {beat.samples_per_s:.0f}",
        f"workers {workers}", f"restarts {restarts}",
        *([] if beat.phase and beat.step == beat.total_steps else [f"eta {duration(eta)}"]),
    ]
    parts += [f"{name} {value}" for name, value in beat.shown.items()]
    if beat.phase:
        parts.append(beat.phase)
    return " ".join(parts)


def duration(seconds: float) -> str:
    """`12s`, `3m05s`, `2h07m`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def fail(message: str) -> None:
    """An expected error, on standard error."""
    print(f"error: {message}", file=sys.stderr, flush=True)


Say = Callable[[str], None]
