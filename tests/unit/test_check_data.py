"""`--data.check` prepares, says what it found, and leaves nothing."""

from pathlib import Path

import pytest

from jobs.common.runs.run import main
from jobs.mlp.job import JOB as MLP
from jobs.tabular.job import JOB as TABULAR
from jobs.transformer.job import JOB as TRANSFORMER
from trainyard.__main__ import main as trainyard


@pytest.mark.parametrize("job", [MLP, TABULAR, TRANSFORMER])
def test_data_is_checked_and_nothing_is_kept(job: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job, ["--data.check", "--run.storage", str(tmp_path / "storage")]) == 0  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "rows: train " in said
    assert "the data is in order: " in said
    assert not (tmp_path / "storage").exists()


def test_what_is_wrong_is_said_as_a_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    assert main(TRANSFORMER, ["--data.check", "--data.uri", str(tmp_path / "rows.csv")]) == 2
    assert "holds one class only ('b')" in capsys.readouterr().err


def test_the_command_is_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trainyard(["data", "check", "mlp", "--run.storage", str(tmp_path / "storage")]) == 0
    assert "the data is in order: 1,797 rows" in capsys.readouterr().out
    assert not (tmp_path / "storage").exists()
