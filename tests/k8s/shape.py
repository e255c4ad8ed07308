"""What must hold of any manifests: the schema, Pod Security, and that what is named exists.

Each check takes manifests and tells problems in sentences; none is good.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate

from tests.k8s.manifests import Document, Manifests, ports

OLDEST, NEWEST = "1.30", "1.37"
CUSTOM = {  # kinds that come with an add-on; no schema of theirs is at hand
    "ExternalSecret": "external-secrets.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def named(one: Document) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def schema_of(version: str, manifests: Manifests) -> list[str]:
    """The strict schema: a misspelt field is a problem, and so is a kind that this Kubernetes does not have."""
    known = [one for one in manifests.documents if CUSTOM.get(one["kind"]) != one["apiVersion"]]
    return [f"{named(one)}: {told}" for one in known for told in _validated(version, json.dumps(one))]


@cache
def _validated(version: str, document: str) -> tuple[str, ...]:
    """Of one document; many are in several deployments, and each look reads megabytes of schema."""
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'/'.join(map(str, error.absolute_path))}: {error.message}",)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (str(error.message),)
    return ()


def schema(manifests: Manifests) -> list[str]:
    """At the oldest and the newest Kubernetes."""
    return [f"{version}: {told}" for version in (OLDEST, NEWEST) for told in schema_of(version, manifests)]


def pod_security(manifests: Manifests) -> list[str]:
    """Pod Security's level `restricted`, and what we ask beyond it."""
    found = []
    for workload in manifests.workloads():
        pod = workload["spec"]["template"]["spec"]
        found += [f"{named(workload)}: {told}" for told in [*_of_pod(pod), *_of_containers(pod)]]
    for namespace in manifests.of("Namespace"):
        labels = namespace["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            found.append(f"{named(namespace)}: does not enforce restricted")
    for account in manifests.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            found.append(f"{named(account)}: its token is mounted")
    return found


def _of_pod(pod: Document) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is set"
    for field in ("automountServiceAccountToken", "enableServiceLinks"):
        if pod.get(field) is not False:
            yield f"{field} is not false"
    for volume in pod.get("volumes", []):
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"volume {volume['name']} has no sizeLimit"


def _of_containers(pod: Document) -> Iterator[str]:
    shared = pod.get("securityContext", {})
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        both = {**shared, **own}
        if both.get("runAsNonRoot") is not True:
            yield "may run as root"
        if not isinstance(both.get("runAsUser"), int) or both["runAsUser"] == 0:
            yield "has no user by number, or root's"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "has no seccomp profile"
        if own.get("privileged"):
            yield "is privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "may escalate privileges"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield "has capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield "may write its root file system"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "takes a port of the node"


def selectors(manifests: Manifests) -> list[str]:
    """Every selector chooses the pods that it is meant for: it matches those of exactly one workload."""
    found = []
    for one in manifests.documents:
        for where, labels in _selecting(one):
            workloads = [pods for pods in manifests.workloads() if labels.items() <= _labels(pods).items()]
            if [pods["metadata"]["name"] for pods in workloads] != [_meant(one)]:
                found.append(
                    f"{named(one)}: {where} {labels} chooses {[named(pods) for pods in workloads] or 'nothing'}"
                )
    return found


def _labels(workload: Document) -> dict[str, str]:
    return dict(workload["spec"]["template"]["metadata"]["labels"])


def _meant(one: Document) -> str:
    """Whom a document is about, by its label."""
    return str(one["metadata"]["labels"]["app.kubernetes.io/name"])


def _selecting(one: Document) -> Iterator[tuple[str, dict[str, str]]]:
    spec = one.get("spec", {})
    match one["kind"]:
        case "Service":
            yield "selector", spec["selector"]
        case "Deployment" | "StatefulSet":
            yield "selector", spec["selector"]["matchLabels"]
            for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
                yield spread["topologyKey"], spread["labelSelector"]["matchLabels"]
        case "PodDisruptionBudget" | "PodMonitor":
            yield "selector", spec["selector"]["matchLabels"]
        case "NetworkPolicy" if spec["podSelector"]:
            yield "podSelector", spec["podSelector"]["matchLabels"]


def references(manifests: Manifests) -> list[str]:
    """What is named exists: ports, config maps, accounts, services, targets of autoscalers, volumes."""
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests.documents}
    made = {one["spec"]["target"]["name"] for one in manifests.of("ExternalSecret")} | {
        "baton"
    }  # by whoever applies it
    found = []
    for one in manifests.documents:
        for kind, name in _references(one):
            if (kind, name) not in there and not (kind == "Secret" and name in made):
                found.append(f"{named(one)}: there is no {kind} {name}")
    return [*found, *_ports(manifests), *_mounts(manifests)]


def _references(one: Document) -> Iterator[tuple[str, str]]:
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment" | "StatefulSet":
            pod = spec["template"]["spec"]
            if "serviceName" in spec:
                yield "Service", spec["serviceName"]
            if "serviceAccountName" in pod:
                yield "ServiceAccount", pod["serviceAccountName"]
            for volume in pod.get("volumes", []):
                if "configMap" in volume:
                    yield "ConfigMap", volume["configMap"]["name"]
            for container in pod["containers"]:
                for source in container.get("envFrom", []):
                    yield "ConfigMap", source["configMapRef"]["name"]
                for variable in container.get("env", []):
                    if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                        yield "Secret", secret["name"]
        case "HorizontalPodAutoscaler":
            yield spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]
        case "Ingress":
            for path in ingress_paths(one):
                yield "Service", path["backend"]["service"]["name"]
        case "HTTPRoute":
            for rule in spec["rules"]:
                yield from (("Service", backend["name"]) for backend in rule["backendRefs"])


def ingress_paths(ingress: Document) -> list[Document]:
    return [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]


def _ports(manifests: Manifests) -> Iterator[str]:
    by_name = {one["metadata"]["name"]: dict(ports(one)) for one in manifests.workloads()}
    offered: dict[Any, set[Any]] = {}
    for service in manifests.of("Service"):
        known = by_name[_meant(service)]
        listed = service["spec"]["ports"]
        offered[service["metadata"]["name"]] = {port["name"] for port in listed} | {port["port"] for port in listed}
        for port in listed:
            if port["targetPort"] not in known and port["targetPort"] not in known.values():
                yield f"{named(service)}: no container has port {port['targetPort']}"
    for monitor in manifests.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in by_name[_meant(monitor)]:
                yield f"{named(monitor)}: no container has port {endpoint['port']}"
    for workload in manifests.workloads():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(kind, {})
                port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
                if asked and port not in dict(ports(workload)):
                    yield f"{named(workload)}: {kind} asks port {port}"
    for one in manifests.of("Ingress", "HTTPRoute"):
        for name, wanted in _backends(one):
            if wanted not in offered.get(name, set()):
                yield f"{named(one)}: service {name} has no port {wanted}"


def _backends(one: Document) -> Iterator[tuple[str, Any]]:
    if one["kind"] == "Ingress":
        for path in ingress_paths(one):
            service = path["backend"]["service"]
            yield service["name"], service["port"].get("name") or service["port"]["number"]
    else:
        for rule in one["spec"]["rules"]:
            yield from ((backend["name"], backend["port"]) for backend in rule["backendRefs"])


def _mounts(manifests: Manifests) -> Iterator[str]:
    for workload in manifests.workloads():
        pod = workload["spec"]["template"]["spec"]
        volumes = [
            *pod.get("volumes", []),
            *(one["metadata"] for one in workload["spec"].get("volumeClaimTemplates", [])),
        ]
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        for name in mounted ^ {volume["name"] for volume in volumes}:
            yield f"{named(workload)}: volume {name} is mounted and not there, or there and not mounted"
