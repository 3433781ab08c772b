"""The last step of each worker outlives it."""

import os
import subprocess
import sys
from pathlib import Path

from cluster.core.storage import Store
from jobs.common.training.step_file import StepMark, take_marks
from tests.runs import ROOT


def test_the_highest_of_all_marks_is_taken_once(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    assert take_marks(store) == 0
    for rank, steps in enumerate(((7, 12), (11,), ())):
        mark = StepMark.open(store, "000001-ab", rank)
        for step in steps:
            mark.write(step)
        mark.close()
    assert take_marks(store) == 12
    assert (take_marks(store), store.files("logs/steps")) == (0, [])


def test_a_killed_process_leaves_the_step_that_it_did_last(tmp_path: Path) -> None:
    code = ("import os, signal, sys\nfrom cluster.core.storage import Store\nfrom jobs.common.training.step_file "
            "import StepMark\nmark = StepMark.open(Store.open(sys.argv[1]), 'g', 0)\nfor step in range(1, 1001):\n    "
            "mark.write(step)\nos.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False).returncode == -9
    assert take_marks(Store.open(str(tmp_path))) == 1000


def test_storage_that_goes_away_does_not_stop_the_steps(tmp_path: Path) -> None:
    mark = StepMark.open(Store.open(str(tmp_path)), "g", 0)
    assert mark._descriptor is not None
    os.close(mark._descriptor)
    mark.write(3)


def test_an_object_store_has_no_marks() -> None:
    store = Store.open("s3://bucket/run?region=us-east-1&endpoint_override=127.0.0.1:1")
    mark = StepMark.open(store, "g", 0)
    mark.write(3)
    mark.close()
    assert take_marks(store) == 0
