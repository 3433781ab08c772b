"""API keys: hashed, named, and changed without a restart."""

import time
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from serving import keys
from serving.__main__ import main
from serving.keys import Keys, new_key


def test_a_key_has_a_name_and_its_file_does_not_hold_it(tmp_path: Path) -> None:
    (one, line), (other, more) = new_key("anna"), new_key("app.1")
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n{line}\n{more}  # the shop\n")
    assert one not in path.read_text()
    known = Keys(str(path))
    assert [known.name_of(key) for key in (one, other, one + "x", "", "ü\udcff")] == ["anna", "app.1", None, None, None]


def test_a_key_comes_and_goes_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old, old_line), (new, new_line) = new_key("anna"), new_key("anna")
    path = tmp_path / "keys"
    path.write_text(old_line)
    known = Keys(str(path))
    later = time.monotonic()
    monkeypatch.setattr(keys.time, "monotonic", lambda: later)
    assert known.name_of(new) is None
    path.write_text(f"{old_line}\n{new_line}\n")
    assert known.name_of(new) is None, "it is not looked at with every request"
    later += 2
    assert [known.name_of(old), known.name_of(new)] == ["anna", "anna"]
    path.write_text("half a line:abc")
    later += 2
    assert known.name_of(new) == "anna", "a damaged file changes nothing"
    path.write_text(new_line)
    later += 2
    assert [known.name_of(old), known.name_of(new)] == [None, "anna"]


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, line), (other, more) = new_key("a"), new_key("b")
    monkeypatch.setenv(keys.VARIABLE, f"{line},{more}")
    known = Keys(None)
    assert [known.name_of(one), known.name_of(other)] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "# nothing", "anna", "anna:123", "anna:" + "g" * 64, ":" + "a" * 64])
def test_a_file_without_keys_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="python -m serving key NAME"):
        Keys(str(tmp_path / "keys"))


def test_the_command_prints_a_key_that_its_line_lets_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "anna"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:2])
    (tmp_path / "keys").write_text(printed["line:"])
    assert Keys(str(tmp_path / "keys")).name_of(printed["key:"]) == "anna"
