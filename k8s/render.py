"""Prints the manifests of an overlay with components, and perhaps around a job:
what `kubectl apply --server-side -f -` takes.

    python k8s/render.py cpu                                              a RayCluster to work on
    python k8s/render.py gpu --with redis,spot --job transformer          a RayJob, whose cluster comes and goes with it
    python k8s/render.py serving --with storage-s3                        a RayService
    python k8s/render.py cpu --job mlp --registry registry.example.com/acme            with images from your registry
    python k8s/render.py serving --framework tensorflow                   for models of the CNN job
    python k8s/render.py serving --serve-config serve.yaml                with an endpoint's config of yours

Every overlay alone is `kubectl kustomize k8s/overlays/NAME` too. Needs kubectl 1.27 or later, and nothing of a cluster.
"""

import argparse
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
OVERLAYS = sorted(path.parent.name for path in HERE.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in HERE.glob("components/*/kustomization.yaml"))
JOBS = sorted(path.parent.name for path in HERE.glob("jobs/*/kustomization.yaml") if path.parent.name != "in-rayjob")
FRAMEWORKS = ("torch", "tensorflow")
_REGISTRY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*/?")
LEAST_KUBECTL = (1, 27)
_NO_AUTOSCALER = "what Kueue admits is used whole, and the autoscaler would take of it or add to it"


class RefusedError(Exception):
    """The user's mistake, with the remedy."""


def render(overlay: str, components: Sequence[str] = (), job: str | None = None, *, registry: str = "",
           framework: str = "torch", serve_config: Path | None = None) -> str:
    """YAML documents. Raises: RefusedError."""
    check(overlay, components, job)
    kubectl()
    kustomized = {**kustomization(overlay, components, job), "images": images(registry, framework),
                  "patches": [in_service(overlay, serve_config)] if serve_config else []}
    with tempfile.TemporaryDirectory(prefix="trainyard-render-") as folder:
        place = Path(folder).resolve()
        (place / "kustomization.yaml").write_text(yaml.safe_dump(kustomized | {
            key: [_from(place, path) for path in kustomized[key]] for key in ("resources", "components")}))
        done = subprocess.run(["kubectl", "kustomize", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"kubectl kustomize refuses this: {done.stderr.strip()}")
    return done.stdout


def kustomization(overlay: str, components: Sequence[str], job: str | None) -> dict[str, list[Path]]:
    """What is built on what.

    An overlay with a folder `cluster` puts that into something else by its components,
    which come after those that change it.
    """
    whole = HERE / "overlays" / overlay
    inner = whole / "cluster" if _serves(overlay) else whole
    has = {path.name for path in _components(inner)}
    chosen = [HERE / "components" / name for name in components if name not in has]
    around = _own_components(whole) if inner != whole else [HERE / "jobs" / job] if job else []
    return {"resources": [inner], "components": [*chosen, *around]}


def images(registry: str, framework: str) -> list[dict[str, str]]:
    """The names of ours, replaced. framework: of whoever does not need another one, as the CNN job does.

    Raises: RefusedError for a registry that cannot be in an image's name: the API server would admit it,
    and a node fail later.
    """
    if registry and not _REGISTRY.fullmatch(registry):
        raise RefusedError(f"--registry {registry}: an image's name cannot begin like that: give HOST[:PORT][/PATH], "
                           "the path in small letters")
    before = f"{registry.rstrip('/')}/" if registry else ""
    return [{"name": "trainyard-torch", "newName": f"{before}trainyard-{framework}"},
            {"name": "trainyard-tensorflow", "newName": f"{before}trainyard-tensorflow"}]


def in_service(overlay: str, serve_config: Path) -> dict[str, Any]:
    """A patch that puts the config into the RayService. Raises: RefusedError."""
    if not _serves(overlay):
        raise RefusedError(f"--serve-config with {overlay}: it has no endpoint: leave it out, or choose serving or "
                           "serving-local")
    try:
        text = serve_config.read_text()
        if "applications" not in yaml.safe_load(text):
            raise ValueError("it has no `applications`")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise RefusedError(f"--serve-config {serve_config} is not what `python -m serving config` prints ({reason}): "
                           "give the file that jobs/serve-config made") from error
    return {"target": {"kind": "RayService"},
            "patch": yaml.safe_dump([{"op": "replace", "path": "/spec/serveConfigV2", "value": text}])}


def check(overlay: str, components: Sequence[str], job: str | None) -> None:
    """Raises: RefusedError for what does not exist or does not go together."""
    if unknown := [name for name in components if name not in COMPONENTS]:
        raise RefusedError(f"--with {','.join(unknown)}: there is no such component: choose of {', '.join(COMPONENTS)}")
    serves = _serves(overlay)
    if job and serves:
        raise RefusedError(f"--job {job} with {overlay}: an endpoint is no job: leave --job out, or choose another "
                           "overlay")
    if "kueue" in components and ("autoscaler" in components or serves):
        other = f"for {overlay}, which has the autoscaler" if serves else "and autoscaler"
        raise RefusedError(f"--with kueue {other}: {_NO_AUTOSCALER}: leave one of them out")
    if "kueue" in components and job == "retrain":
        raise RefusedError("--with kueue --job retrain: KubeRay gives the RayJobs that it makes no queue: leave one of "
                           "them out")


def _serves(overlay: str) -> bool:
    return (HERE / "overlays" / overlay / "cluster").is_dir()


@functools.cache
def kubectl() -> tuple[int, int]:
    """Its version. Raises: RefusedError if there is none, or one that does not take components."""
    if shutil.which("kubectl") is None:
        raise RefusedError("kubectl is not installed: get 1.27 or later from https://kubernetes.io/docs/tasks/tools")
    done = subprocess.run(["kubectl", "version", "--client", "-o", "yaml"], capture_output=True, text=True, check=False)
    found = re.search(r"gitVersion: v(\d+)\.(\d+)", done.stdout)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < LEAST_KUBECTL:
        raise RefusedError(f"kubectl {version[0]}.{version[1]} knows too little of kustomize: get 1.27 or later")
    return version


def _components(folder: Path) -> list[Path]:
    """Of a kustomization, and of those that it builds on."""
    resources = _said(folder).get("resources", [])
    below = [path for name in resources if (folder / name).is_dir() for path in _components(folder / name)]
    return [*below, *_own_components(folder)]


def _own_components(folder: Path) -> list[Path]:
    return [(folder / name).resolve() for name in _said(folder).get("components", [])]


@functools.cache
def _said(folder: Path) -> dict[str, list[str]]:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def _from(place: Path, target: Path) -> str:
    """kustomize takes no absolute path."""
    up = len(place.parts) - 1
    return "/".join([*[".."] * up, *target.parts[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python k8s/render.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overlay", choices=OVERLAYS, metavar="OVERLAY", help=", ".join(OVERLAYS))
    parser.add_argument("--with", dest="components", default="", metavar="COMPONENT,…", help=", ".join(COMPONENTS))
    parser.add_argument("--job", choices=JOBS, metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--registry", default="", metavar="HOST/PATH", help="where the images were pushed to")
    parser.add_argument("--framework", default="torch", choices=FRAMEWORKS,
                        help="whose image; --job cnn has TensorFlow's anyway")
    parser.add_argument("--serve-config", type=Path, metavar="FILE",
                        help="an endpoint's config, as --job serve-config prints it")
    options = parser.parse_args(arguments)
    try:
        components = [name for name in options.components.split(",") if name]
        print(render(options.overlay, components, options.job, registry=options.registry,
                     framework=options.framework, serve_config=options.serve_config), end="")
    except RefusedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
