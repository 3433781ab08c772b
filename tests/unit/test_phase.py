"""The phases of a run while it trains, and which may follow which."""

import itertools

import pytest

from jobs.common.execution.phase import FOLLOWING, Phase, PhaseTracker


def tracker(phase: Phase) -> PhaseTracker:
    found = PhaseTracker()
    found.present = phase
    return found


@pytest.mark.parametrize(("phase", "following"), list(itertools.product(Phase, Phase)))
def test_only_what_is_in_the_table_follows(phase: Phase, following: Phase) -> None:
    found = tracker(phase)
    if following in FOLLOWING[phase]:
        found.enter(following, 3.0)
        assert (found.present, found.since) == (following, 3.0)
    else:
        with pytest.raises(AssertionError, match=r"^a run that is .* cannot be "):
            found.enter(following, 3.0)
        assert found.present is phase


def reachable(phase: Phase) -> set[Phase]:
    found, new = set[Phase](), {phase}
    while new:
        found |= new
        new = {following for each in new for following in FOLLOWING[each]} - found
    return found


def test_every_phase_is_reached_from_the_first_and_each_comes_to_an_end() -> None:
    assert reachable(PhaseTracker().present) == set(Phase)
    assert all(Phase.ENDED in reachable(phase) for phase in Phase)


def test_what_ended_does_not_begin_again_and_a_stop_is_not_taken_back() -> None:
    assert FOLLOWING[Phase.ENDED] == frozenset()
    assert not FOLLOWING[Phase.STOPPING] & {Phase.RESIZING, Phase.MOVING, Phase.TRAINING}
