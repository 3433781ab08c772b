"""The Transformer's scale strategies: the same answer from all of them, on real workers under the local binding."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.cpp_extension import get_default_build_root

from cluster.core.errors import ConfigError
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.reader import Reader
from jobs.pytorch import setup
from jobs.transformer.build import build_model
from jobs.transformer.config import HardwareConfig, TransformerConfig
from jobs.transformer.costs import shape_of_model
from jobs.transformer.plan import PlanConfig, plan
from jobs.transformer.preference.loss import log_probabilities
from jobs.transformer.preference.reference import FirstWeights
from jobs.transformer.strategies.swap import SwapFolder, require_compiler
from tests.pairwise import pairwise
from tests.unit.held_tensors import SCALES
from tests.unit.strategy_loops import LARGER, PAIRED, STEPS, STRATEGIES, OfPairs, allowed, combined, fields_of
from tests.unit.token_rows import config_of, run_group, token_rows


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What three workers have done with every strategy: see strategy_loops.everything."""

    config: TransformerConfig
    dataset: Dataset
    combinations: list[dict[str, Any]]
    folder: Path

    def of_ranks(self, name: str) -> list[Any]:
        """What each worker has found, by rank."""
        return [json.loads((self.folder / f"{name}-{rank}.json").read_text()) for rank in range(3)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("strategies")
    chosen = pairwise(PAIRED, allowed)
    assert len(chosen) < 20
    made = Trained(config=config_of(run={"workers": "3", "name": "all", "hang_timeout_s": 120.0}),
                   dataset=token_rows(folder),
                   combinations=[*(fields_of(c) for c in chosen), {"scale": {"gradients": "bf16"}}],
                   folder=folder / "run")
    made.folder.mkdir()
    token_rows(folder, pairs=True)
    (made.folder / "combinations.json").write_text(json.dumps(made.combinations))
    run_group(made.folder, made.dataset, made.config, "tests.unit.strategy_loops:everything", 3)
    return made


def test_workers_that_share_the_model_give_pairs_what_one_worker_gives_them(trained: Trained) -> None:
    dataset, config = token_rows(trained.folder.parent, pairs=True), OfPairs.config
    first, *others = trained.of_ranks("reference")
    assert [first, first] == others
    model, weights = build_model(config, dataset.details, ()).eval(), FirstWeights()
    weights(model)
    assert first["digest"] == weights.digest
    cpu, found = torch.device("cpu"), dict(zip(first["row_ids"], first["log_probabilities"], strict=True))
    assert list(found) == list(range(240))
    for split in SPLITS:
        reader = Reader.open(dataset, split, config.data)
        rows = reader.rows(0, reader.num_rows)
        reader.close()
        with torch.no_grad():
            alone = log_probabilities(model, rows, cpu).numpy()
        np.testing.assert_allclose([found[row] for row in rows["row_id"].tolist()], alone, atol=1e-4)
    kept = list(dataset.store.local_path(f"{dataset.blocks}/reference").rglob("*.safetensors"))
    assert len(kept) == 3 and all(path.parent.name == f"{weights.digest:013x}-fp32" for path in kept)


def test_the_same_losses_whatever_the_strategy(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    config, of_ranks = trained.config, trained.of_ranks("curves")
    curves = {name: found["losses"] for name, found in of_ranks[0].items()}
    assert sorted(curves) == sorted(STRATEGIES)
    with capsys.disabled():
        print("\nstep  " + "  ".join(f"{name:>13}" for name in curves))
        for step in (*range(0, STEPS, 10), STEPS - 1):
            print(f"{step:4d}  " + "  ".join(f"{losses[step]:13.7f}" for losses in curves.values()))
    plain = np.array(curves["ddp"])
    assert len(plain) == STEPS
    assert plain[-1] < plain[0] - 0.15, "it learns"
    for name, losses in curves.items():
        difference = np.abs(np.array(losses) - plain).max()
        assert 1e-5 < difference < 1e-3 if name == "ddp+bf16" else difference < 1e-4, name
    shape = shape_of_model(build_model(config, trained.dataset.details, ()))
    rows = plan(PlanConfig(gpus=3, hardware=HardwareConfig(precision="fp32"), model=config.model), shape)
    planned = {row.strategy: row for row in rows if row.offload == "none"}
    for name in ("ddp", "zero1", "zero2", "zero3"):
        for kind, expected in (("weights", planned[name].parameters), ("optimizer", planned[name].optimizer)):
            held = [found[name][kind] for found in of_ranks]
            assert sum(held) / 3 == pytest.approx(expected, rel=0.1), (name, kind)


def test_every_two_options_together_train_and_their_slices_come_back(trained: Trained) -> None:
    for of_rank in trained.of_ranks("covers"):
        for combination, found in zip(trained.combinations, of_rank, strict=True):
            assert found["same"] and found["alike"] and found["finite"], combination
            assert found["losses"][-1] < found["losses"][0] + 0.02, combination


def test_zero3_lets_go_of_frozen_weights_that_were_gathered_to_compute_activations_again(trained: Trained) -> None:
    for found in trained.of_ranks("frozen"):
        assert found["passes"] == 2 * 2 * 6, "each layer is computed twice in each of two steps"
        assert found["most"] <= found["layer"], found
        assert found["after"] == [0, 0]


def test_deepspeed_holds_what_is_planned(trained: Trained) -> None:
    config = combined(trained.config, LARGER)
    shape = shape_of_model(build_model(config, trained.dataset.details, ()))
    planned = {(row.strategy, row.offload): row for row in plan(PlanConfig(gpus=3, model=config.model), shape)}
    for scale, *of_ranks in zip(SCALES, *trained.of_ranks("held"), strict=True):
        row = planned[scale["strategy"], offload_of(scale)]
        stage = int(scale["strategy"][-1])
        # for the largest gradient, on the GPU
        room = 2 * shape.largest_trained if "offload" in scale and stage < 3 else 0
        expected = {"all": row.parameters + row.gradients + row.optimizer + row.host + room,
                    "gathered": 2.0 * shape.parameters if stage == 3 else 0.0}
        if "offload" not in scale:
            expected |= {"weights": row.parameters, "optimizer": row.optimizer, "gradients": row.gradients}
        for kind, size in expected.items():
            held = [found[kind] for found in of_ranks]
            print(f"{scale} {kind}: held {held}, planned {size:.0f}")
            if kind == "gradients":  # zero2 divides them at whole buckets: one worker has some more, another some less
                held = [sum(held) / 3]
            assert held == pytest.approx([size] * len(held), rel=0.1), (scale, kind)


def offload_of(scale: dict[str, Any]) -> str:
    return "cpu, weights too" if scale.get("offload_parameters") else scale.get("offload", "none")


def test_with_the_optimizer_on_a_disk_it_trains_as_without(tmp_path: Path) -> None:
    if not list(Path(get_default_build_root()).glob("*/async_io/async_io.so")):
        pytest.skip("DeepSpeed's access to files is not compiled here yet, which takes minutes: `make soak` does it")
    folder, disk, dataset = tmp_path / "covers", tmp_path / "disk", token_rows(tmp_path)
    folder.mkdir()
    scales = [{"strategy": "zero3"}, {"strategy": "zero3", "offload": "nvme", "offload_path": str(disk)}]
    (folder / "combinations.json").write_text(json.dumps([{"scale": scale} for scale in scales]))
    config = config_of(run={"workers": "2", "name": "covers", "hang_timeout_s": 300.0}, model={"width": 256})
    run_group(folder, dataset, config, "tests.unit.strategy_loops:covers", 2)
    for rank in range(2):
        memory, swapped = json.loads((folder / f"covers-{rank}.json").read_text())
        assert swapped["losses"] == pytest.approx(memory["losses"], abs=1e-6)
        assert swapped["same"] and swapped["finite"]
    assert not list(disk.iterdir())


def test_what_a_killed_worker_left_on_the_disk_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    left = tmp_path / "trainyard-swap-left"
    left.mkdir()
    (left / "lock").touch()
    (other := tmp_path / "other").mkdir()
    first = SwapFolder(str(tmp_path))
    second = SwapFolder(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([other, first.path, second.path])
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == [other]


def test_workers_that_start_at_once_leave_each_other_s_folders_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: SwapFolder(str(tmp_path)), range(200)))
    assert sorted(tmp_path.iterdir()) == sorted(folder.path for folder in opened)
    for folder in opened:
        folder.close()


def test_a_disk_that_cannot_be_written_and_a_compiler_that_is_not_there_are_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "file").touch()
    with pytest.raises(ConfigError,
                       match=r"offload-path .*/file/below: cannot be written \(Not a directory\): name a folder"):
        SwapFolder(str(file / "below"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"lacks g\+\+, .*apt-get install g\+\+.*or pass --scale.offload cpu"):
        require_compiler()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ (apt-get install g++)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_as_the_other_does(tmp_path: Path) -> None:
    folder, dataset = tmp_path / "covers", token_rows(tmp_path)
    folder.mkdir()
    (folder / "combinations.json").write_text(json.dumps([{"hardware": {"compile": compile}}
                                                          for compile in (False, True)]))
    run_group(folder, dataset, config_of(run={"name": "covers", "hang_timeout_s": 300.0}),
              "tests.unit.strategy_loops:covers", 1)
    plain, compiled = json.loads((folder / "covers-0.json").read_text())
    assert compiled["losses"] == pytest.approx(plain["losses"], abs=1e-4)
    assert compiled["same"] and compiled["finite"]


def test_without_a_compiler_that_is_refused() -> None:
    from torch._inductor import config  # whose own patch is undone; one of pytest would take the entry away

    refused = r"--hardware.compile: .* has no compiler: install g\+\+"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ConfigError, match=refused):
        setup.compiled(torch.nn.Linear(1, 1))
