"""What a command imports before it does anything: `--help` takes under half a second of CPU,
as nothing heavy is loaded."""

import json
import subprocess
import sys

import pytest

from tests import kept

FRAMEWORKS = {"ray", "torch", "tensorflow", "transformers", "mlflow", "sqlalchemy", "pandas", "scipy", "sklearn",
              "optuna",
              "matplotlib", "plotly", "fastapi", "grpc"}
"""Each takes half a second of CPU or more."""
LIBRARIES = {"numpy", "pyarrow", "pydantic"}
"""Each takes a tenth of a second or more."""
RUN = """
import json, runpy, sys
code, module = 0, sys.argv.pop(1)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
print(json.dumps({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
HELP = {
    "light": ["cluster", "cluster up", "cluster submit", "cluster status", "cluster watch", "cluster env",
              "cluster down",
              "serving", "serving up", "serving status", "serving split", "serving config", "serving optimise",
              "serving key",
              "jobs.mlp", "jobs.cnn", "jobs.transformer", "tuning mlp", "tuning.mlp", "tuning cnn",
              "tuning transformer"],
    "with NumPy": ["jobs.common.registry", "jobs.common.registry list", "jobs.common.registry promote",
                   "jobs.common.registry register", "jobs.common.registry download",
                   "jobs.common.predicting.export", "jobs.common.compare", "jobs.transformer.plan"],
}


def loaded(command: str) -> tuple[str, set[str]]:
    """What a command prints, and the packages that it has loaded at its end."""
    done = subprocess.run([sys.executable, "-c", RUN, *command.split()], capture_output=True, text=True, timeout=300,
                          check=True)
    *printed, last = done.stdout.splitlines()
    end = json.loads(last)
    assert end["code"] == 0, done.stderr
    return "\n".join(printed), set(end["modules"])


@pytest.mark.parametrize(("command", "heavy"), [*((command, FRAMEWORKS | LIBRARIES) for command in HELP["light"]),
                                                *((command, FRAMEWORKS) for command in HELP["with NumPy"])])
def test_help_loads_nothing_heavy(command: str, heavy: set[str]) -> None:
    printed, packages = loaded(f"{command} --help")
    assert "usage: " in printed
    assert not packages & heavy


def test_the_versions_of_a_storage_are_listed_without_mlflow() -> None:
    printed, packages = loaded(f"jobs.common.registry list --storage {kept.FIXTURES / 'storage'}")
    assert printed.splitlines()[1].split()[:3] == ["mlp", "1", "candidate"]
    assert not packages & FRAMEWORKS
