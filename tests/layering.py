"""Imports run one way, and each layer uses only the third-party packages that it may. Run by `make check`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = [p.name for p in sorted((ROOT / "jobs").iterdir()) if (p / "__main__.py").exists()]
COMMON = {"numpy", "scipy", "pyarrow", "ray", "sklearn", "mlflow", "matplotlib", "plotly", "rich", "yaml", "tyro", "safetensors",
          "psutil", "PIL"}
ALLOWED = {
    "cluster": {"ray", "pyarrow", "rich", "kubernetes", "psutil", "tyro",
                "grpc"},  # to ask a control store directly: Ray's own clients wait long for one that is half-dead
    "jobs.common": COMMON,
    **{f"jobs.{job}": COMMON | {"torch", "tensorflow", "keras", "transformers", "deepspeed", "tokenizers", "peft"} for job in JOBS},
}
OWN = {
    "cluster": {"cluster"},
    "jobs.common": {"cluster", "jobs.common"},
    **{f"jobs.{job}": {"cluster", "jobs.common", f"jobs.{job}"} for job in JOBS},
}
TOP = {"cluster", "jobs", "tuning", "serving", "tests"}


def _imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _files(layer: str) -> list[Path]:
    return sorted((ROOT / layer.replace(".", "/")).rglob("*.py"))


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_imports_run_one_way(layer: str) -> None:
    for path in _files(layer):
        for name in _imports(path):
            top = name.split(".")[0]
            if top in TOP:
                assert any(name == own or name.startswith(f"{own}.") for own in OWN[layer]), f"{path}: imports {name}"
            elif top not in sys.stdlib_module_names:
                assert top in ALLOWED[layer], f"{path}: imports {name}, which {layer} may not"


def test_help_and_import_pull_in_no_framework() -> None:
    code = ("import sys, jobs.mlp.data, jobs.common.run\n"
            "bad = {'torch', 'tensorflow', 'mlflow', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules)\n"
            "assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_mlp_job_runs_where_tensorflow_is_not_installed() -> None:
    names = {name.split(".")[0] for layer in ("cluster", "jobs.common", "jobs.mlp") for path in _files(layer)
             for name in _imports(path)}
    assert not names & {"tensorflow", "keras"}
