"""What monitoring sees: gauges and counters of `ray.util.metrics`, named `trainyard_<area>_<what>_<unit>`.

The driver exports them all: what a worker exports is gone 20 s after its death, and its counters begin again at zero.
Workers' own figures reach the driver with their beats.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.core.storage import Store
from cluster.monitoring.run_status import RankTime
from jobs.common.training.rendezvous import Heartbeat

GAUGES = {
    "trainyard_train_step_seconds": "Median time of a step",
    "trainyard_train_samples_per_second": "Rows trained per second, all workers",
    "trainyard_train_loss": "Mean training loss since the last beat",
    "trainyard_train_workers": "Workers alive",
    "trainyard_train_step": "Steps done",
    "trainyard_train_goodput_ratio": "Unique committed steps x uninterrupted median step / wall time",
    "trainyard_train_idle_seconds": "Time since rank 0's last step or other sign of progress",
    "trainyard_checkpoint_age_seconds": "Time since the last checkpoint was committed, or since training began",
    "trainyard_checkpoint_seconds": "Time to write the last checkpoint, in the background",
    "trainyard_checkpoint_blocking_seconds": "Time that the last checkpoint kept the step path",
    "trainyard_checkpoint_size_bytes": "Size of the last checkpoint",
    "trainyard_storage_free_bytes": "Free space where the run is stored, of a file system",
    "trainyard_storage_size_bytes": "All space there",
}
RANK_GAUGES = {
    "trainyard_train_rank_step_seconds": "Median time of a step that this rank computes and reads data, not waiting "
                                         "for others",
}
COUNTERS = {
    "trainyard_train_restarts_total": "Restarts of workers or driver",
    "trainyard_train_lost_steps_total": "Steps executed twice",
    "trainyard_train_skipped_steps_total": "Steps skipped for a non-finite loss or gradient",
    "trainyard_train_rollbacks_total": "Returns to a checkpoint after several such steps in a row",
    "trainyard_data_wait_seconds_total": "Time spent waiting for data, rank 0",
}
CAUSE_COUNTERS = {
    "trainyard_train_time_seconds_total": "Time of the run, by cause",
}

_LOOK_AT_STORAGE_S = 5.0


@dataclass
class Since:
    """For how long a value has been the same. None is no value."""

    value: object = None
    at: float = field(default_factory=time.monotonic)

    def seconds(self, value: object) -> float:
        if value is not None and value != self.value:
            self.value, self.at = value, time.monotonic()
        return time.monotonic() - self.at


class RunMetrics:
    """The run's metrics, tagged with job and run. `counted` keeps what a counter has been given so far."""

    def __init__(self, job: str, run: str, storage: Store) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"job": job, "run": run}
        keys = tuple(tags)
        self._gauges = {name: Gauge(name, text, tag_keys=keys) for name, text in GAUGES.items()}
        self._counters = {name: Counter(name, text, tag_keys=keys) for name, text in COUNTERS.items()}
        self._rank_gauges = {name: Gauge(name, text, tag_keys=(*keys, "rank", "node"))
                             for name, text in RANK_GAUGES.items()}
        self._cause_counters = {name: Counter(name, text, tag_keys=(*keys, "cause"))
                                for name, text in CAUSE_COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._rank_gauges.values(), *self._counters.values(),
                       *self._cause_counters.values()):
            metric.set_default_tags(tags)
        self._ranks: set[tuple[str, str]] = set()
        self._times: Mapping[int, RankTime] = {}
        self._counted = dict.fromkeys(COUNTERS, 0.0)
        self._caused = dict[str, float]()
        self._progress, self._commit = Since(), Since()
        self._storage, self._room, self._room_at = storage, dict[str, float](), 0.0

    def update(self, beat: Heartbeat | None, totals: dict[str, float]) -> None:
        """beat: rank 0's latest, if there was one. totals: the run_state's counters by metric name, and its gauges."""
        values = {
            **({} if beat is None else _values(beat)),
            "trainyard_train_idle_seconds": self._progress.seconds(beat and (beat.step, beat.ticks)),
            "trainyard_checkpoint_age_seconds": self._commit.seconds(beat and beat.committed_step),
            **self._storage_room(),
            **totals,
        }
        for name, value in values.items():
            if value is None:
                continue
            if name in self._gauges:
                self._gauges[name].set(float(value))
            else:
                self._count(name, float(value))

    def update_time(self, seconds: Mapping[str, float]) -> None:
        """By cause, so far."""
        [counter] = self._cause_counters.values()
        for cause, total in seconds.items():
            if (grown := total - self._caused.get(cause, 0.0)) > 0:
                counter.inc(grown, tags={"cause": cause})
                self._caused[cause] = total

    def update_ranks(self, times: Mapping[int, RankTime]) -> None:
        """Of each rank. What was told of a rank that is gone, or on another node now, becomes 0:
        Ray cannot take a series back."""
        if times is self._times:
            return
        self._times, [gauge] = times, self._rank_gauges.values()
        now = {(str(rank), each.host): each.busy_s for rank, each in times.items()}
        for rank, node in self._ranks - now.keys() if now else ():
            gauge.set(0.0, tags={"rank": rank, "node": node})
        for (rank, node), busy_s in now.items():
            gauge.set(busy_s, tags={"rank": rank, "node": node})
        self._ranks |= now.keys()

    def _count(self, name: str, total: float) -> None:
        grown = total - self._counted[name]
        if grown > 0:
            self._counters[name].inc(grown)
        if grown:  # a new generation's own sums begin at zero
            self._counted[name] = total

    def _storage_room(self) -> dict[str, float]:
        """Looked at now and then: asking a shared file system may take a while."""
        if time.monotonic() - self._room_at > _LOOK_AT_STORAGE_S and (room := self._storage.room()) is not None:
            free, size = room
            self._room = {"trainyard_storage_free_bytes": float(free), "trainyard_storage_size_bytes": float(size)}
            self._room_at = time.monotonic()
        return self._room


def _values(beat: Heartbeat) -> dict[str, float | None]:
    """By metric name; None: not known yet."""
    return {
        "trainyard_train_step_seconds": beat.median_step_s,
        "trainyard_train_samples_per_second": beat.samples_per_s,
        "trainyard_train_loss": beat.loss,
        "trainyard_train_step": beat.step,
        "trainyard_checkpoint_seconds": beat.checkpoint.write_s if beat.checkpoint else None,
        "trainyard_checkpoint_blocking_seconds": beat.checkpoint.blocking_s if beat.checkpoint else None,
        "trainyard_checkpoint_size_bytes": beat.checkpoint.bytes if beat.checkpoint else None,
        "trainyard_data_wait_seconds_total": beat.data_wait_s,
    }
