"""Every combination of overlay, components and job of k8s/ renders, and is what the API server and KubeRay take.

No cluster is at hand: rendered by `kubectl kustomize`, validated against the resources' own schemas, and against what
no schema says (tests/manifest_rules.py).
"""

import copy
import importlib.util
import json
import re
import shlex
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from kubernetes_validate import utils

from cluster.core.ray_settings import RAY_SETTINGS
from cluster.kubernetes.rayjob import minimal
from tests import manifest_rules as rules
from tests.manifests import (
    ROOT,
    Document,
    combinations,
    containers,
    job_of,
    labels,
    named,
    need_kubectl,
    pod_templates,
    rendered,
    renderer,
    selects,
)

SHARED = ROOT.parent / "shared"
KUBERNETES = "1.36"
COMBINATIONS = combinations()
README = ROOT / "k8s/README.md"


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    need_kubectl()


def every_document() -> list[Document]:
    """Of all combinations, each once."""
    found = {json.dumps(document, sort_keys=True): document for each in COMBINATIONS for document in rendered(*each)}
    return list(found.values())


# ── what the API server checks ──
@cache
def validator() -> tuple[ModuleType, dict[Any, Any]]:
    program = SHARED / "tools/validate_manifests.py"
    if not program.exists():
        pytest.skip("the schemas of ../shared are not there")
    spec = importlib.util.spec_from_file_location("validate_manifests", program)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.celpy is not None, "the rules of the schemas (CEL) are not looked at without cel-python"
    module.CEL.compile = cache(module.CEL.compile)
    utils.schema_contents = cache(utils.schema_contents)  # each of the documents would read megabytes again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to be closed when they are forgotten
        return module, module.load_crds(str(SHARED / "schemas"))


def refusals(document: Document) -> list[str]:
    module, schemas = validator()
    return [f"{document['kind']}/{document['metadata']['name']}: {each}"
            for each in module.check(document, schemas, KUBERNETES)]


def test_every_combination_is_valid_for_the_api_server() -> None:
    assert [problem for document in every_document() for problem in refusals(document)] == []


@pytest.mark.parametrize("break_it", [
    lambda job: job["spec"].update(entrypont="python"),
    lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="password"),
    lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"),
    lambda job: job["spec"].update(backoffLimit="2"),
    lambda job: job["spec"].update(deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}),
], ids=["unknown field", "unknown word", "without a name", "of another type", "against a rule"])
def test_what_the_api_server_would_refuse_is_found(break_it: Callable[[Document], Any]) -> None:
    job = copy.deepcopy(named(rendered("cpu", (), "mlp"), "RayJob"))
    assert refusals(job) == []
    break_it(job)
    assert refusals(job)


def with_defaults(document: Document) -> Document:
    """As the API server stores a resource of KubeRay's."""
    module, schemas = validator()
    stored = copy.deepcopy(document)
    module.default(schemas[document["apiVersion"], document["kind"]][0], stored)
    return stored


def test_what_the_api_server_would_add_is_stated() -> None:
    """workerGroupSpecs is one value to it: where a default is left out,
    the next apply changes what the operator owns."""
    ours = [each for each in every_document() if each["apiVersion"].startswith("ray.io/")]
    ours.append(minimal("x:1", workers=1, cpus=1, memory="1Gi", gpus=1))
    assert {each["kind"] for each in ours} == {"RayCluster", "RayJob", "RayService", "RayCronJob"}
    for document in ours:
        assert with_defaults(document) == document
    job = copy.deepcopy(named(rendered("cpu", (), "mlp"), "RayJob"))
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for key in ("numOfHosts", "priority"):
        value = group.pop(key)
        assert with_defaults(job) != job, key
        group[key] = value
    del _worker(job)["ports"][0]["protocol"]
    assert with_defaults(job) != job


# ── what it does not check ──
@pytest.mark.parametrize("rule", rules.OF_ONE, ids=lambda rule: rule.__name__)
def test_documents_keep_the_rule(rule: Callable[[Document], rules.Problems]) -> None:
    assert [f"{each['kind']}/{each['metadata']['name']}: {problem}"
            for each in every_document() for problem in rule(each)] == []


@pytest.mark.parametrize("rule", rules.OF_ALL, ids=lambda rule: rule.__name__)
def test_renderings_keep_the_rule(rule: Callable[[tuple[Document, ...]], rules.Problems]) -> None:
    assert [f"{each}: {problem}" for each in COMBINATIONS for problem in rule(rendered(*each))] == []


def _worker(document: Document) -> Document:
    spec = document["spec"]
    return spec.get("rayClusterSpec",
                    spec.get("rayClusterConfig"))["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]


BROKEN: list[tuple[str, str, Callable[[Document], Any]]] = [
    ("names", "mlp", lambda job: job["metadata"].update(name="a" * 48)),
    ("places", "mlp", lambda job: job["metadata"].pop("namespace")),
    ("enumerations", "mlp", lambda job: job["spec"].update(submissionMode="K8SJobMode")),
    ("enumerations", "", lambda service: service["spec"]["upgradeStrategy"].update(type="Incremental")),
    ("enumerations", "retrain", lambda cron: cron["spec"].update(schedule="0 25 * * *")),
    ("operator", "mlp", lambda job: job["spec"].update(shutdownAfterJobFinishes=False)),
    ("operator", "", lambda service: service["spec"]["rayClusterConfig"].pop("enableInTreeAutoscaling")),
    ("versions", "mlp", lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.59.0")),
    ("versions", "mlp", lambda job: _worker(job).update(image="trainyard-torch:latest")),
    ("versions", "mlp", lambda job: _worker(job)["resources"]["limits"].update({"nvidia.com/gpu": "1"})),
    ("one_image", "mlp", lambda job: _worker(job).update(image=f"trainyard-torch:{rules.image_tag('cuda')}")),
    ("resources", "mlp", lambda job: _worker(job)["resources"]["limits"].update(memory="64Gi")),
    ("resources", "", lambda service: service["spec"]["rayClusterConfig"]["autoscalerOptions"].pop("resources")),
    ("restricted", "mlp", lambda job: _worker(job)["securityContext"].pop("capabilities")),
    ("restricted", "mlp", lambda job: job["spec"]["submitterPodTemplate"]["spec"].pop("securityContext")),
    ("restricted", "", lambda service: service["spec"]["rayClusterConfig"]["autoscalerOptions"].pop("securityContext")),
    ("endings", "mlp", lambda job: _worker(job)["env"][0].update(value="120")),
    ("readiness", "", lambda service: _worker(service).pop("readinessProbe")),
    ("readiness", "", lambda service: _worker(service)["readinessProbe"].update(failureThreshold=6)),
    ("readiness", "", lambda service: _worker(service)["readinessProbe"]["exec"].update(command=["true"])),
    ("as_the_operator_writes", "mlp",
     lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("scaleStrategy")),
    ("as_the_operator_writes", "retrain",
     lambda cron: cron["spec"]["jobTemplate"]["submitterPodTemplate"]["spec"].update(tolerations=[])),
    ("as_the_operator_writes", "", lambda service: _worker(service).update(env=[{"name": "EMPTY", "value": ""}])),
]


@pytest.mark.parametrize(("rule", "job", "break_it"), BROKEN,
                         ids=[f"{rule}-{i}" for i, (rule, _, _) in enumerate(BROKEN)])
def test_a_broken_rule_is_found(rule: str, job: str, break_it: Callable[[Document], Any]) -> None:
    kind = {"": "RayService", "retrain": "RayCronJob"}.get(job, "RayJob")
    document = copy.deepcopy(named(rendered("cpu" if job else "serving", (), job or None), kind))
    check = getattr(rules, rule)
    assert list(check(document)) == []
    break_it(document)
    assert list(check(document))


def test_rules_of_renderings_find_what_is_wrong() -> None:
    whole = list(copy.deepcopy(rendered("cpu", ("kueue",), "mlp")))
    assert list(rules.references([each for each in whole if each["kind"] != "PersistentVolumeClaim"]))
    budget = next(each for each in whole if each["metadata"]["name"] == "mlp-worker")
    budget["spec"]["minAvailable"] = 4
    assert list(rules.budgets(whole))
    budget["spec"]["minAvailable"] = "50%"
    assert list(rules.budgets(whole))
    queue = next(each for each in whole if each["kind"] == "ClusterQueue")
    queue["spec"]["resourceGroups"][0]["coveredResources"].remove("memory")
    assert list(rules.quota(whole))


def test_a_budget_of_workers_that_no_replica_makes_ready_is_found() -> None:
    whole = list(copy.deepcopy(rendered("serving")))
    assert list(rules.budgets(whole)) == []
    spec = next(each for each in whole if each["kind"] == "RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("min_replicas: 2", "min_replicas: 1")
    assert list(rules.budgets(whole)) == ["budget trainyard-serving-worker: 1 of 1 pods stay, so that no node can be "
                                          "drained"]


# ── components do what they say, wherever they are ──
def test_a_cluster_is_closed_in_every_overlay() -> None:
    for overlay in renderer().OVERLAYS:
        documents = rendered(overlay)
        cluster = next(found for found in map(rules.cluster_of, documents) if found)
        assert cluster["authOptions"] == {"mode": "token", "secretName": "trainyard-ray-token"}
        assert named(documents, "NetworkPolicy", "default-deny")["spec"]["podSelector"] == {}


def test_ray_is_set_as_in_a_cluster_that_is_started_here() -> None:
    for overlay, job in [(overlay, None) for overlay in renderer().OVERLAYS] + [("cpu", "mlp"), ("cpu", "retrain")]:
        documents = rendered(overlay, (), job)
        for role, template in [each for document in documents for each in pod_templates(document)
                               if each[0] in ("head", "worker")]:
            (settings,) = [named(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
                           for source in containers(template)[0]["envFrom"]
                           if source["configMapRef"]["name"].endswith("-settings")]
            assert {name: settings.get(name) for name in RAY_SETTINGS} == RAY_SETTINGS, (overlay, job, role)


def test_a_job_s_cluster_is_taken_away_when_the_job_ends() -> None:
    for job in [name for name in renderer().JOBS if name not in ("serve-config", "transformer-zero3")]:
        (made,) = [found for found in map(job_of, rendered("cpu", (), job)) if found]
        assert made["shutdownAfterJobFinishes"] and made["ttlSecondsAfterFinished"] == 0, job


def test_a_component_reaches_what_is_around_the_cluster() -> None:
    """A job or an endpoint has the whole cluster in it, as components have left it: containers,
    images and resources too."""
    for overlay, job in (("gpu", "transformer"), ("gpu", "retrain"), ("serving", None)):
        documents = rendered(overlay, ("redis", "spot", "storage-s3", "tls"), job)
        cluster = next(found for found in map(rules.cluster_of, documents) if found)
        worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
        assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "trainyard-redis:6379"
        assert cluster["tlsOptions"] == {"enabled": True}
        assert worker["terminationGracePeriodSeconds"] == 25
        assert worker["containers"][0]["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "2"]}}}
        assert worker["containers"][0]["image"] and worker["containers"][0]["resources"]["limits"]["memory"]
        assert {"secretRef": {"name": "trainyard-s3", "optional": True}} in worker["containers"][0]["envFrom"]
        assert not any(each["kind"] in ("RayCluster", "PersistentVolumeClaim") for each in documents)


def test_what_plain_kustomize_prints_is_what_render_prints() -> None:
    for overlay in renderer().OVERLAYS:
        command = ["kubectl", "kustomize", ROOT / "k8s/overlays" / overlay]
        plain = subprocess.run(command, capture_output=True, text=True, check=True)
        assert list(yaml.safe_load_all(plain.stdout)) == list(rendered(overlay))


@pytest.mark.parametrize("registry",
                         ["$(id)", "registry.example/Team", "a b", "registry.example/team;id", "-x",
                          "https://registry.example",
                          "registry.example//team", "registry.example\n", "registry.example:port"])
def test_a_registry_that_no_images_name_begins_with_is_refused(registry: str) -> None:
    with pytest.raises(renderer().RefusedError,
                       match=r"an image's name cannot begin like that: give HOST\[:PORT\]\[/PATH\]"):
        renderer().images(registry, "torch")


def test_a_registry_is_put_before_every_image_of_ours() -> None:
    text = renderer().render("gpu", ("redis",), "cnn", registry="registry.example/team/")
    images = re.findall(r"image: (\S+)", text)
    ours = f"registry.example/team/trainyard-tensorflow:{rules.image_tag('cuda')}"
    assert set(images) == {ours, "redis:7.2.5-bookworm"} and images.count(ours) == 3


@pytest.mark.parametrize(("arguments", "words"), [
    (["cpu", "--with", "redis,redsi"], "no such component: choose of"),
    (["serving", "--job", "mlp"], "an endpoint is no job"),
    (["cpu", "--with", "kueue,autoscaler"], "leave one of them out"),
    (["serving", "--with", "kueue"], "leave one of them out"),
    (["cpu", "--with", "kueue", "--job", "retrain"], "leave one of them out"),
])
def test_what_does_not_go_together_is_refused_with_the_remedy(arguments: list[str], words: str,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert renderer().main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out and said.err.count("\n") == 1


def test_an_endpoint_s_config_comes_from_a_file_and_no_file_of_the_repository_changes(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("# of mine: 'quoted'\napplications:\n- {name: endpoint, args: {a: \"b\"}}\n")
    for overlay in ("serving", "serving-local"):
        documents = tuple(yaml.safe_load_all(renderer().render(overlay, serve_config=file)))
        service = named(documents, "RayService")
        assert service["spec"].pop("serveConfigV2") == file.read_text()
        without = copy.deepcopy(named(rendered(overlay), "RayService"))
        del without["spec"]["serveConfigV2"]
        assert service == without


@pytest.mark.parametrize(("arguments", "text", "words"), [
    (["cpu"], "applications: []", "it has no endpoint"),
    (["serving"], None, "No such file"),
    (["serving"], "error: no such run", "it has no `applications`"),
    (["serving"], "", "is not what"),
    (["serving"], "a: [", "is not what"),
])
def test_what_is_no_endpoint_s_config_is_refused(arguments: list[str], text: str | None, words: str, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.yaml"
    if text is not None:
        file.write_text(text)
    assert renderer().main([*arguments, "--serve-config", str(file)]) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out and said.err.count("\n") == 1


def test_overlays_with_endpoints_have_names_of_their_own() -> None:
    """One that changes the other's upgradeStrategy.type while it is upgraded is an outage."""
    overlays = [overlay for overlay in renderer().OVERLAYS if overlay.startswith("serving")]
    names = [named(rendered(overlay), "RayService")["metadata"]["name"] for overlay in overlays]
    assert len(names) == len(set(names)) == 2


def test_what_is_made_for_one_owner_is_deleted_with_it_by_the_readme_s_command() -> None:
    """By a label: who owns it is known when it is there only."""
    kinds = {"mlp": "RayJob", "retrain": "RayCronJob", "serve-config": "Job", None: "RayCluster"}
    for overlay, job, kind in [*(("cpu", job, kind) for job, kind in kinds.items()), ("serving", None, "RayService")]:
        documents = rendered(overlay, (), job)
        owner = named(documents, kind)["metadata"]["name"]
        beside = [f"{owner}-{what}" for what in ("head", "worker", "settings")]
        own = [each for each in documents if each["kind"] == kind or (
            each["kind"] in ("ConfigMap", "PodDisruptionBudget") and each["metadata"]["name"] in beside)]
        labelled = [each for each in documents
                    if each["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == owner]
        assert own == labelled and {"ConfigMap", kind} <= {each["kind"] for each in own}, (overlay, job)
    pattern = r"^kubectl delete (\S+) -n trainyard -l app.kubernetes.io/instance=mlp"
    (command,) = re.findall(pattern, README.read_text(), re.MULTILINE)
    made = {each["kind"].lower() for each in rendered("cpu", (), "mlp") if "mlp" in each["metadata"]["name"]}
    assert set(command.split(",")) == made


def test_only_json_patches_are_used() -> None:
    """A strategic merge of `containers` would replace the list in a resource of KubeRay's, and still be valid."""
    files = sorted((ROOT / "k8s").rglob("kustomization.yaml"))
    assert len(files) > 20
    for file in files:
        said = yaml.safe_load(file.read_text())
        assert not {"patchesStrategicMerge", "patchesJson6902", "merge"} & set(said), file
        for patch in said.get("patches", []):
            operations = yaml.safe_load(patch["patch"]
                                        if "patch" in patch else (file.parent / patch["path"]).read_text())
            assert isinstance(operations, list), file
            assert {each["op"] for each in operations} <= {"add", "remove", "replace", "test"}, file


# ── monitoring ──
def test_pod_monitors_find_pods_and_their_port() -> None:
    if "monitoring" not in renderer().COMPONENTS:
        pytest.skip("k8s/components/monitoring is not there")
    documents = rendered("cpu", ("monitoring",))
    templates = [template for document in documents for _, template in pod_templates(document)]
    monitors = [each["spec"] for each in documents if each["kind"] == "PodMonitor"]
    assert monitors
    for monitor in monitors:
        chosen = [template for template in templates if selects(monitor["selector"], labels(template))]
        assert chosen, monitor
        ports = {port["name"]
                 for template in chosen for container in containers(template) for port in container.get("ports", [])}
        assert {each["port"] for each in monitor["podMetricsEndpoints"] if "port" in each} <= ports


# ── the operator ──
def test_the_gate_that_needs_cert_manager_is_off_until_the_readme_has_installed_it() -> None:
    gates = yaml.safe_load((ROOT / "k8s/operator.yaml").read_text())["featureGates"]
    (tls,) = [number for number, gate in enumerate(gates) if gate["name"] == "RayClusterMTLS"]
    assert not gates[tls]["enabled"] and all(gate["enabled"] for gate in gates if gate is not gates[tls])
    text = README.read_text()
    turned_on = f"--values k8s/operator.yaml --set 'featureGates[{tls}].enabled=true'"
    assert text.index("helm install cert-manager") < text.index(turned_on)


# ── the README ──
def test_every_secret_is_described_in_the_readme() -> None:
    wanted = set().union(*(rules.secrets(rendered(*each)) for each in COMBINATIONS))
    assert wanted == {"trainyard-ray-token", "trainyard-redis", "trainyard-s3", "trainyard-api-keys"}
    described = set(re.findall(r"kubectl create secret generic (\S+)", README.read_text()))
    assert wanted <= described


def requested(template: Document, *beside: Document) -> tuple[float, float]:
    """CPUs and GiB of a pod."""
    asked = [container["resources"]["requests"] for container in (*template["spec"]["containers"], *beside)]
    return (sum(float(each["cpu"].removesuffix("m")) / (1000 if each["cpu"].endswith("m") else 1) for each in asked),
            sum(float(each["memory"].removesuffix("Gi")) for each in asked))


def requests_of(overlay: str) -> tuple[float, float]:
    """Of an overlay's cluster before it grows."""
    cluster = next(found for found in map(rules.cluster_of, rendered(overlay)) if found)
    (group,) = cluster["workerGroupSpecs"]
    beside = [cluster["autoscalerOptions"]] if "autoscalerOptions" in cluster else []
    head = requested(cluster["headGroupSpec"]["template"], *beside)
    worker = requested(group["template"])
    return head[0] + group["replicas"] * worker[0], head[1] + group["replicas"] * worker[1]


def test_the_requests_in_the_readme_are_those_of_the_manifests() -> None:
    text = " ".join(README.read_text().split())
    for overlay in renderer().OVERLAYS:
        cpus, memory = requests_of(overlay)
        assert re.search(rf"\| `{overlay}` \| [^|]+ \| {cpus:g} CPUs, {memory:g} GiB \|", text), (overlay, cpus, memory)
    submitter = requested(named(rendered("local", (), "mlp"), "RayJob")["spec"]["submitterPodTemplate"])
    operator = 0.1, 0.5  # KubeRay's chart, 1.7.0
    for cpus, memory in (submitter, operator):
        assert f"{cpus:g} CPUs and {memory:g} GiB" in text
    cpus, memory = (sum(each) for each in zip(requests_of("local"), submitter, operator, strict=True))
    assert f"`local` with a job needs nodes that have {cpus:g} CPUs and {memory:g} GiB free" in text
    cpus, memory = requests_of("serving-local")
    assert f"(`serving-local`: {2 * cpus:g} CPUs, {2 * memory:g} GiB)" in text
    assert f"({3 * cpus:g} CPUs, {3 * memory:g} GiB)" in text


def test_every_command_of_the_readme_that_renders_does() -> None:
    lines = [re.split("[#|>]", line)[0] for line in README.read_text().splitlines()
             if line.startswith("python k8s/render.py")]
    commands = [shlex.split(line) for line in lines if not re.search("OVERLAY|SERVING", line)]
    assert len(commands) >= 6
    for command in commands:
        assert renderer().main(command[2:]) == 0, command


def test_the_walk_through_writes_nothing_into_the_repository_sets_what_it_uses_and_takes_all_away() -> None:
    text = README.read_text()
    assert re.findall(r"> (\S+\.yaml)", text) == ["serve-1.yaml", "endpoint-1.yaml", "serve-2.yaml", "endpoint-2.yaml"]
    assert text.index("\nKEY=") < text.index("$KEY")
    (deleted,) = re.findall(r"^kubectl delete crd ([\w. ]+?) +#", text, re.MULTILINE)
    _, schemas = validator()
    kinds = {kind for group, kind in schemas if group == "ray.io/v1"}
    assert sorted(deleted.split()) == sorted(f"{kind.lower()}s.ray.io" for kind in kinds)


def test_readme_lists_what_there_is() -> None:
    text = README.read_text()
    for name in [*renderer().OVERLAYS, *renderer().COMPONENTS, *renderer().JOBS]:
        assert f"`{name}`" in text, name
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "k8s" / Path(path)).exists(), path
