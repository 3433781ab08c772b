"""`trainyard new my_job [--from tabular]`: a job of your own, in a folder of the current one, that trains at once.

It is a copy of one of Trainyard's own small jobs under the new name, with a test of its own. What it imports from
`jobs.common` and `jobs.pytorch` is what all jobs share, and stays there.
"""

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

FROM = ("tabular", "mlp")
"""For tables, and for images."""
_LEFT_OUT = re.compile(r"README\.md|demo\.py|textbook\.yaml|__pycache__")
_README = """# {name}

A job of your own, begun as a copy of Trainyard's `{origin}`.

    trainyard train {name}                       # on the embedded data; --help lists the fields
    trainyard tune {name} --num-trials 10        # searches what search_space.yaml says
    trainyard submit {name} --working-dir .      # the same on a Ray cluster
    python -m pytest {name}                      # its test

| file | what it says |
|---|---|
| config.py | the fields of the config |
| data.py | what goes in, what the artifact and the report hold |
| model.py | the network |
| train.py | what one pass over some rows computes |
| job.py | all of it together, as Trainyard's life cycle sees it |
| predictor.py | how an endpoint answers by an artifact |
| search_space.yaml | what a search may change |
"""
_TEST = '''"""The job trains, and answers by what it has trained."""

from pathlib import Path

import pytest

from jobs.common.artifact.artifact import open_artifact
from jobs.common.predictor.find import load_predictor
from jobs.common.runs.run import main
from jobs.common.predictor.loading import check_probe
from {name}.job import JOB


def test_it_trains_and_its_artifact_answers(tmp_path: Path) -> None:
    flags = ["--run.engine", "local", "--run.storage", str(tmp_path), "--run.name", "try", "--run.tracking-uri", "none"]
    assert main(JOB, [*flags, "--train.epochs", "2", "--eval.bootstrap-samples", "100"]) == 0
    artifact = open_artifact(tmp_path / "try/artifact")
    assert artifact.manifest.description.metrics["test"]
    check_probe(load_predictor(artifact, ["{name}"]), artifact)


def test_a_field_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(JOB, ["--optim.no-such-field", "1"]) == 2
    assert "no-such-field" in capsys.readouterr().err
'''


def main(arguments: Sequence[str], prog: str = "trainyard new") -> int:
    """Writes the folder. Returns the exit code; 2 for a name that is none, or is taken."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="of the new package: letters, digits and _")
    parser.add_argument("--from", dest="origin", choices=FROM, default=FROM[0],
                        help="which job to begin with (default: %(default)s)")
    asked = parser.parse_args(arguments)
    folder = Path(asked.name)
    if why := _refusal(asked.name, folder):
        print(f"error: {asked.name}: {why}", file=sys.stderr)
        return 2
    written = write(folder, asked.origin)
    print(f"{folder}/ has {', '.join(written)}\ntry it: trainyard train {asked.name}, or python -m pytest {asked.name}")
    return 0


def _refusal(name: str, folder: Path) -> str:
    from jobs.common.training.house import house_names

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        return "is no name for a package: use small letters, digits and _, beginning with a letter, such as my_job"
    if name in (*house_names(), "jobs", "cluster", "serving", "tuning", "trainyard") or name in sys.stdlib_module_names:
        return "is the name of a package that is there already: use another"
    return "is there already: use another name, or another folder" if folder.exists() else ""


def write(folder: Path, origin: str) -> list[str]:
    """Writes the package. Returns the names of its files."""
    name, words = folder.name, folder.name.split("_")
    class_name = "".join(word.capitalize() for word in words)
    found = {each.name: each.read_text() for each in files(f"jobs.{origin}").iterdir()
             if each.is_file() and not _LEFT_OUT.fullmatch(each.name)}
    made = {file: _renamed(text, origin, name, class_name) for file, text in found.items()}
    made |= {"README.md": _README.format(name=name, origin=origin), f"test_{name}.py": _TEST.format(name=name)}
    folder.mkdir(parents=True)
    for file, text in made.items():
        (folder / file).write_text(text)
    return sorted(made)


def _renamed(text: str, origin: str, name: str, class_name: str) -> str:
    """The package, its classes and its commands under their new names; what the origin shares stays where it is."""
    own = "|".join(path.name.removesuffix(".py") for path in files(f"jobs.{origin}").iterdir()
                   if path.name.endswith(".py") and not _LEFT_OUT.fullmatch(path.name))
    text = re.sub(rf"\bjobs\.{origin}\b(?=[\"`:\s)]|\.(?:{own})\b)", name, text)
    text = re.sub(rf"\bjobs/{origin}\b", name, text)
    return re.sub(rf"\b{origin.capitalize()}(?=[A-Z])", class_name, text).replace(f"tuning {origin}", f"tuning {name}")
