"""NetworkPolicies as a network plugin reads them: whether a pod may reach another at a port."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.manifests import NAMESPACE, Document, labels, pod_templates, selects


@dataclass(frozen=True, kw_only=True)
class Pod:
    """Where packets come from or go to. address: of what is no pod of the cluster, for rules by address."""

    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    namespace: str = NAMESPACE
    namespace_labels: Mapping[str, str] = field(default_factory=dict[str, str])
    address: str | None = None


def pods(documents: Sequence[Document]) -> dict[str, Pod]:
    """By what they are for."""
    return {role: Pod(labels=labels(template)) for document in documents for role, template in pod_templates(document)}


def may(documents: Sequence[Document], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether both ends' policies let it through.
    A pod that no policy of a direction selects may all in that direction."""
    policies = [each["spec"] for each in documents if each["kind"] == "NetworkPolicy"]
    return (_direction(policies, "Egress", "egress", "to", source, target, port, protocol)
            and _direction(policies, "Ingress", "ingress", "from", target, source, port, protocol))


def _direction(policies: Sequence[Document], kind: str, key: str, peers: str, own: Pod, other: Pod, port: int,
               protocol: str) -> bool:
    if own.namespace != NAMESPACE or own.address is not None:
        return True
    on = [policy for policy in policies if kind in policy["policyTypes"] and selects(policy["podSelector"], own.labels)]
    return not on or any(_lets(rule, peers, other, port, protocol) for policy in on for rule in policy.get(key, []))


def _lets(rule: Mapping[str, Any], peers: str, other: Pod, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports and not any(each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports):
        return False
    return not rule.get(peers) or any(_is(peer, other) for peer in rule[peers])


def _is(peer: Mapping[str, Any], other: Pod) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(
            address in ipaddress.ip_network(cidr) for cidr in peer["ipBlock"].get("except", []))
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        known = {"kubernetes.io/metadata.name": other.namespace, **other.namespace_labels}
        if not selects(peer["namespaceSelector"], known):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), other.labels)
