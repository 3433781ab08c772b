"""Which attempt a command line means, and what is refused before anything is touched."""

import os
import threading
from pathlib import Path

import pytest

from cluster.core.errors import ConfigError, RunConflictError, StorageError
from cluster.core.storage import Store
from jobs.common import config as configs
from jobs.common.runs import run_folder
from jobs.common.runs.run_folder import RunFolder, open_storage, read_record
from jobs.mlp.config import MlpConfig


def config(storage: Path, *flags: str) -> MlpConfig:
    return configs.parse(MlpConfig, ["--run.storage", str(storage), "--run.name", "r", *flags], "test")


def made(storage: Path, *flags: str) -> RunFolder:
    asked = config(storage, *flags)
    return RunFolder.find(asked).create(asked, asked.run.max_workers, {"fingerprint": "f"})


def test_finding_a_run_writes_nothing(tmp_path: Path) -> None:
    RunFolder.find(config(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_same_name_continues_and_never_begins_beside_it(tmp_path: Path) -> None:
    first = made(tmp_path)
    assert RunFolder.find(config(tmp_path)).record["name"] == "r"
    second = RunFolder.find(config(tmp_path, "--run.resume", "never", "--optim.lr", "0.5"))
    assert (second.attempt, second.store.location()) == (2, f"{tmp_path}/r/attempts/2")
    second.create(config(tmp_path, "--optim.lr", "0.5"), 1, {})
    assert RunFolder.find(config(tmp_path, "--optim.lr", "0.5")).attempt == 2
    assert first.store.exists("run.json")


def test_a_changed_config_is_refused_with_the_differences(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(RunConflictError) as caught:
        RunFolder.find(config(tmp_path, "--optim.lr", "0.5", "--run.seed", "4"))
    assert "optim.lr: 0.002 -> 0.5" in str(caught.value)
    assert "run.seed: 0 -> 4" in str(caught.value)
    assert "--run.resume never" in str(caught.value)


def test_fields_that_decide_nothing_may_change(tmp_path: Path) -> None:
    made(tmp_path, "--run.workers", "1:3")
    found = RunFolder.find(config(tmp_path, "--run.workers", "2", "--run.max-failures", "9", "--data.cache-gb", "1"))
    assert found.num_shards == 3


def test_more_workers_than_shards_are_refused(tmp_path: Path) -> None:
    made(tmp_path, "--run.workers", "2")
    with pytest.raises(ConfigError, match="at most 2 workers"):
        RunFolder.find(config(tmp_path, "--run.workers", "3"))
    more = config(tmp_path, "--run.workers", "1:3")
    assert RunFolder.find(more).go_on(more) == ["--run.workers 1:3: at most 2, to whom the rows were dealt"]


def test_the_newest_attempts_result_is_copied_to_the_top(tmp_path: Path) -> None:
    first = {"attempt": 1, "status": "done", "exit_code": 0}
    made(tmp_path).write_result(first)
    second = RunFolder.find(config(tmp_path, "--run.resume", "never")).create(config(tmp_path), 1, {})
    for status, shown in (("stopped", 1), ("done", 2)):
        second.write_result({"attempt": 2, "status": status, "exit_code": 0})
        top, own, kept = (read_record(Store.open(str(tmp_path / place)), "result.json")
                          for place in ("r", "r/attempts/2", "r/attempts/1"))
        assert (top["attempt"], own["status"], kept) == (shown, status, first)
    second.write_result({"attempt": 2, "status": "failed", "exit_code": 1})


def test_an_attempt_that_has_no_record_has_not_begun(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "r/attempts/2/checkpoints").mkdir(parents=True)
    assert RunFolder.find(config(tmp_path)).attempt == 1
    assert RunFolder.find(config(tmp_path, "--run.resume", "never")).attempt == 2


def test_what_does_not_decide_the_result_may_change_and_the_rest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = made(tmp_path, "--model.dropout", "0", "--data.uri", f"{tmp_path}/images")
    same = ["--model.dropout", "0", "--data.uri", f"file://{tmp_path}/x/../images/", "--data.cache-dir", "/tmp/c",
            "--run.storage", f"file://{tmp_path}/x/..", "--run.wait", "5", "--run.checkpoint-every-steps", "7"]
    assert RunFolder.find(config(tmp_path, *same)).store.location() == folder.store.location()
    assert RunFolder.find(config(tmp_path, *same)).go_on(config(tmp_path, *same)) == []
    small = config(tmp_path, *same, "--train.max-rows-per-pass", "5", "--eval.batch-size", "7")
    assert RunFolder.find(small).go_on(small) == [
        "equal within rounding from here on, not bit for bit: eval.batch_size: 1024 -> 7; train.max_rows_per_pass: "
        "None -> 5"]
    assert RunFolder.find(small).go_on(small) == [], "said once"
    with pytest.raises(RunConflictError, match=r"\n  eval\.top_k: 3 -> 2\npass the old values to continue it, another "
                                               r"--run\.name, or --run\.resume never for a new attempt beside it$"):
        RunFolder.find(config(tmp_path, *same, "--eval.top-k", "2"))


def test_other_passes_of_a_model_that_draws_in_each_are_refused_unless_memory_was_short(tmp_path: Path) -> None:
    folder, small = made(tmp_path), config(tmp_path, "--train.max-rows-per-pass", "5")
    with pytest.raises(RunConflictError, match=r"max_rows_per_pass: None -> 5\n.*; other passes are another training "
                                               r"for dropout"):
        RunFolder.find(small)
    folder.write_result({"status": "failed", "exit_code": 1, "error": "OutOfMemoryError"})
    assert RunFolder.find(small).go_on(small) == [
        "another training from here on, as if by another seed, for dropout in other passes: train.max_rows_per_pass: "
        "None -> 5"]
    folder.write_result({"status": "stopped", "exit_code": 3})
    assert RunFolder.find(small).record["config"]["train"]["max_rows_per_pass"] == 5


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "r/run.json").write_text("{")
    with pytest.raises(StorageError, match=r"run\.json is damaged"):
        RunFolder.find(config(tmp_path))


def test_storage_that_hangs_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that does not end is what a mount does whose server is gone."""
    back = threading.Event()
    monkeypatch.setattr(run_folder, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(run_folder, "load_json", lambda *_: back.wait())
    with pytest.raises(StorageError,
                       match=f"storage {tmp_path} does not answer within 0.2 s: .* pass another --run.storage"):
        RunFolder.find(config(tmp_path))
    back.set()


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("path", ["run.json", "result.json"])
@pytest.mark.parametrize("text", ["5", "[]", "{}", "null", "{", DEEP,
                                  '{"status": "done", "exit_code": 0, "metrics": []}',
                                  '{"status": 5, "exit_code": 0}', '{"name": "r", "config": 5}'])
def test_a_record_of_wrong_types_is_damaged_in_one_line(path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / path).write_text(text)
    with pytest.raises(StorageError, match=rf"{path} is damaged \(.*\): correct or delete it") as caught:
        read_record(Store.open(str(tmp_path)), path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    os.mkfifo(tmp_path / "r/run.json")
    with pytest.raises(StorageError, match="is not a file, but a pipe"):
        RunFolder.find(config(tmp_path))


def test_a_relative_storage_is_refused_inside_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="absolute path"):
        open_storage("runs")


def test_a_second_process_is_refused_while_the_first_holds_the_run(tmp_path: Path) -> None:
    folder = made(tmp_path)
    with folder.locked(), pytest.raises(RunConflictError, match="another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_the_lock_goes_away_with_the_run_and_takes_the_folders_made_for_it_along(tmp_path: Path) -> None:
    folder = RunFolder.find(config(tmp_path / "new/storage"))
    with folder.locked():
        assert (tmp_path / "new/storage/.locks/r").exists()
    assert list(tmp_path.iterdir()) == []
    with made(tmp_path).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
