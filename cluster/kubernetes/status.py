"""`python -m cluster status --kubernetes [NAME]`: RayJobs, RayClusters, RayServices with their pods,
events and Ray, together."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import base64
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.core.errors import ClusterError, ConfigError
from cluster.kubernetes.client import Kube, NotAllowedError, Object
from cluster.kubernetes.diagnosis import Found, explain

T = TypeVar("T")

KINDS = {"rayjobs": "RayJob", "rayservices": "RayService", "rayclusters": "RayCluster"}
_OWNER, _CLUSTER = "ray.io/originated-from-cr-name", "ray.io/cluster"
_BESIDE = ("pods", "events", "workloads", "persistentvolumeclaims", "localqueues")
_DASHBOARD_PORT = 8265


@dataclass(frozen=True, kw_only=True)
class KubeStatus:
    """problems: one sentence each, with its remedy. notes: what could not be looked at, and so may be missing."""

    namespace: str
    found: list[Found]
    ray_jobs: dict[str, list[Object]]
    """By RayCluster: what Ray says of its jobs, where it could be asked."""
    problems: list[str]
    notes: list[str]


@dataclass
class _Reader:
    """Reads what it may, and notes what it may not."""

    kube: Kube
    notes: list[str] = field(default_factory=list[str])

    def all(self, kind: str) -> list[Object]:
        return self.attempt(lambda: self.kube.all(kind), [])

    def attempt(self, call: Callable[[], T], otherwise: T) -> T:
        try:
            return call()
        except NotAllowedError as error:
            self.notes.append(str(error))
            return otherwise


def read_kube_status(kube: Kube, name: str | None = None) -> KubeStatus:
    """name: of one RayJob, RayService or RayCluster; by default all of the namespace.

    Raises: ConfigError if there is none of that name;
    ClusterError if the API server does not answer, or may not be asked for any.
    """
    reader = _Reader(kube)
    things = {kind: [{"kind": label, **each} for each in reader.all(kind)] for kind, label in KINDS.items()}
    if len(reader.notes) == len(KINDS):
        raise ClusterError(reader.notes[0])
    owners = _owners(things, name, kube.namespace)
    rest = {kind: reader.all(kind) for kind in _BESIDE} if owners else {}
    found = [_gathered(owner, things["rayclusters"], rest) for owner in owners]
    jobs: dict[str, list[Object]] = {}
    for place, each in enumerate(found):
        said: list[str] = []
        for cluster in each.clusters:
            said += _ask_ray(reader, cluster, each.pods, jobs)
        found[place] = replace(each, ray_problems=said)
    problems = [problem for each in found for problem in explain(each)]
    return KubeStatus(namespace=kube.namespace, found=found, ray_jobs=jobs, problems=list(dict.fromkeys(problems)),
                      notes=list(dict.fromkeys(reader.notes)))


def _owners(things: dict[str, list[Object]], name: str | None, namespace: str) -> list[Object]:
    """A RayCluster that a RayJob or a RayService has made belongs to that."""
    every = [*things["rayjobs"], *things["rayservices"], *things["rayclusters"]]
    if name is None:
        return [each for each in every if each["kind"] != "RayCluster" or _OWNER not in _labels(each)]
    chosen = [each for each in every if each["metadata"]["name"] == name]
    if not chosen:
        names = ", ".join(each["metadata"]["name"] for each in every) or "none at all"
        raise ConfigError(f"there is no RayJob, RayService or RayCluster {name!r} in namespace {namespace}: there is "
                          f"{names}; pass --namespace for another one")
    return chosen


def _gathered(owner: Object, clusters: Sequence[Object], rest: dict[str, list[Object]]) -> Found:
    name = owner["metadata"]["name"]
    mine = ([owner] if owner["kind"] == "RayCluster" else
            [c for c in clusters if _labels(c).get(_OWNER) == name or c["metadata"]["name"] in _named_clusters(owner)])
    names = {cluster["metadata"]["name"] for cluster in mine}
    pods = [p for p in rest["pods"] if _labels(p).get(_CLUSTER) in names or _labels(p).get("job-name") == name]
    claims = rest["persistentvolumeclaims"]
    spoken_of = {each["metadata"]["name"]: each["metadata"].get("uid") for each in (owner, *mine, *pods, *claims)}
    return Found(
        owner=owner, clusters=mine, pods=pods, claims=claims,
        queues=[q["metadata"]["name"] for q in rest["localqueues"]],
        events=[e for e in rest["events"] if _is_about(e.get("involvedObject", {}), spoken_of)],
        workloads=[w for w in rest["workloads"] if {name, *names} & _owner_names(w)],
    )


def _is_about(thing: Object, spoken_of: dict[str, str | None]) -> bool:
    """Not one of the same name that was there before."""
    return thing.get("name") in spoken_of and thing.get("uid") in (None, spoken_of[thing["name"]])


def _named_clusters(owner: Object) -> set[str]:
    status: Object = owner.get("status") or {}
    parts = [status, status.get("activeServiceStatus") or {}, status.get("pendingServiceStatus") or {}]
    return {part["rayClusterName"] for part in parts if part.get("rayClusterName")}


# ── Ray's own side, by way of the API server ──
def _ask_ray(reader: _Reader, cluster: Object, pods: Sequence[Object], jobs: dict[str, list[Object]]) -> list[str]:
    """What the dashboard of a cluster whose head is ready says is wrong; its jobs go into `jobs`."""
    name = cluster["metadata"]["name"]
    head = [p for p in pods if _labels(p).get(_CLUSTER) == name and _labels(p).get("ray.io/node-type") == "head"]
    service = ((cluster.get("status") or {}).get("head") or {}).get("serviceName")
    if not service or not any(_ready(pod) for pod in head):
        return []
    try:
        token = reader.attempt(lambda: _token(reader.kube, cluster), "")
        jobs[name] = reader.kube.through_service(service, _DASHBOARD_PORT, "api/jobs/", token) or []
        report = reader.kube.through_service(service, _DASHBOARD_PORT, "api/cluster_status?format=1", token) or {}
    except ClusterError as error:
        reader.notes.append(f"Ray in {name} was not asked: {error}")
        return []
    return waiting(name, str((report.get("data") or {}).get("clusterStatus") or ""))


def _token(kube: Kube, cluster: Object) -> str:
    """Of a cluster with token authentication: from the Secret that it names, or the one of its own name."""
    options: Object = cluster["spec"].get("authOptions") or {}
    if options.get("mode") != "token":
        return ""
    secret = kube.find("secrets", options.get("secretName") or cluster["metadata"]["name"])
    return base64.b64decode((secret or {}).get("data", {}).get("auth_token", "")).decode()


def waiting(name: str, report: str) -> list[str]:
    """report: the text that Ray's dashboard makes of its autoscaler's state. Requests that it has not met, by shape."""
    _, _, demands = report.partition("Demands:\n")
    lines = itertools.takewhile(lambda line: line.startswith(" "), demands.splitlines())
    wanted = [line.strip() for line in lines if not line.strip().startswith("(")]
    return [f"Ray in {name} waits for {line.replace('+ pending', ' pending')}: raise the maxReplicas of a group that "
            "has it, or ask for less (--run.workers, --run.cpus-per-worker)" for line in wanted]


def _ready(pod: Object) -> bool:
    return any((c["type"], c["status"]) == ("Ready", "True") for c in (pod.get("status") or {}).get("conditions", []))


def _owner_names(thing: Object) -> set[str]:
    return {owner["name"] for owner in thing["metadata"].get("ownerReferences", [])}


def _labels(thing: Object) -> dict[str, str]:
    return thing["metadata"].get("labels") or {}


# ── what is shown ──
def show_kube(status: KubeStatus, console: Console) -> None:
    console.print(f"[bold]namespace[/bold] {escape(status.namespace)}")
    console.print(_owner_table(status.found) if status.found else "no RayJob, RayService or RayCluster")
    for name, jobs in status.ray_jobs.items():
        for job in jobs:
            console.print(f"Ray in {escape(name)}: job {escape(job.get('submission_id') or '')} {job['status']}: "
                          f"{escape(job.get('entrypoint', ''))}", soft_wrap=True)
    for note in status.notes:
        console.print(f"[yellow]not looked at:[/yellow] {escape(note)}", soft_wrap=True)
    for problem in status.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
    if not status.problems:
        console.print("[green]no problems[/green]")


def _owner_table(found: Sequence[Found]) -> Table:
    table = Table("kind", "name", "state", "Ray cluster", "workers ready of wanted", "pods")
    for each in found:
        for number, cluster in enumerate(each.clusters or [{}]):
            of: Object = cluster.get("status") or {}
            name = cluster["metadata"]["name"] if cluster else "–"
            pods = [p for p in each.pods if not cluster or _labels(p).get(_CLUSTER) == name]
            own = ([each.owner["kind"], each.owner["metadata"]["name"], state_of(each.owner)] if number == 0
                   else ["", "", ""])
            table.add_row(*(escape(text) for text in own), escape(name), f"{of.get('readyWorkerReplicas', 0)} of "
                          f"{of.get('desiredWorkerReplicas', 0)}", escape(_phases(pods)))
    return table


def state_of(owner: Object) -> str:
    """What KubeRay says of an object, in a word or two."""
    status: Object = owner.get("status") or {}
    if owner["kind"] == "RayJob":
        parts = [status.get("jobDeploymentStatus") or "not looked at yet", status.get("jobStatus") or ""]
        return ", ".join(part for part in parts if part)
    if owner["kind"] == "RayService":
        return status.get("serviceStatus") or next(
            (c["reason"] for c in status.get("conditions", []) if (c["type"], c["status"]) == ("Ready", "True")),
            "not ready")
    return "suspended" if owner["spec"].get("suspend") else status.get("state") or "not ready"


def _phases(pods: Sequence[Object]) -> str:
    counts: dict[str, int] = {}
    for pod in pods:
        phase = (pod.get("status") or {}).get("phase", "Unknown")
        counts[phase] = counts.get(phase, 0) + 1
    return ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) or "none"
