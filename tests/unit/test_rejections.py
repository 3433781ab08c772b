"""rejections.py: a marked submission that was refused is refused again at once; an unmarked one is always tried."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import ClusterError, DataError, ResourceError
from jobs.common.runs import rejections
from jobs.common.runs.run import main
from jobs.common.training.job import Job
from jobs.mlp.job import JOB
from tests.unit.test_run import flags

MESSAGE = "column label has 3 rows without a value: fill or drop them"


@pytest.fixture
def tried() -> list[int]:
    return []


def job(tried: list[int], error: Exception) -> Job:
    def prepare(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise error

    return replace(JOB, prepare=prepare)


def marked(patch: pytest.MonkeyPatch, mark: str) -> None:
    patch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}, "metadata": {
        "job_submission_id": "r-1", "trainyard_submission": mark}}))


def test_the_same_submission_is_refused_again_with_the_same_message_and_another_is_tried(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    refused, command = job(tried, DataError(MESSAGE)), flags(tmp_path, "r")
    marked(monkeypatch, "ab12")
    assert main(refused, command) == 2
    assert capsys.readouterr().err == f"error: {MESSAGE}\n"
    assert main(refused, command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {MESSAGE}\n(found at ") and "nothing was tried again" in said
    assert len(tried) == 1
    assert not (tmp_path / "r").exists()
    marked(monkeypatch, "cd34")
    assert main(refused, command) == 2
    assert len(tried) == 2


def test_of_one_submission_each_run_is_tried_and_a_missing_file_is_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int]) -> None:
    marked(monkeypatch, "ab12")
    refused = job(tried, unread(FileNotFoundError("none")))
    for name in ("r", "other", "r", "other"):
        assert main(refused, flags(tmp_path, name)) == 2
    assert len(tried) == 2


def test_a_person_who_runs_it_again_is_never_held_up_and_leaves_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int]) -> None:
    for _ in range(2):
        assert main(job(tried, DataError(MESSAGE)), flags(tmp_path, "r")) == 2
    assert len(tried) == 2
    assert not list(tmp_path.rglob("*.json"))


def unread(cause: OSError) -> DataError:
    error = DataError("it cannot be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error",
                         [ClusterError("gone"), ResourceError("busy"),
                          unread(TimeoutError("the object store is away"))])
def test_what_may_be_well_the_next_time_is_tried_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int], error: Exception) -> None:
    marked(monkeypatch, "ab12")
    for _ in range(2):
        assert main(job(tried, error), flags(tmp_path, "r")) == 2
    assert len(tried) == 2


@pytest.mark.parametrize(("age_s", "tries"),
                         [(rejections.HOLDS_S - 60, 1), (rejections.HOLDS_S + 1, 2), (-30, 1), (-300, 2), (-1e9, 2)],
                         ids=["young", "old", "by a host whose clock is fast", "before the clock was set back",
                              "by years"])
def test_a_refusal_holds_for_an_hour(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int], age_s: float, tries: int) -> None:
    marked(monkeypatch, "ab12")
    main(job(tried, DataError(MESSAGE)), flags(tmp_path, "r"))
    (file,) = (tmp_path / ".refused").glob("ab12-*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at": time.time() - age_s}))
    main(job(tried, DataError(MESSAGE)), flags(tmp_path, "r"))
    assert len(tried) == tries


@pytest.mark.parametrize("mark", ["../../etc/passwd", "a/b", "", None, "a.b"])
def test_a_mark_that_is_no_word_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int],
                                        mark: Any) -> None:
    marked(monkeypatch, mark)
    for _ in range(2):
        main(job(tried, DataError(MESSAGE)), flags(tmp_path, "r"))
    assert len(tried) == 2
    assert not (tmp_path / ".refused").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", "7", '{"at": "yesterday", "message": ""}',
                                  '{"at": [], "message": ""}'])
def test_a_damaged_record_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[int],
                                        text: str) -> None:
    marked(monkeypatch, "ab12")
    main(job(tried, DataError(MESSAGE)), flags(tmp_path, "r"))
    (file,) = (tmp_path / ".refused").glob("ab12-*.json")
    file.write_text(text)
    main(job(tried, DataError(MESSAGE)), flags(tmp_path, "r"))
    assert len(tried) == 2
