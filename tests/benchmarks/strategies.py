"""The full matrix of the Transformer's scale options: each combination trains, is written as slices,
and is put together again."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
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
SWAPPED = {**OPTIONS, "strategy": ("zero3",), "offload": ("nvme",), "lora_rank": (None,)}
"""What is combined with the optimiser's state on a disk."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    workers: int = 3
    most: int | None = None
    """Only so many of each matrix."""


QUICK = Settings(most=2)
NOTES = (
    "A combination passes if 4 steps on 3 workers are finite and do not raise the loss, and a new group of workers "
    "that is filled from the slices of step 3 holds bit-identical weights and moments. Options: " + "; ".join(
        f"{name}: {', '.join(map(str, values))}" for name, values in OPTIONS.items())
    + ". What the config refuses is left out.",
    "With torch.compile (ddp only) the same on one worker. With the optimiser's state on a disk (zero3 only) the same "
    "with a model of width 256 instead of 32: DeepSpeed swaps tensors of 1 MiB and more, so none of LoRA's.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    every = all_of(OPTIONS)
    chosen = [combination for combination in every if allowed(combination)][: settings.most]
    found = {"without torch.compile": verdicts(workspace / "plain", chosen, settings.workers),
             "with torch.compile": verdicts(workspace / "compiled", all_of(COMPILED)[: settings.most], 1, compile=True),
             "with the optimiser on a disk": verdicts(workspace / "swapped", all_of(SWAPPED)[: settings.most],
                                                      settings.workers,
                                                      width=256)}
    figures = [Figure(name=f"combinations refused, of {len(every)}", value=len([c for c in every if not allowed(c)]))]
    for name, rows in found.items():
        figures.append(Figure(name=f"combinations that pass, {name}, of {len(rows)}",
                              value=sum(row["passes"] for row in rows),
                              at_least=len(rows)))
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


def all_of(options: Mapping[str, Sequence[Any]]) -> list[Combination]:
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def verdicts(folder: Path, combinations: list[Combination], workers: int, *, compile: bool = False,
             width: int = 32) -> list[dict[str, Any]]:
    """One row a combination: its options, the losses of its steps, and whether it passes on all workers."""
    folder.mkdir()
    dataset = token_rows(folder)
    fields = [fields_of(c) for c in combinations]
    for each in fields:
        each["hardware"] |= {"compile": compile}
        if each["scale"]["offload"] == "nvme":
            each["scale"] |= {"offload_path": str(folder / "disk")}
    (folder / "combinations.json").write_text(json.dumps(fields))
    config = config_of(run={"workers": str(workers), "name": folder.name, "hang_timeout_s": 300.0},
                       model={"width": width})
    run_group(folder, dataset, config, "tests.unit.strategy_loops:covers", workers)
    of_ranks = [json.loads((folder / f"covers-{rank}.json").read_text()) for rank in range(workers)]
    rows: list[dict[str, Any]] = []
    for combination, *found in zip(combinations, *of_ranks, strict=True):
        losses = found[0]["losses"]
        learns = all(map(math.isfinite, losses)) and losses[-1] < losses[0] + 0.02
        passes = learns and all(each["same"] and each["finite"] for each in found)
        rows.append(combination | {"losses": losses, "passes": passes})
    return rows
