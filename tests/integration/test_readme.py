"""The README keeps its word: its commands are run as a newcomer types them, the others are parsed,
its links lead somewhere.

Its blocks of `sh` and `python` are run in order, in one shell, in a fresh copy of the tree with an empty home folder,
by a user without any privilege.
Not run: what is marked `needs a cluster`, `make test` (this is it), and `make demo`, which test_demo.py runs.
"""

import re
import shlex
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.__main__ import parser as cluster_parser
from jobs.cnn.config import CnnConfig
from jobs.common import config as configs
from jobs.common.compare import parser as compare_parser
from jobs.common.predicting.evaluate import parser as evaluate_parser
from jobs.common.predicting.predict import parser as predict_parser
from jobs.common.registry.__main__ import parser as registry_parser
from jobs.mlp.config import MlpConfig
from jobs.transformer.config import TransformerConfig
from serving.__main__ import parser as serving_parser
from tests import contained, newcomer, unprivileged
from trainyard.__main__ import OF_A_CLUSTER, WITHOUT_A_JOB
from tuning.options import combined

ROOT = newcomer.ROOT
READMES = [ROOT / "README.md", ROOT / "jobs/README.md", ROOT / "jobs/mlp/README.md", ROOT / "jobs/cnn/README.md",
           ROOT / "jobs/pytorch/README.md", ROOT / "jobs/common/data/README.md",
           ROOT / "jobs/common/predicting/README.md", ROOT / "jobs/common/execution/README.md",
           ROOT / "jobs/transformer/README.md", ROOT / "tuning/README.md", ROOT / "serving/README.md",
           ROOT / "tests/README.md",
           ROOT / "cluster/README.md"]
RUN_ELSEWHERE = {"make demo", "make test"}
NEEDS_A_CLUSTER = "needs a cluster"
"""Of blocks in README.md; those of the others are parsed only."""


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    """What follows the language."""
    text: str


def blocks(readme: Path) -> list[Block]:
    found = re.findall(r"^```(\w*) *([^\n]*)\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


def runnable() -> list[Block]:
    return [block for block in blocks(ROOT / "README.md")
            if block.language in ("sh", "python") and block.info != NEEDS_A_CLUSTER
            and block.text.strip() not in RUN_ELSEWHERE]


def script() -> str:
    """All blocks as one, each announced on a line of its own."""
    parts: list[str] = []
    for number, block in enumerate(runnable(), 1):
        body = block.text if block.language == "sh" else f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n"
        parts.append(f"echo '=== block {number}'\n{body}")
    return "\n".join(parts)


# ── run ──
@pytest.mark.timeout(900)
def test_every_command_works_as_a_newcomer_types_it(tmp_path: Path) -> None:
    with unprivileged.user() as user:
        tree, env = newcomer.clone(user.folder / "tree"), newcomer.environment(user.folder / "home")
        (user.folder / "script.sh").write_text(script())
        command = user.runs("bash", "-e", str(user.folder / "script.sh"))
        kept_its_word(contained.run(command, cwd=tree, env=env, timeout_s=840, scratch=tmp_path), user.folder / "home")


def kept_its_word(done: contained.Done, home: Path) -> None:
    assert done.code == 0, done.output
    unprivileged.require_none(done.output)
    assert "Traceback" not in done.output
    assert done.left == []
    first_run(done.output, home / "trainyard/first")
    stopped_and_resumed(done.output, home / "trainyard/second")
    assert "models:/second@champion is version 1" in done.output
    answers = re.search(r"^answers (\[.*\])$", done.output, re.MULTILINE)
    assert answers
    assert len(re.findall(r"'\d'", answers[1])) == 4
    assert re.search(r"cluster down: \d+ processes ended", done.output)
    assert not (home / ".ray").exists(), "Ray's own token file is readable by everyone"


def first_run(output: str, folder: Path) -> None:
    assert "no problems" in output
    assert f"artifact: {folder}/artifact" in output
    assert (folder / "report.html").stat().st_size > 50_000


def stopped_and_resumed(output: str, folder: Path) -> None:
    stopped = re.search(r'^ "status": "stopped",\n "exit_code": 3,\n "steps": (\d+),$', output, re.MULTILINE)
    assert stopped, output
    assert int(stopped[1]) > 0
    assert f"training on 2 workers, continuing at step {stopped[1]}\n" in output
    assert '"lost_steps": 0,' in (folder / "result.json").read_text()
    with sqlite3.connect(folder.parent / "mlflow.db") as database:
        statuses = dict(database.execute("select name, status from runs").fetchall())
    assert statuses == {"first-1": "FINISHED", "second-1": "FINISHED"}


# ── parsed ──
def commands(text: str) -> list[list[str]]:
    """The simple commands of a shell script, as words: lines joined, comments left out."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()
            and not line.lstrip().startswith("#")]


def shown_commands() -> list[tuple[str, list[str]]]:
    """(file, words) of every command in a block of any README, and in `code` that begins with a program's name."""
    found: list[tuple[str, list[str]]] = []
    for readme in READMES:
        for block in blocks(readme):
            if block.language == "sh":
                found += [(readme.name, words) for words in commands(block.text)]
        prose = re.sub(r"^```.*?^```$", "", readme.read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`((?:python|make|ray|pip|trainyard) [^`\n]+)`", prose):
            found += [(readme.name, words) for words in commands(code.replace("…", ""))]
    return [(name, as_module(words)) for name, words in found]


def as_module(words: list[str]) -> list[str]:
    """The `python -m` that a command `trainyard` stands for; another command as it is."""
    match words:
        case ["trainyard", "train", job, *rest]:
            return ["python", "-m", f"jobs.{job}", *rest]
        case ["trainyard", "tune", *rest]:
            return ["python", "-m", "tuning", *rest]
        case ["trainyard", command, *rest] if command in WITHOUT_A_JOB:
            return ["python", "-m", WITHOUT_A_JOB[command].removesuffix(".__main__"), *rest]
        case ["trainyard", command, *rest] if command in OF_A_CLUSTER:
            return ["python", "-m", "cluster", command, *rest]
        case _:
            return words


def after(words: list[str], *start: str) -> list[str] | None:
    """What follows some words of a command, if they occur in it."""
    places = [i for i in range(len(words)) if tuple(words[i : i + len(start)]) == start]
    return words[places[0] + len(start) :] if places else None


def test_every_block_is_valid_shell() -> None:
    for readme in READMES:
        for block in blocks(readme):
            if block.language == "sh":
                subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def test_every_flag_of_a_job_is_one_that_the_job_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for job, config_type in (("jobs.mlp", MlpConfig), ("jobs.cnn", CnnConfig), ("jobs.transformer", TransformerConfig)):
        shown = [flags for _, words in shown_commands() if (flags := after(words, "python", "-m", job)) is not None]
        shown += [after(rest, "--") or [] for _, words in shown_commands()
                  if (rest := after(words, "cluster", "submit", job.removeprefix("jobs."))) is not None]
        assert len(shown) >= 3
        for flags in shown:
            if flags != ["--help"]:
                configs.parse(config_type, flags, "README")


def test_every_flag_of_a_search_is_one_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = [flags for _, words in shown_commands()
             if (flags := after(words, "python", "-m", "tuning", "mlp")) is not None]
    assert len(shown) >= 3
    for flags in shown:
        configs.parse(combined(MlpConfig), flags, "README")


def test_every_other_command_is_one_that_there_is() -> None:
    for name, parser in (("cluster", cluster_parser), ("jobs.common.registry", registry_parser),
                         ("jobs.common.compare", compare_parser), ("serving", serving_parser),
                         ("jobs.common.predicting.predict", predict_parser),
                         ("jobs.common.predicting.evaluate", evaluate_parser)):
        shown = [rest for _, words in shown_commands() if (rest := after(words, "python", "-m", name)) is not None]
        assert shown
        for rest in shown:
            own = rest[: rest.index("--")] if "--" in rest else rest  # what follows is a job's
            parser().parse_args([word.rstrip(")\"") for word in own])
    targets = {words[1] for _, words in shown_commands() if words[0] == "make"}
    assert {"demo", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", "-o", ".venv/.installed-for-demo", "-o", ".venv/.installed", target], cwd=ROOT,
                       check=True,
                       capture_output=True)


def test_what_is_not_run_is_what_cannot_be() -> None:
    marked = [block for block in blocks(ROOT / "README.md") if block.info]
    assert marked
    assert {block.info for block in marked} == {NEEDS_A_CLUSTER}
    assert {block.text.strip() for block in blocks(ROOT / "README.md")} >= RUN_ELSEWHERE
    assert len(runnable()) >= 5


# ── read ──
def test_it_fits_on_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_links_and_paths_lead_somewhere() -> None:
    for readme in READMES:
        text = readme.read_text()
        named = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        named += [f"/{path}" for path in re.findall(r"`((?:jobs|cluster|tuning|tests|\.ci)/[\w./-]*)`", text)]
        assert named
        for path in named:
            target = ROOT / path[1:] if path.startswith("/") else readme.parent / path
            assert target.exists(), f"{readme}: {path}"
