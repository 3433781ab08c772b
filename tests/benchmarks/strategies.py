"""The full matrix of the Transformer's scale options: each combination trains, is written as slices, and is put together again."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Figure, Outcome
from tests.pairwise import Combination
from tests.unit.strategy_loops import OPTIONS, allowed, fields_of
from tests.unit.token_rows import config_of, run_group, token_rows

TITLE = "every accepted combination of the Transformer's scale options, on CPU workers"
COMPILED = {**OPTIONS, "strategy": ("ddp",), "offload": ("none",), "clip_norm": (0.5,)}
"""What is combined with torch.compile, on one worker."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    workers: int = 3
    most: int | None = None
    """Only so many of each matrix."""


QUICK = Settings(most=2)
NOTES = (
    "A combination passes if 4 steps on 3 workers are finite and do not raise the loss, and a new group of workers that is filled "
    "from the slices of step 3 holds bit-identical weights and moments. Options: " + "; ".join(
        f"{name}: {', '.join(map(str, values))}" for name, values in OPTIONS.items()) + ". What the config refuses is left out.",
    "With torch.compile (ddp only) the same on one worker.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    every = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
    chosen = [combination for combination in every if allowed(combination)][: settings.most]
    compiled = [dict(zip(COMPILED, values, strict=True)) for values in itertools.product(*COMPILED.values())][: settings.most]
    found = {"without torch.compile": verdicts(workspace / "plain", chosen, settings.workers, compile=False),
             "with torch.compile": verdicts(workspace / "compiled", compiled, 1, compile=True)}
    figures = [Figure(name=f"combinations refused, of {len(every)}", value=len([c for c in every if not allowed(c)]))]
    for name, rows in found.items():
        figures.append(Figure(name=f"combinations that pass, {name}, of {len(rows)}", value=sum(row["passes"] for row in rows),
                              at_least=len(rows)))
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


def verdicts(folder: Path, combinations: list[Combination], workers: int, *, compile: bool) -> list[dict[str, Any]]:
    """One row a combination: its options, the losses of its steps, and whether it passes on all workers."""
    folder.mkdir()
    dataset = token_rows(folder)
    fields = [fields_of(c) for c in combinations]
    for each in fields:
        each["hardware"] |= {"compile": compile}
    (folder / "combinations.json").write_text(json.dumps(fields))
    config = config_of(run={"workers": str(workers), "name": folder.name, "hang_timeout_s": 300.0})
    run_group(folder, dataset, config, "tests.unit.strategy_loops:covers", workers)
    of_ranks = [json.loads((folder / f"covers-{rank}.json").read_text()) for rank in range(workers)]
    rows: list[dict[str, Any]] = []
    for combination, *found in zip(combinations, *of_ranks, strict=True):
        losses = found[0]["losses"]
        learns = all(map(math.isfinite, losses)) and losses[-1] < losses[0] + 0.02
        passes = learns and all(each["same"] and each["finite"] for each in found)
        rows.append(combination | {"losses": losses, "passes": passes})
    return rows
