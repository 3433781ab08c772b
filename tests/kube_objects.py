"""Kubernetes objects as an API server gives them, cut down to what is read of them: after KubeRay 1.7.0's CRDs and its
events, Kubernetes' own conditions and messages, and Kueue's.
Written down from their sources and documents: no cluster was at hand to record them."""

from typing import Any

Object = dict[str, Any]
IMAGE = "registry.example/trainyard:1"


def meta(name: str, **more: Any) -> Object:
    return {"name": name, "namespace": "team", "uid": f"uid-{name}", **more}


def rayjob(name: str = "train", *, labels: dict[str, str] | None = None, suspend: bool = False,
           **status: Any) -> Object:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta(name, labels=labels or {}),
            "spec": {"entrypoint": "python -m jobs.mlp", "suspend": suspend}, "status": status}


def rayservice(name: str = "digits", **status: Any) -> Object:
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": meta(name), "spec": {}, "status": status}


def raycluster(name: str = "train-abcde", *, of: str | None = "train", spec: Object | None = None,
               **status: Any) -> Object:
    labels = {"ray.io/originated-from-cr-name": of, "ray.io/originated-from-crd": "RayJob"} if of else {}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": meta(name, labels=labels),
            "spec": {"rayVersion": "2.60.0", **(spec or {})}, "status": status}


def pod(name: str, *, cluster: str = "train-abcde", kind: str = "worker", phase: str = "Pending",
        conditions: list[Object] | None = None, containers: list[Object] | None = None, claims: tuple[str, ...] = (),
        **status: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": meta(name, labels={"ray.io/cluster": cluster, "ray.io/node-type": kind}),
            "spec": {"containers": [{"name": "ray-worker", "image": IMAGE}],
                     "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}} for claim in claims]},
            "status": {"phase": phase, "conditions": conditions or [], "containerStatuses": containers or [], **status}}


def ready(name: str, *, kind: str = "worker", cluster: str = "train-abcde") -> Object:
    return pod(name, kind=kind, cluster=cluster, phase="Running", conditions=[condition("Ready", "True")])


def submitter(job: str = "train", phase: str = "Running", containers: list[Object] | None = None) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta(f"{job}-xyz12", labels={"job-name": job}),
            "spec": {"containers": []}, "status": {"phase": phase, "containerStatuses": containers or []}}


def running(name: str, since: str) -> Object:
    return {"name": name, "image": IMAGE, "restartCount": 0, "state": {"running": {"startedAt": since}}}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-26T10:00:00Z"}


def unscheduled(message: str, reason: str = "Unschedulable") -> list[Object]:
    return [condition("PodScheduled", "False", reason, message)]


def waiting(reason: str, message: str = "", *, image: str = IMAGE, restarts: int = 0,
            last: Object | None = None) -> Object:
    return {"name": "ray-worker", "image": image, "restartCount": restarts,
            "state": {"waiting": {"reason": reason, "message": message}},
            "lastState": {"terminated": last} if last else {}}


def event(about: str, reason: str, message: str, *, kind: str = "Warning", at: str = "2026-11-26T10:00:00Z") -> Object:
    return {"apiVersion": "v1", "kind": "Event", "metadata": meta(f"{about}.{reason}.{abs(hash(message)) % 10**8:08x}"),
            "type": kind,
            "reason": reason, "message": message, "involvedObject": {"name": about, "namespace": "team"},
            "lastTimestamp": at,
            "count": 1}


def workload(*conditions: Object, of: str = "train", checks: list[Object] | None = None) -> Object:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload",
            "metadata": meta(f"rayjob-{of}-1a2b3", ownerReferences=[{"kind": "RayJob", "name": of}]),
            "spec": {}, "status": {"conditions": list(conditions), "admissionChecks": checks or []}}


def queue(name: str) -> Object:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": meta(name),
            "spec": {"clusterQueue": "all"}}


def claim(name: str, phase: str = "Pending", storage_class: str = "fast") -> Object:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta(name),
            "spec": {"storageClassName": storage_class}, "status": {"phase": phase}}


def group(name: str, *, cpu: str, least: int = 0, most: int = 1, replicas: int = 0, gpus: int = 0) -> Object:
    limits = {"cpu": cpu, "memory": "8Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"groupName": name, "minReplicas": least, "maxReplicas": most, "replicas": replicas, "rayStartParams": {},
            "template": {"spec": {"containers": [{"name": "ray-worker", "image": IMAGE,
                                                  "resources": {"limits": limits}}]}}}


def autoscaling(*groups: Object, enabled: bool = True) -> Object:
    """The spec of a RayCluster whose head does no work."""
    head = {"rayStartParams": {"num-cpus": "0"},
            "template": {"spec": {"containers": [{"name": "ray-head", "image": IMAGE,
                                                  "resources": {"limits": {"cpu": "1"}}}]}}}
    return {"enableInTreeAutoscaling": enabled, "headGroupSpec": head, "workerGroupSpecs": list(groups)}
