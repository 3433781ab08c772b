"""cluster/core/signals.py, and the demo with it: a program that is told to end undoes first what it has done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLD = [signal.SIGTERM, signal.SIGHUP]
PROGRAM = """
import time
from cluster.core.signals import exit_when_told
exit_when_told()
try:
    print("begun", flush=True)
    time.sleep(200)
finally:
    print("undoing", flush=True)
    time.sleep(0.3)
    print("undone", flush=True)
"""
ASKING = """
from cluster.core.signals import Told, on_stop_signal, say
told = Told()
on_stop_signal(lambda name: (say(name), told.set()))
print("begun", flush=True)
assert told.wait(200)
print("undone", flush=True)
"""
DEMO = """
import time
from jobs.mlp import demo

def up(**_):  # a real cluster takes seconds
    print("begun", flush=True)
    time.sleep(200)

demo.local.up = up
demo.main()
"""


HEEDED = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
"""As a terminal has it; where the tests run below nohup it is ignored, and what they start inherits that."""


def begun(program: str, tmp_path: Path, prelude: str = HEEDED) -> subprocess.Popen[str]:
    started = subprocess.Popen([sys.executable, "-c", prelude + program], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               env={**os.environ, "TMPDIR": str(tmp_path)})
    assert started.stdout is not None
    while "begun" not in (line := started.stdout.readline()):
        assert line, "it ended before it began"
    return started


@pytest.mark.parametrize("number", TOLD)
def test_what_was_done_is_undone_though_told_twice(number: signal.Signals, tmp_path: Path) -> None:
    program = begun(PROGRAM, tmp_path)
    assert program.stdout is not None
    program.send_signal(number)
    assert program.stdout.readline() == "undoing\n"
    program.send_signal(number)
    assert program.communicate(timeout=60)[0] == "undone\n"
    assert program.returncode == 128 + number


def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    program = begun(PROGRAM, tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    program.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(timeout=0.3)
    program.terminate()
    program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", TOLD)
def test_the_demo_ends_its_cluster_and_its_folder_when_told_to_end(number: signal.Signals, tmp_path: Path) -> None:
    demo = begun(DEMO, tmp_path)
    assert list(tmp_path.iterdir())
    demo.send_signal(number)
    assert demo.communicate(timeout=60)[0] == "the cluster is down\n"
    assert demo.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [*TOLD, signal.SIGINT])
def test_who_asks_to_be_told_is_told_of_the_first_signal(number: signal.Signals, tmp_path: Path) -> None:
    program = begun(ASKING, tmp_path)
    program.send_signal(number)
    assert program.communicate(timeout=60)[0] == f"{number.name}\nundone\n"
    assert program.returncode == 0
