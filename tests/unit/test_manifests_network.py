"""The NetworkPolicies of k8s/ let through what is needed, and nothing else: read as a network plugin reads them."""

import re

import pytest
import yaml

from cluster.kubernetes.rayjob import minimal
from tests.manifest_network import Pod, may, pods
from tests.manifests import ROOT, containers, need_kubectl, pod_templates, rendered, renderer

OPERATOR = Pod(namespace="kuberay-operator", labels={"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS = Pod(namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
GATEWAY = Pod(labels={"gateway.networking.k8s.io/gateway-name": "trainyard-serving-gateway"})
NEIGHBOUR = Pod(labels={"app": "notebook"})
STRANGER = Pod(namespace="shop", labels={"app": "shop"})
KUBE_DNS, OPENSHIFT_DNS = Pod(namespace="kube-system", labels={"k8s-app": "kube-dns"}), Pod(namespace="openshift-dns")
NODE_LOCAL_DNS, DNS_SERVICE = Pod(address="169.254.20.10"), Pod(address="10.96.0.10")
METADATA, INTERNET = Pod(address="169.254.169.254"), Pod(address="52.216.0.1")
README = ROOT / "k8s/README.md"
RAY_PORTS = (6379, 8265, 10001, 8080, 8000, 44217, 52365, 30000)


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    need_kubectl()


def test_ray_nodes_reach_each_other_at_every_port() -> None:
    for overlay, job in (("cpu", None), ("deepspeed", "transformer-zero3"), ("serving", None)):
        documents = rendered(overlay, (), job)
        there = pods(documents)
        for one, other in (("head", "worker"), ("worker", "head"), ("worker", "worker")):
            assert all(may(documents, there[one], there[other], port) for port in RAY_PORTS)


def test_whoever_else_is_in_the_namespace_or_the_cluster_reaches_no_port_of_ray() -> None:
    for overlay, job in (("cpu", "mlp"), ("serving", None)):
        documents = rendered(overlay, ("redis",), job)
        there = pods(documents)
        for who in (NEIGHBOUR, STRANGER, METADATA):
            assert not any(may(documents, who, there[role], port) for role in ("head", "worker") for port in RAY_PORTS)
        assert not may(documents, NEIGHBOUR, there["StatefulSet"], 6379)
        assert not may(documents, there["worker"], there["StatefulSet"], 6379)
        assert may(documents, there["head"], there["StatefulSet"], 6379)


def test_the_submitter_and_the_operator_reach_the_dashboard_and_nothing_else() -> None:
    documents = rendered("cpu", (), "mlp")
    there = pods(documents)
    for who, ports in ((there["submitter"], {8265}), (OPERATOR, {8265, 8000})):
        assert {port for port in RAY_PORTS if may(documents, who, there["head"], port)} == ports
        assert not any(may(documents, who, there["worker"], port) for port in RAY_PORTS)


def test_a_rayjob_that_is_submitted_without_a_template_reaches_what_it_needs() -> None:
    policies = [each for each in rendered("cpu") if each["kind"] == "NetworkPolicy"]
    documents = (*policies, minimal("x:1", workers=1, cpus=1, memory="1Gi", gpus=0))
    there = pods(documents)
    assert set(there) == {"head", "worker", "submitter"}
    assert may(documents, there["submitter"], there["head"], 8265) and may(documents, OPERATOR, there["head"], 8265)
    assert all(may(documents, there["worker"], there["head"], port) for port in RAY_PORTS)
    assert all(may(documents, there[role], INTERNET, 443) for role in ("head", "worker"))


def test_prometheus_reaches_metrics_at_the_ports_that_are_declared() -> None:
    documents = rendered("cpu")
    there = pods(documents)
    for role, template in [each for document in documents for each in pod_templates(document)]:
        (metrics,) = [port["containerPort"] for container in containers(template) for port in container["ports"]
                      if port["name"] == "metrics"]
        assert {port for port in RAY_PORTS if may(documents, PROMETHEUS, there[role], port)} == {metrics, 44217}


def test_an_endpoint_is_reached_through_its_gateway_and_from_namespaces_that_say_so() -> None:
    documents = rendered("serving")
    there = pods(documents)
    shop = Pod(namespace="shop", namespace_labels={"trainyard/asks-endpoints": "true"})
    for who in (GATEWAY, shop):
        assert {port for port in RAY_PORTS if may(documents, who, there["worker"], port)} == {8000}
        assert not any(may(documents, who, there["head"], port) for port in RAY_PORTS)
    assert may(documents, INTERNET, GATEWAY, 80) and not may(documents, NEIGHBOUR, there["worker"], 8000)
    training = rendered("cpu")
    assert not may(training, GATEWAY, pods(training)["worker"], 8000)


def test_pods_reach_names_buckets_and_mlflow_but_not_the_machine_s_own_role() -> None:
    documents = rendered("cpu", ("redis", "storage-s3"), "mlp")
    there = pods(documents)
    mlflow = Pod(namespace="mlflow")
    for role, pod in there.items():
        works = role in ("head", "worker")
        for dns, port in ((KUBE_DNS, 53), (NODE_LOCAL_DNS, 53), (OPENSHIFT_DNS, 5353)):
            assert all(may(documents, pod, dns, port, protocol) for protocol in ("UDP", "TCP")), role
        assert not may(documents, pod, NODE_LOCAL_DNS, 80) and not may(documents, pod, DNS_SERVICE, 53, "UDP")
        assert may(documents, pod, INTERNET, 443) == may(documents, pod, mlflow, 5000) == works, role
        assert not any(may(documents, pod, METADATA, port) for port in (80, 443))
        assert not may(documents, pod, INTERNET, 80)
    assert may(documents, there["head"], INTERNET, 6443) and not may(documents, there["worker"], INTERNET, 6443)


def test_the_readme_s_policy_opens_the_dns_service_where_the_cache_has_its_address() -> None:
    (text,) = re.findall(r"<<EOF\n(.+?NetworkPolicy.+?)\nEOF\n", README.read_text(), re.DOTALL)
    policy = yaml.safe_load(re.sub(r"\$\(.+?\)", "10.96.0.10", text))
    documents = (*rendered("cpu", (), "mlp"), policy)
    for pod in pods(documents).values():
        assert all(may(documents, pod, DNS_SERVICE, 53, protocol) for protocol in ("UDP", "TCP"))
        assert not may(documents, pod, Pod(address="10.96.0.11"), 53, "UDP")


def test_without_the_policies_everyone_gets_in_so_the_reading_is_none_that_always_refuses() -> None:
    documents = tuple(each for each in rendered("cpu") if each["kind"] != "NetworkPolicy")
    assert may(documents, STRANGER, pods(documents)["head"], 8265)
    opened = (*rendered("cpu"), {"kind": "NetworkPolicy", "metadata": {"name": "hole"}, "spec": {
        "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8265}]}]}})
    assert may(opened, STRANGER, pods(rendered("cpu"))["head"], 8265)
    assert "cpu" in renderer().OVERLAYS
