"""`--run.exact any-workers`: a run that is killed, stopped, and gone on with on other numbers of workers, again and
again, ends with the bits of a run that one worker made alone. `make soak` does it to every job, many times."""

import shutil
from pathlib import Path

from tests import runs
from tests.faults.walk import FLAGS, evaluations, same, some_steps, walked


def started(folder: Path, workers: int) -> runs.Start:
    return runs.run(folder, *FLAGS, "--run.workers", str(workers))


def test_three_one_two_three_workers_with_kills_end_with_the_bits_of_one(alone: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    result = walked(lambda workers: started(moved, workers), some_steps(20, 150))
    assert result["restarts"] > 0
    same(moved, alone)
    assert evaluations(moved) == evaluations(alone)
    assert runs.consumed_rows(moved) == runs.consumed_rows(alone)


def test_a_run_whose_folder_was_copied_to_another_storage_goes_on_there_with_another_number_to_the_same_bits(
        alone: Path, tmp_path: Path) -> None:
    first, other = tmp_path / "first/run", tmp_path / "other/run"
    with started(first, 3) as job:
        job.until_step(60)
        runs.end_tree(job.process.pid)
    shutil.copytree(first, other)
    shutil.rmtree(first.parent)
    with started(other, 2) as job:
        job.finished()
    assert "continuing at step" in job.text
    same(other, alone)
