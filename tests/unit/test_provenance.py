"""What is recorded about the machine, and what no longer promises the same bits."""

import subprocess
import sys

from jobs.common.provenance import differences, environment


def test_the_environment_names_machine_code_and_libraries() -> None:
    here = environment()
    assert here["processor"] != "unknown"
    assert int(here["cores"]) >= 1
    assert here["code"].startswith(("git:", "sha256:"))
    assert here["libraries"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"numpy", "ray", "pyarrow", "safetensors"} <= here["libraries"].keys()


def test_asking_imports_no_framework() -> None:
    code = (
        "import sys; from jobs.common.provenance import environment; environment()\n"
        "print([m for m in ('torch', 'tensorflow', 'ray', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_libraries_that_were_used_are_those_imported_here_and_by_the_workers() -> None:
    code = ("import sys, numpy; sys.modules['sklearn'] = sys\n"
            "from jobs.common.provenance import used_libraries\n"
            "print(*used_libraries(), *used_libraries({'libraries': {'torch': '2.13.0'}}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["python", "numpy", "scikit-learn", "torch", "python", "numpy", "scikit-learn"]


def test_the_same_environment_has_no_differences() -> None:
    assert differences(environment(), environment()) == []


def test_differences_name_what_decides_bits() -> None:
    old = {"processor": "A", "cores": "8", "threads": 1, "world_size": 3,
           "libraries": {"torch": "2.13.0", "numpy": "2.4.6"}}
    new = {"processor": "B", "cores": "2", "threads": 2, "world_size": 1,
           "libraries": {"torch": "2.13.1", "numpy": "2.4.6"}}
    assert differences(old, new) == ["processor: A -> B", "threads: 1 -> 2", "workers: 3 -> 1",
                                     "torch: 2.13.0 -> 2.13.1"]


def test_what_only_one_of_them_knows_is_no_difference() -> None:
    assert differences({"threads": None, "libraries": {"tensorflow": "2.21.0"}}, {"threads": 2, "gpu": "H200"}) == []
