"""jobs.transformer whose steps are made by turns with other processes: `python -m tests.benchmarks.sft_job …` takes the
job's flags, reads LEGS in the run's folder, and leaves RATES there."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs.transformer.train as loop
from jobs.common.runs.run import main
from jobs.common.training.session import Session
from jobs.transformer.job import JOB
from tests.benchmarks.legs import Legs

LEGS, RATES = "legs.json", "rates.json"


def train(session: Session, config: Any) -> Any:
    """jobs.transformer.train.train, by turns."""
    given = json.loads(session.run_store.read_text(LEGS))
    legs = Legs(Path(given.pop("folder")), **given)
    training = session.dataset.splits["train"].num_rows
    tokens = session.dataset.details["tokens"]["train"] * config.train.global_batch_size // training
    on_step_end = session.progress.on_step_end

    def by_turns(**values: Any) -> None:
        on_step_end(**values)
        legs.step(tokens)

    session.progress.on_step_end = by_turns  # type: ignore[method-assign]
    legs.begin()
    outcome = loop.train(session, config)
    session.run_store.write_text(RATES, json.dumps(legs.rates))
    return outcome


if __name__ == "__main__":
    sys.exit(main(replace(JOB, train="tests.benchmarks.sft_job:train")))
