"""What monitoring sees: gauges and counters of `ray.util.metrics`, named `trainyard_<area>_<what>_<unit>`.

The driver exports them all: what a worker exports is gone 20 s after its death, and its counters begin again at zero.
Workers' own figures reach the driver with their beats.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

GAUGES = {
    "trainyard_train_step_seconds": "Median time of a step",
    "trainyard_train_samples_per_second": "Rows trained per second, all workers",
    "trainyard_train_loss": "Mean training loss since the last beat",
    "trainyard_train_workers": "Workers alive",
    "trainyard_train_step": "Steps done",
    "trainyard_train_goodput_ratio": "Unique committed steps x uninterrupted median step / wall time",
    "trainyard_checkpoint_seconds": "Time to write the last checkpoint, in the background",
    "trainyard_checkpoint_blocking_seconds": "Time that the last checkpoint kept the step path",
    "trainyard_checkpoint_size_bytes": "Size of the last checkpoint",
}
COUNTERS = {
    "trainyard_train_restarts_total": "Restarts of workers or driver",
    "trainyard_train_lost_steps_total": "Steps executed twice",
    "trainyard_train_skipped_steps_total": "Steps skipped for a non-finite loss or gradient",
    "trainyard_data_wait_seconds_total": "Time spent waiting for data, rank 0",
}


class Metrics:
    """The run's metrics, tagged with job and run. `counted` keeps what a counter has been given so far."""

    def __init__(self, job: str, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"job": job, "run": run}
        keys = tuple(tags)
        self._gauges = {name: Gauge(name, text, tag_keys=keys) for name, text in GAUGES.items()}
        self._counters = {name: Counter(name, text, tag_keys=keys) for name, text in COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(tags)
        self._counted = dict.fromkeys(COUNTERS, 0.0)

    def update(self, state: dict[str, Any], totals: dict[str, float]) -> None:
        """state: rank 0's beat. totals: the ledger's counters by metric name, and its gauges."""
        checkpoint: dict[str, Any] = state.get("checkpoint") or {}
        values = {
            "trainyard_train_step_seconds": state.get("median_step_s"),
            "trainyard_train_samples_per_second": state.get("samples_per_s"),
            "trainyard_train_loss": state.get("loss"),
            "trainyard_train_step": state.get("step"),
            "trainyard_checkpoint_seconds": checkpoint.get("write_s"),
            "trainyard_checkpoint_blocking_seconds": checkpoint.get("blocking_s"),
            "trainyard_checkpoint_size_bytes": checkpoint.get("bytes"),
            "trainyard_data_wait_seconds_total": state.get("data_wait_s"),
            **totals,
        }
        for name, value in values.items():
            if value is None:
                continue
            if name in self._gauges:
                self._gauges[name].set(float(value))
            else:
                self._count(name, float(value))

    def _count(self, name: str, total: float) -> None:
        grown = total - self._counted[name]
        if grown > 0:
            self._counters[name].inc(grown)
        if grown:  # a new generation's own sums begin at zero
            self._counted[name] = total
