"""Why a RayJob, RayCluster or RayService does not get on: from its conditions, its pods, their events,
and Kueue's workload.

Pure: it gets what a reader found (cluster/kubernetes/status.py) and says sentences, each with its remedy, the nearest
cause first. What is known of one pod is said once for all that share it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cluster.kubernetes.pods import Object, conditions, first_line, newest, of_pod, text_of

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_LONGEST_WAIT_S = 60.0
"""An init container, or a submitter without a job status, that runs for longer waits for what does not come."""
_UNREACHED = ("check that names resolve there (DNS) and that NetworkPolicies let it through (kubectl get "
              "networkpolicy): those of k8s/ go by the pods' labels app.kubernetes.io/part-of and "
              "app.kubernetes.io/component, and by the operator's namespace")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is in a namespace of one owner (a RayJob, RayService, or a RayCluster of its own),
    as the API server gives it."""

    owner: Object
    clusters: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    workloads: Sequence[Object] = ()
    claims: Sequence[Object] = ()
    queues: Sequence[str] = ()
    """The names of the LocalQueues."""
    ray_problems: Sequence[str] = field(default_factory=list[str])
    """What Ray itself says, where it could be asked."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"


def explain(found: Found) -> list[str]:
    """One sentence for each thing that is wrong, with its remedy; none for an owner that gets on or is done."""
    status: Object = found.owner.get("status") or {}
    if status.get("jobDeploymentStatus") == "Complete":
        return []
    problems = [*_refused(found), *_queued(found), *_of_the_job(found, status), *_of_the_service(found, status),
                *_not_made(found), *_unbound(found), *_of_pods(found), *_unheard(found, status), *found.ray_problems]
    return list(dict.fromkeys(problems))


# ── the objects of KubeRay ──
def _refused(found: Found) -> Generator[str]:
    status: Object = found.owner.get("status") or {}
    if status.get("jobDeploymentStatus") not in (None, "", "New", "ValidationFailed") or status.get("state") == "ready":
        return  # it has been corrected since
    for event in found.events:
        if event.get("reason", "").startswith("Invalid"):
            yield f"{found.name} is invalid: {text_of(event)}: correct it and apply it again"


def _of_the_job(found: Found, status: Object) -> Generator[str]:
    state, said = status.get("jobDeploymentStatus"), first_line(status.get("message", ""))
    if state == "ValidationFailed" and not any(e.get("reason", "").startswith("Invalid") for e in found.events):
        yield f"{found.name} is invalid: {said}: correct it and apply it again"
    if state == "Failed":
        yield (f"{found.name} has failed ({status.get('reason', 'no reason')}): {said or 'no message'}: "
               f"{_after_failure(status)}")
    if state == "Retrying":
        yield (f"{found.name} has failed {status.get('failed', 1)} time(s) and is tried again: {said}: "
               f"{_after_failure(status)}")


def _after_failure(status: Object) -> str:
    remedies = {"DeadlineExceeded": "raise activeDeadlineSeconds or preRunningDeadlineSeconds; its checkpoints are "
                                    "kept",
                "SubmissionFailed": "read the submitter's log (kubectl logs -l job-name=NAME)"}
    code = re.search(r"exit code (\d+)", status.get("message", ""))
    by_code = {"1": "read the log, then submit it again: it goes on from its last checkpoint",
               "2": "do what the job's message says (kubectl logs), then submit it again",
               "3": "it stopped with a checkpoint: submit it again",
               "137": "it was killed, mostly for want of memory: raise the head's memory"}
    fallback = "read the log, mend the cause, and submit it again"
    return remedies.get(status.get("reason", "")) or by_code.get(code[1] if code else "", fallback)


def _of_the_service(found: Found, status: Object) -> Generator[str]:
    for part in ("activeServiceStatus", "pendingServiceStatus"):
        for name, application in ((status.get(part) or {}).get("applicationStatuses") or {}).items():
            if application.get("status") in ("DEPLOY_FAILED", "UNHEALTHY", "NOT_STARTED"):
                yield (f"application {name} of {found.name} is {application['status']} "
                       f"({first_line(application.get('message', ''))}): "
                       "correct serveConfigV2, or read the log of its replicas in the dashboard")


def _not_made(found: Found) -> Generator[str]:
    """Pods that the operator could not even create."""
    failed = [e for e in found.events if re.match(r"FailedTo?Create", e.get("reason", ""))
              and not _over(e, found.clusters)]
    for event in newest(failed):
        said = text_of(event)
        if "exceeded quota" in said:
            yield (f"quota: {_cut(said, 'exceeded quota')}: free some of it (kubectl describe quota), ask for less, or "
                   "have it raised")
        elif "violates PodSecurity" in said:
            yield (f"Pod Security refuses the pods: {_cut(said, 'violates PodSecurity')}: set the securityContext that "
                   "it names")
        elif "serviceaccount" in said.lower():
            yield f"the pods' service account is missing: {said}: create it, or mend serviceAccountName"
        else:
            yield f"{event['reason']}: {said}: mend that; the operator tries again by itself"
    made_for = {e.get("involvedObject", {}).get("name") for e in failed}
    for cluster in found.clusters:
        name = cluster["metadata"]["name"]
        for condition in conditions(cluster):
            if (condition["type"], condition["status"]) == ("ReplicaFailure", "True") and name not in made_for:
                yield f"RayCluster {name}: {condition['reason']}: {first_line(condition['message'])}: mend that"


def _over(event: Object, clusters: Sequence[Object]) -> bool:
    """Whether all the pods that a cluster wants are there by now. Kubernetes keeps an event for an hour."""
    about = (c.get("status") or {} for c in clusters
             if c["metadata"]["name"] == event.get("involvedObject", {}).get("name"))
    return any(s.get("state") == "ready" and s.get("readyWorkerReplicas", 0) >= s.get("desiredWorkerReplicas", 0)
               for s in about)


# ── Kueue ──
def _queued(found: Found) -> Generator[str]:
    """A suspended owner waits for Kueue, or for whoever suspended it."""
    if not (found.owner.get("spec") or {}).get("suspend"):
        return
    queue = (found.owner["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if queue is None:
        yield f"{found.name} is suspended and names no queue: set spec.suspend to false, or the label {QUEUE_LABEL}"
        return
    if queue not in found.queues and found.queues:
        yield f"{found.name} names the queue {queue}, which is not there: there are {', '.join(found.queues)}"
    if not found.workloads:
        yield (f"{found.name} waits for Kueue (queue {queue}), which has not taken notice of it: check that Kueue runs "
               "and that its integrations include ray.io/rayjob")
    for workload in found.workloads:
        yield from _of_workload(found.name, queue, workload)


def _of_workload(name: str, queue: str, workload: Object) -> Generator[str]:
    state = {condition["type"]: condition for condition in conditions(workload)}
    reserved, evicted = state.get("QuotaReserved"), state.get("Evicted")
    if evicted and evicted["status"] == "True":
        why = "preempted by Kueue" if evicted["reason"] == "Preempted" else f"evicted by Kueue ({evicted['reason']})"
        yield (f"{name} was {why}: {evicted['message']}: it starts again when there is room, and goes on from its last "
               "checkpoint")
    if reserved is None or reserved["status"] != "True":
        said = reserved["message"] if reserved else "it is being looked at"
        remedy = ("create the queue, or mend the label" if reserved and reserved["reason"] == "Inadmissible" else
                  f"wait for others to end (kubectl get workloads), ask for less, or have the quota of {queue} raised")
        yield f"{name} waits for Kueue (queue {queue}): {said}: {remedy}"
        return
    for check in (workload.get("status") or {}).get("admissionChecks", []):
        if check["state"] != "Ready":
            yield (f"{name} has its quota and waits for the admission check {check['name']} ({check['state']}): "
                   f"{check.get('message') or 'no message'}: wait, or ask who runs that check")


# ── pods ──
def _of_pods(found: Found) -> Generator[str]:
    problems = [(problem, pod) for pod in found.pods for problem in of_pod(pod, found.events)]
    waits = [(problem, pod) for pod in found.pods for problem in _of_init_containers(pod, found)]
    if any(_is_head(pod) for _, pod in problems):
        waits = []  # for the head, whose problem is said
    for text, pods in _grouped([*problems, *waits]):
        who = pods[0] if len(pods) == 1 else f"{pods[0]} and {len(pods) - 1} more"
        yield f"{'pod' if len(pods) == 1 else 'pods'} {who}: {text}"


def _of_init_containers(pod: Object, found: Found) -> Generator[str]:
    """Those that go on for long. A sidecar, which is an init container that never ends, is none of them."""
    sidecars = {each["name"] for each in pod["spec"].get("initContainers", []) if each.get("restartPolicy") == "Always"}
    for container in (pod.get("status") or {}).get("initContainerStatuses", []):
        name, running = container["name"], (container.get("state") or {}).get("running") or {}
        if name not in sidecars and running and _seconds_since(running, found.now) > _LONGEST_WAIT_S:
            what = "the head, which does not answer it" if name == "wait-gcs-ready" else "something"
            yield (f"init container {name} has waited for more than {_LONGEST_WAIT_S:g} s for {what}: read its log "
                   f"(kubectl logs POD -c {name}); {_UNREACHED}")


def _unheard(found: Found, status: Object) -> Generator[str]:
    """A submitter that runs, of a job that has no status: it does not reach the head, or the operator does not."""
    if found.owner["kind"] != "RayJob" or status.get("jobStatus"):
        return
    for pod in filter(lambda pod: _is_submitter(pod, found), found.pods):
        name = pod["metadata"]["name"]
        for container in (pod.get("status") or {}).get("containerStatuses", []):
            running = (container.get("state") or {}).get("running") or {}
            if running and _seconds_since(running, found.now) > _LONGEST_WAIT_S:
                yield (f"{found.name} has no job status although its submitter {name} has run for more than "
                       f"{_LONGEST_WAIT_S:g} s: the submitter, or KubeRay's operator, does not reach the head's "
                       f"dashboard (port 8265): read its log (kubectl logs {name}); {_UNREACHED}")


def _is_submitter(pod: Object, found: Found) -> bool:
    return (pod["metadata"].get("labels") or {}).get("job-name") == found.owner["metadata"]["name"]


def _is_head(pod: Object) -> bool:
    return (pod["metadata"].get("labels") or {}).get("ray.io/node-type") == "head"


def _seconds_since(running: Object, now: datetime) -> float:
    began = running.get("startedAt")
    return (now - datetime.fromisoformat(began)).total_seconds() if began else 0.0


def _unbound(found: Found) -> Generator[str]:
    used = {volume["persistentVolumeClaim"]["claimName"] for pod in found.pods
            for volume in pod["spec"].get("volumes", [])
            if "persistentVolumeClaim" in volume}
    for claim in found.claims:
        name = claim["metadata"]["name"]
        if name not in used or (claim.get("status") or {}).get("phase") == "Bound":
            continue
        mine = [e for e in found.events if e.get("involvedObject", {}).get("name") == name]
        said = next((text_of(e) for e in reversed(mine) if e.get("reason") == "ProvisioningFailed"), "")
        kind = (claim.get("spec") or {}).get("storageClassName") or "the default class"
        if not said and any(e.get("reason") == "WaitForFirstConsumer" for e in mine):
            continue  # it is bound when its pod is scheduled, and the pod says why it is not
        yield (f"volume claim {name} is not bound ({said or 'nothing provides it'}): check storage class {kind} "
               "(kubectl get storageclass), its quota, and that it allows the access mode")


# ── small things ──


def _cut(text: str, begin: str) -> str:
    return text[text.index(begin):]


def _grouped(pairs: Iterable[tuple[str, Object]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for text, pod in pairs:
        groups.setdefault(text, []).append(pod["metadata"]["name"])
    return list(groups.items())
