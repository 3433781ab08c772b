"""Without a terminal: a plain line, at least every 5 seconds."""

import itertools
import re
from dataclasses import replace

import pytest

from jobs.common.runs.console import RunConsole, duration, progress_line
from jobs.common.training.rendezvous import Heartbeat

BEAT = Heartbeat(epochs=20, epoch=2, step=120, total_steps=1000, loss=0.12344, samples_per_s=50123.4,
                 median_step_s=0.0135)


def test_the_line_says_what_the_issue_says() -> None:
    line = progress_line(BEAT, workers=3, restarts=0)
    assert line == "epoch 3/20 step 120/1000 loss 0.1234 samples/s 50123 workers 3 restarts 0 eta 12s"
    assert progress_line(replace(BEAT, phase="judging validation rows"), workers=3, restarts=0) == (
        f"{line} judging validation rows")
    scored = replace(BEAT, scores={"accuracy": 0.98119, "loss": 0.2211})
    assert progress_line(scored, workers=3, restarts=0) == line.replace(
        "samples/s", "validation accuracy 0.9812 loss 0.2211 samples/s")


def test_after_the_last_step_the_line_says_what_is_going_on_and_no_eta() -> None:
    beat = replace(BEAT, step=1000, phase="judging test rows: 512 of 2,000")
    assert progress_line(beat, workers=3, restarts=0).endswith("restarts 0 judging test rows: 512 of 2,000")


def test_a_line_comes_at_least_every_five_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    display = RunConsole(plain=True)
    shown_at: list[float] = []
    for _ in range(200):
        now[0] += 0.1
        display.show(BEAT, workers=1, restarts=0)
        if capsys.readouterr().out:
            shown_at.append(now[0])
    gaps = [b - a for a, b in itertools.pairwise(shown_at)]
    assert len(shown_at) >= 4
    assert max(gaps) <= 5
    display.show(replace(BEAT, step=1000), workers=1, restarts=0)
    assert re.search(r"step 1000/1000", capsys.readouterr().out)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (12, "12s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
