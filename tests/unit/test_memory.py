"""A worker that has not enough memory: the run ends with what to lower, and goes on with that."""

import uuid
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.common.config import from_dict
from jobs.common.execution.memory import is_out_of_memory, kills, remedy
from jobs.common.runs.run import main
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from jobs.transformer.config import TransformerConfig
from tests import image_loops
from tests.unit import tight_loops
from tests.unit.test_run import flags, result

EXACT = ["--model.dropout", "0", "--run.workers", "2", "--train.max-steps", "4", "--run.checkpoint-every-steps", "1",
         "--eval.robustness-rows", "0"]


# ── how it is known ──
@pytest.mark.parametrize("allocate", [
    lambda: np.empty(10**15), lambda: torch.empty(10**15), lambda: bytearray(10**15),
    lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))])
def test_an_allocation_that_fails_is_known(allocate: Callable[[], object]) -> None:
    def wrapped() -> None:
        try:
            next(made) if isinstance(made := allocate(), Generator) else None
        except Exception as error:
            raise ValueError("what a library makes of it") from error

    with pytest.raises(ValueError, match="what a library") as caught:
        wrapped()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("connection reset by peer"))


# ── what is to be lowered ──
@pytest.mark.parametrize(("kind", "values", "where", "said"), [
    (MlpConfig, {}, {}, "pass --train.max-rows-per-pass 15 (a pass has 30 rows), and the same command goes on"),
    (MlpConfig, {"train": {"max_rows_per_pass": 7}}, {}, "pass --train.max-rows-per-pass 3 (a pass has 7 rows), and"),
    (MlpConfig, {}, {"phase": "judging"}, "pass --eval.batch-size 512 (it is 1024), and the same command goes on"),
    (MlpConfig, {}, {"fits": False}, "give the workers more memory, or begin another run with a smaller model"),
    (MlpConfig, {"eval": {"batch_size": 1}}, {"phase": "judging"}, "give the workers more memory, or begin another"),
    (TransformerConfig, {}, {}, "max-rows-per-pass 8 (a pass has 16 rows) or --model.activation-checkpointing, and"),
    (TransformerConfig, {"train": {"max_rows_per_pass": 1}, "model": {"activation_checkpointing": True}}, {},
     "or begin another run with --scale.strategy zero3 on more workers or a smaller model")])
def test_what_needs_less_memory_is_named(kind: Any, values: Any, where: dict[str, Any], said: str) -> None:
    assert said in remedy(from_dict(kind, values), 2, **{"phase": None, **where})


# ── and the run goes on with it ──
def test_a_run_whose_pass_finds_no_memory_says_what_to_lower_and_goes_on_with_that(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tight = replace(JOB, train="tests.unit.tight_loops:limited")
    assert main(JOB, flags(tmp_path, "wide", *EXACT)) == 0
    assert main(tight, flags(tmp_path, "tight", *EXACT)) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert "ran out of memory in step 3 ([enforce fail at alloc_cpu" in said
    assert "pass --train.max-rows-per-pass 15 (a pass has 30 rows), and the same command goes on" in said
    assert result(tmp_path / "tight")["error"] == "OutOfMemoryError"
    assert main(tight, flags(tmp_path, "tight", *EXACT, "--train.max-rows-per-pass", "15")) == 0
    ended = result(tmp_path / "tight")
    assert (ended["steps"], ended["lost_steps"]) == (4, 0)
    assert any("not bit for bit: train.max_rows_per_pass: None -> 15" in event for event in ended["events"])
    wide, cut = image_loops.tensors(tmp_path / "wide"), image_loops.tensors(tmp_path / "tight")
    assert wide.keys() == cut.keys()
    for name in wide:
        np.testing.assert_allclose(cut[name], wide[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A control group of 16 MB, whose processes are killed where they take more."""
    version_1 = Path("/sys/fs/cgroup/memory")
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = next((path for _, controllers, path in lines if controllers == ("memory" if version_1.is_dir() else "")), "")
    place = Path(f"{version_1 if version_1.is_dir() else '/sys/fs/cgroup'}{own}", f"trainyard-{uuid.uuid4().hex[:8]}")
    try:
        place.mkdir()
        (place / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")).write_text(str(16 << 20))
        with suppress(OSError):  # where the machine swaps
            (place / "memory.swap.max").write_text("0")
    except OSError as error:
        if place.is_dir():
            place.rmdir()
        pytest.skip(f"no control group of memory may be made here ({error})")
    monkeypatch.setenv(tight_loops.CGROUP, str(place))
    yield place
    place.rmdir()


def test_a_worker_that_the_kernel_kills_for_want_of_memory_ends_the_run_with_what_to_lower(
        cgroup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, tight = kills(), replace(JOB, train="tests.unit.tight_loops:killed")
    assert main(tight, flags(tmp_path, "tight", *EXACT)) == 1
    assert kills() > before
    assert ("worker 1 was ended by the machine's kernel, for want of memory: pass --train.max-rows-per-pass 15"
            in capsys.readouterr().err)
