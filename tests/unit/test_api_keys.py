"""API keys: hashed, named, and changed without a restart."""

import os
import time
from pathlib import Path

import pytest

from cluster.core.errors import ConfigError
from serving.__main__ import main
from serving.core import api_keys as keys
from serving.core.api_keys import Keys, new_key


def test_a_key_has_a_name_and_its_file_does_not_hold_it(tmp_path: Path) -> None:
    (one, line), (other, more) = new_key("anna"), new_key("app.1")
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n{line}\n{more}  # the shop\n")
    assert one not in path.read_text()
    known = Keys(str(path))
    assert [known.name_of(key) for key in (one, other, one + "x", "", "ü\udcff")] == ["anna", "app.1", None, None, None]


class Clock:
    """The time that keys go by. It stands still until it is moved."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        patch.setattr(keys.time, "monotonic", lambda: self.now)


def test_a_key_comes_and_goes_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old, old_line), (new, new_line) = new_key("anna"), new_key("anna")
    path, clock = tmp_path / "keys", Clock(monkeypatch)
    path.write_text(old_line)
    known = Keys(str(path))
    assert known.name_of(new) is None
    path.write_text(f"{old_line}\n{new_line}\n")
    assert known.name_of(new) is None, "it is not looked at with every request"
    clock.now += 1
    assert [known.name_of(old), known.name_of(new)] == ["anna", "anna"]
    path.write_text(new_line)
    clock.now += 1
    assert [known.name_of(old), known.name_of(new)] == [None, "anna"]


@pytest.mark.parametrize("text", ["", "# nobody now", "anna", "anna:123", "\xff\0", "OTHER"])
def test_a_key_whose_line_is_gone_or_damaged_works_no_more(text: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """OTHER: beside a damaged line, another key's."""
    (key, line), (other, more) = new_key("anna"), new_key("other")
    path, clock = tmp_path / "keys", Clock(monkeypatch)
    path.write_text(f"{line}\n{more}")
    known = Keys(str(path))
    assert [known.name_of(key), known.name_of(other)] == ["anna", "other"]
    path.write_bytes((f"{line[:-1]}\n{more}" if text == "OTHER" else text).encode("latin-1"))
    clock.now += 1
    assert [known.name_of(key), known.name_of(other)] == [None, "other" if text == "OTHER" else None]
    assert known.count == (text == "OTHER")


def test_a_damaged_line_is_left_out_and_logged_without_what_it_holds(tmp_path: Path,
                                                                     caplog: pytest.LogCaptureFixture) -> None:
    (key, line), (raw, _) = new_key("anna"), new_key("careless")
    (tmp_path / "keys").write_text(f"# who may ask\ncareless:{raw}\n{line}")
    assert Keys(str(tmp_path / "keys")).name_of(key) == "anna"
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "line 2 is not NAME:SHA256 (1 keys are known)" in said
    assert raw not in said


@pytest.mark.parametrize("fate", ["deleted", "a folder", "a pipe"])
def test_a_file_that_cannot_be_read_lets_nobody_in_after_a_second(
        fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    key, line = new_key("anna")
    path, clock = tmp_path / "keys", Clock(monkeypatch)
    path.write_text(line)
    known = Keys(str(path))
    clock.now += 0.3
    assert known.name_of(key) == "anna"
    path.unlink()
    if fate != "deleted":
        path.mkdir() if fate == "a folder" else os.mkfifo(path)
    clock.now += 0.5
    assert known.name_of(key) == "anna", "it may be being replaced"
    assert not caplog.records
    clock.now += 0.5
    assert known.name_of(key) is None
    clock.now += 5
    assert (known.name_of(key), known.count) == (None, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "nobody is let in until it can be" in said
    path.rmdir() if fate == "a folder" else path.unlink(missing_ok=True)
    path.write_text(line)
    clock.now += 0.3
    assert known.name_of(key) == "anna", "it is there again"


def test_a_file_that_went_while_nobody_asked_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = new_key("anna")
    path, clock = tmp_path / "keys", Clock(monkeypatch)
    path.write_text(line)
    known = Keys(str(path))
    path.unlink()
    clock.now += 60
    assert known.name_of(key) is None


def test_an_ingress_that_starts_without_keys_lets_nobody_in_until_there_are_some(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = new_key("anna")
    clock, known = Clock(monkeypatch), Keys(str(tmp_path / "keys"))
    assert known.name_of(key) is None
    (tmp_path / "keys").write_text(line)
    clock.now += 0.3
    assert known.name_of(key) == "anna"


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, line), (other, more) = new_key("a"), new_key("b")
    monkeypatch.setenv(keys.VARIABLE, f"{line},{more}")
    known = Keys(None)
    assert [known.name_of(one), known.name_of(other)] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "# nothing", "anna", "anna:123", "anna:" + "g" * 64, ":" + "a" * 64, None])
def test_an_endpoint_does_not_start_without_keys_or_with_a_damaged_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="python -m serving key NAME"):
        keys.check(str(tmp_path / "keys"))


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a:b", "#a", "a\nb", "ä" * 65, "../a"])
def test_a_name_that_a_line_cannot_hold_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", name]) == 2
    assert "1 to 64 letters, digits, `.`, `_` or `-`" in capsys.readouterr().err


def test_the_command_prints_a_key_that_its_line_lets_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "anna"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:2])
    (tmp_path / "keys").write_text(printed["line:"])
    assert Keys(str(tmp_path / "keys")).name_of(printed["key:"]) == "anna"
