"""What is done to a worker's process on its own node: show its stack, end it.

Through a zero-CPU task pinned to the node, so it works on a full cluster; in this process where `node_id` is None.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
_TASK_TIMEOUT_S = 15.0
_SLACK_S = 1.0


def dump_stack(pid: int, node_id: str | None, timeout_s: float = _TASK_TIMEOUT_S) -> str:
    """The Python stack of every thread of a process, by py-spy; works on one that hangs or is stopped (SIGSTOP).

    node_id: Ray's hex id of its node; None for this machine. Never raises: what went wrong is the text.
    """
    return _on_node(node_id, _dump_stack, timeout_s, pid)


def kill(pid: int, node_id: str | None, started: float, timeout_s: float = _TASK_TIMEOUT_S) -> bool:
    """SIGKILL, if the process is still the one meant: its number is not reused by one that began later.

    started: a time (seconds since the epoch) at which that process was alive already. Returns whether it was killed;
    False also where its node does not answer within timeout_s (a dead node has no processes).
    """
    return _on_node(node_id, _kill, timeout_s, pid, started) is True


def _on_node(node_id: str | None, action: Callable[..., T], timeout_s: float, *args: object) -> T | str:
    """What the action returns on the node, or the text of what went wrong there."""
    if node_id is None:
        return action(*args)
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(action).options(
        num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
    )
    reference = task.remote(*args)
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayError as error:
        ray.cancel(reference, force=True)
        return f"node {node_id[:12]} did not do {action.__name__.strip('_')}: {str(error).strip().splitlines()[0]}"


def _dump_stack(pid: int, timeout_s: float = 10.0) -> str:
    """`--nonblocking` does not stop the process to read it, and so does not wait for one that is stopped."""
    beside = Path(sys.executable).with_name("py-spy")
    py_spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if py_spy is None:
        return "py-spy is not installed on this node"
    try:
        done = subprocess.run([py_spy, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True,
                              timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"py-spy did not read process {pid} within {timeout_s:g} s"
    if done.returncode == 0:
        return done.stdout
    return f"py-spy cannot read process {pid}: {(done.stderr.strip().splitlines() or ['no reason given'])[0]}"


def _kill(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        if pid == os.getpid() or process.create_time() > started + _SLACK_S:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
