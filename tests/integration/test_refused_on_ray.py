"""What Ray can never give is refused by the command line: exit code 2, one message, nothing written,
nothing left running."""

import os
import sys
from pathlib import Path

import pytest

from tests import contained, newcomer

CASES = {
    "workers": (["--run.workers", "4999", "--train.global-batch-size", "4999"],
                ("needs 4999 workers with 1 CPU each", "cannot grow", "pass --run.workers ")),
    "address": (["--run.address", "127.0.0.1:1"], ("127.0.0.1:1",)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_can_never_be_is_refused(name: str, tmp_path: Path) -> None:
    flags, says = CASES[name]
    home, storage = tmp_path / "home", tmp_path / "storage"
    done = contained.run([sys.executable, "-m", "jobs.mlp", "--run.storage", str(storage), *flags], cwd=newcomer.ROOT,
                         env=newcomer.environment(home) | {"PATH": os.environ["PATH"]}, timeout_s=120,
                         scratch=tmp_path / "scratch")
    assert done.code == 2, done.output
    assert len(done.output.splitlines()) == 1, done.output
    assert done.output.startswith("error: ")
    for words in says:
        assert words in done.output
    assert not storage.exists()
    assert done.left == []
