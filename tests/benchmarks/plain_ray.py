"""Ray Train as its documentation has it, to compare with: a TorchTrainer with DDP, whose failures Ray itself handles.

    python -m tests.benchmarks.plain_ray FOLDER STEPS MAX_FAILURES

Its checkpoints are one `torch.save` in FOLDER every 8 steps: cheaper than `ray.train.report`, which waits 2 s
(FACTS.md). Each worker logs its steps as the watched job does, and its process id.
"""

import json
import os
import sys
import time
from pathlib import Path

CHECKPOINT_EVERY_STEPS = 8
BATCH_SIZE = 30


def train_func(settings: dict) -> None:
    import ray.train
    import ray.train.torch
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    folder, rank = Path(settings["folder"]), ray.train.get_context().get_world_rank()
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    plain, model = model, ray.train.torch.prepare_model(model)
    log = (folder / f"stopwatch/steps-{time.time():.6f}-{rank}.txt").open("w", buffering=1)
    (folder / f"logs/workers/{time.time():.6f}-{rank}.json").write_text(json.dumps({str(rank): {"pid": os.getpid()}}))
    while step < settings["steps"]:
        rows = torch.randint(0, len(images), (BATCH_SIZE,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        step += 1
        log.write(f"{time.time()} {step}\n")
        if rank == 0 and step % CHECKPOINT_EVERY_STEPS == 0:
            torch.save({"model": plain.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
                       f"{checkpoint}.partial")
            Path(f"{checkpoint}.partial").replace(checkpoint)
        time.sleep(settings["pause_s"])


def main(folder: Path, steps: int, max_failures: int) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init()
    TorchTrainer(
        train_func, train_loop_config={"folder": str(folder), "steps": steps, "pause_s": 0.01},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="plain", storage_path=str(folder / "ray"),
                             failure_config=FailureConfig(max_failures=max_failures)),
    ).fit()


if __name__ == "__main__":
    from tests.benchmarks import plain_ray  # under its own name: what is in `__main__` is pickled by value

    plain_ray.main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
