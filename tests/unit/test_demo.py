"""What `make demo` shows of a submitted job: its own lines; Ray's are in a file."""

import sys
from pathlib import Path

import pytest

from jobs.mlp import demo

RAYS = ["2026-11-29 10:00:00,123\tINFO job_manager.py:581 -- Runtime env is setting up.",
        "[2026-11-29 10:00:01,456 W 12 34] core_worker.cc:99: slow"]
OURS = ["submitted raysubmit_1 to http://127.0.0.1:8265: python -m jobs.mlp", "epoch 1/1 step 9/9",
        "error: something of ours"]


def test_rays_lines_go_to_the_log_and_ours_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    python, said = tmp_path / "python", tmp_path / "said"
    said.write_text("\n".join([RAYS[0], *OURS[:2], RAYS[1]]) + "\n")
    python.write_text(f"#!/bin/sh\ncat {said}\necho '{OURS[2]}' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    log = tmp_path / "storage/ray.log"
    assert demo.submit("first", tmp_path / "storage", {}, log) == 3
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("$ python -m cluster submit mlp -- --run.workers 2 ")
    assert shown[1:] == OURS
    assert log.read_text().splitlines() == RAYS
