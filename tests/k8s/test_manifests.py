"""The manifests hold what k8s/README.md says: the files everywhere, what kustomize makes of them where kubectl is."""

import json
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from service import settings
from service.life import MARGIN_S
from tests.k8s import promises, shape
from tests.k8s.manifests import ADD_ONS, K8S, Manifests, copied, kubectl, kustomizations, rendered, sources

Check = Callable[[Manifests], list[str]]
CHECKS: tuple[Check, ...] = (
    shape.schema,
    shape.pod_security,
    shape.selectors,
    shape.references,
    promises.probes,
    promises.listening,
    promises.shutdown,
    promises.rollout,
    promises.autoscaling,
    promises.resources,
    promises.network,
    promises.exposure,
    promises.secrets,
    promises.names,
)
OVERLAYS = ("base", "overlays/dev", "overlays/prod", "overlays/addons")
_VARIABLE = re.compile(r"\b(?:BATON|ANTHROPIC)_[A-Z][A-Z_]*[A-Z]\b(?!…|\*)")


def by_name(check: Check) -> str:
    return check.__name__


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ that can be rendered."""
    if kubectl() is None:
        pytest.skip("NOT RUN: overlays are not rendered, for there is no kubectl on this machine")
    return copied(tmp_path_factory.mktemp("rendered"))


@pytest.fixture(scope="module", params=["files", *OVERLAYS])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The files, then each overlay."""
    if request.param == "files":
        return sources()
    tree: Path = request.getfixturevalue("tree")
    return rendered(tree / request.param)


@pytest.mark.parametrize("check", CHECKS, ids=by_name)
def test_it_holds(manifests: Manifests, check: Check) -> None:
    assert check(manifests) == []


def test_its_settings_are_accepted(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("BATON_", "ANTHROPIC_"))]:
        monkeypatch.delenv(name)
    for name, value in {**promises.environment(manifests), "BATON_SECRET": "s" * 32}.items():
        monkeypatch.setenv(name, value)
    assert settings.read().listen == "0.0.0.0:8000"


# What only a rendered overlay shows.


def test_dev_keeps_its_redis_to_itself_and_rolls_with_its_secret(tree: Path) -> None:
    dev = rendered(tree / "overlays/dev")
    (secret,) = dev.of("Secret")
    assert secret["metadata"]["name"] != "baton"
    used = [one["valueFrom"]["secretKeyRef"]["name"] for one in dev.replica()["env"] if "valueFrom" in one]
    assert set(used) == {secret["metadata"]["name"]}
    to_redis = dev.one("NetworkPolicy", "baton-to-redis")["spec"]["egress"][0]["to"]
    assert to_redis == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "baton-redis"}}}]
    assert {one["metadata"].get("namespace", "baton-dev") for one in dev.documents} == {"baton-dev"}
    assert dev.one("Namespace", "baton-dev")


def test_prod_runs_a_digest_on_three_replicas_and_holds_no_secret(tree: Path) -> None:
    prod = rendered(tree / "overlays/prod")
    assert re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", prod.replica()["image"])
    assert prod.one("HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 3
    assert prod.of("Secret") == []
    keys = {one["secretKey"] for one in prod.one("ExternalSecret")["spec"]["data"]}
    asked = [one["valueFrom"]["secretKeyRef"] for one in prod.replica()["env"]]
    wanted = {one["key"] for one in asked if not one.get("optional")}
    assert keys == wanted
    for block in prod.one("NetworkPolicy", "baton-to-redis")["spec"]["egress"][0]["to"]:
        assert int(block["ipBlock"]["cidr"].rpartition("/")[2]) >= 24, "all private networks"


def test_running_turns_scale_beside_cpu(tree: Path) -> None:
    spec = rendered(tree / "overlays/addons").one("HorizontalPodAutoscaler")["spec"]
    assert [metric["type"] for metric in spec["metrics"]] == ["Resource", "Pods"]
    each = int(spec["metrics"][1]["pods"]["target"]["averageValue"])
    assert each * 2 <= promises._default("turns_running_max"), "a replica is full before another one helps"


# What only the files show.


def test_every_file_is_used_by_a_kustomization() -> None:
    used = set()
    for folder, kustomization in kustomizations().items():
        listed = [*kustomization.get("resources", [])]
        for made in [*kustomization.get("configMapGenerator", []), *kustomization.get("secretGenerator", [])]:
            listed += [name.rpartition("=")[2] for name in [*made.get("envs", []), *made.get("files", [])]]
        used |= {f"{folder}/{name}" for name in [*listed, "kustomization.yaml"]}
    there = {str(path.relative_to(K8S)) for path in K8S.rglob("*") if path.is_file() and path.name != "secret.env"}
    assert there - used == {"README.md", "overlays/dev/secret.env.example"}


def test_no_file_holds_a_secret() -> None:
    assert sources().of("Secret") == []
    for path in (path for path in K8S.rglob("*") if path.is_file() and path.name not in ("secret.env", "README.md")):
        assert not re.search(r"sk-ant-\w{8}|://[^\s$:/]+:\w+@", path.read_text("utf-8")), path


def test_every_add_on_is_rendered_by_these_tests() -> None:
    components = {folder.rpartition("/")[2] for folder, one in kustomizations().items() if one["kind"] == "Component"}
    assert components == {*ADD_ONS, "redis"}


def test_every_number_of_a_resource_has_its_reason() -> None:
    for path in K8S.rglob("*.yaml"):
        lines = path.read_text("utf-8").splitlines()
        for before, line in pairwise(lines):
            if re.match(r" +(cpu|memory|storage|ephemeral-storage): [\d\w]+", line):
                assert "#" in line or "#" in before, f"{path.relative_to(K8S)}: {line.strip()}"


def test_the_grace_period_is_the_sum_that_is_written_beside_it() -> None:
    text = (K8S / "base/deployment.yaml").read_text("utf-8")
    parts = re.findall(r"^ +# (?:\+ )?(\d+) s (\S+)", text, re.MULTILINE)
    (total,) = re.findall(r"^ +# = (\d+) s$", text, re.MULTILINE)
    manifests = sources()
    assert sum(int(part) for part, _ in parts) == int(total) == manifests.pod()["terminationGracePeriodSeconds"]
    assert int(parts[0][0]) == manifests.replica()["lifecycle"]["preStop"]["sleep"]["seconds"]
    written = {word.rstrip(",:"): float(part) for part, word in parts}
    drains = [settings.variable(name) for name in settings.Settings.model_fields if name.startswith("drain_")]
    assert {name: written.get(name) for name in drains} == {name: manifests.seconds(name) for name in drains}
    assert written["end"] == MARGIN_S
    for part, word in [*parts, (total, "")]:
        assert re.search(rf"^\| .*\| {part} \|", README, re.MULTILINE), f"README.md lacks {part} s {word}"


README = (K8S / "README.md").read_text("utf-8")


def test_readme_and_files_name_settings_that_are_read() -> None:
    known = {settings.variable(name) for name in settings.Settings.model_fields}
    for path in (path for path in K8S.rglob("*") if path.is_file()):
        named = {name for name in _VARIABLE.findall(path.read_text("utf-8")) if not settings._INJECTED.match(name)}
        assert named <= known, path
    told = {*promises.environment(sources())} - {"REDIS_PASSWORD"}
    assert told <= set(_VARIABLE.findall(README)), "README.md does not name every variable of the manifests"


def test_the_prometheus_rules_are_those_that_are_tested() -> None:
    tested = K8S.parent / "deploy/prometheus/rules.yml"
    if not tested.exists():
        pytest.skip(f"NOT RUN: there is no {tested.relative_to(K8S.parent)}")
    groups = yaml.safe_load(tested.read_text("utf-8"))["groups"]
    assert sources().one("PrometheusRule")["spec"]["groups"] == groups, "run: python -m tests.k8s.monitoring"


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(sources().one("ConfigMap", "baton-dashboard")["data"]["baton.json"])
    assert dashboard["uid"] and dashboard["panels"]
