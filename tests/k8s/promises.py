"""What the manifests promise of Baton: no turn is lost by a rollout, nobody reaches more than he should, sums add up.

Each check takes manifests and tells problems in sentences; none is good.
"""

import asyncio
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from pydantic import SecretStr

from service import settings, telemetry
from service.app import build
from service.life import MARGIN_S
from tests.k8s.manifests import Document, Manifests, ports
from tests.k8s.shape import ingress_paths, named

RESIDENT_BYTES = 200_000_000  # of a replica; this and what follows as in docs/operations.md, "Sizing"
BODY_COPIES = 4  # of all bodies that may be held at once
HOSTILE_COPIES = 32  # of one body, whose caller wants it to cost
Network = IPv4Network | IPv6Network
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_NOT_PUBLIC = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
    "fe80::/10",
)


def amount(quantity: str) -> float:
    """Of memory, in bytes."""
    return float(quantity[:-2]) * _UNITS[quantity[-2:]] if quantity[-2:] in _UNITS else float(quantity)


@cache
def answer(path: str) -> int:
    """What a replica that has not reached its store answers to GET: the application itself is asked."""
    statuses: list[int] = []

    async def ask() -> None:
        told = settings.Settings(ANTHROPIC_API_KEY="none")  # type: ignore[call-arg]
        application = build(told, "redis://127.0.0.1:1", "s" * 16, on_refused=lambda _: None)
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "headers": [], "scheme": "http", "server": ("127.0.0.1", 8000)}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await application.asgi(scope, receive, send)

    asyncio.run(ask())
    return statuses[0]


def probes(manifests: Manifests) -> list[str]:
    """Liveness is the process alone and patient, readiness the replica's word; every path that is asked exists."""
    replica, found = manifests.replica(), []
    wanted = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for kind, path in wanted.items():
        asked = replica.get(kind, {}).get("httpGet", {}).get("path")
        if asked != path:
            found.append(f"{kind} asks {asked}, not {path}")
    if (answer("/livez"), answer("/readyz")) != (200, 503):
        found.append("without a store a replica is not alive and unready")
    liveness = replica.get("livenessProbe", {})
    if liveness.get("periodSeconds", 10) * liveness.get("failureThreshold", 3) < 30:
        found.append("livenessProbe kills within half a minute")
    for monitor in manifests.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            status = answer(endpoint["path"])
            found += [f"{named(monitor)}: {endpoint['path']} answers {status}"] if status != 200 else []
    return found


def listening(manifests: Manifests) -> list[str]:
    """Replicas listen where the port says, on every address."""
    listen = manifests.config().get("BATON_LISTEN")
    ((_, port),) = ports(manifests.one("Deployment"))
    return [] if listen == f"0.0.0.0:{port}" else [f"BATON_LISTEN is {listen}, the container's port {port}"]


def shutdown(manifests: Manifests) -> list[str]:
    """The grace period holds the native preStop sleep, the drain and what comes after it, with 10 s left."""
    sleep_s = manifests.replica().get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed_s = sleep_s + drain_s(manifests) + MARGIN_S + 10
    grace_s = manifests.pod().get("terminationGracePeriodSeconds", 30)
    found = [] if sleep_s >= 5 else [f"preStop sleeps {sleep_s} s: balancers need 5"]
    return found if grace_s >= needed_s else [*found, f"the grace period is {grace_s} s, and {needed_s:g} s are needed"]


def drain_s(manifests: Manifests) -> float:
    """Every setting of the drain, as these replicas have it."""
    fields = [name for name in settings.Settings.model_fields if name.startswith("drain_")]
    config, of = manifests.config(), settings.Settings.model_fields
    return sum(float(config.get(settings.variable(name), of[name].default)) for name in fields)


def rollout(manifests: Manifests) -> list[str]:
    """A rollout takes no replica away before another serves, and Redis is not asked whether a node may be drained."""
    spec, found = manifests.one("Deployment")["spec"], []
    rolling = spec.get("strategy", {}).get("rollingUpdate", {})
    if rolling.get("maxUnavailable") != 0 or rolling.get("maxSurge") != 1:
        found.append("the rollout is not one new replica first")
    if spec.get("minReadySeconds", 0) < 5:
        found.append("a new replica counts at once")
    spread = {one["topologyKey"] for one in manifests.pod().get("topologySpreadConstraints", [])}
    if spread != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
        found.append(f"replicas are spread over {sorted(spread)}")
    budget = manifests.one("PodDisruptionBudget")["spec"]
    if (budget.get("maxUnavailable"), budget.get("unhealthyPodEvictionPolicy")) != (1, "AlwaysAllow"):
        found.append("the disruption budget is not one replica, broken ones aside")
    return found


def autoscaling(manifests: Manifests) -> list[str]:
    """One owner of the number; up at once, down slower than turns and drains are; metrics that exist."""
    spec, deployment = manifests.one("HorizontalPodAutoscaler")["spec"], manifests.one("Deployment")["spec"]
    found = ["the Deployment has replicas, too"] if "replicas" in deployment else []
    if spec["minReplicas"] > spec["maxReplicas"]:
        found.append("fewer replicas at most than at least")
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    if up["stabilizationWindowSeconds"] != 0:
        found.append("scaling up waits")
    if down["stabilizationWindowSeconds"] < manifests.seconds("BATON_TURN_DEADLINE_S"):
        found.append("scaling down looks back less than a turn may take")
    grace_s = manifests.pod()["terminationGracePeriodSeconds"]
    slow = [one["type"] == "Pods" and one["value"] == 1 and one["periodSeconds"] >= grace_s for one in down["policies"]]
    if not all(slow):
        found.append("scaling down does not go one by one, each after the grace period of the last")
    known = {family.name for family in telemetry.REGISTRY.collect() if family.type == "gauge"}
    for metric in spec["metrics"]:
        if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in known:
            found.append(f"there is no gauge {metric['pods']['metric']['name']}")
        elif metric["type"] == "Resource" and metric["resource"]["name"] not in _requests(manifests):
            found.append(f"utilization of {metric['resource']['name']} is a share of a request that is not made")
    return found


def _requests(manifests: Manifests) -> dict[str, str]:
    return dict(manifests.replica()["resources"]["requests"])


def resources(manifests: Manifests) -> list[str]:
    """Requests, a limit of memory that holds what settings allow, and no limit of CPU."""
    found = []
    for workload in manifests.workloads():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            told = container.get("resources", {})
            if not {"cpu", "memory"} <= told.get("requests", {}).keys():
                found.append(f"{named(workload)}: requests no CPU or memory")
            if "memory" not in told.get("limits", {}):
                found.append(f"{named(workload)}: has no limit of memory")
            if "cpu" in told.get("limits", {}):
                found.append(f"{named(workload)}: has a limit of CPU")
    needed = RESIDENT_BYTES + BODY_COPIES * int(manifests.config()["BATON_BODIES_BYTES_MAX"])
    needed += HOSTILE_COPIES * int(manifests.config()["BATON_BODY_BYTES_MAX"])
    limit = amount(manifests.replica()["resources"].get("limits", {}).get("memory", "0"))
    return found if limit >= needed else [*found, f"a replica may need {needed} bytes and has {limit:.0f}"]


def network(manifests: Manifests) -> list[str]:
    """Nothing by default; in: to the ports that there are; out: names, Redis, and the public internet on 443."""
    policies, found = manifests.of("NetworkPolicy"), []
    everything = [one["spec"] for one in policies if not one["spec"]["podSelector"]]
    if everything != [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]:
        found.append("not everything is denied by default")
    for workload in manifests.workloads():
        name, open_ports = workload["metadata"]["name"], set()
        for policy in policies:
            if policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name") == name:
                open_ports |= set(_incoming(policy, found))
                found += [f"{named(policy)}: {told}" for told in _outgoing(policy)]
        if open_ports != {number for _, number in ports(workload)}:
            found.append(f"{named(workload)}: {sorted(open_ports)} may be reached, {sorted(ports(workload))} are there")
    if {53, 443, 6379} - {port for policy in policies for _, port in _targets(policy)}:
        found.append("names, Claude or Redis may not be reached")
    return found


def _incoming(policy: Document, found: list[str]) -> Iterator[int]:
    for rule in policy["spec"].get("ingress", []):
        if (
            not rule.get("from")
            or any(not peer for peer in rule["from"])
            or any("ipBlock" in peer for peer in rule["from"])
        ):
            found.append(f"{named(policy)}: anybody may come in")
        yield from (port["port"] for port in rule.get("ports", []))


def _targets(policy: Document) -> Iterator[tuple[Document, int]]:
    for rule in policy["spec"].get("egress", []):
        for port in rule.get("ports", []):
            yield from ((peer, port["port"]) for peer in rule.get("to", [{}]))


def _outgoing(policy: Document) -> Iterator[str]:
    for rule in policy["spec"].get("egress", []):
        if not rule.get("ports") or not rule.get("to"):
            yield "anything may be reached"
    for peer, port in _targets(policy):
        block = peer.get("ipBlock")
        if block is None:
            continue
        reached = ip_network(block["cidr"])
        if port == 443:
            spared = [ip_network(one) for one in block.get("except", [])]
            for private in map(ip_network, _NOT_PUBLIC):
                if private.overlaps(reached) and not any(_within(private, one) for one in spared):
                    yield f"{private} may be reached on 443"
        elif reached.prefixlen == 0:
            yield f"the whole internet may be reached on {port}"


def _within(one: Network, other: Network) -> bool:
    return one.overlaps(other) and one.prefixlen >= other.prefixlen


def exposure(manifests: Manifests) -> list[str]:
    """Keys are asked for, but in dev; only /v1 is published; silent turns are waited for; no POST is repeated."""
    wait_s = manifests.seconds("BATON_TURN_DEADLINE_S") + 2 * _default("store_settle_s")
    found = []
    for one in manifests.of("Ingress"):
        found += [f"{named(one)}: {path['path']} is published" for path in ingress_paths(one) if path["path"] != "/v1"]
        told = one["metadata"]["annotations"]
        for name in ("haproxy.org/timeout-server", "nginx.org/proxy-read-timeout"):
            if _span_s(told.get(name, "0s")) <= wait_s:
                found.append(f"{named(one)}: {name} ends turns that may still come")
        if told.get("nginx.org/proxy-buffering") != "False":
            found.append(f"{named(one)}: events are buffered")
        if told.get("nginx.org/client-max-body-size") != manifests.config()["BATON_BODY_BYTES_MAX"]:
            found.append(f"{named(one)}: bodies are not limited to BATON_BODY_BYTES_MAX")
        if any(word in str(told) for word in ("non_idempotent", "retry-on", "redispatch")):
            found.append(f"{named(one)}: POSTs are repeated")
        if answer(told.get("haproxy.org/check-http", "")) != 503:
            found.append(f"{named(one)}: its check does not ask for readiness")
    for one in manifests.of("HTTPRoute"):
        for rule in one["spec"]["rules"]:
            if [match["path"] for match in rule.get("matches", [])] != [{"type": "PathPrefix", "value": "/v1"}]:
                found.append(f"{named(one)}: more than /v1 is published")
            if _span_s(rule.get("timeouts", {}).get("request", "0s")) <= wait_s:
                found.append(f"{named(one)}: its time-out ends turns that may still come")
            if "retry" in rule:
                found.append(f"{named(one)}: POSTs are repeated")
    if (
        manifests.config().get("BATON_AUTH") != "keys"
        and manifests.one("Deployment")["metadata"].get("namespace") != "baton-dev"
    ):
        found.append("callers need no key")
    for service in manifests.of("Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            found.append(f"{named(service)}: is published as it is")
    return found


def _span_s(text: str) -> float:
    return float(text.removesuffix("s"))


def _default(field: str) -> float:
    return float(settings.Settings.model_fields[field].default)


def secrets(manifests: Manifests) -> list[str]:
    """What is secret comes out of a Secret by its name and key; nothing else in the environment holds it."""
    fields = settings.Settings.model_fields
    secret = {settings.variable(name) for name, info in fields.items() if SecretStr in _types(info.annotation)}
    literal = {one["name"]: one["value"] for one in manifests.replica().get("env", []) if one.get("value")}
    found = [f"{name} is written out" for name in secret & manifests.config().keys()]
    found += [f"{name} is written out" for name in secret & literal.keys() if "$(" not in literal[name]]
    given = [one["name"] for one in manifests.replica().get("env", [])]
    found += [
        f"{name} is not given" for name in ("ANTHROPIC_API_KEY", "BATON_REDIS_URL", "BATON_SECRET") if name not in given
    ]
    optional = _optional(manifests)
    if optional != {"BATON_ADMIN_KEY"}:
        found.append(f"pods start without {sorted(optional)}; only BATON_ADMIN_KEY may be left away")
    for name, value in literal.items():
        for used in (one.split(")")[0] for one in value.split("$(")[1:]):
            if used not in given[: given.index(name)]:
                found.append(f"{name} uses {used}, which is not there before it")
    return found


def _optional(manifests: Manifests) -> set[str]:
    """The variables without which a pod starts all the same."""
    of = {
        one["name"]: (one.get("valueFrom") or {}).get("secretKeyRef", {}) for one in manifests.replica().get("env", [])
    }
    return {name for name, key in of.items() if key.get("optional")}


def _types(annotation: Any) -> set[Any]:
    return {annotation, *getattr(annotation, "__args__", ())}


def environment(manifests: Manifests) -> dict[str, str]:
    """What a replica finds, with made-up secrets; without those that may be left away."""
    given = [one for one in manifests.replica().get("env", []) if one["name"] not in _optional(manifests)]
    made = {one["name"]: one.get("value") or "redis://127.0.0.1/0#" for one in given}
    return {**manifests.config(), **made, "ANTHROPIC_API_KEY": "none", "BATON_REDIS_URL": "redis://127.0.0.1/0"}


def names(manifests: Manifests) -> list[str]:
    """Every variable is one that Baton reads."""
    return [f"{name} is no setting" for name in settings.unknown_variables(environment(manifests))]
