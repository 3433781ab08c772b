"""Training loops of tests/unit/test_strategies.py: its workers load them by name.
Many strategies in one group of workers."""

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from cluster.core.errors import ConfigError
from jobs.common.data.dataset import SplitName
from jobs.common.data.reader import Reader
from jobs.common.training.session import Session
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import set_up_torch
from jobs.transformer.config import ScaleConfig, TransformerConfig
from jobs.transformer.preference.reference import FirstWeights, find_reference
from jobs.transformer.strategies.shards import fill, gathered, items, to_arrays
from jobs.transformer.strategies.spread import strategy
from jobs.transformer.tasks import task_of
from jobs.transformer.train import passes
from tests.pairwise import Combination
from tests.unit.held_tensors import SCALES, held
from tests.unit.token_rows import config_of, token_rows

STEPS = 24
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"}, "zero1": {"strategy": "zero1"}, "zero2": {"strategy": "zero2"},
    "zero3": {"strategy": "zero3"},
    "ddp+bf16": {"strategy": "ddp", "gradients": "bf16"},
    "zero3+offload": {"strategy": "zero3", "offload": "cpu", "offload_parameters": True},
}


LARGER = {"model": {"layers": 6, "heads": 4, "width": 128}, "hardware": {"precision": "bf16"}}
"""A model of which every strategy holds enough to be measured."""


def everything(session: Session, config: TransformerConfig) -> Literal["finished", "stopped"]:
    """What test_strategies.py asks of three workers, who load PyTorch and DeepSpeed once:
    a JSON file a worker for each question.

    `held`: what a strategy holds of a larger model. `curves`: the loss of each of the first steps, by strategy, from
    the same weights on the same rows. `frozen`: as `frozen`. `covers`: as `covers`.
    `reference`: what the model gives pairs.
    """
    session.update_status(total_steps=STEPS, epochs=1, epoch=0)
    device = set_up_torch(session, 1)
    larger = combined(config, LARGER)
    with Group(session, device, even_alone=True) as group:
        _write(session, "held", [
            held(session, replace(larger, scale=ScaleConfig(**scale, bucket_mb=0.004)), group) for scale in SCALES])
        _write(session, "curves", {
            name: curve(session, replace(config, scale=ScaleConfig(**scale)), group, STEPS)
            for name, scale in STRATEGIES.items()})
        _write(session, "frozen", frozen(session, config, group))
        _write(session, "reference", reference(session, group))
        _cover_all(session, config, group)
    return "finished"


class OfPairs:
    """A session whose rows are pairs."""

    config = config_of(task="prefer", data={"uri": "pairs"}, scale={"strategy": "zero3"}, eval={"batch_size": 4})

    def __init__(self, session: Session) -> None:
        self._session = session
        self.dataset = token_rows(session.run_store.local_path().parent, pairs=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def reader(self, split: SplitName) -> Reader:
        return Reader.open(self.dataset, split, self.config.data)


def reference(session: Session, group: Group) -> dict[str, Any]:
    """Of all pairs, by workers each of which holds a third of the weights, and has another number of batches."""
    context: Any = OfPairs(session)
    first = FirstWeights()
    with strategy(context, context.config, group, first) as model:
        found = find_reference(context, context.config, group, model, first.digest)
    return {"row_ids": found.row_ids.tolist(), "log_probabilities": found.log_probabilities.tolist(),
            "digest": first.digest}


def _write(session: Session, name: str, found: Any) -> None:
    session.run_store.write_text(f"{name}-{session.rank}.json", json.dumps(found))


def curve(session: Session, config: TransformerConfig, group: Group, steps: int) -> dict[str, Any]:
    """Losses, and the bytes that this worker holds between steps: of weights,
    and of the optimiser with its copy of them."""
    losses: list[float] = []
    with strategy(session, config, group) as model:
        for _ in take(session, config, model, group, losses, steps):
            pass
        weights = sum(f.tensors["weights"].nbytes for f in model.weights())
        kinds = ("exp_avg", "exp_avg_sq") if not model.sharded else ("weights", "exp_avg", "exp_avg_sq")
        moments = sum(f.tensors[kind].nbytes for f in model.fragments(steps) for kind in kinds)
    return {"losses": losses, "weights": weights, "optimizer": moments}


def frozen(session: Session, config: TransformerConfig, group: Group) -> dict[str, Any]:
    """How many elements of the weights this worker holds under zero3 with LoRA as each layer is computed again in the
    backward pass, where DeepSpeed keeps no more than it needs, and after it; and how large a layer is."""
    options = session.run_store.location("release.json").removeprefix("file://")
    session.run_store.write_text("release.json", json.dumps(
        {"zero_optimization": {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}}))
    config = combined(config, {"model": {"layers": 6, "lora_rank": 4, "activation_checkpointing": True},
                               "scale": {"strategy": "zero3", "bucket_mb": 0.004, "deepspeed_json": options}})
    seen: list[int] = []
    after: list[int] = []
    with strategy(session, config, group) as model:
        weights = dict(model.model.named_parameters())

        def gathered_now(*_: object) -> None:
            seen.append(sum(p.data.numel() for p in weights.values()))

        for name, module in model.model.named_modules():
            if name.endswith(".self_attn"):
                module.register_forward_pre_hook(gathered_now)
        for _ in take(session, config, model, group, [], 2):
            after.append(sum(p.ds_status.name != "NOT_AVAILABLE" for p in weights.values()))
        layer = sum(p.ds_numel for name, p in weights.items() if ".layers.0." in name)
    return {"passes": len(seen), "most": max(seen), "after": after, "layer": layer}


def take(session: Session, config: TransformerConfig, model: Any, group: Group, losses: list[float], steps: int,
         first: int = 0) -> Any:
    """Takes the steps from `first` to before `steps` as the loop does, without its bookkeeping,
    and yields after each."""
    task = task_of(session.dataset, config, torch.device("cpu"))
    loader = session.data_loader()
    rows = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    for _, micro_batches in itertools.islice(rows, first, steps):
        batches = list(passes(session, micro_batches, config, lockstep=model.lockstep))
        targets = group.total(task.sizes(batches))[0]
        model.begin()
        loss = torch.zeros(1, dtype=torch.float64)
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            with model.passing():
                share = task.loss(model.forward, batch.rows) * (batch.weight / float(targets))
            last = number == len(batches) - 1
            model.backward(share, last=last, last_of_shard=last or batches[number + 1].shard != batch.shard)
            loss += share.detach().double()
        losses.append(float(group.total(loss)))
        assert model.step(1e-3) == "taken"
        session.heartbeat()
        yield


LORA = {"lora_dropout": 0.1, "rslora": True, "dora": True}
"""What updates of low rank have in the combinations."""
OPTIONS: dict[str, Sequence[Any]] = {
    "strategy": ("ddp", "zero1", "zero2", "zero3"), "offload": ("none", "cpu", "cpu with parameters"),
    "precision": ("fp32", "bf16"),
    "max_rows_per_pass": (None, 3), "clip_norm": (None, 0.5), "activation_checkpointing": (False, True),
    "lora_rank": (None, 4),
}
"""What is combined, here pairwise and by `make soak` all of it; the GPU's own options are left to a GPU."""
PAIRED = {**OPTIONS, "freeze": ((), ("model.embed_tokens", "model.layers.0"))}
"""What is combined pairwise alone."""


PLAIN = functools.cache(config_of)
"""What each combination changes; a command line takes a tenth of a second to parse, and there are hundreds of them."""


def allowed(combination: Combination) -> bool:
    try:
        return bool(combined(PLAIN(), fields_of(combination)))
    except ConfigError:
        return False


def fields_of(combination: Combination) -> dict[str, dict[str, Any]]:
    offload = combination["offload"]
    combination = {"freeze": (), **combination}
    return {
        "scale": {"strategy": combination["strategy"], "offload": offload.split(" ")[0],
                  "offload_parameters": offload.endswith("parameters")},
        "hardware": {"precision": combination["precision"]},
        "train": {"max_rows_per_pass": combination["max_rows_per_pass"]},
        "optim": {"clip_norm": combination["clip_norm"]},
        "model": {name: combination[name] for name in ("activation_checkpointing", "lora_rank", "freeze")}
                 | (LORA if combination["lora_rank"] else {}),
    }


def covers(session: Session, config: TransformerConfig) -> Literal["finished", "stopped"]:
    """Each combination that config.run.name's JSON file lists: trains some steps, is put into a new object,
    and trains on alike."""
    session.update_status(total_steps=1, epochs=1, epoch=0)
    device = set_up_torch(session, 1)
    with Group(session, device, even_alone=True) as group:
        _cover_all(session, config, group)
    return "finished"


def _cover_all(session: Session, config: TransformerConfig, group: Group) -> None:
    combinations = json.loads(session.run_store.read_text("combinations.json"))
    _write(session, "covers", [cover(session, combined(config, combination), group) for combination in combinations])


def combined(config: TransformerConfig, combination: dict[str, dict[str, Any]]) -> TransformerConfig:
    for name, values in combination.items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    return config


def cover(session: Session, config: TransformerConfig, group: Group) -> dict[str, Any]:
    """Losses, and whether slices that were written and read again give the same next step."""
    losses: list[float] = []
    with strategy(session, config, group) as model:
        steps = take(session, config, model, group, losses, 4)
        for _ in range(3):
            next(steps)
        kept = _own(model, 3)
        next(steps)
        end = _own(model, 4)
    parts = _all_parts(group, kept)
    again: list[float] = []
    with strategy(session, config, group) as model:
        fill([*model.weights(), *model.fragments(3)], parts)
        shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.model.named_parameters()
                  if p.requires_grad}
        own = _own(model, 3)
        now = gathered(items(_all_parts(group, own)), shapes)
        next(take(session, config, model, group, again, 4, first=3))
        end_again = _own(model, 4)
    assert len(torch.distributed.distributed_c10d._world.pg_map) == 1, "the group that all combinations share"
    before = gathered(items(parts), shapes)
    return {"losses": losses, "same": _equal(now, before) and _equal(own, kept),
            "alike": again == losses[3:] and _equal(end, end_again),
            "finite": all(bool(np.isfinite(values).all()) for values in before.values())}


def _own(model: Any, steps: int) -> dict[str, np.ndarray]:
    """This worker's slices, as they are after so many steps."""
    return {name: np.array(values) for name, values in to_arrays(model.fragments(steps)).items()}


def _equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _all_parts(group: Group, own: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    if group.world_size == 1:
        return [own]
    parts: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(parts, own)
    return parts
