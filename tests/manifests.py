"""The manifests of k8s/ as tests see them: rendered once for each combination, and walked through."""

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NAMESPACE = "trainyard"
Document = dict[str, Any]
_CLUSTERS = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig"),
             "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec")}
_ADDED = {"head": {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"},
          "worker": {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}}
"""Labels that KubeRay gives its pods."""


@functools.cache
def renderer() -> ModuleType:
    """k8s/render.py, which is a program and belongs to no package."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "k8s/render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def need_kubectl() -> None:
    """Skips where there is none that can render."""
    render = renderer()
    try:
        render.kubectl()
    except render.RefusedError as error:
        pytest.skip(f"manifests cannot be rendered: {error}")


@functools.cache
def rendered(overlay: str, components: tuple[str, ...] = (), job: str | None = None) -> tuple[Document, ...]:
    return tuple(yaml.load_all(renderer().render(overlay, components, job),
                               Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def refused(overlay: str, components: tuple[str, ...], job: str | None) -> bool:
    render = renderer()
    try:
        render.check(overlay, components, job)
    except render.RefusedError:
        return True
    return False


def combinations() -> list[tuple[str, tuple[str, ...], str | None]]:
    """Every overlay with every job or none; every overlay and every job with all components that go together; every
    overlay with each component alone; and every two components together."""
    render = renderer()
    made: dict[tuple[str, tuple[str, ...], str | None], None] = {}
    for overlay in render.OVERLAYS:
        for job in (None, *render.JOBS):
            made[overlay, (), job] = None
            for left_out in ("kueue", "autoscaler") if overlay == "cpu" or job is None else ():
                made[overlay, tuple(name for name in render.COMPONENTS if name != left_out), job] = None
        for name in render.COMPONENTS:
            made[overlay, (name,), None] = None
    for first in render.COMPONENTS:
        for second in render.COMPONENTS:
            if first < second:
                made["cpu", (first, second), "mlp"] = None
    return [each for each in made if not refused(*each)]


def named(documents: tuple[Document, ...], kind: str, name: str | None = None) -> Document:
    found = [each for each in documents if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def cluster_of(document: Document) -> Document | None:
    """The Ray cluster's spec that a document holds; None if it holds none."""
    found: Any = document
    for key in _CLUSTERS.get(document["kind"], ()):
        found = found[key]
    return found if document["kind"] in _CLUSTERS else None


def job_of(document: Document) -> Document | None:
    """The RayJob's spec that a document holds."""
    return {"RayJob": lambda: document["spec"], "RayCronJob": lambda: document["spec"]["jobTemplate"]}.get(
        document["kind"], lambda: None)()


def pod_templates(document: Document) -> Iterator[tuple[str, Document]]:
    """Each pod template with what it is for: head, worker, submitter, or the document's kind.
    KubeRay's labels are added."""
    if (cluster := cluster_of(document)) is not None:
        yield "head", _labelled("head", cluster["headGroupSpec"]["template"])
        for group in cluster["workerGroupSpecs"]:
            yield "worker", _labelled("worker", group["template"])
    if (job := job_of(document)) is not None:
        yield "submitter", job["submitterPodTemplate"]
    if document["kind"] in ("Job", "StatefulSet", "Deployment"):
        yield document["kind"], document["spec"]["template"]


def _labelled(role: str, template: Document) -> Document:
    metadata = template["metadata"]
    return {**template, "metadata": {**metadata, "labels": {**metadata["labels"], **_ADDED[role]}}}


def containers(template: Document) -> list[Document]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def labels(template: Document) -> Mapping[str, str]:
    return template["metadata"].get("labels", {})


def selects(selector: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    """A label selector, of the kinds that are used here."""
    expressions = selector.get("matchExpressions", [])
    assert set(selector) <= {"matchLabels",
                             "matchExpressions"} and all(each["operator"] == "In" for each in expressions), selector
    return (all(found.get(key) == value for key, value in selector.get("matchLabels", {}).items())
            and all(found.get(each["key"]) in each["values"] for each in expressions))
