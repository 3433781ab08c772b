"""What is submitted, and how it is followed over connections that break: by a client in the dashboard's place."""

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
from cluster.core import shadows
from cluster.core.errors import ClusterError, ConfigError
from cluster.core.job_command import command_of
from tests.runs import ROOT

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
    sizes = {"jobs/common/x.py": 1, "jobs/mlp/job.py": 1, "ignored/huge": 500, ".venv/lib/huge": 500, "build/huge": 500,
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
    assert str(caught.value).startswith(f"{root} has 105 MB to upload, Ray takes up to 105; the largest files are "
                                        "data/a.parquet (90.0 MB), data/b.parquet (13.0 MB), jobs/")
    assert f"name what the job does not need in {root}/.rayignore" in str(caught.value)


# ── which job, and which folder goes along ──
@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job of somebody's own, which is the current one."""
    for name in ("my_package/__init__.py", "my_package/churn/job.py", "my_package/notes.py", "churn/job.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('it is imported')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_job_of_trainyard_goes_with_the_repository_and_one_of_your_own_with_its_folder(mine: Path) -> None:
    def command(job: str, working_dir: str | None = None) -> tuple[str, tuple[str, ...], Path | None]:
        found = command_of(job, working_dir)
        return found.module, found.arguments, found.folder

    assert command("mlp") == command("jobs.mlp") == ("jobs.mlp", (), ROOT)
    assert command("tuning.mlp") == ("tuning", ("mlp",), ROOT)
    assert command("my_package.churn") == ("my_package.churn", (), mine)
    assert command("churn") == ("churn", (), mine)
    assert command("tuning.my_package.churn") == ("tuning", ("my_package.churn",), mine)
    os.chdir("/")
    assert command("my_package.churn", str(mine)) == ("my_package.churn", (), mine)
    assert command("cnn", str(mine)) == ("jobs.cnn", (), mine)


@pytest.mark.parametrize("job", ["none", "my_package", "my_package.notes", "my_package.none", "tuning.none", "common",
                                 "../churn", ""])
def test_a_job_that_there_is_not_is_refused_with_those_that_there_are(mine: Path, job: str) -> None:
    with pytest.raises(ConfigError,
                       match=r"one of cnn, mlp, pytorch, "
                             r"tabular, transformer, tuning\.cnn, .*package of yours that has a job"):
        command_of(job)


def test_an_installed_trainyard_needs_no_folder_for_its_own_jobs(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = mine / "site-packages"
    (installed / "jobs/mlp").mkdir(parents=True)
    (installed / "jobs/mlp/job.py").touch()
    monkeypatch.setattr(shadows, "OURS", installed)
    assert command_of("mlp").folder is None
    assert command_of("my_package.churn").folder == mine


def test_a_folder_that_would_hide_trainyard_there_is_not_sent(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine / "serving").mkdir()
    assert command_of("my_package.churn").folder == mine, "a folder that is no package hides nothing"
    (mine / "serving/__init__.py").touch()
    monkeypatch.setattr(submit, "_client", lambda _: pytest.fail("it is submitted"))
    with pytest.raises(ConfigError,
                       match=f"the job would not find Trainyard: {mine}/serving: Python takes it for Trainy"):
        submit.submit("my_package.churn", [], address="http://127.0.0.1:1", submission_id=None, wait=True)


def test_a_working_dir_that_there_is_not_is_refused(mine: Path) -> None:
    with pytest.raises(ConfigError, match="--working-dir elsewhere: there is no such folder"):
        command_of("mlp", "elsewhere")
