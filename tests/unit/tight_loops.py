"""The MLP's training loop where memory is short. Workers load it by name."""

import os
import resource
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import psutil
import torch

from jobs.common.training.session import Session

LIMIT, ROW, FROM_STEP = 4 << 30, 200 << 20, 2
"""Bytes that a worker may have more than it has, what a pass takes for each of its rows, and after how many steps."""
CGROUP = "TRAINYARD_TEST_CGROUP"
"""Names a control group of memory that a worker joins before it takes more than that allows."""


def limited(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """A pass over many rows finds no memory to reserve."""
    soft = psutil.Process().memory_info().vms + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return _train(session, config, lambda rows: torch.empty(rows * ROW, dtype=torch.uint8))


def killed(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """A pass over many rows is the end of the process of rank 1."""
    def take(rows: int) -> None:
        if session.rank == 1 and rows > 20:
            Path(os.environ[CGROUP], "cgroup.procs").write_text(str(os.getpid()))
            torch.ones(4 << 20, dtype=torch.float64)

    return _train(session, config, take)


def _train(session: Session, config: Any, take: Any) -> Literal["finished", "stopped"]:
    from jobs.mlp import train as loop

    backward = loop.backward

    def takes(forward: Any, rows: Any, *rest: Any) -> float:
        held = take(len(rows["row_id"])) if session.progress.step >= FROM_STEP else None
        loss = backward(forward, rows, *rest)
        del held
        return loss

    with mock.patch.object(loop, "backward", takes):
        return loop.train(session, config)
