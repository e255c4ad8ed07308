"""The manifests as they are tested: as files, and as kustomize renders them.

The files need nothing but a YAML parser, so they are checked everywhere; what a generator would make of ``baton.env``
is put beside them. Rendering needs ``kubectl``, which brings kustomize.
"""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
RENDER_S = 30
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
ADD_ONS = ("autoscaling-streams", "external-secrets", "gateway", "ingress", "monitoring")


@dataclass(frozen=True)
class Manifests:
    """The documents of one deployment."""

    documents: list[Document]

    def of(self, *kinds: str) -> list[Document]:
        """Those of some kinds."""
        return [one for one in self.documents if one["kind"] in kinds]

    def one(self, kind: str, name: str = "baton") -> Document:
        """The only one of this kind and name."""
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    def workloads(self) -> list[Document]:
        """Whatever makes pods."""
        return self.of(*WORKLOADS)

    def pod(self) -> Document:
        """The pod of a replica."""
        return dict(self.one("Deployment")["spec"]["template"]["spec"])

    def replica(self) -> Document:
        """The container of a replica."""
        (container,) = self.pod()["containers"]
        return dict(container)

    def config(self) -> dict[str, str]:
        """What a replica gets of ConfigMaps."""
        names = [one["configMapRef"]["name"] for one in self.replica()["envFrom"]]
        return {
            key: value
            for one in self.of("ConfigMap")
            if one["metadata"]["name"] in names
            for key, value in one["data"].items()
        }

    def seconds(self, variable: str) -> float:
        """A setting of the replicas, in seconds."""
        return float(self.config()[variable])


def ports(workload: Document) -> Iterator[tuple[str, int]]:
    """Names and numbers of a workload's ports."""
    for container in workload["spec"]["template"]["spec"]["containers"]:
        for port in container.get("ports", []):
            yield port["name"], port["containerPort"]


def environment_file(path: Path) -> dict[str, str]:
    """Variables as kustomize reads them of a file."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def documents(text: str) -> list[Document]:
    """The documents of a YAML text."""
    return [one for one in yaml.safe_load_all(text) if one is not None]


def kustomizations(root: Path = K8S) -> dict[str, Document]:
    """Every kustomization, by its folder."""
    found = sorted(root.rglob("kustomization.yaml"))
    return {str(path.parent.relative_to(root)): yaml.safe_load(path.read_text("utf-8")) for path in found}


def sources() -> Manifests:
    """Every file that is a resource of the base or of a component, before any patch."""
    found = []
    for folder, kustomization in kustomizations().items():
        if folder.startswith("overlays"):
            continue
        for name in kustomization.get("resources", []):
            found += documents((K8S / folder / name).read_text("utf-8"))
        for made in kustomization.get("configMapGenerator", []):
            data: dict[str, str] = {}
            for name in made.get("envs", []):
                data |= environment_file(K8S / folder / name)
            for name in made.get("files", []):
                key, _, file = name.rpartition("=")
                data[key or file] = (K8S / folder / file).read_text("utf-8")
            found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    return Manifests(found)


def kubectl() -> str | None:
    """The program that renders, if the machine has one."""
    return shutil.which("kubectl")


def copied(folder: Path) -> Path:
    """A copy of k8s/ with the secrets that dev wants, and an overlay `addons` that has every add-on."""
    root = folder / "k8s"
    shutil.copytree(K8S, root, ignore=shutil.ignore_patterns("secret.env"))
    dev = root / "overlays" / "dev"
    shutil.copy(dev / "secret.env.example", dev / "secret.env")
    addons = root / "overlays" / "addons"
    addons.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "baton",
        "resources": ["../../base"],
        "components": [f"../../components/{name}" for name in ADD_ONS],
    }
    (addons / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
    return root


def rendered(folder: Path) -> Manifests:
    """What `kubectl apply -k` would send."""
    program = kubectl()
    assert program, "ask kubectl() first"
    order = [program, "kustomize", str(folder)]
    done = subprocess.run(order, capture_output=True, text=True, timeout=RENDER_S)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return Manifests(documents(done.stdout))
