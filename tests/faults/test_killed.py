"""Processes are killed, stopped and told to end, under the local binding;
the result is the uninterrupted run's, bit for bit."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from tests import runs
from tests.faults.conftest import FLAGS, same_result, some_step

INTERVAL = 8


def gone(pids: Iterable[int]) -> bool:
    """Whether these processes have ended, be they reaped or not."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def listening(pid: int) -> set[str]:
    """The addresses that a process listens at."""
    return {connection.laddr.ip for connection in psutil.Process(pid).net_connections()
            if connection.status == "LISTEN"}


@pytest.mark.parametrize(("slot", "spares"), [(0, 0), (2, 1)])
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(slot: int, spares: int, reference: Path,
                                                                tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS, "--run.spares", str(spares)) as job:
        job.until_past_a_checkpoint(some_step())
        others = {s: pid for s, pid in job.workers().items() if s != slot}
        before = set(psutil.pids())
        job.kill_worker(slot)
        result = job.finished()
    now = job.workers()
    if spares:  # a survivor that a busy machine lets come back last finds its place taken, and is spare itself
        assert len(set(now.values()) - before) <= 1, "only the dead one's process is another"
    else:
        assert {s: pid for s, pid in now.items() if s != slot} == others, "only the dead one is replaced"
        assert now[slot] not in before
    assert result["restarts"] == 1
    from_memory = result["memory_resumes"] == 1
    assert ("'s memory" in job.text) == from_memory
    # who was writing the checkpoint of an evaluation takes it along; else at most a step that the dead alone had done
    assert result["lost_steps"] <= (INTERVAL if slot == 0 and not from_memory else 1)
    assert len(result["recovery_s"]) == 1
    same_result(job.folder, reference)


def test_killed_again_and_again_no_finished_step_is_done_again(reference: Path, tmp_path: Path) -> None:
    """In the middle of epochs, also the one that writes checkpoints, and two workers at once."""
    with runs.run(tmp_path / "run", *FLAGS, "--run.max-failures", "-1") as job:
        for kills, slots in enumerate(((1,), (1, 2), (0,), (2,)), 1):
            job.until(lambda kills=kills: job.text.count("training on ") == kills)
            after = max(job.step() + 5, 19 * kills + 8)
            job.until(lambda after=after: job.step() >= after)
            for slot in slots:
                job.kill_worker(slot)
        result = job.finished()
    assert result["restarts"] >= 4 and result["memory_resumes"] >= 1
    assert result["lost_steps"] <= result["restarts"], f"at most one each, that the dead alone had done: {job.text}"
    same_result(job.folder, reference)


def test_stops_and_a_killed_driver_leave_no_process_and_the_same_command_continues(reference: Path,
                                                                                   tmp_path: Path) -> None:
    """SIGTERM, Ctrl-C and SIGKILL, one after the other: only the last one costs steps."""
    folder, reached = tmp_path / "run", 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with runs.run(folder, *FLAGS) as job:
            job.until_step(some_step(reached + 20, reached + 50))
            workers = job.workers().values()
            os.kill(job.process.pid, number)
            assert job.wait() == 3, job.text
            assert gone(workers)
        stopped = runs.result(folder)
        assert (stopped["status"], stopped["exit_code"], stopped["lost_steps"]) == ("stopped", 3, 0)
        assert "Traceback" not in job.text
        assert not reached or f"continuing at step {reached}" in job.text
        reached = stopped["steps"]
    with runs.run(folder, *FLAGS) as job:
        lost = job.freeze(some_step(reached + 20, reached + 50))
        workers = job.workers().values()
        job.kill_driver()
        deadline = time.monotonic() + 60
        while not gone(workers):
            assert time.monotonic() < deadline, "workers outlive their driver"
            time.sleep(0.05)
    with runs.run(folder, *FLAGS) as again:
        result = again.finished()
    assert result["restarts"] == 1
    assert 0 < result["lost_steps"] == lost <= INTERVAL
    same_result(folder, reference)


def test_a_hung_worker_is_noticed_its_stack_saved_and_the_result_is_the_same(reference: Path, tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", *FLAGS, "--run.hang-timeout-s", "4", "--run.price", "3600") as job:
        began = psutil.Process(job.process.pid).create_time()
        job.until_step(some_step())
        pid = job.kill_worker(1, signal.SIGSTOP)
        job.until(lambda: "hangs and is ended" in job.text, 4 + 30)
        result = job.finished()
    assert gone([pid])
    stacks = sorted((job.folder / "logs/stacks").glob("*/*.txt"))
    assert [path.name for path in stacks] == ["rank-0.txt", "rank-1.txt", "rank-2.txt"]
    assert all("jobs/mlp/train.py" in path.read_text() for path in stacks)
    assert result["restarts"] == 1
    spent, whole = result["time_s"], (job.folder / "result.json").stat().st_mtime - began
    assert sum(spent.values()) == pytest.approx(whole, abs=0.5), f"every second has a cause: {spent}"
    assert 2 < spent["hangs until noticed"] < 4 + 30 and spent["recovery from failures"] > 0, spent
    assert result["cost"]["lost"] > 3 * spent["hangs until noticed"], "of three workers, at 1 a second"
    assert "where the time went" in (job.folder / "report.html").read_text()
    same_result(job.folder, reference)


def test_max_failures_spent_is_exit_code_1_and_the_run_can_still_be_continued(tmp_path: Path) -> None:
    flags = ["--run.workers", "2", "--train.epochs", "300"]
    with runs.run(tmp_path / "run", *flags, "--run.max-failures", "0") as job:
        job.until_step(20)
        assert {where for pid in job.workers().values()
                for where in listening(pid)} == {"127.0.0.1"}, "open to the network"
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
