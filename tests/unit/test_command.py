"""The command `trainyard`: it leads to every other command, says what there is, and a shell completes it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.core import shadows
from trainyard import __main__ as command
from trainyard.completion import main as completion

LEADS_TO = {
    "train mlp": "trainyard train mlp", "tune mlp": "trainyard tune mlp", "compare": "trainyard compare",
    "predict": "trainyard predict", "evaluate": "trainyard evaluate",
    "export": "trainyard export",
    "registry promote": "trainyard registry promote", "serve up": "trainyard serve up", "submit": "trainyard submit",
    "status": "trainyard status", "watch": "trainyard watch", "up": "trainyard up", "env": "trainyard env",
    "down": "trainyard down",
}


def test_its_help_fits_on_a_screen_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 132
    named = {name for line in lines if line.startswith("    trainyard ") for name in re.split(r" {2,}| \| ", line[14:])}
    first = {name.split()[0] for name in named if name}
    assert first >= {"train", "data", "new", "tune", "completion", *command.WITHOUT_A_JOB, *command.OF_A_CLUSTER}


@pytest.mark.parametrize("words", LEADS_TO)
def test_each_command_says_its_own_name(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*words.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {LEADS_TO[words]} ")


@pytest.mark.parametrize(("words", "said"), [
    ("", "trainyard train JOB"), ("trian mlp", "there is no command 'trian': see `trainyard --help`"),
    ("train", "name a job first"), ("data check", "name a job first"), ("data mlp", "trainyard data check JOB"),
    ("train none", "there is no job 'none', since none is not there: give one of cnn, mlp"),
    ("train mlp --optim.lr x", "--optim.lr"), ("tune none", "there is no job 'none'"),
    ("completion fish", "name the shell")])
def test_what_is_not_there_is_said_with_code_2(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_a_command_ends_with_the_code_of_what_it_leads_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["compare", "one", "two", "--storage", str(tmp_path)]) == 2
    assert "no run at" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main(["registry", "list", "--storage", str(tmp_path)])
    assert ended.value.code == 2


def test_a_folder_of_runs_in_the_home_folder_is_not_taken_for_the_package(tmp_path: Path) -> None:
    (tmp_path / "trainyard/first").mkdir(parents=True)
    for first in ("cluster, trainyard", "trainyard"):
        done = subprocess.run([sys.executable, "-c", f"import {first}; print(trainyard.__file__)"], cwd=tmp_path,
                              text=True, capture_output=True, check=True)
        assert Path(done.stdout.strip()) == shadows.OURS / "trainyard/__init__.py"


def test_in_a_folder_that_holds_trainyard_itself_that_one_is_run(tmp_path: Path) -> None:
    (tmp_path / "trainyard").mkdir()
    (tmp_path / "trainyard/__init__.py").touch()
    (tmp_path / "trainyard/__main__.py").write_text("import sys\nprint('this one', sys.argv[1:])\nsys.exit(3)\n")
    done = subprocess.run([Path(sys.executable).with_name("trainyard"), "up", "--nodes", "2"], cwd=tmp_path, text=True,
                          capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (3, "this one ['up', '--nodes', '2']\n"), done.stderr


# ── Tab ──
@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    script = tmp_path_factory.mktemp("completion") / "script"
    done = subprocess.run([sys.executable, "-m", "trainyard", "completion", "bash"], cwd=shadows.OURS,
                          capture_output=True, check=True)
    script.write_bytes(done.stdout)
    return script


@pytest.mark.parametrize(("line", "offered"), [
    ("trainyard t", {"train", "tune"}), ("trainyard train ", {"cnn", "mlp", "transformer"}),
    ("trainyard train mlp --optim.l", {"--optim.lr"}), ("trainyard tune cnn --num-t", {"--num-trials"}),
    ("trainyard serve p", {"promote"}), ("trainyard serve up --data", set()),
    ("trainyard registry ", {"download", "history", "list", "promote", "register", "undo"}),
    ("trainyard up --no", {"--nodes"}), ("trainyard serve optimize --data.", {"--data.uri"})])
def test_bash_completes_it(bash: Path, line: str, offered: set[str]) -> None:
    asked = (f'source {bash}; read -ra COMP_WORDS <<< "{line}"; [[ "{line}" == *" " ]] && COMP_WORDS+=(""); '
             f'COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="{line}"; COMP_POINT={len(line)}; COMPREPLY=(); '
             '$(complete -p trainyard | grep -o "\\-F [^ ]*" | cut -c4-); printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", asked], text=True, capture_output=True, check=True)
    assert offered <= set(done.stdout.split()), done.stderr
    assert offered or not done.stdout.strip()


def test_zsh_has_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion(["zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef trainyard")
