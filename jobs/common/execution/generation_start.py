"""Begins a generation: finds what to resume from, in a worker's memory or in storage, and gives each worker its
assignment."""

import json
from collections.abc import Callable, Sequence

from cluster.core.storage import Store
from jobs.common.checkpoint.peer_memory import Offer
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.config import RunConfig
from jobs.common.execution.run_state import RunState
from jobs.common.provenance import differences, environment
from jobs.common.training.rendezvous import Assignment, RendezvousClient, WorkerInfo
from jobs.common.training.step_file import take_marks


class GenerationStart:
    """Of a run with its folder and its account. tell: takes a line to say, and what the run's events keep of it."""

    def __init__(self, run: RunConfig, *, store: Store, run_state: RunState, num_shards: int,
                 rendezvous: RendezvousClient, tell: Callable[[str, str], None]) -> None:
        self._run, self._store, self._run_state, self._num_shards = run, store, run_state, num_shards
        self._checkpoints = Checkpoints(store.child("checkpoints"))
        self._rendezvous, self._tell = rendezvous, tell

    def begin(self, workers: dict[int, WorkerInfo], mtbf_s: float | None) -> tuple[str, str]:
        """Begins with these workers, by rank, at the furthest step that one of them holds, else at the newest intact
        checkpoint.

        Returns the name of the generation and where it begins.
        """
        self._run_state.reached(take_marks(self._store))
        generation = self._checkpoints.begin_generation()
        committed = self._checkpoints.committed()
        offer = self._chosen_offer(list(workers.values()), committed)
        if offer is None:
            checkpoint = self._checkpoints.newest_intact(self._damaged)
            where = f"continuing at step {checkpoint.step}" if checkpoint else "from the beginning"
        else:  # what storage has is looked at when it is needed
            checkpoint = committed[0] if committed else None
            where = f"continuing at step {offer.checkpoint.step}, from worker {offer.slot}'s memory"
        self._run_state.resume_from(offer.checkpoint.step if offer else checkpoint.step if checkpoint else 0,
                                    from_memory=offer is not None)
        if checkpoint is not None and offer is None:
            self._compare(checkpoint, len(workers))
        assignments = {
            member.worker: Assignment(
                generation=generation, rank=rank, world_size=len(workers), num_shards=self._num_shards,
                checkpoint=checkpoint, offer=offer, excluded_steps=self._run_state.excluded_steps, mtbf_s=mtbf_s,
            ) for rank, member in workers.items()
        }
        self._rendezvous.begin(assignments, {member.slot: member.worker for member in workers.values()})
        places = {rank: {"pid": m.pid, "node": m.node_id, "host": m.host} for rank, m in workers.items()}
        self._store.write_text(f"logs/workers/{generation}.json", json.dumps(places))
        return generation, where

    def _chosen_offer(self, workers: Sequence[WorkerInfo], committed: Sequence[Checkpoint]) -> Offer | None:
        """The furthest one that is newer than what storage has; none where a step has to be left out, where workers
        hold different weights after the same step, or where the best checkpoint that training has seen by then died
        with the worker that was writing it."""
        if refused := [each.why for each in workers if each.refused_offer]:
            self._tell(f"{refused[0]}: from storage instead", refused[0])
        if refused or any(each.bad_steps for each in workers):
            return None
        newest = committed[0].step if committed else -1
        metrics = {None, *(each.metric for each in committed)}
        offers = [each.offer for each in workers if each.offer is not None and each.offer.checkpoint.step > newest
                  and each.offer.checkpoint.state["best_metric"] in metrics]
        places = [(offer.checkpoint.step, offer.checkpoint.epoch) for offer in offers]
        alike = [offer for offer, place in zip(offers, places, strict=True) if place == max(places)]
        if len({offer.file.sha256 for offer in alike}) > 1:
            who = " and ".join(str(offer.slot) for offer in alike)
            text = f"workers {who} hold different weights after step {alike[0].checkpoint.step}"
            self._tell(f"{text}: from storage instead", text)
            return None
        return alike[0] if alike else None

    def _compare(self, checkpoint: Checkpoint, num_workers: int) -> None:
        """Says what no longer promises the same bits: another processor, version, or number of threads, or of workers
        where they matter."""
        now = environment() | {"threads": self._run.cpus_per_worker}
        if self._run.exact == "same-workers":
            now["world_size"] = num_workers
        if changed := differences(checkpoint.environment, now):
            text = f"equal within rounding from here on, not bit for bit: {'; '.join(changed)}"
            self._tell(text, text)

    def _damaged(self, what: str) -> None:
        self._tell(f"damaged: {what}; looking for an older one", what)
