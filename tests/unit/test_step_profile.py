"""Steps under a profiler: which they are, what is left of them, and that the numbers stay as they are."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.config import RunConfig, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.report.profile import profile_section
from jobs.common.runs.run import main
from jobs.common.step_profile import Operation, ProfileTable, StepProfile, check_reached, missing, tables
from jobs.common.training.train_state import NonFiniteError
from jobs.mlp import train as loop
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from jobs.pytorch.setup import TorchProfiler
from tests import image_loops
from tests.unit.test_fit import Counter, carried_out, odd

__all__ = ["odd"]  # a fixture: three steps an epoch


def config_of(**run: Any) -> MlpConfig:
    return from_dict(MlpConfig, {
        "run": {"checkpoint_every_steps": 100, **run}, "model": {"hidden": [16], "dropout": 0.2},
        "train": {"epochs": 2, "global_batch_size": 64}, "eval": {"robustness_rows": 0}})


def made(folder: Path) -> list[tuple[int, int]]:
    return [(each.first, each.last) for each in tables(Store.open(str(folder)))]


@pytest.mark.parametrize(("fields", "says"), [
    ({"profile": "ten"}, "--run.profile ten: write steps as 10-20"), ({"profile": ""}, "write steps as"),
    ({"profile": "20-10"}, "counted from 1, and each is named once, in order"), ({"profile": "0-3"}, "counted from 1"),
    ({"profile": "3-5,5-6"}, "named once"), ({"profile": "7,3"}, "in order"), ({"profile": "1-1001"}, "1,000 steps"),
    ({"profile": "1", "profile_ranks": "1"}, "the ranks of 1 workers are 0 to 0"),
    ({"profile": "1", "profile_ranks": "all"}, "write ranks as 0"),
])
def test_steps_and_ranks_that_there_are_not_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig(**fields)


def test_steps_that_the_run_never_makes_are_refused_before_it_begins(tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    run = RunConfig(profile="3,5-7", workers="2", profile_ranks="0,1")
    assert [list(each) for each in run.profiled] == [[3], [5, 6, 7]] and run.profiled_ranks == [0, 1]
    check_reached(run, 7)
    with pytest.raises(ConfigError, match="the run has 6 steps, and there is no step 7"):
        check_reached(run, 6)
    assert main(JOB, ["--run.engine", "local", "--run.tracking-uri", "none", "--run.storage", str(tmp_path),
                      "--train.epochs", "1", "--run.profile", "19-20"]) == 2
    assert "the run has 19 steps, and there is no step 20" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_profiled_run_ends_with_the_same_bits_and_leaves_traces(odd: Dataset, tmp_path: Path) -> None:
    image_loops.train(loop.train, tmp_path / "plain", odd, config_of())
    image_loops.train(loop.train, tmp_path / "profiled", odd, config_of(profile="2-4,6"))
    assert image_loops.same(tmp_path / "plain", tmp_path / "profiled")
    assert not (tmp_path / "plain/profile").exists()
    found = tables(Store.open(str(tmp_path / "profiled")))
    assert [(each.first, each.last) for each in found] == [(2, 3), (4, 4), (6, 6)], "no evaluation is in a trace"
    assert missing(config_of(profile="2-4,6").run, found) == []
    for each in found:
        events = json.loads(gzip.decompress((tmp_path / "profiled" / each.trace).read_bytes()))["traceEvents"]
        names = [event["name"] for event in events]
        steps = {name for name in names if re.fullmatch(r"step \d+", name)}
        assert steps == {f"step {step}" for step in range(each.first, each.last + 1)}
        assert names.count("aten::addmm") == 2 * (each.last - each.first + 1), "two layers"
        assert 0 < sum(operation.self_ms for operation in each.operations) <= each.self_ms


def test_steps_that_a_stop_divides_have_a_trace_each_and_those_done_again_another(odd: Dataset, tmp_path: Path) -> None:
    config = config_of(profile="2-4")
    image_loops.in_pieces(loop.train, tmp_path, odd, config)
    assert made(tmp_path) == [(2, 2), (3, 3), (4, 4)]
    before = (tmp_path / "profile/rank-0-steps-2-2.json").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    image_loops.train(loop.train, tmp_path, odd, config)
    assert made(tmp_path) == [(2, 2), (2, 3), (3, 3), (4, 4)]
    assert (tmp_path / "profile/rank-0-steps-2-2.json").read_bytes() == before


def test_a_generation_that_breaks_leaves_no_trace_and_no_profiler_behind(odd: Dataset, tmp_path: Path) -> None:
    broken = Counter({2: "corrupted"})
    with pytest.raises(NonFiniteError):
        carried_out(broken, tmp_path / "broken", odd, run={"profile": "2-3"}, profiler=TorchProfiler)
    assert not (tmp_path / "broken/profile").exists()
    carried_out(Counter(), tmp_path / "whole", odd, run={"profile": "2-3"}, profiler=TorchProfiler)
    assert made(tmp_path / "whole") == [(2, 3)]


def test_a_call_of_many_steps_begins_and_ends_with_the_steps_that_are_named(tmp_path: Path) -> None:
    run = RunConfig(profile="3-5,9", workers="2", profile_ranks="1")
    for rank in (0, 1):  # the ranks make the same calls, whoever profiles
        profile = StepProfile(run, TorchProfiler, store=Store.open(str(tmp_path)), rank=rank, waiting=pytest.fail)
        assert [profile.bound(step, 20) for step in (0, 2, 5, 8, 9)] == [2, 5, 8, 9, 20]
        assert profile.bound(5, 7) == 7


def test_a_job_without_a_profiler_says_so(odd: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--run\.profile: this job has no profiler"):
        carried_out(Counter(), tmp_path, odd, run={"profile": "1"})


def test_the_report_has_the_operations_and_says_what_was_not_profiled() -> None:
    assert profile_section([], []) == []
    table = ProfileTable(title="PyTorch's profiler", rank=0, first=2, last=3, trace="profile/x.trace.json.gz",
                         self_ms=8.0, device_ms=0.0, operations=(Operation(name="aten::mm", calls=4, self_ms=6.0),))
    run = RunConfig(profile="2-4,6", workers="2", profile_ranks="0,1")
    left = missing(run, [table])
    assert left == ["step 4 of rank 0", "step 6 of rank 0", "steps 2 to 4 of rank 1", "step 6 of rank 1"]
    (section,) = profile_section([table], left)
    for words in ("Steps 2 to 3 of rank 0", 'href="profile/x.trace.json.gz"', "ui.perfetto.dev", "aten::mm",
                  "75.0%", "steps 2 to 4 of rank 1"):
        assert words in section.html
