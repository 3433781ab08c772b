"""What the workers of a generation tell each other beside their collectives: values, and digests of their weights."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cluster.core.errors import DivergedError
from cluster.core.storage import Store
from jobs.common.training import weight_digest
from jobs.common.training.context import PeerLostError, T
from jobs.common.training.rendezvous import Assignment, HeartbeatReply, RendezvousClient


class Peers:
    """All workers of one generation, as one of them meets them."""

    def __init__(self, *, assignment: Assignment, rendezvous: RendezvousClient, run_store: Store, host: str, step: int,
                 check_every_steps: int) -> None:
        """step: where this generation begins. check_every_steps: how often weights are compared; 0: never."""
        self._rank, self._world_size, self._generation = assignment.rank, assignment.world_size, assignment.generation
        self._rendezvous, self._run_store, self._host = rendezvous, run_store, host
        self._check_every_steps, self._same_weights_at = check_every_steps, step
        self._gathered = ""
        """The key of this rank's share of what was gathered last."""
        self.reply = HeartbeatReply()
        """To the last beat."""

    @property
    def stop_wanted(self) -> bool:
        """A hint to this rank: act on it only when all ranks have agreed on the step."""
        return self.reply.stop

    def broadcast(self, key: str, make: Callable[[], T]) -> T:
        """Rank 0's value of `make()`, on every rank. Raises: PeerLostError if rank 0 never gives it."""
        if self._rank == 0:
            value = make()
            self._rendezvous.put(self._generation, key, value)
            return value
        return self._wait_for(key, 0)

    def all_gather(self, key: str, value: T) -> list[T]:
        """Each rank's value, in their order, on every rank. Raises: PeerLostError if one never gives it."""
        mine = f"{key}/{self._rank}"
        self._rendezvous.put(self._generation, mine, value)
        found = [self._wait_for(f"{key}/{rank}", rank) for rank in range(self._world_size)]
        if self._gathered:  # all ranks have come here, so none waits for what was gathered before
            self._rendezvous.put(self._generation, self._gathered, None)
        self._gathered = mine
        return found

    def _wait_for(self, key: str, rank: int) -> Any:
        while not self.reply.leave:  # a rank that is gone, or hangs, is the controller's to notice
            if (value := self._rendezvous.get(self._generation, key)) is not None:
                return value
            time.sleep(0.02)
        raise PeerLostError(f"rank {rank} did not share {key!r}")

    # ── do all have the same weights? ──
    def weights_due(self, step: int) -> bool:
        """Whether the weights are to be compared now that `step` steps are done: the same answer on all ranks."""
        every = self._check_every_steps
        return self._world_size > 1 and every > 0 and step // every > self._same_weights_at // every

    def compare_weights(self, step: int, digest: int, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Call it on every rank. digest: of this rank's weights (weight_digest.py). total: the sum over all ranks of a
        float64 array.

        Raises: DivergedError on all ranks, naming those whose weights are not those of most; PeerLostError.
        """
        odd = weight_digest.mismatched_ranks(total(weight_digest.placed(digest, self._rank, self._world_size)).tolist())
        if odd:
            hosts = self.all_gather("diverged", self._host)
            raise DivergedError(self._divergence(step, {rank: hosts[rank] for rank in odd}))
        self._same_weights_at = step

    def _divergence(self, step: int, odd: Mapping[int, str]) -> str:
        who = ", ".join(f"rank {rank} ({host})" for rank, host in odd.items())
        others, later = self._world_size - len(odd), self._run_store.location("checkpoints/manifests")
        what = f"differ from those of the other {others}" if others else "do not agree"
        return (f"after step {step} the weights of {who} {what}; after step {self._same_weights_at} all were the same. "
                "Memory, processor or network of a host is at fault, or code that does not do the same on every rank: "
                f"leave that host out, and delete the checkpoints of later steps ({later}), which may hold it; "
                "then run the same command again")
