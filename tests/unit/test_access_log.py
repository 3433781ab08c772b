"""serving/endpoint/access_log.py: nobody's request fails for a log that cannot be written."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from serving.endpoint import access_log
from serving.endpoint.pipeline import ACCESS_LOG


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    log = logging.getLogger(ACCESS_LOG)
    yield log
    for handler in list(log.handlers):
        log.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take
            handler.close()
    log.propagate, log.level = True, logging.NOTSET


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_log_whose_folder_is_gone_goes_on_when_it_is_back(
    log: logging.Logger, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "logs/access.log"
    path.parent.mkdir()
    access_log.write_access_log(str(path))
    log.info("one")
    path.parent.rename(tmp_path / "moved")
    for _ in range(3):
        log.info("lost")
    path.parent.mkdir()
    log.info("two")
    assert (tmp_path / "moved/access.log").read_text() == "one\n"
    assert path.read_text() == "two\n"
    (message,) = said(caplog)
    assert message.startswith(f"{path} cannot be written ([Errno 2]")
    assert "1 requests are missing in it so far" in message
    assert capfd.readouterr().err == "", "no traceback for each request"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_a_full_disk_is_said_once_a_minute_and_costs_no_memory(
    log: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = 1000.0
    monkeypatch.setattr(access_log.time, "monotonic", lambda: now)
    access_log.write_access_log("/dev/full")
    for _ in range(500):
        log.info("x" * 200)
    now += 61
    log.info("x")
    assert len(said(caplog)) == 2
    assert "No space left on device): 501 requests are missing" in said(caplog)[1]
    assert capfd.readouterr().err == ""
