"""`make demo`, as a newcomer without any privilege types it: progress, results, a test image with the answer,
and nothing left running."""

import re
from pathlib import Path

import pytest

from tests import contained, newcomer, unprivileged

RAYS = re.compile(r"^.*(?:\.(?:py|cc):\d+ -- |\bpid=\d+\)|Tailing logs|Next steps).*$", re.MULTILINE)
"""Lines that Ray's tools and processes print."""
PROGRESS = re.compile(r"^epoch \d+/\d+ step \d+/\d+ loss \d+\.\d{4}(?: validation accuracy \S+ loss \S+)? samples/s "
                      r"\d+ workers 2 restarts 0 (?:eta|judging) .+$", re.MULTILINE)


@pytest.mark.timeout(600)
def test_make_demo_trains_shows_its_answer_and_leaves_nothing_running(tmp_path: Path) -> None:
    with unprivileged.user() as user:
        tree, env = newcomer.clone(user.folder / "tree"), newcomer.environment(user.folder / "home")
        command = user.runs("make", "-o", ".venv/.installed-for-demo", "demo")
        done = contained.run(command, cwd=tree, env=env, timeout_s=540, scratch=tmp_path)
        demo(done, user.folder / "home")


def demo(done: contained.Done, home: Path) -> None:
    assert done.code == 0, done.output
    unprivileged.require_none(done.output)
    assert "Traceback" not in done.output
    assert RAYS.findall(done.output) == []
    assert PROGRESS.findall(done.output), done.output
    results(done.output)
    run = next((home / "trainyard").glob("demo-*"))
    assert f"\nreport: {run}/report.html\nartifact: {run}/artifact\n" in done.output
    log = home / f"trainyard/ray-{run.name}.log"
    assert f"\n   Ray's own lines: {log}\n" in done.output
    assert "Runtime env is setting up" in log.read_text()
    assert (run / "report.html").stat().st_size > 50_000
    assert (run / "artifact/manifest.json").exists()
    assert "\nthe cluster is down\n" in done.output
    answer = re.search(r"version 1 says (\d) \(0\.\d{3}\), it is (\d)\nplayground: http://127", done.output)
    assert answer, done.output
    assert answer[1] == drawn_beside_the_answer(done.output), "served as it was loaded"
    assert done.output.rstrip().endswith("the endpoint is down")
    assert done.left == []
    assert not (home / ".ray").exists(), "Ray's own token file is readable by everyone"


def results(output: str) -> None:
    """The table has every figure, and the accuracy is that of a model that has learnt."""
    table = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", output.partition("\nresult\n")[2].partition("\nartifact: ")[0],
                            re.MULTILINE))
    assert float(table["test accuracy"].split()[0]) > 0.95
    assert table["restarts, steps lost"] == "0, 0"
    assert table["model version"] == "1"
    assert {"macro-F1", "log loss", "samples/s", "time", "report"} <= set(table)


def drawn_beside_the_answer(output: str) -> str:
    """Returns what the model says."""
    picture = output.partition("loaded back from the artifact\n")[2].partition("\n\nreport: ")[0].splitlines()
    assert len(picture) == 14
    assert all(set(line[2:30]) <= set(" .:-=+*#%@") for line in picture)
    assert any("@" in line[2:30] for line in picture)
    answer = re.search(r"the model says (\d), it is (\d)$", picture[1])
    assert answer, picture[1]
    best, probability = re.findall(r"(\d)  █+ (\d\.\d{3})$", picture[3])[0]
    assert best == answer[1]
    assert float(probability) > 0.1
    return best
