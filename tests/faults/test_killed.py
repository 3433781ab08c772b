"""Processes are killed, stopped and told to end, under the local binding; the result is the uninterrupted run's, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests import runs
from tests.faults.conftest import FLAGS, same_result

INTERVAL = 8


def some_step() -> int:
    """A random step, past the first checkpoint and well before the end."""
    return random.randint(30, 250)


@pytest.mark.parametrize("slot", [0, 2])
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(slot: int, reference: Path, tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS) as job:
        assert job.until_step(some_step()) > INTERVAL
        others = {s: pid for s, pid in job.workers().items() if s != slot}
        kills = job.kill_until_steps_are_lost(slot)
        result = job.finished()
        assert {s: pid for s, pid in job.workers().items() if s != slot} == others, "only the dead one is replaced"
    assert result["restarts"] == kills
    assert 0 < result["lost_steps"] <= kills * INTERVAL
    assert len(result["recovery_s"]) == kills
    same_result(job.folder, reference)


def test_a_spare_worker_takes_a_dead_ones_place_at_once(reference: Path, tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS, "--run.spares", "1") as job:
        job.until_step(some_step())
        job.kill_worker(1)
        result = job.finished()
    assert result["restarts"] == 1
    assert result["recovery_s"][0] < 4
    same_result(job.folder, reference)


def test_a_killed_driver_leaves_no_process_and_the_same_command_continues(reference: Path, tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS) as job:
        job.until_step(some_step())
        workers = job.workers().values()
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
        deadline = time.monotonic() + 15
        while any(map(psutil.pid_exists, workers)):
            assert time.monotonic() < deadline, "workers outlive their driver"
            time.sleep(0.05)
    with runs.run(tmp_path / "run", *FLAGS) as again:
        result = again.finished()
    assert result["restarts"] == 1
    assert result["lost_steps"] <= INTERVAL
    same_result(job.folder, reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_exit_code_3_and_no_lost_step(number: int, reference: Path, tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS) as job:
        job.until_step(some_step())
        os.kill(job.process.pid, number)
        assert job.wait() == 3, job.text
    stopped = runs.result(job.folder)
    assert (stopped["status"], stopped["exit_code"]) == ("stopped", 3)
    assert "Traceback" not in job.text
    with runs.run(tmp_path / "run", *FLAGS) as again:
        result = again.finished()
    assert f"continuing at step {stopped['steps']}" in again.text
    assert (result["status"], result["lost_steps"], result["restarts"]) == ("done", 0, 0)
    same_result(job.folder, reference)


def test_a_hung_worker_is_noticed_its_stack_saved_and_the_result_is_the_same(reference: Path, tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS, "--run.hang-timeout-s", "6") as job:
        job.until_step(some_step())
        pid = job.kill_worker(1, signal.SIGSTOP)
        began = time.monotonic()
        job.until(lambda: "hangs and is ended" in job.text)
        noticed = time.monotonic() - began
        result = job.finished()
    assert noticed < 6 + 4
    assert not psutil.pid_exists(pid)
    stacks = sorted((job.folder / "logs/stacks").glob("*/*.txt"))
    assert [path.name for path in stacks] == ["rank-0.txt", "rank-1.txt", "rank-2.txt"]
    assert all("jobs/mlp/train.py" in path.read_text() for path in stacks)
    assert result["restarts"] == 1
    same_result(job.folder, reference)


def test_max_failures_spent_is_exit_code_1_and_the_run_can_still_be_continued(tmp_path: Path) -> None:
    flags = ["--run.workers", "2", "--train.epochs", "300"]
    with runs.run(tmp_path / "run", *flags, "--run.max-failures", "0") as job:
        job.until_step(20)
        job.kill_worker(1)
        assert job.wait() == 1
    assert "--run.max-failures 0 is spent" in job.text
    assert "Traceback" not in job.text
    assert runs.result(job.folder)["status"] == "failed"
    with runs.run(tmp_path / "run", *flags) as again:
        again.until(lambda: "continuing at step" in again.text)


def test_two_runs_of_one_name_at_once_are_refused_while_the_first_lives(tmp_path: Path) -> None:
    flags = ["--run.workers", "1", "--train.epochs", "3000"]
    with runs.run(tmp_path / "run", *flags) as job:
        job.until_step(10)
        with runs.run(tmp_path / "run", *flags) as second:
            assert second.wait() == 2
        assert "is being carried out by another process" in second.text
        assert "Traceback" not in second.text
        assert job.process.poll() is None
