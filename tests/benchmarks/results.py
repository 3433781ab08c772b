"""What a benchmark found, as JSON beside this file and as a table in a README: this folder's, or that of the faults.

A *threshold* that is missed fails `make bench` and the test of the committed results, unless the result file carries an
explanation under `missed`, which the README repeats. A missed *aim* is only reported.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.common.provenance import code_version, library_versions, machine

HERE = Path(__file__).parent
FOLDER = HERE / "results"
README = HERE / "README.md"
FAULTS_README = HERE.parent / "faults/README.md"
READMES = {"recovery": FAULTS_README, "hosts": FAULTS_README}
"""Where a benchmark's table stands, if not in README."""
BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end of results -->"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number, its thresholds, and aims that lie beyond them."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    aim_at_least: float | None = None
    aim_at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it keeps its thresholds, if it has any."""
        return _between(self.value, self.at_least, self.at_most)

    @property
    def aim_met(self) -> bool:
        return _between(self.value, self.aim_at_least, self.aim_at_most)

    @property
    def wanted(self) -> str:
        """`≥ 1.3, aim ≥ 2`"""
        limits = (("≥", self.at_least), ("≤", self.at_most), ("aim ≥", self.aim_at_least), ("aim ≤", self.aim_at_most))
        return ", ".join(f"{sign} {_number(limit)}" for sign, limit in limits if limit is not None)

    @property
    def verdict(self) -> str:
        if not self.wanted:
            return ""
        if not self.met:
            return "MISSED"
        return "yes" if self.aim_met else "aim missed"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A benchmark's figures; `samples` are the raw measurements behind them, `notes` say what is included in what."""

    figures: tuple[Figure, ...]
    samples: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One results/<name>.json."""

    name: str
    title: str
    date: str
    commit: str
    machine: dict[str, str]
    load: dict[str, list[float]]
    """1, 5 and 15 minute load averages before and after."""
    seconds: float
    settings: dict[str, Any]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    missed: str = ""
    """Why a threshold is missed, in the words of whoever looked into it."""
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """Thresholds that are missed."""
        return [f"{self.name}: {f.name} is {_number(f.value)} {f.unit}".rstrip() + f", wanted {f.wanted}"
                for f in self.figures if not f.met]

    def save(self, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1, default=str) + "\n")

    @staticmethod
    def load_from(path: Path) -> "Result":
        values = json.loads(path.read_text())
        values["figures"] = tuple(Figure(**figure) for figure in values["figures"])
        return Result(**values | {"notes": tuple(values["notes"])})


def load_all(folder: Path = FOLDER) -> list[Result]:
    return [Result.load_from(path) for path in sorted(folder.glob("*.json"))]


def made(name: str, title: str, settings: dict[str, Any], outcome: Outcome, load_before: list[float], began: float,
         folder: Path = FOLDER) -> Result:
    """The result of a measurement that began at `began` (perf_counter), here and now.

    An earlier explanation is kept as long as a threshold is still missed.
    """
    path = folder / f"{name}.json"
    earlier = Result.load_from(path).missed if path.exists() else ""
    result = Result(
        name=name, title=title, date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), commit=code_version(),
        machine=machine() | library_versions(), load={"before": load_before, "after": list(os.getloadavg())},
        seconds=round(time.perf_counter() - began, 1), settings=settings, figures=outcome.figures, notes=outcome.notes,
        missed=earlier, samples=outcome.samples,
    )
    return result if result.failures else Result(**{**vars(result), "missed": ""})


def write_readmes(results: list[Result]) -> None:
    """Puts each table where it belongs."""
    for path in (README, *READMES.values()):
        write_readme(shown_in(path, results), path)


def shown_in(path: Path, results: list[Result]) -> list[Result]:
    return [result for result in results if READMES.get(result.name, README) == path]


def write_readme(results: list[Result], path: Path) -> None:
    """Puts the tables between a README's markers."""
    text = path.read_text()
    head, rest = text.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{tables(results)}{END}{rest.split(END)[1]}")


def tables(results: list[Result]) -> str:
    """Markdown: one section a benchmark."""
    return "\n" + "\n".join(section(result) for result in results) + "\n"


def section(result: Result) -> str:
    measured = {f: f"{_number(f.value)} {f.unit}".rstrip() for f in result.figures}
    rows = "\n".join(f"| {f.name} | {measured[f]} | {f.wanted} | {f.verdict} |" for f in result.figures)
    notes = "".join(f"\n- {note}" for note in result.notes)
    missed = f"\n\n**Missed:** {result.missed}" if result.missed else ""
    where = f"{result.machine['processor']}, {result.machine['cores']} cores"
    return (f"### {result.name}: {result.title}\n{result.date}, {where}, load {result.load['before'][0]:.1f} before; "
            f"`{result.commit[:16]}`\n\n| what | measured | wanted | met "
            f"|\n|---|---|---|---|\n{rows}\n{notes}{missed}\n")


def _between(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _number(value: float) -> str:
    """Four digits that count, and no exponent."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4g}"
