"""``python -m tests.k8s.monitoring`` puts the rules of deploy/prometheus/rules.yml into the PrometheusRule."""

import yaml

from tests.k8s.manifests import K8S

SOURCE = K8S.parent / "deploy" / "prometheus" / "rules.yml"
RULE = K8S / "components" / "monitoring" / "rules.yaml"
_GROUPS = "  groups:\n"


def renewed(rule: str, source: str) -> str:
    """The PrometheusRule with the groups of a rules file."""
    before, groups, _ = rule.partition(_GROUPS)
    assert groups, "there is no line `groups:`"
    told = yaml.safe_dump(yaml.safe_load(source)["groups"], sort_keys=False, width=1000, allow_unicode=True)
    return before + groups + "".join(f"  {line}\n" for line in told.splitlines())


if __name__ == "__main__":
    RULE.write_text(renewed(RULE.read_text("utf-8"), SOURCE.read_text("utf-8")), "utf-8")
