"""One rank that is slow and then goes its own way, in each job's own loop on local workers: it is named,
and the run fails."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import DivergedError
from cluster.core.storage import Store
from cluster.monitoring.run_status import RankTime
from jobs.common.config import Config, from_dict, to_dict
from jobs.common.config_changes import decisive_fingerprint
from jobs.common.data.dataset import Dataset
from jobs.common.execution import controller as supervising
from jobs.common.execution import hang_policy, straggler
from jobs.common.execution.controller import Controller
from jobs.common.execution.executors import ProcessExecutor
from jobs.common.execution.generation_state import ControllerCallbacks, GenerationState
from jobs.common.execution.run_state import RunState
from jobs.common.execution.worker import WorkerSpec
from jobs.common.training.weight_digest import PIECE, digest_of_arrays, mismatched_ranks, placed
from tests.image_loops import digits
from tests.unit.odd_loops import DIVERGES_AFTER, ODD, SLOWER_S
from tests.unit.token_rows import config_of, token_rows

EVERY = 10


# ── the hash ──
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("count", [7, 64])
def test_any_bit_changes_the_hash(kind: Any, count: int) -> None:
    array = np.arange(count).astype(kind).reshape(-1, 1)
    before = digest_of_arrays([array, array])
    for bit in range(8 * array.nbytes):
        other = array.copy()
        other.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        assert before not in {digest_of_arrays([other, array]), digest_of_arrays([array, other])}
    assert 0 <= before < 2**52
    assert before == int(float(before)), "it travels as a float64"


def test_differences_that_cancel_in_a_sum_change_the_hash() -> None:
    weights = np.linspace(0.5, 1.0, 100_000, dtype=np.float32)
    other = weights.copy()
    other.view(np.int32)[[10, 20]] += np.array([1, -1], np.int32)  # the least that a rounding does
    assert digest_of_arrays([other]) != digest_of_arrays([weights])


def test_pytorch_hashes_as_numpy_does() -> None:
    torch = pytest.importorskip("torch")
    from jobs.pytorch.weight_digest import digest_of

    arrays = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (0, 1, 8, 13, 2 * PIECE + 6)]
    assert digest_of(map(torch.from_numpy, arrays)) == digest_of_arrays(arrays)
    assert digest_of([torch.ones(5, dtype=torch.bfloat16)]) != digest_of([torch.ones(4, dtype=torch.bfloat16)])
    shifted = torch.cat([torch.zeros(3), torch.from_numpy(arrays[2])])[3:]
    assert digest_of([shifted]) == digest_of_arrays([arrays[2]]), "wherever it lies in memory"


@pytest.mark.parametrize(("digests", "odd"), [
    ([5, 5, 5], []), ([5, 6, 5], [1]), ([6, 5, 5, 7], [0, 1, 2, 3]), ([5, 6], [0, 1]), ([5, 5, 6, 6], [0, 1, 2, 3]),
    ([1], []),
])
def test_who_is_not_with_the_majority_is_odd(digests: list[int], odd: list[int]) -> None:
    assert mismatched_ranks(digests) == odd
    together = sum(placed(value, rank, len(digests)) for rank, value in enumerate(digests))
    assert np.asarray(together).tolist() == digests


# ── in the jobs' loops ──
def supervised(folder: Path, dataset: Dataset, config: Config, train: str,
               listen: Callable[[GenerationState], None]) -> tuple[Controller, RunState]:
    """A run of one of tests/unit/odd_loops.py, whose workers have been started."""
    store, values = Store.open(str(folder)), to_dict(config)
    kind = type(config)
    task = WorkerSpec(train=f"tests.unit.odd_loops:{train}", config_type=f"{kind.__module__}:{kind.__name__}",
                      config=values,
                      run_uri=store.location(), config_fingerprint=decisive_fingerprint(config),
                      dataset_uri=dataset.store.location())
    run_state = RunState.open(store)
    controller = Controller(run=config.run, executor=ProcessExecutor(1), spec=task, run_store=store,
                            num_shards=config.run.max_workers, run_state=run_state,
                            callbacks=ControllerCallbacks(on_update=listen, log=print, stop_requested=lambda: False))
    controller.start(config.run.max_workers)
    return controller, run_state


def carry_out(
    folder: Path, dataset: Dataset, config: Config, train: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[str]]:
    """What the run ends with, and what happened before."""
    monkeypatch.setattr(straggler, "HOLD_S", 0.5)
    monkeypatch.setattr(supervising, "_PACING_EVERY_S", 0.02)
    times: list[dict[int, RankTime]] = []

    def listen(watch: GenerationState) -> None:
        times.append(watch.times)

    controller, run_state = supervised(folder, dataset, config, train, listen)
    with pytest.raises(DivergedError) as caught:
        controller.supervise()
    busy = [found for found in times if len(found) == config.run.max_workers][-1]
    assert busy[ODD].busy_s > SLOWER_S
    assert all(busy[rank].busy_s < busy[ODD].busy_s for rank in busy
               if rank != ODD), "they wait; they do not compute longer"
    return str(caught.value), run_state.events


def check(message: str, events: list[str], workers: int) -> None:
    last = DIVERGES_AFTER // EVERY * EVERY
    said = re.match(r"after step (\d+) the weights of (.+); after step (\d+) all were the same\.", message)
    assert said and said[2] == f"rank {ODD} (127.0.0.1) differ from those of the other {workers - 1}"
    assert int(said[1]) - last - EVERY in (0, 1) and int(said[3]) - last in (0, 1), "at the next whole call of the CNN"
    assert "delete the checkpoints of later steps" in message
    named = [event for event in events if f"rank {ODD} on 127.0.0.1 computes" in event]
    assert len(named) == 1, events
    assert not [event for event in events if "computes" in event and event not in named]


RUN = {"workers": "3", "check_weights_every_steps": EVERY, "checkpoint_every_steps": 50, "max_failures": 0}


def test_a_slow_rank_that_diverges_is_named_by_the_mlp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.mlp.config import MlpConfig

    config = from_dict(MlpConfig, {"run": RUN, "model": {"hidden": [32]}, "train": {"global_batch_size": 60}})
    check(*carry_out(tmp_path / "run", digits(tmp_path), config, "mlp", monkeypatch), 3)


def test_a_slow_rank_that_diverges_is_named_by_the_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With zero2, whose collectives are DeepSpeed's."""
    config = config_of(run=RUN, scale={"strategy": "zero2"})
    check(*carry_out(tmp_path / "run", token_rows(tmp_path), config, "transformer", monkeypatch), 3)


def test_a_slow_rank_that_diverges_is_named_by_the_cnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.cnn.config import CnnConfig

    config = from_dict(CnnConfig, {"run": RUN, "model": {"width": 8, "depth": 1},
                                   "train": {"global_batch_size": 60, "most_steps_per_call": 2}})
    check(*carry_out(tmp_path / "run", digits(tmp_path), config, "cnn", monkeypatch), 3)


def test_workers_that_lose_one_while_they_meet_find_its_successor(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.mlp.config import MlpConfig

    # after which all workers would be replaced: a second failure
    monkeypatch.setattr(hang_policy, "_FIRST_STEP_S", 30.0)
    config = from_dict(MlpConfig, {"run": {"workers": "3", "max_failures": 1}, "model": {"hidden": [32]},
                                   "train": {"global_batch_size": 60, "epochs": 1}})
    controller, run_state = supervised(tmp_path / "run", digits(tmp_path), config, "dies_meeting", lambda watch: None)
    assert controller.supervise() == "finished"
    assert run_state.failures == 1
    said = sorted((tmp_path / "run/logs/errors").glob("000001-*-peer.txt"))
    assert [path.name[-10:] for path in said] == ["1-peer.txt", "2-peer.txt"]
    assert all("onnection" in path.read_text() for path in said), "what PyTorch said is kept"
