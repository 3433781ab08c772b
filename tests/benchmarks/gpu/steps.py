"""Steps of the Transformer's own training, without evaluations and checkpoints: what a worker here loads.

    python -m tests.benchmarks.gpu.steps RECIPE.json FOLDER DEVICE
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

from cluster.core.storage import Store
from jobs.common.config import from_dict, to_dict
from jobs.common.config_changes import decisive_fingerprint
from jobs.common.execution.controller import Controller
from jobs.common.execution.executors import InProcessExecutor
from jobs.common.execution.generation_state import ControllerCallbacks
from jobs.common.execution.run_state import RunState
from jobs.common.execution.worker import WorkerSpec
from jobs.common.training.session import Session
from jobs.common.training.train_state import TrainState
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import set_up_torch
from jobs.transformer.config import TransformerConfig
from jobs.transformer.costs import counted_parameters, flops_per_token, mfu, peak_flops
from jobs.transformer.strategies.spread import strategy
from jobs.transformer.tasks import task_of
from jobs.transformer.text.prepare import prepare
from jobs.transformer.train import TransformerTraining

FOUND = "found.json"


def steps(session: Session, config: TransformerConfig) -> Literal["finished", "stopped"]:
    """Leaves FOUND: tokens and seconds of the steps behind the first quarter of them, the MFU, and the most bytes of
    tensors that the device has held in them (0: not a GPU)."""
    total = config.train.max_steps
    assert total is not None
    session.update_status(total_steps=total, epochs=1, epoch=0)
    device = set_up_torch(session, config.run.cpus_per_worker)
    on_gpu, first = device.type == "cuda", total // 4
    tokens, began, losses, state = 0, 0.0, list[float](), TrainState()
    with Group(session, device) as group, strategy(session, config, group) as model:
        training = TransformerTraining(session, config, group, model, task_of(session.dataset, config, device))
        loader = session.data_loader()
        rows = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
        for step, (_, batch) in enumerate(itertools.islice(rows, total)):
            if step == first:
                if on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
            tokens += sum(int((columns["tokens"][:, 1:] >= 0).sum()) for columns in batch.values()) * (step >= first)
            result = training.step(batch, state, [training.learning_rate(step, total)], list[float])
            state.record(result.outcomes[0], config.train.max_skipped_steps)
            losses += result.losses
            session.heartbeat()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        flops = flops_per_token(model.model.config, counted_parameters(model.model), config.data.max_length,
                                causal=True)
    named = config.hardware.peak_tflops
    peak = named * 1e12 if named else peak_flops(torch.cuda.get_device_name(device)) if on_gpu else None
    session.run_store.write_text(FOUND, json.dumps({
        "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "losses": losses,
        "mfu": mfu(tokens / seconds, flops, peak) if peak else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "vocab_size": session.dataset.details["vocab_size"]}))
    return "finished"


def carried_out(values: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """What `steps` leaves of a config of the job."""
    config = from_dict(TransformerConfig, values)
    dataset = prepare(config, Store.open(str(folder)), use_ray=False)
    store, values = Store.open(str(folder / config.run.name)), to_dict(config)
    spec = WorkerSpec(train=f"{steps.__module__}:steps", config_type="jobs.transformer.config:TransformerConfig",
                      config=values, run_uri=store.location(), config_fingerprint=decisive_fingerprint(config),
                      dataset_uri=dataset.store.location())
    executor = InProcessExecutor(device)
    callbacks = ControllerCallbacks(on_update=lambda _: None, log=print, stop_requested=lambda: False)
    controller = Controller(run=config.run, executor=executor, spec=spec, run_store=store, num_shards=1,
                            run_state=RunState.open(store), callbacks=callbacks)
    controller.start(1)
    executor.run(controller.supervise)
    return json.loads(store.read_text(FOUND))


if __name__ == "__main__":
    # a script's own module has another name than the one that the worker loads
    from tests.benchmarks.gpu import steps as module

    module.carried_out(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3])
