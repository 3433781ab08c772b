"""The life of a run in this process: how it ends, what it leaves, and who comes in between."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import FolderGoneError
from jobs.common.config import parse
from jobs.common.execution.executors import Executor
from jobs.common.runs.open_executor import open_executor
from jobs.common.runs.run import Run, main
from jobs.common.runs.run_folder import RunFolder
from jobs.mlp.job import JOB
from tests.runs import ROOT

QUICK = ["--run.engine", "local", "--run.tracking-uri", "none", "--train.epochs", "1", "--train.max-steps", "3",
         "--model.hidden",
         "8", "--eval.bootstrap-samples", "100"]
FAILING = replace(JOB, train="tests.unit.loops:fail")


@pytest.fixture(autouse=True)
def signals() -> Generator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def flags(storage: Path, name: str, *more: str) -> list[str]:
    return [*QUICK, "--run.storage", str(storage), "--run.name", name, *more]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(("error", "code", "status"), [
    ("DataError", 2, "invalid"), ("StorageError", 3, "stopped"), ("ClusterError", 3, "stopped"),
    ("StorageFullError", 3, "stopped"),
    ("TrainingFailedError", 1, "failed"),
])
def test_every_end_of_training_is_recorded_and_is_no_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: str, code: int, status: str
) -> None:
    assert main(FAILING, flags(tmp_path, error)) == code
    assert "as the test wants it" in capsys.readouterr().err
    ended = result(tmp_path / error)
    assert (ended["status"], ended["exit_code"]) == (status, code)
    assert main(FAILING, flags(tmp_path, error)) == code
    assert result(tmp_path / error)["restarts"] == 0


def test_all_that_a_run_leaves_for_good_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data, checkpoints, artifact, record and result:
    a power cut after the last line takes nothing of them."""
    synced, fsync = set[int](), os.fsync

    def sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    assert main(JOB, flags(tmp_path, "run")) == 0
    kept = [path for path in tmp_path.rglob("*")
            if not {"logs", "predictions", ".locks"} & {*path.relative_to(tmp_path).parts}]
    assert [str(path) for path in kept if path.stat().st_ino not in synced] == []
    assert len([path for path in kept if path.is_file()]) > 15
    assert 'href="data.html"' in (tmp_path / "run/report.html").read_text()
    assert 'href="report.html"' in (tmp_path / "run/data.html").read_text()


def test_a_run_that_another_driver_took_over_leaves_the_record_to_it(tmp_path: Path) -> None:
    assert main(FAILING, flags(tmp_path, "RunConflictError")) == 2
    assert not (tmp_path / "RunConflictError/result.json").exists()


def test_a_run_in_this_process_leaves_its_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert main(JOB, flags(tmp_path, "run", "--train.epochs", "1")) == 0
    changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
    assert not {name for name in changed
                if name.startswith(("GLOO_", "NCCL_"))}, "which workers of a later cluster would inherit"


def test_resume_never_trains_beside_the_first_attempt_and_loses_nothing(tmp_path: Path,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert main(JOB, flags(tmp_path, "run")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run/artifact").iterdir()}
    assert main(JOB, flags(tmp_path, "run", "--run.resume", "never", "--optim.lr", "0.1")) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "run/artifact").iterdir()} == before
    second = result(tmp_path / "run/attempts/2")
    assert (second["attempt"], second["status"]) == (2, "done")
    assert result(tmp_path / "run") == second, "the top-level file is the newest attempt's"
    assert capsys.readouterr().out.splitlines()[-1] == f"artifact: {tmp_path}/run/attempts/2/artifact"
    assert main(JOB, flags(tmp_path, "run", "--optim.lr", "0.1")) == 0
    assert "run 'run' (attempt 2) is done" in capsys.readouterr().out


def test_how_to_go_on_with_an_attempt_of_its_own_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FAILING, flags(tmp_path, "StorageFullError")) == 3
    assert "--run.resume never" not in capsys.readouterr().err
    assert main(FAILING, flags(tmp_path, "StorageFullError", "--run.resume", "never")) == 3
    assert "leave out --run.resume never" in capsys.readouterr().err


def test_a_run_that_was_finished_while_this_one_was_starting_is_done(tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def late(*given: Any) -> Generator[tuple[Executor, bool]]:
        assert main(JOB, flags(tmp_path, "run")) == 0
        with open_executor(*given) as made:
            yield made

    config = parse(JOB.config_type, flags(tmp_path, "run"), "test")
    assert Run(JOB, config, open_executor=late).carry_out() == 0
    assert "run 'run' (attempt 1) is done" in capsys.readouterr().out


@pytest.mark.parametrize(("workers", "every"), [("1", "3"), ("2", "100000")],
                         ids=["at a checkpoint", "two workers, before one"])
def test_a_run_whose_folder_is_deleted_says_so_leaves_nothing_and_may_begin_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str, every: str
) -> None:
    folder = tmp_path / "run"

    def delete() -> None:
        while (not (folder / "progress.json").exists()
               or not json.loads((folder / "progress.json").read_text())["highest_step"]):
            time.sleep(0.01)
        while folder.exists():
            # which leaves a part where a worker writes or prunes at this moment
            shutil.rmtree(folder, ignore_errors=True)

    deleting = threading.Thread(target=delete, daemon=True)
    deleting.start()
    long = ["--train.epochs", "100000", "--train.max-steps", "10000000", "--run.checkpoint-every-steps", every]
    assert main(JOB, flags(tmp_path, "run", "--run.workers", workers, *long)) == 1
    deleting.join(10)
    said = capsys.readouterr()
    assert f"{folder}/run.json is gone: the run's folder was deleted" in said.err
    assert "Traceback" not in said.out + said.err
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [], "left"
    assert not folder.exists()
    assert main(JOB, flags(tmp_path, "run")) == 0, "what was left does not refuse the next one"
    assert result(folder)["steps"] == 3


def test_what_somebody_may_want_back_stays_where_only_a_part_of_the_folder_was_deleted(tmp_path: Path) -> None:
    assert main(FAILING, flags(tmp_path, "TrainingFailedError")) == 1
    folder = RunFolder.find(parse(JOB.config_type, flags(tmp_path, "TrainingFailedError"), "test"))
    (tmp_path / "TrainingFailedError/run.json").unlink()
    with pytest.raises(FolderGoneError), folder.kept():
        raise ValueError("whatever follows from it")
    assert list((tmp_path / "TrainingFailedError/checkpoints/manifests").rglob("*.json"))


def test_whoever_is_still_deleting_the_folder_is_waited_for(tmp_path: Path) -> None:
    assert main(FAILING, flags(tmp_path, "TrainingFailedError")) == 1
    folder = RunFolder.find(parse(JOB.config_type, flags(tmp_path, "TrainingFailedError"), "test"))

    def go_on() -> None:
        for path in (tmp_path / "TrainingFailedError/checkpoints/manifests", tmp_path / "TrainingFailedError/artifact"):
            shutil.rmtree(path, ignore_errors=True)
        for name in ("config.yaml", "result.json"):
            (tmp_path / "TrainingFailedError" / name).unlink()

    (tmp_path / "TrainingFailedError/run.json").unlink()
    deleting = threading.Timer(0.2, go_on)
    deleting.start()
    with pytest.raises(FolderGoneError), folder.kept():
        raise ValueError("whatever follows from it")
    deleting.join()
    assert not (tmp_path / "TrainingFailedError").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_at_once_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    code = ("import sys, time\nfrom dataclasses import replace\nfrom jobs.common.runs.run import main\n"
            "from jobs.mlp.job import JOB\n"
            "def prepare(*_, **__):\n    print('preparing', flush=True)\n    time.sleep(60)\n"
            "sys.exit(main(replace(JOB, prepare=prepare), sys.argv[1:]))")
    with subprocess.Popen([sys.executable, "-c", code, *flags(tmp_path, "run")], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "preparing\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 3
    assert said == f"error: {signal.Signals(number).name} before training had begun: run the same command again\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_tracking_server_that_is_lost_before_the_first_step_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    storage = tmp_path / "it's $(id)"
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def prepare(*given: Any, **named: Any) -> Any:
            server.shutdown()
            server.server_close()
            return JOB.prepare(*given, **named)

        uri = f"http://127.0.0.1:{server.server_port}"
        assert main(replace(JOB, prepare=prepare), flags(storage, "run", "--run.tracking-uri", uri)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"artifact: {storage}/run/artifact"
    (told,) = [line for line in out.splitlines() if line.startswith("registry: ")]
    assert f"registry {uri} cannot be used" in told and "evaluations were not recorded there" in told
    remedy = told.partition("When the registry is back: ")[2].partition(";")[0]
    assert shlex.split(remedy)[4:] == ["run", f"{storage}/run/artifact", "--tracking-uri", uri]
    warned = [record.getMessage() for record in caplog.records if "Training goes on without it" in record.getMessage()]
    assert len(warned) == 1
    assert result(storage / "run")["status"] == "done"
