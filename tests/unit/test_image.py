"""k8s/image/Dockerfile, without an engine: read as one reads it, and each command tried where it can be."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.core.shadows import PACKAGES
from tests.manifest_rules import image_tag, lock
from tests.manifests import rendered

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "k8s/image/Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"build-torch": {"transformer", "serve"}, "build-tensorflow": {"tensorflow", "serve"}}


@dataclass(kw_only=True)
class Stage:
    """One FROM and what follows. steps: (instruction, its words as they are written)."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def of(self, instruction: str) -> list[str]:
        return [words for kind, words in self.steps if kind == instruction]


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages."""
    lines = re.sub(r"\\\n", " ",
                   "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))).splitlines()
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in filter(str.strip, lines):
        instruction, _, words = line.strip().partition(" ")
        words = " ".join(words.split()) if instruction != "RUN" else words.strip()
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", words).groups()  # type: ignore[union-attr]
            found.append(Stage(name=name, base=base))
        elif found:
            found[-1].steps.append((instruction, words))
        else:
            assert instruction == "ARG", line
            arguments.update([words.split("=", 1)])
    return arguments, found


ARGUMENTS, STAGES = stages(DOCKERFILE.read_text())
BY_NAME = {stage.name: stage for stage in STAGES}
RUNS = [(stage.name, words) for stage in STAGES for words in stage.of("RUN")]
FINAL = ("torch", "tensorflow")


def lineage(name: str) -> list[Stage]:
    """A stage after those that it builds on."""
    stage = BY_NAME[name]
    return [*(lineage(stage.base) if stage.base in BY_NAME else []), stage]


def test_stages_build_on_each_other_and_on_one_pinned_image() -> None:
    earlier: set[str] = set()
    for stage in STAGES:
        assert stage.base in {*earlier, "${PYTHON_IMAGE}"}
        for words in stage.of("COPY"):
            assert not words.startswith("--from=") or words.split()[0].removeprefix("--from=") in earlier
        earlier.add(stage.name)
    name, _, tag = ARGUMENTS["PYTHON_IMAGE"].partition(":")
    assert name == "python" and re.fullmatch(r"3\.11\.\d+-slim-bookworm", tag)
    assert f"{sys.version_info.major}.{sys.version_info.minor}" == "3.11" or "3.11" in PROJECT["requires-python"]


def test_instructions_are_known_ones() -> None:
    known = {"RUN", "ENV", "ARG", "COPY", "WORKDIR", "USER", "CMD"}
    assert {kind for stage in STAGES for kind, _ in stage.steps} <= known


@pytest.mark.parametrize("name", FINAL)
def test_an_image_ends_as_a_user_by_number_and_holds_no_compiler_s_leftovers(name: str) -> None:
    assert STAGES[-1].name in FINAL
    users = [words for stage in lineage(name) for words in stage.of("USER")]
    assert users == ["1000:1000"]
    steps = BY_NAME[name].steps
    after = [kind for kind, _ in steps[[kind for kind, _ in steps].index("USER"):]]
    assert set(after) <= {"USER", "RUN", "CMD"}
    assert any("--uid 1000" in words for stage in lineage(name) for words in stage.of("RUN"))
    spec = next(each for each in rendered("cpu") if each["kind"] == "RayCluster")["spec"]
    assert spec["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000


@pytest.mark.parametrize(("stage", "script"), RUNS, ids=[f"{stage}-{i}" for i, (stage, _) in enumerate(RUNS)])
def test_a_shell_takes_every_command(stage: str, script: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", script], capture_output=True, check=False).returncode == 0
    if "apt-get install" in script:
        once = re.fullmatch(r"(if .+; then\s+)?apt-get update\s+&& apt-get install -y --no-install-recommends [^&;]+"
                            r"&& rm -rf /var/lib/apt/lists/\*(;\s+fi)?", script)
        assert once is not None, "the lists are old, or stay in the layer"
    if "pip install" in script and "--no-deps" not in script:
        assert script.endswith("pip check")
    assert "sudo" not in script and "curl" not in script and "|" not in script.replace("||", "").replace("*)", "")


def apt_packages() -> list[str]:
    scripts = [words for _, script in RUNS for words in re.findall(r"apt-get install (.+?)(?:&&|$)", script)]
    return sorted({word for words in scripts for word in words.split() if not word.startswith("-")})


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no apt-cache here: Debian's packages are not looked up")
def test_debian_has_every_package() -> None:
    done = subprocess.run(["apt-cache", "policy", "bash", *apt_packages()], capture_output=True, text=True, check=False)
    if "http" not in done.stdout:
        pytest.skip("apt's lists are empty here: Debian's packages are not looked up")
    assert len(re.findall(r"Candidate: (?!\(none\))", done.stdout)) == 1 + len(apt_packages()), done.stdout


def test_debian_s_image_has_what_kuberay_s_probes_and_commands_call() -> None:
    """wget for the probes; bash, which runs `ulimit …;
    ray start …` as one process, so that Ray itself is told to end."""
    assert {"wget", "ca-certificates"} <= set(apt_packages())
    told = subprocess.Popen(["bash", "-c", "--", "ulimit -n 1024; sleep 30 --"])
    try:
        for _ in range(100):
            if Path(f"/proc/{told.pid}/comm").read_text().strip() == "sleep":
                break
            subprocess.run(["sleep", "0.02"], check=True)
        assert Path(f"/proc/{told.pid}/comm").read_text().strip() == "sleep"
    finally:
        told.kill()
        told.wait()


@pytest.mark.parametrize("stage", EXTRAS)
def test_packages_are_the_project_s_by_the_lock(stage: str) -> None:
    environment = " ".join(words for each in lineage(stage) for words in each.of("ENV"))
    copied = [words.split() for each in lineage(stage) for words in each.of("COPY")]
    assert "PIP_CONSTRAINT=/src/lock.txt" in environment
    assert copied == [["lock.txt", "./"], ["pyproject.toml", "./"]], "an edit of what else is copied installs all again"
    assert [words for each in lineage(stage) for words in each.of("WORKDIR")] == ["/src"]
    scripts = " ".join(BY_NAME[stage].of("RUN"))
    named = {extra for words in re.findall(r'"\.\[([\w,]+)\]"', scripts) for extra in words.split(",")}
    assert named == EXTRAS[stage] and named <= set(PROJECT["optional-dependencies"])
    for word in re.findall(r"(?:whl/cpu|\]\") ([\"\w\[\]-]+)", scripts):
        assert lock(re.sub(r"\[.*|\"", "", word))


@pytest.mark.parametrize("name", FINAL)
def test_code_comes_after_packages_and_brings_none(name: str) -> None:
    from_stages = [words.split() for words in BY_NAME[name].of("COPY")]
    assert [words[0] for words in from_stages] == [f"--from=build-{name}", "--from=code"]
    (script,) = BY_NAME["code"].of("RUN")
    assert shlex.split(script) == ["pip", "install", "--no-deps", "--target", from_stages[1][1], "."]
    site_packages = next(words for words in BY_NAME["build"].of("ENV")).partition("SITE_PACKAGES=")[2]
    python = "python" + ".".join(ARGUMENTS["PYTHON_IMAGE"].removeprefix("python:").split(".")[:2])
    assert from_stages[1][2] == site_packages == f"{from_stages[0][2]}/lib/{python}/site-packages"


@pytest.mark.parametrize("stage", EXTRAS)
def test_what_nothing_loads_is_taken_out_and_what_looks_like_it_stays(stage: str, tmp_path: Path) -> None:
    (script,) = [words for words in BY_NAME[stage].of("RUN") if words.startswith("cd ")]
    nowhere = subprocess.run(["sh", "-ec", script], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert nowhere.returncode, "it deletes where it happens to be"
    go = ["pandas/tests/a.py", "sklearn/utils/tests/b.py", "onnx/backend/test/c.py", "ray/jars/ray.jar",
          "mlflow/server/js/d.js"]
    stay = ["tensorflow/_api/v2/test/__init__.py", "numpy/testing/e.py", "ray/core/gcs_server", "mlflow/server/app.py"]
    if stage == "build-torch":
        go += ["torch/test/f", "torch/bin/test_api", "torch/bin/HashStoreTest"]
        stay += ["torch/bin/torch_shm_manager", "torch/testing/g.py", "torch/include/torch/test.h"]
    for name in (*go, *stay):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    subprocess.run(["sh", "-ec", script], env={"SITE_PACKAGES": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(stay)


@pytest.mark.parametrize(("accelerator", "compiler", "installs"),
                         [("cpu", "", False), ("cpu", "yes", True), ("cuda", "", True)])
def test_a_compiler_is_in_the_image_for_gpus_and_where_it_is_asked_for(accelerator: str, compiler: str, installs: bool,
                                                                       tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "rm").symlink_to("/bin/true")
    (script,) = [words for words in BY_NAME["torch"].of("RUN") if "apt-get" in words]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": accelerator, "COMPILER": compiler}
    subprocess.run(["sh", "-c", script], env=environment, check=True)
    assert (tmp_path / "told").exists() == installs


def test_the_lock_s_tensorflow_offers_cuda_s_libraries_by_that_name() -> None:
    import importlib.metadata

    try:
        offered = importlib.metadata.metadata("tensorflow").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("TensorFlow is not installed here")
    assert "and-cuda" in offered


@pytest.mark.parametrize("stage", EXTRAS)
@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "tpu"])
def test_the_accelerator_decides_what_pip_is_told(stage: str, accelerator: str, tmp_path: Path) -> None:
    """The commands themselves, with a pip that writes down what it is told."""
    program = tmp_path / "pip"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": accelerator}
    codes = [subprocess.run(["sh", "-c", script], env=environment, capture_output=True, check=False).returncode
             for script in BY_NAME[stage].of("RUN") if "pip" in script]
    if accelerator == "tpu":
        assert 2 in codes
        return
    assert set(codes) == {0}
    told = (tmp_path / "told").read_text()
    assert told.splitlines()[-1] == "check"
    assert ("whl/cpu" in told) == (stage == "build-torch" and accelerator == "cpu")
    assert ("tensorflow[and-cuda]" in told) == (stage == "build-tensorflow" and accelerator == "cuda")
    assert shlex.split(told.splitlines()[-2])[:2] == ["install", f".[{','.join(sorted(EXTRAS[stage], reverse=True))}]"]


def test_what_is_copied_is_there_and_in_the_context() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*", "a context is what is let in, not what is left out"
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    sources = [word for stage in STAGES for words in stage.of("COPY") if "--from" not in words
               for word in words.split()[:-1]]
    assert sorted({*sources}) == sorted(let_in)
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch.fnmatch(".git", pattern) or pattern in (".venv", "tests") for pattern in let_in)
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found == set(PACKAGES) <= set(sources)


@pytest.mark.parametrize("name", FINAL)
def test_what_the_image_runs_can_be_run(name: str) -> None:
    (command,) = BY_NAME[name].of("CMD")
    words = [word.strip('" ') for word in command.strip("[]").split(",")]
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert words[0] == "python" and done.returncode == 0 and "usage: python -m cluster" in done.stdout
    (imports,) = [script for script in BY_NAME[name].of("RUN") if "python -c" in script]
    for module in re.findall(r"[\w.]+\.[\w.]+", imports):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_haproxy_s_stand_in_is_a_program_that_starts_ours(tmp_path: Path) -> None:
    (script,) = [words for words in BY_NAME["common"].of("RUN") if "haproxy" in words]
    target = re.findall(r"> (\S+)", script)[0]
    settings = next(each for each in rendered("serving") if each["metadata"]["name"] == "trainyard-serving")["data"]
    assert target == settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
    subprocess.run(["sh", "-c", script.replace(target, str(tmp_path / "haproxy"))], check=True)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run([tmp_path / "haproxy", "-vv"], capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "HAProxy version" in done.stdout, done.stderr


def test_the_tags_that_are_written_down_are_those_of_the_version_and_the_lock() -> None:
    """In the Dockerfile, the manifests and their README."""
    files = [DOCKERFILE, ROOT / "k8s/README.md", *sorted((ROOT / "k8s").rglob("*.yaml"))]
    found = {(file, tag) for file in files for tag in re.findall(r"\d[\w.]*-ray[\d.]+-\w+", file.read_text())}
    assert len({file for file, _ in found}) >= 5
    assert {tag for _, tag in found} == {image_tag("cpu"), image_tag("cuda")}
    versions = {version for file in files for version in re.findall(r"rayVersion: (\S+)", file.read_text())}
    assert versions == {lock("ray")}
