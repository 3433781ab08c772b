"""A loop that was away does not find its bounds passed when it is back."""

import threading
import time
from functools import partial
from pathlib import Path

import pytest

from cluster.core import control_store
from cluster.core.errors import ClusterError
from cluster.core.loop_clock import MOST_S, LoopClock
from cluster.core.storage import Store
from jobs.common.checkpoint import shards
from jobs.common.checkpoint.manifest import FileEntry, SaveName


class Paused:
    """A clock of a machine that stands still for an hour, once, when it is told to."""

    def __init__(self) -> None:
        self.away_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.away_s


def test_a_clock_counts_what_its_loop_was_there_to_see() -> None:
    times = iter([100.0, 100.25, 100.5, 4000.0, 4000.25, 4005.0, 4010.0])
    clock = LoopClock(lambda: next(times))
    began = clock.now
    assert clock.look() - began == 0.25
    assert clock.look() - began == 0.5
    assert clock.now - began == 0.5, "between two looks it stands still"
    assert clock.look() - began == 0.5 + MOST_S, "an hour away is a moment"
    assert clock.look() - began == 0.75 + MOST_S
    for turn in (1, 2):
        assert clock.look() - began == 0.75 + MOST_S * (1 + turn), (
            "one that is always slow comes to its bound all the same")


def test_a_deadline_that_passed_in_a_pause_still_waits_for_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    paused, woken = Paused(), threading.Event()
    monkeypatch.setattr(control_store, "LoopClock", partial(LoopClock, paused))

    def call() -> int:
        paused.away_s += 3600
        woken.wait(1.5)  # longer than one look
        return 7

    assert control_store.within(5, call, ClusterError("late")) == 7


def test_the_parts_of_a_checkpoint_are_waited_for_after_a_pause(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stood still for longer than a part may take, and the other rank's process with it."""
    paused, store, save = Paused(), Store.open(str(tmp_path)), SaveName("000001-ab", 1, 8)
    part = FileEntry(path=save.part(1), size=1, sha256="0", rank=1)
    monkeypatch.setattr(shards, "LoopClock", partial(LoopClock, paused))
    looks: list[float] = []

    def sleep(_: float) -> None:
        looks.append(paused())
        if len(looks) == 1:
            paused.away_s += 3600
        else:
            shards.announce(store, save, 1, part)

    monkeypatch.setattr(shards.time, "sleep", sleep)
    assert shards.collect(store, save, 2, 600.0, threading.Event()) == [part]
