"""Each check of the manifests finds what it is for: one field bent, one problem told."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s import promises, shape
from tests.k8s.manifests import Document, Manifests, sources
from tests.k8s.test_manifests import CHECKS, Check

Bend = Callable[[Manifests], None]
GOOD = sources()


def deployment(manifests: Manifests) -> Document:
    spec: Document = manifests.one("Deployment")["spec"]
    return spec


def pod(manifests: Manifests) -> Document:
    found: Document = deployment(manifests)["template"]["spec"]
    return found


def replica(manifests: Manifests) -> Document:
    found: Document = pod(manifests)["containers"][0]
    return found


def config(manifests: Manifests) -> Document:
    found: Document = manifests.one("ConfigMap")["data"]
    return found


def spec(kind: str, name: str = "baton") -> Callable[[Manifests], Document]:
    def of(manifests: Manifests) -> Document:
        found: Document = manifests.one(kind, name)["spec"]
        return found

    return of


def put(of: Callable[[Manifests], Document], path: str, value: Any) -> Bend:
    """Sets one field; a number in the path is the place in a list."""

    def bend(manifests: Manifests) -> None:
        *way, last = [int(one) if one.isdecimal() else one for one in path.split("/")]
        at: Any = of(manifests)
        for step in way:
            at = at[step]
        at[last] = value

    return bend


def drop(of: Callable[[Manifests], Document], field: str) -> Bend:
    def bend(manifests: Manifests) -> None:
        del of(manifests)[field]

    return bend


def without(kind: str, name: str = "baton") -> Bend:
    return lambda manifests: manifests.documents.remove(manifests.one(kind, name))


def annotation(name: str, value: str) -> Bend:
    return lambda manifests: manifests.one("Ingress")["metadata"]["annotations"].update({name: value})


def add(one: Document) -> Bend:
    return lambda manifests: manifests.documents.append(one)


OLD = {"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": "old"}, "spec": {}}
CLAUDE = spec("NetworkPolicy", "baton-to-claude")
REDIS = spec("NetworkPolicy", "baton-to-redis")
CALLERS = spec("NetworkPolicy", "baton-from-callers")
SCALER = spec("HorizontalPodAutoscaler")
ROUTE = spec("HTTPRoute")
CASES: tuple[tuple[Check, Bend, str], ...] = (
    (
        shape.schema,
        put(pod, "terminationGracePeriodSecondz", 160),
        "1.30: Deployment baton: spec/template/spec: Additional",
    ),
    (
        shape.schema,
        put(pod, "terminationGracePeriodSeconds", "160"),
        "1.37: Deployment baton: spec/template/spec/termin",
    ),
    (shape.schema, add(OLD), "1.30: PodDisruptionBudget old: Couldn't find schema"),
    (shape.pod_security, put(pod, "hostNetwork", True), "hostNetwork"),
    (shape.pod_security, put(pod, "securityContext/runAsNonRoot", False), "may run as root"),
    (shape.pod_security, put(pod, "securityContext/runAsUser", 0), "by number"),
    (shape.pod_security, drop(lambda one: pod(one)["securityContext"], "seccompProfile"), "seccomp"),
    (shape.pod_security, put(replica, "securityContext/privileged", True), "privileged"),
    (shape.pod_security, put(replica, "securityContext/allowPrivilegeEscalation", True), "escalate"),
    (shape.pod_security, put(replica, "securityContext/capabilities", {"drop": ["ALL"], "add": ["NET_RAW"]}), "capab"),
    (shape.pod_security, put(replica, "securityContext/capabilities/drop", ["NET_RAW"]), "capabilities"),
    (shape.pod_security, put(replica, "securityContext/readOnlyRootFilesystem", False), "root file system"),
    (shape.pod_security, put(replica, "ports/0/hostPort", 8000), "port of the node"),
    (shape.pod_security, put(pod, "volumes/0", {"name": "tmp", "hostPath": {"path": "/"}}), "is a hostPath"),
    (shape.pod_security, put(pod, "volumes/0/emptyDir", {}), "no sizeLimit"),
    (shape.pod_security, drop(pod, "automountServiceAccountToken"), "automountServiceAccountToken"),
    (shape.pod_security, drop(pod, "enableServiceLinks"), "enableServiceLinks"),
    (shape.pod_security, lambda one: one.one("Namespace")["metadata"].pop("labels"), "enforce"),
    (shape.pod_security, lambda one: one.one("ServiceAccount").pop("automountServiceAccountToken"), "token"),
    (shape.selectors, put(spec("Service"), "selector", {"app.kubernetes.io/name": "batonn"}), "Service baton"),
    (shape.selectors, put(spec("PodDisruptionBudget"), "selector/matchLabels", {"app": "baton"}), "PodDisruption"),
    (shape.selectors, put(CLAUDE, "podSelector/matchLabels", {"app": "baton"}), "NetworkPolicy baton-to-claude"),
    (shape.selectors, put(spec("PodMonitor"), "selector/matchLabels", {"app": "baton"}), "PodMonitor"),
    (shape.selectors, put(deployment, "template/metadata/labels", {"app": "baton"}), "Deployment baton"),
    (shape.selectors, put(pod, "topologySpreadConstraints/0/labelSelector/matchLabels", {"a": "b"}), "zone"),
    (shape.references, put(SCALER, "scaleTargetRef/name", "batonn"), "no Deployment batonn"),
    (shape.references, put(replica, "envFrom/0/configMapRef/name", "batonn"), "no ConfigMap batonn"),
    (shape.references, put(replica, "env/0/valueFrom/secretKeyRef/name", "batonn"), "no Secret batonn"),
    (shape.references, without("ServiceAccount"), "no ServiceAccount baton"),
    (shape.references, without("Service", "baton-redis"), "no Service baton-redis"),
    (shape.references, put(spec("Service"), "ports/0/targetPort", 8080), "no container has port 8080"),
    (shape.references, put(spec("Service"), "ports/0/name", "web"), "service baton has no port http"),
    (shape.references, put(ROUTE, "rules/0/backendRefs/0/port", 8000), "service baton has no port 8000"),
    (
        shape.references,
        put(spec("PodMonitor"), "podMetricsEndpoints/0/port", "metrics"),
        "no container has port metrics",
    ),
    (shape.references, put(replica, "livenessProbe/httpGet/port", "web"), "livenessProbe asks port web"),
    (shape.references, put(replica, "volumeMounts", []), "volume tmp"),
    (promises.probes, put(replica, "livenessProbe/httpGet/path", "/readyz"), "livenessProbe asks /readyz"),
    (promises.probes, put(replica, "readinessProbe/httpGet/path", "/livez"), "readinessProbe asks /livez"),
    (promises.probes, drop(replica, "startupProbe"), "startupProbe asks None"),
    (promises.probes, put(replica, "livenessProbe/failureThreshold", 1), "half a minute"),
    (promises.probes, put(spec("PodMonitor"), "podMetricsEndpoints/0/path", "/metricz"), "/metricz answers 404"),
    (promises.listening, put(replica, "ports/0/containerPort", 8080), "8080"),
    (promises.listening, put(config, "BATON_LISTEN", "127.0.0.1:8000"), "127.0.0.1"),
    (promises.shutdown, put(config, "BATON_DRAIN_S", "300"), "needed"),
    (promises.shutdown, put(pod, "terminationGracePeriodSeconds", 30), "is 30 s"),
    (promises.shutdown, drop(replica, "lifecycle"), "preStop sleeps 0 s"),
    (promises.rollout, put(deployment, "strategy/rollingUpdate/maxUnavailable", 1), "one new replica first"),
    (promises.rollout, drop(deployment, "minReadySeconds"), "at once"),
    (promises.rollout, drop(pod, "topologySpreadConstraints"), "spread over []"),
    (promises.rollout, drop(spec("PodDisruptionBudget"), "unhealthyPodEvictionPolicy"), "disruption budget"),
    (promises.autoscaling, put(deployment, "replicas", 3), "replicas, too"),
    (promises.autoscaling, put(SCALER, "minReplicas", 7), "fewer"),
    (promises.autoscaling, put(SCALER, "behavior/scaleUp/stabilizationWindowSeconds", 60), "scaling up waits"),
    (promises.autoscaling, put(SCALER, "behavior/scaleDown/stabilizationWindowSeconds", 300), "looks back less"),
    (promises.autoscaling, put(SCALER, "behavior/scaleDown/policies/0/periodSeconds", 60), "one by one"),
    (
        promises.autoscaling,
        put(SCALER, "metrics/0", {"type": "Pods", "pods": {"metric": {"name": "no"}}}),
        "no gauge no",
    ),
    (promises.autoscaling, drop(lambda one: replica(one)["resources"]["requests"], "cpu"), "share of a request"),
    (promises.resources, put(replica, "resources/limits/cpu", "1"), "limit of CPU"),
    (promises.resources, put(replica, "resources/limits/memory", "256Mi"), "may need"),
    (promises.resources, drop(lambda one: replica(one)["resources"]["limits"], "memory"), "no limit of memory"),
    (promises.resources, drop(lambda one: replica(one)["resources"]["requests"], "memory"), "requests no CPU"),
    (promises.network, without("NetworkPolicy", "default-deny"), "denied by default"),
    (promises.network, put(CALLERS, "ingress/0/ports/0/port", 80), "[80] may be reached"),
    (promises.network, put(CALLERS, "ingress/0/from", []), "anybody may come in"),
    (promises.network, put(CALLERS, "ingress/0/from", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]), "anybody may come in"),
    (promises.network, put(CLAUDE, "egress/1/to/0/ipBlock/except", ["10.0.0.0/8"]), "169.254.0.0/16 may be reached"),
    (promises.network, put(CLAUDE, "egress/1/to/1/ipBlock/except", ["fc00::/7"]), "fe80::/10 may be reached"),
    (promises.network, put(CLAUDE, "egress/1/ports", []), "anything may be reached"),
    (promises.network, put(REDIS, "egress/0/to/0/ipBlock/cidr", "0.0.0.0/0"), "internet may be reached on 6379"),
    (promises.network, without("NetworkPolicy", "baton-to-redis"), "Redis may not be reached"),
    (promises.network, without("NetworkPolicy", "baton-redis"), "StatefulSet baton-redis"),
    (promises.exposure, put(config, "BATON_AUTH", "open"), "callers need no key"),
    (promises.exposure, put(spec("Ingress"), "rules/0/http/paths/0/path", "/"), "/ is published"),
    (promises.exposure, annotation("nginx.org/proxy-read-timeout", "60s"), "nginx.org/proxy-read-timeout ends"),
    (promises.exposure, annotation("haproxy.org/timeout-server", "60s"), "haproxy.org/timeout-server ends"),
    (promises.exposure, annotation("nginx.org/proxy-buffering", "True"), "buffered"),
    (promises.exposure, annotation("nginx.org/client-max-body-size", "1m"), "BATON_BODY_BYTES_MAX"),
    (promises.exposure, annotation("nginx.org/proxy-next-upstream", "error non_idempotent"), "POSTs are repeated"),
    (promises.exposure, annotation("haproxy.org/check-http", "/livez"), "readiness"),
    (promises.exposure, put(ROUTE, "rules/0/matches/0/path/value", "/"), "more than /v1"),
    (promises.exposure, put(ROUTE, "rules/0/timeouts/request", "30s"), "time-out ends turns"),
    (promises.exposure, put(ROUTE, "rules/0/retry", {"attempts": 2}), "POSTs are repeated"),
    (promises.exposure, put(spec("Service"), "type", "LoadBalancer"), "published as it is"),
    (promises.secrets, put(config, "BATON_SECRET", "s" * 32), "BATON_SECRET is written out"),
    (promises.secrets, put(replica, "env/0", {"name": "ANTHROPIC_API_KEY", "value": "sk-ant"}), "is written out"),
    (promises.secrets, lambda one: replica(one)["env"].pop(2), "BATON_SECRET is not given"),
    (promises.secrets, put(replica, "env/2/valueFrom/secretKeyRef/optional", True), "pods start without ['BATON_ADMIN"),
    (promises.secrets, drop(lambda one: replica(one)["env"][3]["valueFrom"]["secretKeyRef"], "optional"), "without []"),
    (promises.secrets, put(replica, "env/1", {"name": "BATON_REDIS_URL", "value": "redis://$(NO)@h"}), "uses NO"),
    (promises.names, put(config, "BATON_DRAIN_SECONDS", "30"), "BATON_DRAIN_SECONDS is no setting"),
)


@pytest.mark.parametrize(("check", "bend", "told"), CASES, ids=[f"{one[0].__name__}-{one[2]}" for one in CASES])
def test_a_bent_manifest_is_found(check: Check, bend: Bend, told: str) -> None:
    bent = copy.deepcopy(GOOD)
    bend(bent)
    assert any(told in problem for problem in check(bent)), check(bent)


def test_every_check_is_bent_once() -> None:
    assert {check for check, _, _ in CASES} == set(CHECKS)


def test_the_native_sleep_is_what_sets_the_oldest_kubernetes() -> None:
    assert any("preStop" in told for told in shape.schema_of("1.28", GOOD))
