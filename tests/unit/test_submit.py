"""A submitted job is followed over connections that break: a client that is told when, in the dashboard's place."""

import asyncio
import os
import shlex
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import submit
from cluster.core.errors import ClusterError, ConfigError

LOG = "one\ntwo\nthree\n"


class Client:
    """Its connection breaks once after each of these numbers of characters, as Ray's client has it."""

    def __init__(self, *breaks: int, lost: bool = False) -> None:
        self.breaks, self.lost = list(breaks), lost

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for place, letter in enumerate(LOG):
            if self.lost or (self.breaks and self.breaks[0] == place):
                self.breaks = self.breaks[1:]
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield letter

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: True), driver_exit_code=3)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)


def test_a_connection_that_breaks_late_and_often_loses_nothing_and_prints_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "LOST_AFTER_S", -1.0)  # whatever comes in between begins a new minute
    with pytest.raises(ClusterError):
        asyncio.run(submit._to_its_end(Client(5), "job"))
    monkeypatch.setattr(submit, "LOST_AFTER_S", 60.0)
    capsys.readouterr()
    assert asyncio.run(submit._to_its_end(Client(5, 5, 9), "job")) == 3
    assert capsys.readouterr().out == LOG


def test_a_cluster_that_stays_away_is_said_and_how_to_follow_the_job_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LOST_AFTER_S", 0.05)
    with pytest.raises(ClusterError, match="job job cannot be followed any more"):
        asyncio.run(submit._to_its_end(Client(lost=True), "job"))


@pytest.mark.parametrize("value", ["$(touch owned)", "`touch owned`", "; touch owned", "a b", "it's", "$HOME", "*", ""])
def test_no_shell_reads_more_than_words_in_a_jobs_flags_or_its_name(value: str, tmp_path: Path) -> None:
    line = submit.entrypoint("jobs.mlp", ["--run.name", value]).replace("python -m", "printf '%s\\n'", 1)
    run = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == f"jobs.mlp\n--run.name\n{value}\n"
    hint = submit._how_to(value).partition("follow it:")[2].partition("\n")[0]
    assert shlex.split(hint) == ["ray", "job", "logs", "--follow", value]
    assert list(tmp_path.iterdir()) == []


def test_more_than_ray_takes_is_refused_before_it_is_packed_and_the_largest_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    sizes = {"jobs/common/x.py": 1, "jobs/mlp/__main__.py": 1, "ignored/huge": 500, ".venv/lib/huge": 500, "build/huge": 500,
             "data/a.parquet": 90, "data/b.parquet": 12}  # MB
    for name, size in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size * 10**6)  # takes no room
    (root / ".gitignore").write_text("build/\n")
    (root / ".rayignore").write_text("ignored\n")
    monkeypatch.chdir(root)
    monkeypatch.setattr(submit, "_client", lambda _: pytest.fail("it is submitted"))
    submit.check_upload(root)
    os.truncate(root / "data/b.parquet", 13 * 10**6)
    with pytest.raises(ConfigError) as caught:
        submit.submit("mlp", [], address="http://127.0.0.1:1", submission_id=None, wait=True)
    assert str(caught.value).startswith(f"{root} has 105 MB to upload, Ray takes up to 105; the largest files are data/a.parquet "
                                        "(90.0 MB), data/b.parquet (13.0 MB), jobs/")
    assert f"name what the job does not need in {root}/.rayignore" in str(caught.value)
