"""Where driver and workers meet: who is in which generation, what is handed over once, who is told to leave."""

import pickle
import threading
from typing import Any

from cluster.core.loop_clock import MOST_S
from jobs.common.training.rendezvous import Assignment, Heartbeat, Rendezvous, WorkerExit, WorkerInfo


def member(slot: int, worker: str, **changes: Any) -> WorkerInfo:
    return WorkerInfo(slot=slot, worker=worker, pid=100 + slot, started=0.0, node_id=None, host="127.0.0.1", **changes)


def begin(rendezvous: Rendezvous, generation: str, workers: dict[int, str]) -> None:
    """As the controller begins a generation: slot → worker."""
    assignments = {
        worker: Assignment(generation=generation, rank=rank, world_size=len(workers), num_shards=3, checkpoint=None)
        for rank, worker in enumerate(workers.values())
    }
    rendezvous.begin(assignments, workers)


def started(workers: dict[int, str]) -> Rendezvous:
    rendezvous = Rendezvous()
    for slot, worker in workers.items():
        rendezvous.register(member(slot, worker))
    begin(rendezvous, "g1", workers)
    return rendezvous


def test_a_worker_waits_until_its_generation_begins() -> None:
    rendezvous = Rendezvous()
    rendezvous.register(member(0, "a"))
    rendezvous.register(member(1, "b"))
    assert rendezvous.assignment("a") is None
    assert {slot: m.worker for slot, m in rendezvous.poll().registered.items()} == {0: "a", 1: "b"}
    begin(rendezvous, "g1", {0: "a", 1: "b"})
    assignment = rendezvous.assignment("b")
    assert assignment is not None
    assert (assignment.generation, assignment.rank, assignment.world_size) == ("g1", 1, 2)
    assert rendezvous.poll().registered == {}, "those who were assigned no longer wait"


def test_who_joined_after_the_supervisor_looked_waits_for_the_next_generation() -> None:
    rendezvous = started({0: "a"})
    rendezvous.register(member(1, "late"))
    begin(rendezvous, "g2", {0: "a2"})
    assert set(rendezvous.poll().registered) == {1}
    assert rendezvous.assignment("late") is None


def test_a_worker_of_a_group_that_was_given_up_is_told_to_go_when_its_host_is_back() -> None:
    """The one in its slot is another group's by then, or still starting."""
    rendezvous = Rendezvous()
    rendezvous.expect("first")
    rendezvous.register(member(0, "a", group="first"))
    begin(rendezvous, "g1", {0: "a"})
    rendezvous.reset()
    rendezvous.expect("second")
    assert rendezvous.heartbeat(0, "a", Heartbeat(step=9), []).leave
    rendezvous.register(member(0, "a2", group="first"))
    assert rendezvous.poll().registered == {}
    assignment = rendezvous.assignment("a2")
    assert assignment is not None
    assert assignment.abort
    rendezvous.register(member(0, "b", group="second"))
    assert set(rendezvous.poll().registered) == {0}
    assert rendezvous.assignment("b") is None


def test_a_successor_takes_the_slot_and_the_one_before_is_told_to_leave() -> None:
    rendezvous = started({0: "a", 1: "b"})
    begin(rendezvous, "g2", {0: "a2", 1: "b2"})
    assert rendezvous.heartbeat(1, "b", Heartbeat(step=9), [{"kind": "evaluation"}]).leave
    view = rendezvous.poll()
    assert view.heartbeats == {}, "where an old generation stands does not count"
    assert view.reports == [{"kind": "evaluation"}], (
        "what it has evaluated does: the checkpoint after it may be committed yet")
    assert not rendezvous.heartbeat(1, "b2", Heartbeat(step=1), []).leave
    assert rendezvous.poll().heartbeats == {1: Heartbeat(step=1)}


def test_a_heartbeat_travels_between_processes() -> None:
    beat = Heartbeat(step=3, loss=0.5, shown={"MFU": "40%"})
    assert pickle.loads(pickle.dumps(beat)) == beat


def test_reports_and_departures_are_handed_over_once_and_in_order() -> None:
    rendezvous = started({0: "a", 1: "b"})
    rendezvous.heartbeat(0, "a", Heartbeat(step=1), [{"n": 1}, {"n": 2}])
    rendezvous.heartbeat(0, "a", Heartbeat(step=2), [{"n": 3}])
    rendezvous.deregister(WorkerExit(slot=1, worker="b", outcome="error", kind="StorageFullError", message="full"))
    view = rendezvous.poll()
    assert [report["n"] for report in view.reports] == [1, 2, 3]
    assert [(d.worker, d.kind, d.message) for d in view.exits] == [("b", "StorageFullError", "full")]
    assert view.heartbeats[0].step == 2, "the latest state"
    again = rendezvous.poll()
    assert (again.reports, again.exits) == ([], [])
    assert again.heartbeats[0].step == 2


def test_a_stop_reaches_every_worker_and_ends_with_the_generation() -> None:
    rendezvous = started({0: "a", 1: "b"})
    assert not rendezvous.heartbeat(0, "a", Heartbeat(), []).stop
    rendezvous.request_stop()
    orders = [rendezvous.heartbeat(slot, worker, Heartbeat(), []) for slot, worker in ((0, "a"), (1, "b"))]
    assert all(order.stop and not order.leave for order in orders)
    begin(rendezvous, "g2", {0: "a2"})
    assert not rendezvous.heartbeat(0, "a2", Heartbeat(), []).stop


def test_a_broken_up_generation_is_left_by_all_but_the_stragglers_may_join_again() -> None:
    rendezvous = started({0: "a", 1: "b"})
    rendezvous.break_up()
    assert rendezvous.heartbeat(0, "a", Heartbeat(), []).leave and rendezvous.heartbeat(1, "b", Heartbeat(), []).leave
    rendezvous.register(member(0, "a2", last_step=7))
    assert rendezvous.poll().registered[0].last_step == 7
    assert rendezvous.assignment("a2") is None


def test_an_abort_reaches_who_trains_and_who_comes_later() -> None:
    rendezvous = started({0: "a"})
    rendezvous.abort()
    assert rendezvous.heartbeat(0, "a", Heartbeat(), []).leave
    late = rendezvous.assignment("never seen")
    assert late is not None and late.abort


def test_values_are_shared_within_a_generation_only() -> None:
    rendezvous = started({0: "a"})
    assert rendezvous.get("g1", "rendezvous") is None
    rendezvous.put("g1", "rendezvous", ("10.0.0.1", 29500))
    assert rendezvous.get("g1", "rendezvous") == ("10.0.0.1", 29500)
    assert rendezvous.get("g2", "rendezvous") is None
    begin(rendezvous, "g2", {0: "a2"})
    assert rendezvous.get("g1", "rendezvous") is None, "nothing piles up"


def test_silence_counts_from_the_last_sign_of_life() -> None:
    rendezvous = started({0: "a", 1: "b"})
    first = rendezvous.poll().silence_s
    assert set(first) == {0, 1}, "also of one that was never heard"
    rendezvous.heartbeat(0, "a", Heartbeat(), [])
    second = rendezvous.poll().silence_s
    assert second[0] < second[1]
    assert second[1] >= first[1]


def test_silence_does_not_grow_while_nobody_looks() -> None:
    """Where driver and rendezvous were paused, beats wait to be taken in."""
    now = [100.0]
    rendezvous = Rendezvous(lambda: now[0])
    rendezvous.register(member(0, "a"))
    begin(rendezvous, "g1", {0: "a"})
    rendezvous.reset()
    rendezvous.register(member(0, "b"))
    begin(rendezvous, "g2", {0: "b"})
    now[0] += 3600
    assert rendezvous.poll().silence_s == {0: MOST_S}
    now[0] += 0.5
    assert rendezvous.poll().silence_s == {0: MOST_S + 0.5}


def test_a_reset_forgets_the_group_and_keeps_the_description() -> None:
    rendezvous = started({0: "a"})
    rendezvous.describe({"name": "night", "storage": "/runs"})
    rendezvous.abort()
    rendezvous.reset()
    assert rendezvous.description() == {"name": "night", "storage": "/runs"}
    assert rendezvous.assignment("new") is None, "no longer aborted"
    view = rendezvous.poll()
    assert (view.registered, view.heartbeats, view.silence_s) == ({}, {}, {})


def test_no_report_is_lost_between_threads() -> None:
    rendezvous = started(dict(enumerate("abcd")))
    seen: list[int] = []
    finished = threading.Event()

    def work(slot: int, worker: str) -> None:
        for number in range(500):
            rendezvous.heartbeat(slot, worker, Heartbeat(step=number), [{"n": slot * 500 + number}])

    def watch() -> None:
        while not finished.is_set():
            seen.extend(report["n"] for report in rendezvous.poll().reports)

    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=work, args=(slot, worker)) for slot, worker in enumerate("abcd")]
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    finished.set()
    watcher.join()
    seen.extend(report["n"] for report in rendezvous.poll().reports)
    assert sorted(seen) == list(range(2000))
