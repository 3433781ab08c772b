"""PyTorch's profiler for chosen steps of a run: `--run.profile`."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from jobs.common.step_profile import Operation

_STEP = "step "
_BETWEEN = "Python, and waiting, between operations"


class TorchProfiler:
    """A `Profiler` of jobs/common/step_profile.py."""

    title = "PyTorch's profiler"

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says on the console that it starts and stops
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities, acc_events=True)

    def start(self) -> None:
        self._profile.start()

    def marked(self, step: int, count: int) -> AbstractContextManager[object]:
        return record_function(f"{_STEP}{step}")

    def stop(self) -> None:
        self._profile.stop()

    def operations(self) -> Sequence[Operation]:
        """What a step itself takes, without any operation, counts as one, too."""
        found = [Operation(name=each.key, calls=each.count, self_ms=each.self_cpu_time_total / 1000,
                           device_ms=each.self_device_time_total / 1000)
                 for each in self._profile.key_averages()]
        steps = [each for each in found if each.name.startswith(_STEP)]
        between = Operation(name=_BETWEEN, calls=len(steps), self_ms=sum(each.self_ms for each in steps))
        return [between, *(each for each in found if not each.name.startswith(_STEP))]

    def trace(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
            path = Path(folder) / "trace.json.gz"
            self._profile.export_chrome_trace(str(path))
            return path.read_bytes()
