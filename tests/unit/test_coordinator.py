"""Where driver and workers meet: who is in which generation, what is handed over once, who is told to leave."""

import threading
from typing import Any

from cluster.core.loop_clock import MOST_S
from jobs.common.training.rendezvous import Assignment, Coordinator, Departure, Member


def member(slot: int, worker: str, **changes: Any) -> Member:
    return Member(slot=slot, worker=worker, pid=100 + slot, started=0.0, node_id=None, host="127.0.0.1", **changes)


def begin(coordinator: Coordinator, generation: str, workers: dict[int, str]) -> None:
    """As the supervisor begins a generation: slot → worker."""
    assignments = {
        worker: Assignment(generation=generation, rank=rank, world_size=len(workers), num_shards=3, checkpoint=None)
        for rank, worker in enumerate(workers.values())
    }
    coordinator.begin(assignments, workers)


def started(workers: dict[int, str]) -> Coordinator:
    coordinator = Coordinator()
    for slot, worker in workers.items():
        coordinator.join(member(slot, worker))
    begin(coordinator, "g1", workers)
    return coordinator


def test_a_worker_waits_until_its_generation_begins() -> None:
    coordinator = Coordinator()
    coordinator.join(member(0, "a"))
    coordinator.join(member(1, "b"))
    assert coordinator.assignment("a") is None
    assert {slot: m.worker for slot, m in coordinator.look().joined.items()} == {0: "a", 1: "b"}
    begin(coordinator, "g1", {0: "a", 1: "b"})
    assignment = coordinator.assignment("b")
    assert assignment is not None
    assert (assignment.generation, assignment.rank, assignment.world_size) == ("g1", 1, 2)
    assert coordinator.look().joined == {}, "those who were assigned no longer wait"


def test_who_joined_after_the_supervisor_looked_waits_for_the_next_generation() -> None:
    coordinator = started({0: "a"})
    coordinator.join(member(1, "late"))
    begin(coordinator, "g2", {0: "a2"})
    assert set(coordinator.look().joined) == {1}
    assert coordinator.assignment("late") is None


def test_a_worker_of_a_group_that_was_given_up_is_told_to_go_when_its_host_is_back() -> None:
    """The one in its slot is another group's by then, or still starting."""
    coordinator = Coordinator()
    coordinator.expect("first")
    coordinator.join(member(0, "a", group="first"))
    begin(coordinator, "g1", {0: "a"})
    coordinator.reset()
    coordinator.expect("second")
    assert coordinator.beat(0, "a", {"step": 9}, []).leave
    coordinator.join(member(0, "a2", group="first"))
    assert coordinator.look().joined == {}
    assignment = coordinator.assignment("a2")
    assert assignment is not None
    assert assignment.abort
    coordinator.join(member(0, "b", group="second"))
    assert set(coordinator.look().joined) == {0}
    assert coordinator.assignment("b") is None


def test_a_successor_takes_the_slot_and_the_one_before_is_told_to_leave() -> None:
    coordinator = started({0: "a", 1: "b"})
    begin(coordinator, "g2", {0: "a2", 1: "b2"})
    assert coordinator.beat(1, "b", {"step": 9}, [{"kind": "evaluation"}]).leave
    view = coordinator.look()
    assert view.beats == {}, "where an old generation stands does not count"
    assert view.reports == [{"kind": "evaluation"}], "what it has evaluated does: the checkpoint after it may be committed yet"
    assert not coordinator.beat(1, "b2", {"step": 1}, []).leave
    assert coordinator.look().beats == {1: {"step": 1}}


def test_reports_and_departures_are_handed_over_once_and_in_order() -> None:
    coordinator = started({0: "a", 1: "b"})
    coordinator.beat(0, "a", {"step": 1}, [{"n": 1}, {"n": 2}])
    coordinator.beat(0, "a", {"step": 2}, [{"n": 3}])
    coordinator.leave(Departure(slot=1, worker="b", outcome="error", kind="StorageFullError", message="full"))
    view = coordinator.look()
    assert [report["n"] for report in view.reports] == [1, 2, 3]
    assert [(d.worker, d.kind, d.message) for d in view.departures] == [("b", "StorageFullError", "full")]
    assert view.beats[0]["step"] == 2, "the latest state"
    again = coordinator.look()
    assert (again.reports, again.departures) == ([], [])
    assert again.beats[0]["step"] == 2


def test_a_stop_reaches_every_worker_and_ends_with_the_generation() -> None:
    coordinator = started({0: "a", 1: "b"})
    assert not coordinator.beat(0, "a", {}, []).stop
    coordinator.request_stop()
    orders = [coordinator.beat(slot, worker, {}, []) for slot, worker in ((0, "a"), (1, "b"))]
    assert all(order.stop and not order.leave for order in orders)
    begin(coordinator, "g2", {0: "a2"})
    assert not coordinator.beat(0, "a2", {}, []).stop


def test_a_broken_up_generation_is_left_by_all_but_the_stragglers_may_join_again() -> None:
    coordinator = started({0: "a", 1: "b"})
    coordinator.break_up()
    assert coordinator.beat(0, "a", {}, []).leave and coordinator.beat(1, "b", {}, []).leave
    coordinator.join(member(0, "a2", last_step=7))
    assert coordinator.look().joined[0].last_step == 7
    assert coordinator.assignment("a2") is None


def test_an_abort_reaches_who_trains_and_who_comes_later() -> None:
    coordinator = started({0: "a"})
    coordinator.abort()
    assert coordinator.beat(0, "a", {}, []).leave
    late = coordinator.assignment("never seen")
    assert late is not None and late.abort


def test_values_are_shared_within_a_generation_only() -> None:
    coordinator = started({0: "a"})
    assert coordinator.get("g1", "rendezvous") is None
    coordinator.put("g1", "rendezvous", ("10.0.0.1", 29500))
    assert coordinator.get("g1", "rendezvous") == ("10.0.0.1", 29500)
    assert coordinator.get("g2", "rendezvous") is None
    begin(coordinator, "g2", {0: "a2"})
    assert coordinator.get("g1", "rendezvous") is None, "nothing piles up"


def test_silence_counts_from_the_last_sign_of_life() -> None:
    coordinator = started({0: "a", 1: "b"})
    first = coordinator.look().silence_s
    assert set(first) == {0, 1}, "also of one that was never heard"
    coordinator.beat(0, "a", {}, [])
    second = coordinator.look().silence_s
    assert second[0] < second[1]
    assert second[1] >= first[1]


def test_silence_does_not_grow_while_nobody_looks() -> None:
    """Where driver and coordinator were paused, beats wait to be taken in."""
    now = [100.0]
    coordinator = Coordinator(lambda: now[0])
    coordinator.join(member(0, "a"))
    begin(coordinator, "g1", {0: "a"})
    coordinator.reset()
    coordinator.join(member(0, "b"))
    begin(coordinator, "g2", {0: "b"})
    now[0] += 3600
    assert coordinator.look().silence_s == {0: MOST_S}
    now[0] += 0.5
    assert coordinator.look().silence_s == {0: MOST_S + 0.5}


def test_a_reset_forgets_the_group_and_keeps_the_description() -> None:
    coordinator = started({0: "a"})
    coordinator.describe({"name": "night", "storage": "/runs"})
    coordinator.abort()
    coordinator.reset()
    assert coordinator.description() == {"name": "night", "storage": "/runs"}
    assert coordinator.assignment("new") is None, "no longer aborted"
    view = coordinator.look()
    assert (view.joined, view.beats, view.silence_s) == ({}, {}, {})


def test_no_report_is_lost_between_threads() -> None:
    coordinator = started(dict(enumerate("abcd")))
    seen: list[int] = []
    finished = threading.Event()

    def work(slot: int, worker: str) -> None:
        for number in range(500):
            coordinator.beat(slot, worker, {"step": number}, [{"n": slot * 500 + number}])

    def watch() -> None:
        while not finished.is_set():
            seen.extend(report["n"] for report in coordinator.look().reports)

    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=work, args=(slot, worker)) for slot, worker in enumerate("abcd")]
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    finished.set()
    watcher.join()
    seen.extend(report["n"] for report in coordinator.look().reports)
    assert sorted(seen) == list(range(2000))
