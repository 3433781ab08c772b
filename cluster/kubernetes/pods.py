"""Why a pod does not get on, from its status and its events."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Generator, Iterable, Sequence

from cluster.core.documents import JsonObject as Object

_BAD_IMAGE = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_BAD_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_UNSUITED = {
    "Insufficient": "add nodes, or ask for less in the manifest's resources",
    "untolerated taint": "add a toleration for the taint, or nodes without it",
    "node affinity/selector": "mend the nodeSelector or affinity, or label a node so",
    "topology spread": "add nodes in other zones, or loosen topologySpreadConstraints",
    "pod anti-affinity": "add nodes, or loosen the anti-affinity",
    "were unschedulable": "uncordon a node (kubectl uncordon)",
}


def of_pod(pod: Object, events: Sequence[Object]) -> Generator[str]:
    """One sentence for each thing that is wrong with a pod, with its remedy."""
    status: Object = pod.get("status") or {}
    mine = [e for e in events if e.get("involvedObject", {}).get("name") == pod["metadata"]["name"]]
    if status.get("phase") == "Failed" or any(c["type"] == "DisruptionTarget" and c["status"] == "True"
                                              for c in conditions(pod)):
        yield from _taken_away(pod, mine)
        return
    scheduled = next((c for c in conditions(pod) if c["type"] == "PodScheduled"), None)
    if scheduled and scheduled["status"] == "False":
        yield _unscheduled(scheduled, mine)
    yield from _mounting(mine, status)
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        yield from _of_container(container)


def _taken_away(pod: Object, events: Sequence[Object]) -> Generator[str]:
    status: Object = pod["status"]
    target = next((c for c in conditions(pod) if c["type"] == "DisruptionTarget"), None)
    preempted = [e for e in events if e.get("reason") == "Preempted"]
    if preempted or (target and target["reason"] == "PreemptionByScheduler"):
        said = text_of(preempted[-1]) if preempted else (target or {}).get("message", "")
        yield (f"preempted for another one of higher priority ({said}): it is made again when there is room; raise its "
               "priorityClassName")
    elif target:
        yield f"taken away with its node ({target['reason']}: {target['message']}): it is made again elsewhere"
    elif status.get("reason") == "Evicted":
        yield f"evicted ({first_line(status.get('message', ''))}): ask for as much as it uses in requests and limits"
    else:
        states = [container.get("state", {}) for container in status.get("containerStatuses", [])]
        ended: Object = next((state["terminated"] for state in states if "terminated" in state), {})
        yield (f"failed ({status.get('reason') or ended.get('reason') or 'no reason'}, exit code "
               f"{ended.get('exitCode', 'unknown')}): "
               f"read its log (kubectl logs {pod['metadata']['name']})")


def _unscheduled(condition: Object, events: Sequence[Object]) -> str:
    said = condition.get("message", "")
    if "persistentvolumeclaim" in said.lower():
        return f"waits for storage: {said}: create the claim, or look at why it is not bound (kubectl describe pvc)"
    reasons = {event.get("reason") for event in events}
    if condition.get("reason") == "SchedulingGated":
        return "is held back by a scheduling gate: ask who set it (Kueue and other schedulers do)"
    if "TriggeredScaleUp" in reasons:
        return f"waits for a node, which the cluster autoscaler is adding: {said}: wait some minutes"
    remedies = [remedy for sign, remedy in _UNSUITED.items() if sign in said]
    full = "NotTriggerScaleUp" in reasons
    grown = " (the cluster autoscaler cannot add one: its node groups do not fit or are full)" if full else ""
    return f"no node fits: {said}{grown}: {'; or '.join(remedies) or 'add nodes that fit'}"


def _mounting(events: Sequence[Object], status: Object) -> Generator[str]:
    if status.get("phase") != "Pending":
        return
    for event in newest(e for e in events if e.get("reason") in ("FailedMount", "FailedAttachVolume")):
        yield (f"a volume cannot be mounted: {text_of(event)}: create the Secret, ConfigMap or claim that it names, or "
               "free the disk")


def _of_container(container: Object) -> Generator[str]:
    waiting: Object = (container.get("state") or {}).get("waiting") or {}
    last: Object = (container.get("lastState") or {}).get("terminated") or {}
    reason, said = waiting.get("reason", ""), first_line(waiting.get("message", ""))
    if reason in _BAD_IMAGE:
        yield (f"the image {container['image']} cannot be pulled ({said or reason}): mend its name or tag, push it, or "
               "give imagePullSecrets")
    elif reason in _BAD_CONFIG:
        yield (f"container {container['name']} cannot be made ({said or reason}): create the Secret or ConfigMap that "
               "it names")
    elif last.get("reason") == "OOMKilled":
        yield (f"container {container['name']} was killed for want of memory {container.get('restartCount', 1)} "
               "time(s): raise its memory limit, or use less")
    elif reason == "CrashLoopBackOff":
        yield (f"container {container['name']} ends again and again (exit code {last.get('exitCode', 'unknown')}, "
               f"{container.get('restartCount', 0)} restarts): read its log (kubectl logs --previous)")


def conditions(thing: Object) -> list[Object]:
    """The conditions of an object, each with a reason and a message, though empty."""
    return [{"reason": "", "message": "", **condition}
            for condition in (thing.get("status") or {}).get("conditions", [])]


def newest(events: Iterable[Object]) -> list[Object]:
    """The last one of each reason and object."""
    return list({(e.get("reason"), e.get("involvedObject", {}).get("name")): e
                 for e in sorted(events, key=_when)}.values())


def _when(event: Object) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or ""


def text_of(event: Object) -> str:
    """The first line of an event's message."""
    return first_line(event.get("message", ""))


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else ""
