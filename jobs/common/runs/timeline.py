"""How long the start of a run takes, part by part."""

import itertools
import time
from dataclasses import dataclass, field


@dataclass
class Timeline:
    """When each part of the start was done: unix seconds by name."""

    marks: dict[str, float] = field(default_factory=dict[str, float])

    @staticmethod
    def of_process() -> "Timeline":
        """Begun when this process was."""
        import psutil  # not needed by --help

        return Timeline({"process": psutil.Process().create_time()})

    @staticmethod
    def of_call() -> "Timeline":
        """Begun now, in a process that may have done anything else before."""
        return Timeline({"process": time.time()})

    def mark(self, name: str) -> None:
        self.marks[name] = time.time()

    def before_training(self) -> tuple[float, float]:
        """Seconds up to now: of the start, and of preparing data."""
        parts = self.parts({})
        data_s = parts.get("data", 0.0) + parts.get("data_page", 0.0)
        return time.time() - next(iter(self.marks.values())) - data_s, data_s

    def parts(self, worker: dict[str, float]) -> dict[str, float]:
        """Seconds of each part, from the process's start to the first step."""
        marks = self.marks | {f"worker_{name}": at for name, at in worker.items()}
        order = ["process", "imported", "connected", "preflight", "data", "data_page", "group_asked",
                 "worker_worker_began", "worker_imported", "worker_assigned", "worker_first_step"]
        names = {"imported": "imports", "connected": "connect", "preflight": "preflight", "data": "data",
                 "data_page": "data_page", "group_asked": "registry_and_lock", "worker_worker_began": "worker_process",
                 "worker_imported": "worker_imports", "worker_assigned": "generation",
                 "worker_first_step": "first_step"}
        known = [name for name in order if name in marks]
        parts = {names[b]: round(marks[b] - marks[a], 3) for a, b in itertools.pairwise(known)}
        if known and known[-1] == "worker_first_step":
            parts["total"] = round(marks[known[-1]] - marks[known[0]], 3)
        return parts
