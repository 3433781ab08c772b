"""`trainyard new`: a job of one's own in a folder, which passes its own test at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT
from trainyard import __main__ as command
from trainyard import new


def test_a_new_job_passes_its_own_test_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["new", "my_churn"]) == 0
    assert "try it: trainyard train my_churn, or python -m pytest my_churn" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "my_churn").iterdir()} == {
        "README.md", "__init__.py", "__main__.py", "config.py", "data.py", "job.py", "model.py", "predictor.py",
        "search_space.yaml", "test_my_churn.py", "train.py"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_churn"], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
                          capture_output=True, text=True, check=False, timeout=200)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert command.main(["new", "my_churn"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("origin", new.FROM)
def test_nothing_of_the_origins_own_is_imported(origin: str, tmp_path: Path) -> None:
    files = new.write(tmp_path / "my_other", origin)
    for name in (name for name in files if name.endswith(".py")):
        text = (tmp_path / "my_other" / name).read_text()
        compile(text, name, "exec")
        assert f"jobs.{origin}" not in text and f"jobs/{origin}" not in text, name
        assert f"{origin.capitalize()}Config" not in text


@pytest.mark.parametrize(("name", "said"), [("My-Job", "is no name for a package"), ("class", "is no name"),
                                            ("mlp", "is there already"), ("json", "is there already")])
def test_a_name_that_would_not_do_is_refused(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert new.main([name]) == 2
    assert said in capsys.readouterr().err
    assert not Path(name).exists()
