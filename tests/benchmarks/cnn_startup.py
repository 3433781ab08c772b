"""From `python -m jobs.cnn` to the first step, and how long TensorFlow and Keras take to be imported,
as they are and as here."""

import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import startup
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT

TITLE = "seconds from `python -m jobs.cnn` to the first step, data prepared before"
IMPORTS = {"import tensorflow, keras": "import tensorflow, keras",
           "jobs.cnn.framework": "from jobs.cnn.framework import keras, tf"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    repetitions: int = 3
    workers: tuple[int, ...] = (1, 2)


QUICK = Settings(repetitions=1)
NOTES = (
    "Imports: in a new process each, by turns, medians; Keras's optional imports of scikit-learn, matplotlib and "
    "pandas are what is left out.",
    *startup.NOTES[1:],
    "first_step includes building the model, and tracing and optimising its graph: TensorFlow does that anew in every "
    "process.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(settings.repetitions):
        for name, code in IMPORTS.items():
            imports[name].append(seconds_of(code))
    medians = {name: statistics.median(values) for name, values in imports.items()}
    plain, ours = medians.values()
    found = startup.by_case(settings.repetitions, settings.workers, workspace / "storage", "cnn")
    figures = [*(Figure(name=name, value=value, unit="s") for name, value in medians.items()),
               Figure(name="of its time", value=ours / plain, at_most=0.8),
               *(figure for case, runs in found.items() for figure in startup.figures_of(case, runs))]
    return Outcome(figures=tuple(figures), samples={"imports": imports, **found}, notes=NOTES)


def seconds_of(code: str) -> float:
    timed = f"import time\nbegan = time.perf_counter()\n{code}\nprint(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", timed], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])
