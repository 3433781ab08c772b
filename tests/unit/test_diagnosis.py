"""cluster/kubernetes/diagnosis.py: each reason for which nothing gets on is named, with its remedy,
and nothing else is."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cluster.kubernetes.diagnosis import QUEUE_LABEL, Found, explain
from tests.kube_objects import (
    claim,
    condition,
    event,
    pod,
    raycluster,
    rayjob,
    rayservice,
    ready,
    running,
    submitter,
    unscheduled,
    waiting,
    workload,
)

WAITS = rayjob(jobDeploymentStatus="Initializing")
NO_ROOM = ("0/3 nodes are available: 1 node(s) had untolerated taint {gpu: true}, 2 Insufficient cpu. preemption: not "
           "helpful")
NO_QUOTA = ('failed to create worker Pod, pods "train-abcde-workers-x" is forbidden: exceeded quota: team-quota, '
            'requested: '
            "requests.cpu=8, used: requests.cpu=16, limited: requests.cpu=20")
QUEUED = {"labels": {QUEUE_LABEL: "team-queue"}, "suspend": True}


def problems(owner: dict[str, Any] = WAITS, **rest: Any) -> list[str]:
    return explain(Found(owner=owner, **{"clusters": [raycluster()], **rest}))


def only(found: list[str], *words: str) -> None:
    assert len(found) == 1, found
    for each in words:
        assert each in found[0], found


def test_what_gets_on_has_no_problems() -> None:
    running = rayjob(jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert problems(running, pods=[ready("head", kind="head"), ready("w-1")]) == []
    assert problems(rayjob(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"),
                    pods=[pod("w", phase="Failed")]) == []
    assert problems(pods=[pod("w-1", conditions=[condition("PodScheduled", "True")],
                              containers=[waiting("ContainerCreating")])]) == []


# ── no node ──
def test_pods_for_which_there_is_no_node_are_said_once_with_both_remedies() -> None:
    found = problems(pods=[pod(f"w-{n}", conditions=unscheduled(NO_ROOM)) for n in range(3)])
    only(found, "pods w-0 and 2 more: no node fits: 0/3 nodes", "add nodes, or ask for less", "add a toleration")


@pytest.mark.parametrize(("reason", "words"), [
    ("TriggeredScaleUp", "waits for a node, which the cluster autoscaler is adding"),
    ("NotTriggerScaleUp", "the cluster autoscaler cannot add one"),
])
def test_what_the_cluster_autoscaler_does_about_it_is_said(reason: str, words: str) -> None:
    only(problems(pods=[pod("w", conditions=unscheduled(NO_ROOM))],
                  events=[event("w", reason, "pod triggered scale-up")]), words)


@pytest.mark.parametrize(("message", "remedy"), [
    ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.", "mend the nodeSelector"),
    ("0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints.", "topologySpreadConstraints"),
    ("0/2 nodes are available: 2 node(s) were unschedulable.", "uncordon"),
    ("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", "add nodes, or ask for less"),
])
def test_the_remedy_fits_the_reason(message: str, remedy: str) -> None:
    only(problems(pods=[pod("w", conditions=unscheduled(message))]), "no node fits", remedy)


# ── quota, security, what the operator says ──
def test_a_quota_is_named_once_however_often_it_was_met() -> None:
    met = [event("train-abcde", "FailedToCreateWorkerPod", NO_QUOTA, at=f"2026-11-26T10:0{n}:00Z") for n in range(3)]
    failing = raycluster(conditions=[condition("ReplicaFailure", "True", "FailedCreateWorkerPod", NO_QUOTA)])
    only(problems(clusters=[failing], events=met), "quota: exceeded quota: team-quota", "limited: requests.cpu=20",
         "have it raised")


def test_a_quota_that_was_met_and_an_object_that_was_invalid_are_past_when_all_is_well() -> None:
    met = [event("train-abcde", "FailedToCreateWorkerPod", NO_QUOTA),
           event("train", "InvalidRayJobSpec", "entrypoint missing")]
    running = rayjob(jobDeploymentStatus="Running", jobStatus="RUNNING")
    one, both = (raycluster(state="ready", desiredWorkerReplicas=2, readyWorkerReplicas=count) for count in (1, 2))
    assert problems(running, clusters=[both], events=met) == []
    only(problems(running, clusters=[one], events=met), "quota")


def test_a_replica_failure_without_its_event_is_said() -> None:
    failing = raycluster(conditions=[condition("ReplicaFailure", "True", "FailedCreateHeadPod", "the webhook says no")])
    only(problems(clusters=[failing]), "RayCluster train-abcde: FailedCreateHeadPod: the webhook says no")


@pytest.mark.parametrize(("message", "words"), [
    ('pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
     "Pod Security refuses the pods"),
    ('pods "x" is forbidden: error looking up service account team/ray: serviceaccount "ray" not found',
     "service account is missing"),
    ("connection refused", "FailedToCreateHeadPod: connection refused"),
])
def test_why_a_pod_was_not_made_is_told_apart(message: str, words: str) -> None:
    only(problems(events=[event("train-abcde", "FailedToCreateHeadPod", message)]), words)


def test_an_invalid_object_is_said() -> None:
    only(problems(rayjob(jobDeploymentStatus="ValidationFailed", message="RayJob spec is invalid: entrypoint missing"),
                  events=[event("train", "InvalidRayJobSpec", "entrypoint missing")]),
                  "RayJob train is invalid: entrypoint missing")
    only(problems(rayjob(jobDeploymentStatus="ValidationFailed", message="name too long")),
         "RayJob train is invalid: name too long")


# ── images, configuration, crashes ──
@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_named(reason: str) -> None:
    only(problems(pods=[pod("w", containers=[waiting(reason, "manifest unknown", image="x/y:z")])]),
         "pod w: the image x/y:z cannot be pulled",
         "manifest unknown", "imagePullSecrets")


def test_a_missing_secret_is_said() -> None:
    said = 'secret "s3-keys" not found'
    only(problems(pods=[pod("w", containers=[waiting("CreateContainerConfigError", said)])]), said,
         "create the Secret or ConfigMap")
    only(problems(pods=[pod("w")], events=[event("w", "FailedMount", f'MountVolume.SetUp failed: {said}')]),
         "cannot be mounted",
         said)


def test_a_container_that_ends_again_and_again_is_said_with_its_code() -> None:
    crashed = waiting("CrashLoopBackOff", restarts=4, last={"reason": "Error", "exitCode": 3})
    only(problems(pods=[pod("w", containers=[crashed])]), "ends again and again (exit code 3, 4 restarts)",
         "kubectl logs --previous")
    starved = waiting("CrashLoopBackOff", restarts=2, last={"reason": "OOMKilled", "exitCode": 137})
    only(problems(pods=[pod("w", containers=[starved])]), "for want of memory 2 time(s): raise its memory limit")


# ── what does not reach what it needs ──
AT = datetime(2026, 11, 26, 10, 2, 0, tzinfo=UTC)
LONG, SHORT = "2026-11-26T10:00:59Z", "2026-11-26T10:01:01Z"


def _waits(since: str, name: str = "wait-gcs-ready") -> dict[str, Any]:
    return pod("w", initContainerStatuses=[running(name, since)])


def test_an_init_container_that_waits_for_long_is_said_with_dns_and_policies() -> None:
    head = ready("h", kind="head")
    only(problems(pods=[head, _waits(LONG)], now=AT),
         "pod w: init container wait-gcs-ready has waited for more than 60 s for the head",
         "kubectl logs POD -c wait-gcs-ready",
         "DNS", "NetworkPolicies", "app.kubernetes.io/part-of")
    only(problems(pods=[head, _waits(LONG, "fetch")], now=AT), "init container fetch has waited")
    assert problems(pods=[head, _waits(SHORT)], now=AT) == []


def test_an_init_container_that_is_a_sidecar_or_waits_for_a_head_whose_problem_is_said_is_none() -> None:
    sidecar = _waits(LONG, "istio-proxy")
    sidecar["spec"]["initContainers"] = [{"name": "istio-proxy", "restartPolicy": "Always"}]
    assert problems(pods=[sidecar], now=AT) == []
    head = pod("h", kind="head", conditions=unscheduled(NO_ROOM))
    only(problems(pods=[head, _waits(LONG)], now=AT), "pod h: no node fits")


def test_a_submitter_that_runs_without_a_job_status_is_said_with_dns_and_policies() -> None:
    runs = submitter(containers=[running("ray-job-submitter", LONG)])
    only(problems(pods=[ready("h", kind="head"), runs], now=AT),
         "RayJob train has no job status although its submitter train-xyz12", "port 8265", "DNS", "NetworkPolicies")
    started = rayjob(jobDeploymentStatus="Running", jobStatus="PENDING")
    assert problems(started, pods=[runs], now=AT) == []
    assert problems(pods=[submitter(containers=[running("ray-job-submitter", SHORT)])], now=AT) == []


# ── taken away ──
def test_preemption_is_told_from_a_lost_node() -> None:
    gone = pod("w", phase="Failed",
               conditions=[condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempted by urgent")])
    only(problems(pods=[gone]), "preempted for another one of higher priority (preempted by urgent)",
         "priorityClassName")
    lost = pod("w", phase="Running",
               conditions=[condition("DisruptionTarget", "True", "DeletionByTaintManager", "node is gone")])
    only(problems(pods=[lost]), "taken away with its node (DeletionByTaintManager: node is gone)")
    evicted = pod("w", phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    only(problems(pods=[evicted]), "evicted (The node was low on resource: memory)")


# ── storage ──
def test_a_claim_that_is_not_bound_is_said_if_a_pod_waits_for_it() -> None:
    said = 'storageclass.storage.k8s.io "fast" not found'
    user = pod("w", claims=("runs",),
               conditions=unscheduled("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."))
    found = problems(pods=[user], claims=[claim("runs"), claim("of-others")],
                     events=[event("runs", "ProvisioningFailed", said)])
    assert len(found) == 2, found
    assert f"volume claim runs is not bound ({said})" in found[0] and "storage class fast" in found[0]
    assert "pod w: waits for storage" in found[1]


def test_a_claim_that_waits_for_its_pod_is_none_of_its_own() -> None:
    user = pod("w", claims=("runs",), conditions=unscheduled("0/3 nodes are available: 3 Insufficient memory."))
    only(problems(pods=[user], claims=[claim("runs")], events=[event("runs", "WaitForFirstConsumer", "waiting")]),
         "no node fits")


# ── Kueue ──
def test_waiting_for_kueue_is_said_with_what_is_short() -> None:
    short = ("couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor a100, 2 "
             "more needed")
    only(problems(rayjob(**QUEUED, jobDeploymentStatus="Suspended"),
                  workloads=[workload(condition("QuotaReserved", "False", "Pending", short))]),
         "waits for Kueue (queue team-queue)", "2 more needed", "kubectl get workloads")


@pytest.mark.parametrize(("found", "words"), [
    ({"workloads": []}, "has not taken notice of it: check that Kueue runs"),
    ({"workloads": [workload(condition("QuotaReserved", "False", "Inadmissible",
                                       "LocalQueue team-queue doesn't exist"))]},
     "LocalQueue team-queue doesn't exist: create the queue"),
    ({"workloads": [workload(condition("QuotaReserved", "True"),
                             checks=[{"name": "prov", "state": "Pending", "message": "asked"}])]},
     "waits for the admission check prov (Pending): asked"),
])
def test_each_way_to_wait_in_a_queue_is_told_apart(found: dict[str, Any], words: str) -> None:
    only(problems(rayjob(**QUEUED, jobDeploymentStatus="Suspended"), queues=["team-queue"], **found), words)


def test_a_queue_that_is_not_there_is_said_with_those_that_are() -> None:
    found = problems(rayjob(**QUEUED, jobDeploymentStatus="Suspended"), queues=["a", "b"])
    assert "names the queue team-queue, which is not there: there are a, b" in found[0]


def test_what_kueue_preempted_says_so_and_why_it_waits() -> None:
    found = problems(rayjob(**QUEUED, jobDeploymentStatus="Suspended"), workloads=[workload(
        condition("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: 1)"),
        condition("QuotaReserved", "False", "Pending", "Preempted to accommodate a workload (UID: 1)"))])
    assert "was preempted by Kueue: Preempted to accommodate a workload" in found[0]
    assert "goes on from its last checkpoint" in found[0]
    assert "waits for Kueue" in found[1]


def test_what_a_person_suspended_is_no_matter_of_kueue() -> None:
    only(problems(rayjob(suspend=True, jobDeploymentStatus="Suspended")),
         "is suspended and names no queue: set spec.suspend to false")


# ── how a job ended, and services ──
@pytest.mark.parametrize(("status", "words"), [
    ({"jobDeploymentStatus": "Failed", "reason": "AppFailed",
      "message": "Job entrypoint command failed with exit code 2, last"},
     "do what the job's message says"),
    ({"jobDeploymentStatus": "Failed", "reason": "AppFailed",
      "message": "Job entrypoint command failed with exit code 3, last"},
     "it stopped with a checkpoint: submit it again"),
    ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded",
      "message": "The RayJob has passed the activeDeadlineSeconds"},
     "raise activeDeadlineSeconds"),
    ({"jobDeploymentStatus": "Retrying", "failed": 1,
      "message": "Job entrypoint command failed with exit code 1, last"},
     "has failed 1 time(s) and is tried again"),
])
def test_a_job_that_failed_says_what_to_do(status: dict[str, Any], words: str) -> None:
    only(problems(rayjob(**status), clusters=[]), words)


def test_an_application_that_was_not_deployed_is_said() -> None:
    served = rayservice(activeServiceStatus={"applicationStatuses": {"mlp": {"status": "DEPLOY_FAILED",
                                                                             "message": "no such artifact"}}})
    only(problems(served, clusters=[]), "application mlp of RayService digits is DEPLOY_FAILED (no such artifact)",
         "serveConfigV2")
