"""jobs.pytorch whose every step is made by the MLP job's own class, too, on the same batch, in this very process:
`python -m tests.benchmarks.paired_steps …` takes the job's flags, and leaves paired.json in the run's folder.

In processes of their own the two differ by up to 10% from start to start, either way, for as long as they live.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jobs.pytorch.train as loop
from jobs.common.config import parse
from jobs.common.runs.run import main
from jobs.common.training.session import Session
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import StepResult, Wishes
from jobs.mlp.config import MlpConfig
from jobs.mlp.train import MlpTraining
from jobs.pytorch.job import JOB
from tests.runs import ROOT

PLACE = "paired.json"


OneOfYours = loop.ModuleTraining


class Paired(OneOfYours):
    """Makes the step of both, by turns the one and the other first, and keeps the seconds of each."""

    def __init__(self, context: Any, config: Any, group: Any, device: Any) -> None:
        super().__init__(context, config, group, device)
        textbook = parse(MlpConfig, ["--config", str(ROOT / "jobs/mlp/textbook.yaml")], "")
        self.mlp = MlpTraining(context, replace(textbook, train=config.train, run=config.run), group, device)
        self.seconds: dict[str, list[float]] = {"module": [], "MLP job": []}

    def step(self, batch: Any, state: TrainState, rates: Sequence[float], wishes: Wishes) -> StepResult:
        steps = {"module": lambda: OneOfYours.step(self, batch, state, rates, wishes),
                 "MLP job": lambda: self.mlp.step(batch, state, rates, wishes)}
        made: dict[str, StepResult] = {}
        for name in sorted(steps, reverse=bool(state.step % 2)):
            began = time.perf_counter()
            made[name] = steps[name]()
            self.seconds[name].append(time.perf_counter() - began)
        return made["module"]


def train(session: Session, config: Any) -> Any:
    """jobs.pytorch.train.train, with both."""
    made: list[Paired] = []
    loop.ModuleTraining = lambda *given: made.append(Paired(*given)) or made[0]  # type: ignore[misc,assignment]
    try:
        return loop.train(session, config)
    finally:
        session.run_store.write_text(PLACE, json.dumps(made[0].seconds))


if __name__ == "__main__":
    sys.exit(main(replace(JOB, train="tests.benchmarks.paired_steps:train")))
