"""Conversations and pairs: a run whose process is killed in the middle of an epoch, and which then stops after each of
its steps, ends with the bits of a run that is left alone.

One worker, in this process or in one that is killed. Three of them, one of which is killed with its driver:
tests/faults/test_transformer_faults.py.
"""

import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.data.dataset import Dataset
from jobs.common.training.session import Session
from jobs.transformer.chat.packing import BEGINS
from jobs.transformer.config import TransformerConfig
from jobs.transformer.train import train
from tests import image_loops, runs
from tests.unit import test_chat, test_prefer
from tests.unit.test_chat import rows_of, write_lines

# of DeepSpeed's imports
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
SHARDS, STEPS, KILLED_AFTER = 3, 8, 3
"""Of a step; of both epochs; and the step after which it is killed, the third of the first one."""

LORA = {"lora_rank": 4, "lora_dropout": 0.1}


def killed(session: Session, config: TransformerConfig) -> Any:
    """Trains until the process is killed, a step behind a checkpoint."""
    on_step_end = session.progress.on_step_end

    def dies(**values: Any) -> None:
        on_step_end(**values)
        if values["step"] == KILLED_AFTER:
            session.checkpoints.wait_for_commit()
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(session.progress, "on_step_end", dies):
        return train(session, config)


@pytest.mark.parametrize(("task", "strategy", "model"), [
    *(("chat", strategy, model) for strategy in ("ddp", "zero2", "zero3") for model in ({}, LORA)),
    ("chat", "ddp", {**LORA, "lora_base": "nf4"}), ("prefer", "zero3", LORA)])
def test_killed_and_then_stopped_after_each_step_it_ends_with_the_same_bits(
        task: str, strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    config, dataset = prepared(tmp_path, task, strategy, model)
    alone, hurt = tmp_path / "alone", tmp_path / "hurt"
    assert image_loops.train(train, alone, dataset, config, num_shards=SHARDS)[0] == "finished"
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "deepspeed", "peft"])
    process = context.Process(target=image_loops.train, args=(killed, hurt, dataset, config, Session, SHARDS))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    newest = Checkpoints(Store.open(str(hurt)).child("checkpoints")).newest_intact(print)
    assert newest is not None and newest.state["step_in_epoch"] == KILLED_AFTER - 1, "a step is lost"
    assert image_loops.in_pieces(train, hurt, dataset, config, SHARDS) > STEPS - KILLED_AFTER
    assert image_loops.same(hurt, alone)
    assert runs.consumed_rows(hurt) == runs.consumed_rows(alone)


def prepared(folder: Path, task: str, strategy: str, model: dict[str, Any]) -> tuple[TransformerConfig, Dataset]:
    """Four steps an epoch; of chat, rows of several conversations each."""
    module: Any = {"chat": test_chat, "prefer": test_prefer}[task]
    path = write_lines(folder / "rows.jsonl", module.some(98 if task == "chat" else 38))
    size = {"layers": 1, "heads": 2, "width": 32, "dropout": 0.1}
    config = module.config_of(path, model=size | model,
                              scale={"strategy": strategy}, optim={"lr": 1e-2}, eval={"batch_size": 8},
                              train={"global_batch_size": 6, "epochs": 2},
                              run={"workers": str(SHARDS), "checkpoint_every_steps": 2, "trace_rows": True})
    dataset = module.prepared(folder, config)
    marks = rows_of(dataset, config)["marks"]
    assert len(marks) // 6 == STEPS // 2
    assert task == "prefer" or np.median((marks & BEGINS > 0).sum(axis=1)) > 1
    return config, dataset
