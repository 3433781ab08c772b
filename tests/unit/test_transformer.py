"""The Transformer job's parts, without a run: batches by length, packing, slices, losses,
and what its config refuses."""

import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml

from cluster.core.errors import CheckpointError, ConfigError
from jobs.common.config import from_dict, parse, to_yaml
from jobs.common.data.length_bucketing import LengthGroups
from jobs.common.data.sampling import SamplingOrder
from jobs.common.own_code import load_object
from jobs.pytorch.gradients.buckets import _cut
from jobs.transformer.build import attention_kernels, build_model
from jobs.transformer.config import ScaleConfig, TransformerConfig
from jobs.transformer.inputs import IGNORED, packed_inputs, token_losses
from jobs.transformer.strategies.shards import Slice, TextFragment, fill, gathered, items, to_arrays
from jobs.transformer.strategies.table import STRATEGIES
from jobs.transformer.strategies.zero import deepspeed_config
from jobs.transformer.tasks import Mask, task_of
from tests.unit.language_model import language_model
from tests.unit.token_rows import config_of

DETAILS: dict[str, Any] = {"max_length": 32, "vocab_size": 64, "pad_id": 0, "start_id": 0, "end_id": None}


# ── batches of like lengths ──
def groups_of(seed: int = 0, shards: int = 3, steps: int = 8) -> LengthGroups:
    order = SamplingOrder(num_rows=1000, num_shards=shards, global_batch_size=12, block_rows=64, window_rows=256,
                          seed=seed)
    return LengthGroups(order, steps)


def arranged(groups: LengthGroups, lengths: np.ndarray, epoch: int, shard: int, window: int) -> np.ndarray:
    positions = groups.window(epoch, shard, window)
    return positions[groups.arrange(epoch, window, lengths[positions])]


@pytest.mark.parametrize(("model", "lr"), [
    ({}, 1e-3), ({"name": "some/where"}, 5e-5), ({"name": "some/where", "pretrained": False}, 1e-3),
    ({"name": "some/where", "lora_rank": 4}, 2e-4)])
def test_the_default_learning_rate_is_one_for_the_model_and_is_in_the_config_that_is_printed(
    model: dict[str, Any], lr: float
) -> None:
    config = from_dict(TransformerConfig, {"model": model})
    assert config.optim.lr == lr
    assert yaml.safe_load(to_yaml(config))["optim"]["lr"] == lr
    assert from_dict(TransformerConfig, {"model": model, "optim": {"lr": 3e-4}}).optim.lr == 3e-4



def test_length_groups_see_every_row_of_the_order_once_and_hold_little_padding() -> None:
    groups, lengths = groups_of(), np.random.default_rng(0).integers(5, 120, 1000)
    plain = grouped = 0
    for shard in range(3):
        windows = range(-(-groups.steps_per_epoch // groups.steps))
        seen = np.concatenate([arranged(groups, lengths, 0, shard, w) for w in windows])
        straight = groups.order.slice(0, shard, 0, groups.steps_per_epoch * groups.micro_batch_size)
        assert sorted(seen) == sorted(straight)
        plain += lengths[straight].reshape(-1, 4).max(1).sum() * 4
        grouped += lengths[seen].reshape(-1, 4).max(1).sum() * 4
    real = lengths[:0].sum() + sum(lengths[groups.order.slice(0, s, 0, 83 * 4)].sum() for s in range(3))
    assert (grouped - real) / grouped < 0.1 < (plain - real) / plain


def test_the_workers_of_a_step_get_like_lengths() -> None:
    groups, lengths = groups_of(), np.random.default_rng(0).integers(5, 120, 1000)
    longest = [lengths[arranged(groups, lengths, 2, shard, 1)].reshape(-1, 4).max(1) for shard in range(3)]
    assert all(np.corrcoef(a, b)[0, 1] > 0.8 for a, b in itertools.combinations(longest, 2))


def test_length_groups_are_a_function_of_seed_and_epoch_with_golden_values() -> None:
    lengths = np.arange(1000) % 97
    one = arranged(groups_of(), lengths, 0, 1, 2)
    assert (one == arranged(groups_of(), lengths, 0, 1, 2)).all()
    assert not (one == arranged(groups_of(), lengths, 1, 1, 2)).all()
    assert not (one == arranged(groups_of(seed=1), lengths, 0, 1, 2)).all()
    assert groups_of().arrange(0, 0, np.array([3, 1, 2, 9, 8, 7, 6, 5])).tolist() == [1, 2, 0, 7, 6, 5, 4, 3]


# ── packing ──
def test_a_document_does_not_see_the_one_before_it() -> None:
    model = build_model(config_of(), DETAILS, ()).eval()
    rng = np.random.default_rng(1)
    one, other, tail = (rng.integers(1, 64, size) for size in (9, 9, 14))
    rows = [np.concatenate([[0], first, [0], tail, [0]])[None].astype(np.int32) for first in (one, other)]
    with torch.no_grad():
        found = [token_losses(model(**batch).logits, targets) for batch, targets in
                 (packed_inputs(row, 0, None, torch.device("cpu")) for row in rows)]
        alone, targets = packed_inputs(np.concatenate([[0], tail, [0]])[None].astype(np.int32), 0, None,
                                       torch.device("cpu"))
        single = token_losses(model(**alone).logits, targets)
    assert not torch.allclose(found[0][:, :9], found[1][:, :9])
    torch.testing.assert_close(found[0][:, 10:], found[1][:, 10:], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0][:, 10:], single, rtol=0, atol=1e-6)


def test_a_model_that_writes_judges_documents_apart_as_it_did_when_it_was_trained() -> None:
    made, row = language_model(), np.array([[0, 5, 6, 7, 0, 8, 9, 10, 11]], np.int32)
    found: list[float] = []
    for cached in (False, True):
        made.model.config.use_cache = cached
        found.append(float(made.negative_log_likelihood(row)[0]))
    apart = [float(made.negative_log_likelihood(part)[0]) for part in (row[:, :5], row[:, 4:])]
    assert found == pytest.approx([sum(apart)] * 2, abs=1e-4)


def test_every_token_is_a_target_once_and_padding_is_none() -> None:
    batch, targets = packed_inputs(np.array([[0, 5, 6, 0, 7, -1, -1]], np.int32), 0, None, torch.device("cpu"))
    assert targets.tolist() == [[5, 6, 0, 7, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]
    _, targets = packed_inputs(np.array([[1, 5, 2, 1, 7, 2]], np.int32), 1, 2, torch.device("cpu"))
    assert targets.tolist() == [[5, 2, IGNORED, 7,
                                 2]], "with an end of its own a document does not predict the next one's start"
    whole, _ = packed_inputs(np.array([[0, 5, 6, 7]], np.int32), 0, None, torch.device("cpu"))
    assert "position_ids" not in whole, "one document needs no mask"


# ── slices ──
@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (3, 1), (3, 2), (2, 5)])
def test_slices_go_from_any_number_of_workers_to_any_other(writers: int, readers: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (7, 5), "b.bias": (3,)}
    whole = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def cut(workers: int, fresh: bool) -> list[list[TextFragment]]:
        owned: list[list[TextFragment]] = []
        for rank in range(workers):
            mine: list[TextFragment] = []
            for name, values in whole.items():
                size = -(-values.size // workers)
                start, stop = min(values.size, rank * size), min(values.size, (rank + 1) * size)
                if stop > start:
                    piece = torch.from_numpy(values.reshape(-1)[start:stop].copy())
                    mine.append(TextFragment(name, start, {"weights": torch.zeros_like(piece) if fresh else piece}))
            owned.append(mine)
        return owned

    parts = [to_arrays(fragments) for fragments in cut(writers, fresh=False)]
    new = cut(readers, fresh=True)
    for fragments in new:
        fill(fragments, parts)
    again = gathered(items([to_arrays(fragments) for fragments in new]), shapes)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_a_slice_that_is_missing_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"a\.weight"):
        fill([TextFragment("a.weight", 4, {"weights": torch.zeros(6)})],
             [{"weights/a.weight@0": np.zeros(7, np.float32)}])
    assert Slice.parse("exp_avg/model.layers.0.q@12") == Slice("exp_avg", "model.layers.0.q", 12)


def test_buckets_depend_on_the_model_alone() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (10, 300, 20, 5)]
    assert [[p.numel() for p in bucket] for bucket in _cut(parameters, 1000)] == [[10], [300], [20, 5]]


# ── hidden tokens ──
def test_masked_tokens_are_as_many_as_asked_for_never_special_and_drawn_again_alike() -> None:
    ids = torch.randint(5, 60, (4000, 32))
    ids[:, 0], ids[:, 20:] = 2, 0
    mask = Mask(mask_id=4, special_ids=(0, 1, 2, 3, 4), share=0.15)
    torch.manual_seed(3)
    hidden = mask.hide(ids)
    torch.manual_seed(3)
    assert torch.equal(hidden, mask.hide(ids))
    changed = hidden != ids
    assert (hidden[changed] == 4).all() and not changed[:, 0].any() and not changed[:, 20:].any()
    shares = changed[:, 1:20].float().mean(1)
    assert float(shares.mean()) == pytest.approx(0.15, abs=0.01)
    assert float(shares.std()) > 0.1, "a row's share is drawn, too"


def test_only_training_rows_are_masked() -> None:
    config = config_of(task="classify", data={"uri": "languages"}, train={"mask_tokens": 0.5})
    rows = {"tokens": np.full((8, 16), 9, np.int32), "length": np.full(8, 16, np.int32), "label": np.zeros(8, np.int64)}
    dataset: Any = type("", (), {"details": DETAILS | {"mask_id": 4, "special_ids": [0, 4]},
                                  "class_names": ["a", "b", "c"]})
    task, seen = task_of(dataset, config, torch.device("cpu")), list[bool]()

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        seen.append(bool((input_ids == 4).any()))
        return type("", (), {"logits": torch.zeros(8, 3)})

    task.loss(forward, rows)
    task.predict(forward, rows)
    assert seen == [True, False]
    dataset.details["mask_id"] = None
    with pytest.raises(ConfigError, match=r"--train.mask-tokens 0.5: the tokenizer of tiny has no mask token"):
        task_of(dataset, config, torch.device("cpu"))


# ── updates of low rank ──
def test_which_layers_have_updates_and_how_much_they_count() -> None:
    def built(**model: Any) -> Any:
        return build_model(config_of(model={"lora_rank": 4, **model}), DETAILS, ())

    every, some = built(), built(lora_layers=["q_proj", "v_proj"], rslora=True, lora_alpha=6.5)
    updated = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in some.named_parameters() if "lora_A" in name}
    assert updated == {"q_proj", "v_proj"}
    assert len(every.peft_config["default"].target_modules) == 7, "all linear layers but the head"
    layer = some.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 6.5 / 4**0.5, "alpha is not rounded"


@pytest.mark.parametrize(("model", "message"), [
    ({"lora_rank": 33}, r"--model.lora-rank 33: the layer model.layers.0.self_attn.q_proj of tiny, 32 to 32, has rank "
                        r"32 at most: pass 32 or less"),
    ({"lora_rank": 4, "lora_layers": ["q"]}, r"--model.lora-layers q: tiny has no linear layers of that name: pass "
                                             r"some of down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
    ({"dora": True}, r"--model.dora True: is for updates of low rank: pass --model.lora-rank, too"),
    ({"lora_rank": 4, "lora_dropout": 1.0}, r"--model.lora-dropout 1.0: must be at least 0 and less than 1")])
def test_updates_that_cannot_be_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config_of(model=model), DETAILS, ())


# ── attention ──
@pytest.mark.parametrize(("window", "seen"), [(None, 12), (1, 3), (2, 5)])
def test_a_token_attends_to_as_many_on_each_side_as_asked_for(window: int | None, seen: int) -> None:
    config = config_of(task="classify", data={"uri": "languages"}, model={"layers": 1, "attention_window": window})
    model = build_model(config, DETAILS, ("a", "b")).eval()
    ids = torch.arange(5, 17)[None]
    changed = ids.clone()
    changed[0, 6] = 60
    hidden = [model.model(input_ids=each).last_hidden_state[0] for each in (ids, changed)]
    assert int(((hidden[0] - hidden[1]).abs().amax(1) > 1e-7).sum()) == seen


def test_short_rows_in_bf16_do_without_the_fused_kernel_on_a_cpu() -> None:
    def fused(precision: str, length: int, device: str = "cpu") -> bool:
        config = config_of(data={"max_length": length}, hardware={"precision": precision})
        with attention_kernels(config, device):
            return torch.backends.cuda.flash_sdp_enabled()

    assert not fused("bf16", 64)
    assert fused("bf16", 512) and fused("fp32", 64) and fused("bf16", 64, "cuda")
    assert torch.backends.cuda.flash_sdp_enabled(), "afterwards as before"


# ── what is refused ──
@pytest.mark.parametrize(("flags", "message"), [
    (["--hardware.precision", "fp16"], "fp16 needs"),
    (["--scale.offload", "cpu"], "needs --scale.strategy zero"),
    (["--scale.strategy", "zero2", "--scale.offload", "nvme"], "zero3 only"),
    (["--scale.strategy", "zero3", "--scale.offload", "nvme"], "needs --scale.offload-path"),
    (["--scale.strategy", "zero3", "--scale.offload-path", "/d"], "needs --scale.offload nvme"),
    (["--scale.strategy", "zero3", "--scale.offload", "nvme", "--scale.offload-path", "/d",
      "--scale.offload-parameters"],
     "--scale.offload cpu"),
    (["--scale.strategy", "zero2", "--scale.offload", "cpu", "--scale.offload-parameters"],
     "needs --scale.strategy zero3"),
    (["--scale.strategy", "zero3", "--hardware.compile"], "ddp only"),
    (["--model.attention", "flash_attention_2"], "needs a GPU"),
    (["--task", "generate", "--data.uri", "languages"], "is for --task classify"),
    (["--task", "generate", "--data.uri", "stdlib", "--train.mask-tokens", "0.1"], "is for --task classify"),
    (["--task", "generate", "--data.uri", "stdlib", "--data.tokenizer", "wordpiece"], "cannot give a text back"),
    (["--train.mask-tokens", "0.6"], "at most 0.5"),
    (["--model.name", "distilbert", "--model.attention-window", "2"], "with --model.name tiny"),
    (["--task", "generate", "--data.uri", "stdlib", "--model.name", "distilbert"], "cannot generate"),
    (["--model.name", "some/folder", "--model.layers", "3"], "is for a preset"),
    (["--train.global-batch-size", "31", "--run.workers", "2"], "nearest is"),
    (["--scale.deepspeed-json", "x.json"], "needs --scale.strategy zero"),
])
def test_what_cannot_work_is_refused_with_the_reason(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TransformerConfig, flags, "test")


def test_an_unknown_strategy_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"--scale\.strategy zero9: pass one of ddp, zero1, zero2, zero3"):
        ScaleConfig(strategy=cast(Any, "zero9"))
    with pytest.raises(ConfigError, match=r"'ddp', 'zero1', 'zero2', 'zero3'"):
        parse(TransformerConfig, ["--scale.strategy", "zero9"], "test")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_class_is_what_the_table_says(name: str) -> None:
    able = STRATEGIES[name]
    made: Any = load_object(able.implementation)
    assert made.sharded == able.sharded
    assert made.lockstep == able.sharded, "slices are gathered pass by pass"
    assert able.zero_stage == (deepspeed_config(config_of(scale={"strategy": name}))["zero_optimization"]["stage"])


def test_a_deepspeed_file_is_merged_and_a_contradiction_named(tmp_path: Any) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"sub_group_size": 1000}, "wall_clock_breakdown": true}')
    scale = {"strategy": "zero3", "deepspeed_json": str(path)}
    made = deepspeed_config(config_of(scale=scale))
    assert made["wall_clock_breakdown"] and made["zero_optimization"]["sub_group_size"] == 1000
    assert made["zero_optimization"]["stage"] == 3
    path.write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(ConfigError, match=r"zero_optimization\.stage is 2 there, and 3"):
        deepspeed_config(config_of(scale=scale))
    path.write_text("[")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        deepspeed_config(config_of(scale=scale))


def test_what_does_not_fit_the_model_is_refused(tmp_path: Any) -> None:
    config = config_of()
    small = build_model(config, DETAILS, ())
    small.save_pretrained(tmp_path / "small")
    folder = config_of(model={"name": str(tmp_path / "small"), "layers": None, "heads": None, "width": None})
    again = build_model(folder, DETAILS, ())
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
    fresh = build_model(config_of(model={"name": folder.model.name, "layers": None, "heads": None, "width": None,
                                         "pretrained": False}, run={"seed": 7}), DETAILS, ())
    assert {name: each.shape for name, each in fresh.named_parameters()} == {
        name: each.shape for name, each in small.named_parameters()}
    assert not any(torch.equal(a, b) for a, b in zip(small.parameters(), fresh.parameters(), strict=True)
                   if a.dim() > 1)
    with pytest.raises(ConfigError, match="the tokenizer has 90 tokens, the embedding"):
        build_model(folder, DETAILS | {"vocab_size": 90}, ())
    with pytest.raises(ConfigError, match="takes 2048 tokens"):
        build_model(config, DETAILS | {"max_length": 4096}, ())
    (tmp_path / "small/model.safetensors").unlink()
    torch.save({}, tmp_path / "small/pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"are a pickle \(pytorch_model.bin\).*save_pretrained"):
        build_model(folder, DETAILS, ())


def test_a_model_that_is_not_to_be_had_says_which_files_and_how_to_use_a_folder(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"config.json, model.safetensors and tokenizer.json.*copy a folder"):
        build_model(config_of(model={"name": "nobody/nothing", "layers": None, "heads": None, "width": None}), DETAILS,
                    ())
