"""The committed benchmark results keep their thresholds, and the README shows them; and how a verdict is come to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import results
from tests.benchmarks.__main__ import NAMES, SOAKS
from tests.benchmarks.checkpoint_cost import phase_means
from tests.benchmarks.results import Figure, Outcome, Result
from tests.benchmarks.turns import Turns

PATHS = sorted(results.FOLDER.glob("*.json"))


def test_every_benchmark_has_a_committed_result() -> None:
    assert [path.stem for path in PATHS] == sorted((*NAMES, *SOAKS))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_committed_result_keeps_its_thresholds_or_says_why_not(path: Path) -> None:
    result = Result.load_from(path)
    assert not result.failures or len(result.missed) > 40, "\n".join(result.failures)
    assert result.figures
    assert result.samples
    assert result.load["before"]
    assert result.commit.startswith(("git:", "sha256:"))
    assert {"processor", "cores", "torch", "ray"} <= set(result.machine)


@pytest.mark.parametrize("readme", [results.README, results.FAULTS_README], ids=lambda path: path.parent.name)
def test_the_readmes_show_the_committed_results(readme: Path) -> None:
    text, shown = readme.read_text(), results.shown_in(readme, results.load_all())
    assert shown
    assert text.split(results.BEGIN)[1].split(results.END)[0].strip() == results.tables(shown).strip()


def figure(value: float) -> Figure:
    return Figure(name="speed", value=value, unit="samples/s", at_least=1.3, aim_at_least=2.0)


def test_a_missed_threshold_is_a_failure_and_a_missed_aim_is_reported() -> None:
    assert [figure(v).verdict for v in (1.2, 1.5, 2.1)] == ["MISSED", "aim missed", "yes"]
    assert figure(1.5).met
    assert figure(1.5).wanted == "≥ 1.3, aim ≥ 2"
    assert Figure(name="cost", value=4.0, at_most=3.0).verdict == "MISSED"
    assert Figure(name="only told", value=4.0).verdict == ""


def measured(folder: Path, value: float) -> Result:
    outcome = Outcome(figures=(figure(value),), samples={"raw": [1]})
    result = results.made("speed", "how fast", {"steps": 3}, outcome, [0.1, 0.2, 0.3], began=0.0, folder=folder)
    result.save(folder)
    return Result.load_from(folder / "speed.json")


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = measured(tmp_path, 1.2)
    assert result.failures == ["speed: speed is 1.2 samples/s, wanted ≥ 1.3, aim ≥ 2"]
    assert result.figures == (figure(1.2),)
    assert result.settings == {"steps": 3}
    assert "| speed | 1.2 samples/s | ≥ 1.3, aim ≥ 2 | MISSED |" in results.section(result)


def test_an_explanation_is_kept_and_shown_until_the_threshold_is_met(tmp_path: Path) -> None:
    measured(tmp_path, 1.2)
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"missed": "The machine is slow."}))
    assert "**Missed:** The machine is slow." in results.section(measured(tmp_path, 1.1))
    assert measured(tmp_path, 1.4).missed == ""


def test_the_tables_replace_what_is_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    for _ in range(2):
        results.write_readme([measured(tmp_path, 2.5)], readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("### speed: how fast") == 1


def test_processes_take_turns_until_they_leave(tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from tests.benchmarks.turns import Turns\n"
            "place, rounds = int(sys.argv[2]), int(sys.argv[3]); turns = Turns(Path(sys.argv[1]), place, 2)\n"
            "for _ in range(rounds):\n    turns.begin()\n    print(place, flush=True, file=open(sys.argv[1] + "
            "'/heard', 'a'))\nturns.leave()")
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(place), str(rounds)],
                               cwd=results.HERE.parents[1])
              for place, rounds in ((0, 2), (1, 4))]
    assert [process.wait(60) for process in others] == [0, 0]
    assert (tmp_path / "heard").read_text().split() == ["0", "1", "0", "1", "1", "1"]


def test_one_alone_need_not_wait(tmp_path: Path) -> None:
    turns = Turns(tmp_path, 0, 1)
    turns.begin()
    turns.begin()
    turns.leave()


def test_a_step_belongs_to_the_phase_in_which_it_began_and_ended() -> None:
    # Steps 1 to 11 in phases of 4: those that follow the steps 4 to 7 are slow.
    stamps = [0.0]
    for step in range(1, 11):
        stamps.append(stamps[-1] + (5.0 if 4 <= step < 8 else 1.0))
    assert phase_means(stamps, 4) == [1.0, 5.0, 1.0]
