"""What must hold of manifests and the API server does not look at: each rule gives what is wrong, in words."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tests.manifests import NAMESPACE, ROOT, Document, cluster_of, containers, job_of, labels, pod_templates, selects

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 47}
_OF_NO_NAMESPACE = {"Namespace", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"}
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_UPGRADES = ("NewClusterWithIncrementalUpgrade", "NewCluster", "None")
Problems = Iterator[str]


def lock(package: str) -> str:
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "lock.txt").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


def image_tag(accelerator: str) -> str:
    """As the version of the project and Ray's in the lock make it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return f"{project['version']}-ray{lock('ray')}-{accelerator}"


# ── of one document ──
def names(document: Document) -> Problems:
    """As long as KubeRay takes them, which adds to them what makes the names of services and pods."""
    name = document["metadata"]["name"]
    if document["kind"] in _LONGEST and not (_LABEL.fullmatch(name) and len(name) <= _LONGEST[document["kind"]]):
        yield f"name {name!r}: {document['kind']} takes {_LONGEST[document['kind']]} small letters, digits and '-'"
    for group in (cluster_of(document) or {}).get("workerGroupSpecs", []):
        if len(group["groupName"]) > 20:
            yield f"group {group['groupName']!r} makes the names of pods too long"


def places(document: Document) -> Problems:
    """In the one namespace, whatever kubectl's own is."""
    if document["kind"] not in _OF_NO_NAMESPACE and document["metadata"].get("namespace") != NAMESPACE:
        yield f"namespace {document['metadata'].get('namespace')}: it must be {NAMESPACE}"
    if document["kind"] in _OF_NO_NAMESPACE and "namespace" in document["metadata"]:
        yield "it belongs to no namespace"


def enumerations(document: Document) -> Problems:
    """Words that the API server takes as they come."""
    job = job_of(document)
    if job is not None and job.get("submissionMode") not in _SUBMISSION_MODES:
        yield f"submissionMode {job.get('submissionMode')!r} is none of {_SUBMISSION_MODES}"
    if document["kind"] == "RayService" and document["spec"]["upgradeStrategy"]["type"] not in _UPGRADES:
        yield f"upgradeStrategy {document['spec']['upgradeStrategy']['type']!r} is none of {_UPGRADES}"
    if document["kind"] == "RayCronJob" and not _is_schedule(document["spec"]["schedule"]):
        yield f"schedule {document['spec']['schedule']!r} is no line of cron's"


def _is_schedule(words: str) -> bool:
    highest = (59, 23, 31, 12, 6)
    fields = words.split()
    return len(fields) == 5 and all(
        re.fullmatch(r"\*(/\d+)?|\d+(-\d+)?(,\d+(-\d+)?)*", field)
        and all(int(n) <= most for n in re.findall(r"\d+", field))
        for field, most in zip(fields, highest, strict=True))


def operator(document: Document) -> Problems:
    """What KubeRay itself refuses when it has the resource already: its validation.go."""
    cluster, job = cluster_of(document), job_of(document)
    if job is not None:
        if not job.get("shutdownAfterJobFinishes"):
            yield "Kueue and a time to live want shutdownAfterJobFinishes"
        if job.get("deletionStrategy", {}).get("deletionRules"):
            yield "deletionRules do not go with shutdownAfterJobFinishes"
    if cluster is None:
        return
    ends = [group["template"]["spec"].get("restartPolicy")
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    if cluster.get("enableInTreeAutoscaling"):
        if cluster["autoscalerOptions"]["version"] != "v2" or set(ends) != {"Never"}:
            yield (f"autoscaler {cluster['autoscalerOptions']['version']} with restartPolicy {ends}: version 2 wants "
                   "Never")
        if "kueue.x-k8s.io/queue-name" in document["metadata"]["labels"]:
            yield "Kueue takes no cluster with an autoscaler"
    strategy = document["spec"].get("upgradeStrategy", {})
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions", {})
        if not cluster.get("enableInTreeAutoscaling") or not options.get("gatewayClassName"):
            yield "an incremental upgrade needs the autoscaler and a gatewayClassName"
        if not (0 <= options.get("maxSurgePercent", 100) <= 100 and 0 < options.get("stepSizePercent", 0) <= 100
                and options.get("intervalSeconds", 0) > 0):
            yield f"an incremental upgrade cannot go by {options}"
    for group in cluster["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"group {group['groupName']}: replicas are not between their least and most"


def versions(document: Document) -> Problems:
    """Images and Ray's version are those of the project and the lock, the same everywhere."""
    cluster = cluster_of(document)
    if cluster is not None and cluster["rayVersion"] != lock("ray"):
        yield f"rayVersion {cluster['rayVersion']} is not the lock's {lock('ray')}"
    if cluster is not None and cluster.get("autoscalerOptions", {}).get("image"):
        yield "the autoscaler has an image of its own: it must be the head's"
    for role, template in pod_templates(document):
        for container in containers(template):
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if not tag or tag == "latest":
                yield f"{role}: image {container['image']} has no tag that stays"
            elif name.startswith("trainyard-") and tag not in (image_tag("cpu"), image_tag("cuda")):
                yield f"{role}: image {container['image']} is not tagged {image_tag('cpu')} or {image_tag('cuda')}"
            elif container["resources"]["limits"].get("nvidia.com/gpu") and not tag.endswith("-cuda"):
                yield f"{role}: a GPU, and image {container['image']} for CPUs"


def one_image(document: Document) -> Problems:
    """Head, workers and submitter run the same."""
    images = {container["image"] for role, template in pod_templates(document) for container in containers(template)
              if role in ("head", "worker", "submitter")}
    if len(images) > 1:
        yield f"several images: {sorted(images)}"


def resources(document: Document) -> Problems:
    """Stated everywhere, and memory the same twice: what is over its request is killed first."""
    found = [(role, container) for role, template in pod_templates(document) for container in containers(template)]
    scaler = (cluster_of(document) or {}).get("autoscalerOptions")
    for role, container in [*found, *([("autoscaler", scaler)] if scaler else [])]:
        requests, limits = (container.get("resources", {}).get(kind, {}) for kind in ("requests", "limits"))
        if not {"cpu", "memory"} <= set(requests) or requests != limits:
            yield f"{role}: requests {requests} and limits {limits} are not the same, or leave out cpu or memory"


def restricted(document: Document) -> Problems:
    """Pod Security `restricted`, of every pod: kubernetes.io/docs/concepts/security/pod-security-standards."""
    for role, template in pod_templates(document):
        yield from _restricted_pod(role, template["spec"])
    cluster = cluster_of(document)
    if cluster is not None and cluster.get("enableInTreeAutoscaling"):
        pod = cluster["headGroupSpec"]["template"]["spec"].get("securityContext", {})
        yield from _restricted_container("autoscaler", cluster["autoscalerOptions"].get("securityContext", {}), pod)


def _restricted_pod(role: str, pod: Document) -> Problems:
    for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
        if pod.get(key):
            yield f"{role}: {key}"
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
               "secret"}
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= allowed:
            yield f"{role}: volume {volume}"
    context = pod.get("securityContext", {})
    if context.get("sysctls") or context.get("windowsOptions"):
        yield f"{role}: securityContext {context}"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{role}: hostPort"
        yield from _restricted_container(f"{role}/{container['name']}", container.get("securityContext", {}), context)


def _restricted_container(role: str, own: Document, pod: Document) -> Problems:
    capabilities = own.get("capabilities", {})
    if (own.get("privileged") or own.get("allowPrivilegeEscalation") is not False
        or own.get("procMount", "Default") != "Default"):
        yield f"{role}: may gain privileges"
    if capabilities.get("drop") != ["ALL"] or not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield f"{role}: capabilities {capabilities}"
    if (own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True
        or own.get("runAsUser", pod.get("runAsUser", 1)) == 0):
        yield f"{role}: may run as root"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{role}: no seccomp profile"


def endings(document: Document) -> Problems:
    """A worker's hook and Ray's drain fit into its time to end."""
    for role, template in pod_templates(document):
        for container in containers(template) if role == "worker" else []:
            environment = {each["name"]: each.get("value") for each in container.get("env", [])}
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            needed = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "inf")) + float(hook[1])
            given = template["spec"]["terminationGracePeriodSeconds"]
            if not needed < given:
                yield f"{role}: {needed:g} s of hook and drain do not fit into {given} s"


def readiness(document: Document) -> Problems:
    """An endpoint's workers are asked what KubeRay asks, and stay for some failures,
    not for longer than a proxy drains."""
    for role, template in pod_templates(document) if document["kind"] == "RayService" else []:
        if role != "worker":
            continue
        probe = containers(template)[0].get("readinessProbe", {"failureThreshold": 1, "periodSeconds": 5})
        if probe["failureThreshold"] < 3 or probe["failureThreshold"] * probe["periodSeconds"] >= 30:
            yield f"{role}: taken out after {probe['failureThreshold']} failures, {probe['periodSeconds']} s apart"
        asked = probe.get("exec", {}).get("command", [""])[-1]
        paths = ("api/local_raylet_healthz", "-/healthz")
        yield from (f"{role}: its probe does not ask {path}" for path in paths if path not in asked)


def as_the_operator_writes(document: Document) -> Problems:
    """What KubeRay writes back of its own resources is what was applied,
    so that it owns nothing that the next apply has.

    Its Go types leave out empty maps, lists and strings, and always print a group's scaleStrategy. What a schema has a
    default for, the API server adds: tests/unit/test_manifests.py.
    """
    if not document["apiVersion"].startswith("ray.io/"):
        return
    for group in (cluster_of(document) or {}).get("workerGroupSpecs", []):
        if "scaleStrategy" not in group:
            yield f"group {group['groupName']} does not state scaleStrategy"
    for path, value in _leaves(document, ""):
        if value in ({}, [], "") and not path.endswith(".scaleStrategy"):
            yield f"{path} is empty: the operator leaves it out"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    below = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not below:
        yield path, value
    for key, each in below:
        yield from _leaves(each, f"{path}.{key}")


OF_ONE = (names, places, enumerations, operator, versions, one_image, resources, restricted, endings, readiness,
          as_the_operator_writes)


# ── of all documents of a rendering ──
def references(documents: Sequence[Document]) -> Problems:
    """What pods name is there: config maps, claims, accounts. Secrets are made by hand: `secrets`."""
    there = {(each["kind"], each["metadata"]["name"]) for each in documents}
    for document in documents:
        for role, template in pod_templates(document):
            account = template["spec"].get("serviceAccountName")
            wanted = [("ServiceAccount", account)] if account else []
            wanted += [("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
                       for volume in template["spec"].get("volumes", []) if "persistentVolumeClaim" in volume]
            wanted += [("ConfigMap", source["configMapRef"]["name"]) for container in containers(template)
                       for source in container.get("envFrom", []) if "configMapRef" in source]
            volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
            volumes |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
            mounted = {mount["name"]
                       for container in containers(template) for mount in container.get("volumeMounts", [])}
            yield from (f"{role}: there is no {kind} {name}" for kind, name in wanted if (kind, name) not in there)
            yield from (f"{role}: there is no volume {name}" for name in mounted - volumes)


def secrets(documents: Sequence[Document]) -> set[str]:
    """The names of those that the documents want, wherever they do."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                if key in ("secretRef", "secretKeyRef"):
                    found.add(below["name"])
                elif key == "secretName" and isinstance(below, str):
                    found.add(below)
                walk(below)
        elif isinstance(value, list):
            for below in value:
                walk(below)

    walk(list(documents))
    return found


def budgets(documents: Sequence[Document]) -> Problems:
    """Each of a number of pods that stay, which is fewer than are ready; each of pods that there are."""
    for budget in [each for each in documents if each["kind"] == "PodDisruptionBudget"]:
        stay = budget["spec"].get("minAvailable")
        if not isinstance(stay, int) or "maxUnavailable" in budget["spec"]:
            yield (f"budget {budget['metadata']['name']}: pods without `scale` take a number as minAvailable, and "
                   "nothing else")
            continue
        counts = [_count(role, document) for document in documents for role, template in pod_templates(document)
                  if selects(budget["spec"]["selector"], labels(template))]
        if len(counts) != 1:
            yield f"budget {budget['metadata']['name']} is of {len(counts)} kinds of pods"
        elif stay > 0 and stay >= counts[0] and not budget["metadata"]["name"].endswith("-head"):
            yield (f"budget {budget['metadata']['name']}: {stay} of {counts[0]} pods stay, so that no node can be "
                   "drained")


def _count(role: str, document: Document) -> int:
    """The least that are ready. Of an endpoint's workers, those with a replica: only there is Serve's proxy,
    which KubeRay asks."""
    cluster = cluster_of(document)
    if role != "worker" or cluster is None:
        return 1
    least = cluster["workerGroupSpecs"][0]["minReplicas"]
    return min(least, _replicas(document)) if document["kind"] == "RayService" else least


def _replicas(service: Document) -> int:
    """The least of an endpoint's ingress."""
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    return next(each["args"]["min_replicas"] for each in config["applications"] if each["name"] == "endpoint")


def quota(documents: Sequence[Document]) -> Problems:
    """Kueue admits nothing that asks for what its queue does not count."""
    queues = [each for each in documents if each["kind"] == "ClusterQueue"]
    covered = {name for queue in queues for group in queue["spec"]["resourceGroups"]
               for name in group["coveredResources"]}
    asked = {name
             for document in documents for _, template in pod_templates(document) for container in containers(template)
             for name in container["resources"]["requests"]}
    if queues and not asked <= covered:
        yield f"the queue does not count {sorted(asked - covered)}"


OF_ALL = (references, budgets, quota)
