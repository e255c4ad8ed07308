"""The image, the compose file and the balancer's configuration: safe as shipped, of one mind with the settings."""

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import settings
from service.life import MARGIN_S
from service.settings import Settings, variable
from tests.deployment.compose import compose_absent, environment
from tests.instruments.child import clean_environment
from tests.k8s.promises import BODY_COPIES, RESIDENT_BYTES

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
HAPROXY = ROOT / "deploy" / "haproxy.cfg"
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
REPLICAS = ("baton-1", "baton-2", "baton-3")
DEMO = {"simulator"}  # the name that answers while the profile demo is on

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def shipped(dotenv: dict[str, str] | None = None) -> dict[str, Any]:
    """The services as Compose reads them, with these variables set."""
    services: dict[str, Any] = _interpolated(yaml.safe_load(COMPOSE.read_text("utf-8"))["services"], dotenv or {})
    return services


def _interpolated(tree: Any, given: dict[str, str]) -> Any:
    match tree:
        case str():
            return _VARIABLE.sub(lambda found: given.get(found[1]) or found[2] or "", tree)
        case list():
            return [_interpolated(item, given) for item in tree]
        case dict():
            return {name: _interpolated(item, given) for name, item in tree.items()}
    return tree


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def mebibytes(text: str) -> int:
    return int(text[:-1]) * {"m": 1, "g": 1024}[text[-1]]


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, of all stages, in order: name and arguments on one line."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def last_stage() -> list[tuple[str, str]]:
    instructions = dockerfile()
    return instructions[max(at for at, (name, _) in enumerate(instructions) if name == "FROM") :]


def haproxy() -> dict[str, list[list[str]]]:
    """The sections by name: each line in words."""
    sections: dict[str, list[list[str]]] = {}
    for line in HAPROXY.read_text("utf-8").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not line[0].isspace():
            current = sections.setdefault(" ".join(words[:2]), [])
        else:
            current.append(words)
    return sections


def value(section: str, *name: str) -> list[str]:
    """The rest of the one line of a section that begins so."""
    [found] = [line[len(name) :] for line in haproxy()[section] if tuple(line[: len(name)]) == name]
    return found


# --- the image


def test_the_image_runs_as_a_number_without_a_shell() -> None:
    stage = last_stage()
    [user] = [arguments for name, arguments in stage if name == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    [health] = [arguments.partition("CMD ")[2] for name, arguments in stage if name == "HEALTHCHECK"]
    commands = [arguments for name, arguments in stage if name in ("ENTRYPOINT", "CMD", "RUN")]
    assert [json.loads(command) for command in commands if not command.startswith('["python"')] == [
        ["baton"],
        ["serve"],
    ]
    assert "'/livez'" in json.loads(health)[2], "liveness: an orchestrator restarts what is unhealthy"
    assert [name for name, _ in stage].index("USER") > [name for name, _ in stage].index("RUN")


def test_the_image_is_built_by_the_plain_frontend_from_what_is_locked() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE | re.IGNORECASE)
    for name, arguments in dockerfile():
        if name == "FROM":
            assert re.fullmatch(r"python:3\.\d+-slim( AS \w+)?", arguments)
        assert name != "ADD"
    installs = re.findall(
        r"pip(?: --python \S+)? install .*?(?=&&|$)", "\n".join(a for _, a in dockerfile()), re.MULTILINE
    )
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install
    assert "dev.txt" not in text


def test_the_image_is_made_from_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for name, arguments in dockerfile()
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


# --- the compose file


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [port for service in shipped().values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:8000:8080", "127.0.0.1:9090:9090"]


@pytest.mark.parametrize("name", shipped())
def test_every_service_is_confined_and_bounded(name: str) -> None:
    service = shipped()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert mebibytes(service["mem_limit"]) > 0
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    once = name == "preflight"
    assert service["restart"] == ("no" if once else "unless-stopped")
    assert ("healthcheck" in service) is not once
    if not once:
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert seconds(service["healthcheck"]["timeout"]) <= seconds(service["healthcheck"]["interval"])
        assert seconds(service["healthcheck"]["start_period"]) >= 60, "slow machines start slowly; it costs nothing"
    image = service["image"]
    assert image == "baton:local" or re.fullmatch(r"[\w/]+:v?\d+\.\d+(\.\d+)?", image), image


def test_replicas_are_alike_but_for_their_names() -> None:
    services = shipped()
    names = [services[name]["environment"].pop("BATON_REPLICA") for name in REPLICAS]
    assert names == list(REPLICAS)
    assert services["baton-1"] == services["baton-2"] == services["baton-3"]
    assert [name for name in services if name.startswith("baton")] == list(REPLICAS)


def replica_settings(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Settings:
    """What a replica makes of its environment, the image's own included; raises what it would."""
    for name in map(variable, Settings.model_fields):
        monkeypatch.delenv(name, raising=False)
    image = dict(re.findall(r"(BATON_\w+)=(\S*)", " ".join(a for n, a in last_stage() if n == "ENV")))
    for name, text in {**image, **shipped(environment)["baton-1"]["environment"]}.items():
        assert name in {variable(field) for field in Settings.model_fields}, name
        monkeypatch.setenv(name, str(text))
    return settings.read()


def dotenv(directory: Path, key: str) -> dict[str, str]:
    """What the README's line writes, run as it stands."""
    readme = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"<!-- makes: \.env -->\n```sh\n(.*?)```\n", readme, re.DOTALL)
    assert found
    reader = {**clean_environment(), "ANTHROPIC_API_KEY": key}
    subprocess.run(["bash", "-euc", found[1]], cwd=directory, env=reader, check=True, timeout=20)
    assert (directory / ".env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run(
        ["bash", "-euc", found[1]], cwd=directory, env=reader, check=False, timeout=20, capture_output=True
    )
    assert again.returncode != 0, "the secret is permanent: it is not written over"
    return dict(line.split("=", 1) for line in (directory / ".env").read_text("utf-8").splitlines())


def test_the_demo_has_all_a_replica_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = replica_settings(monkeypatch, {})
    assert demo.anthropic_base_url == "http://simulator:9000"
    assert (demo.auth, demo.listen, demo.namespace) == ("open", "0.0.0.0:8000", "demo")


def test_keys_are_asked_for_where_the_env_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the replicas, and known to the balancer, which then serves every name."""
    asked = {**REAL, "BATON_AUTH": "keys", "BATON_ADMIN_KEY": "a" * 16}
    real = replica_settings(monkeypatch, asked)
    assert (real.auth, real.admin_credential()) == ("keys", "a" * 16)
    assert shipped(asked)["balancer"]["environment"] == {"BATON_AUTH": "keys"}
    assert shipped()["balancer"]["environment"] == {"BATON_AUTH": "open"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
def test_the_readmes_line_has_all_a_replica_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = dotenv(tmp_path, "sk-ant-given")
    real = replica_settings(monkeypatch, environment)
    assert real.anthropic_base_url == settings.CLAUDE_URL
    assert real.anthropic_api_key is not None
    assert real.anthropic_api_key.get_secret_value() == "sk-ant-given"
    assert real.namespace == "baton"
    assert real.secret is not None
    assert len(real.secret.get_secret_value()) == 64
    password = environment["REDIS_PASSWORD"]
    assert f":{password}@valkey:6379" in real.store_url()
    assert password in shipped(environment)["valkey"]["command"]


REAL = {
    "ANTHROPIC_API_KEY": "sk-ant-given",
    "ANTHROPIC_BASE_URL": "https://api.anthropic.com",
    "BATON_NAMESPACE": "baton",
    "BATON_SECRET": "s" * 64,
    "REDIS_PASSWORD": "p" * 64,
}


@pytest.mark.parametrize(
    ("environment", "names", "refusal"),
    [
        ({}, DEMO, None),
        ({"ANTHROPIC_API_KEY": "sk-ant-of-the-shell"}, DEMO, None),
        (REAL, set(), None),
        ({}, set(), "ANTHROPIC_API_KEY is required"),
        ({"ANTHROPIC_API_KEY": "sk-ant-of-the-shell"}, set(), "an .env that holds it"),
        ({**REAL, "ANTHROPIC_API_KEY": ""}, set(), "must also set: ANTHROPIC_API_KEY"),
        ({**REAL, "BATON_SECRET": "", "REDIS_PASSWORD": ""}, set(), "must also set: BATON_SECRET, REDIS_PASSWORD"),
        (REAL, DEMO, "leave the profile away"),
    ],
)
def test_half_a_configuration_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], names: set[str], refusal: str | None
) -> None:
    preflight = shipped(environment)["preflight"]
    assert preflight["entrypoint"] == ["python", "-c"]
    assert shipped()["baton-1"]["depends_on"]["preflight"] == {"condition": "service_completed_successfully"}

    def look_up(host: str, port: int) -> list[str]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [host]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for name, text in preflight["environment"].items():
        monkeypatch.setenv(name, text)
    [script] = preflight["command"]
    if refusal is None:
        exec(compile(script, "preflight", "exec"), {})
        return
    with pytest.raises(SystemExit) as refused:
        exec(compile(script, "preflight", "exec"), {})
    assert refusal in str(refused.value.code)


def test_a_stop_waits_for_the_whole_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    services = shipped()
    replica = replica_settings(monkeypatch, {})
    needed_s = replica.drain_notice_s + replica.drain_s + MARGIN_S
    assert seconds(services["baton-1"]["stop_grace_period"]) >= needed_s
    assert seconds(services["balancer"]["stop_grace_period"]) >= needed_s, "it is stopped before the replicas"


def test_memory_has_room_for_what_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    services = shipped()
    needed_bytes = RESIDENT_BYTES + BODY_COPIES * replica_settings(monkeypatch, {}).bodies_bytes_max
    assert mebibytes(services["baton-1"]["mem_limit"]) * 2**20 >= 1.25 * needed_bytes, "and histories of running turns"
    command = services["valkey"]["command"]
    stored_mib = int(command[command.index("--maxmemory") + 1].removesuffix("mb"))
    assert mebibytes(services["valkey"]["mem_limit"]) >= 2 * stored_mib, "rewriting the append-only file copies pages"


def test_the_store_keeps_what_it_acknowledged_and_evicts_nothing() -> None:
    store = shipped()["valkey"]
    command = store["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert store["volumes"] == ["valkey:/data"]
    assert store["networks"] == ["store"]
    networks = yaml.safe_load(COMPOSE.read_text("utf-8"))["networks"]
    assert networks["store"] == {"internal": True}


def test_the_simulator_and_prometheus_are_asked_for() -> None:
    profiles = {name: service["profiles"] for name, service in shipped().items() if "profiles" in service}
    assert profiles == {"simulator": ["demo"], "prometheus": ["monitoring"]}


# --- the balancer


def test_nothing_that_a_replica_has_read_is_sent_to_another() -> None:
    assert value("defaults baton", "retry-on") == ["conn-failure"]
    assert HAPROXY.read_text("utf-8").count("\n    retry-on") == 1
    assert value("defaults baton", "option", "http-server-close") == []
    assert value("defaults baton", "http-reuse") == ["never"]


def test_the_balancer_waits_longer_than_anything_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = replica_settings(monkeypatch, {})
    silent_s = max(replica.turn_deadline_s + 2 * replica.store_settle_s, replica.status_wait_s)
    for side in ("server", "client"):
        assert seconds(value("defaults baton", "timeout", side)[0]) > silent_s
    assert value("defaults baton", "option", "http-no-delay") == []
    assert value("backend replicas", "balance") == ["leastconn"]


def test_the_balancer_looks_at_readiness_of_the_replicas_there_are() -> None:
    backend = haproxy()["backend replicas"]
    servers = [line[1:] for line in backend if line[0] == "server"]
    port = replica_port()
    assert servers == [[name, f"{name}:{port}"] for name in REPLICAS]
    assert value("backend replicas", "http-check", "send") == ["meth", "GET", "uri", "/readyz"]
    assert value("backend replicas", "http-check", "expect") == ["status", "200"]
    assert value("backend replicas", "default-server")[0] == "check"
    balancer = shipped()["balancer"]
    assert value("frontend callers", "bind") == [":8080"]
    assert balancer["ports"][0].endswith(":8080")
    assert value("frontend operators", "bind") == [":8405"]
    assert "/127.0.0.1/8405" in balancer["healthcheck"]["test"][-1]
    assert value("frontend operators", "monitor-uri") == ["/ready"]


def test_the_balancer_sees_within_the_notice_that_a_replica_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    words = value("backend replicas", "default-server")
    said = {name: words[words.index(name) + 1] for name in ("inter", "fastinter", "fall")}
    seen_s = seconds(said["inter"]) + (int(said["fall"]) - 1) * seconds(said["fastinter"])
    slow_s = 1.0  # for the checks themselves, on a busy machine
    assert seen_s + slow_s < replica_settings(monkeypatch, {}).drain_notice_s


def replica_port() -> str:
    [listen] = re.findall(r"BATON_LISTEN=\S+:(\d+)", (ROOT / "Dockerfile").read_text("utf-8"))
    return str(listen)


def test_prometheus_asks_every_replica_and_the_balancer() -> None:
    jobs = yaml.safe_load(PROMETHEUS.read_text("utf-8"))["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets == {"baton": [f"{name}:{replica_port()}" for name in REPLICAS], "balancer": ["balancer:8405"]}
    mounted, _, _ = shipped()["prometheus"]["volumes"][0].partition(":")
    assert (ROOT / mounted / "prometheus.yml") == PROMETHEUS
    for rules in yaml.safe_load(PROMETHEUS.read_text("utf-8"))["rule_files"]:
        assert (PROMETHEUS.parent / rules).exists()


# --- asked of the programs themselves, where they are


def accepted(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} on this machine")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_haproxy_accepts_its_configuration() -> None:
    accepted("haproxy", "-c", "-f", str(HAPROXY))


def test_prometheus_accepts_its_configuration() -> None:
    accepted("promtool", "check", "config", str(PROMETHEUS))


def test_hadolint_accepts_the_dockerfile() -> None:
    accepted("hadolint", "Dockerfile")


@pytest.mark.parametrize("profile", ["demo", "monitoring"])
def test_compose_accepts_its_file(profile: str) -> None:
    if reason := compose_absent():
        pytest.skip(reason)
    accepted("docker", "compose", "--profile", profile, "config", "--quiet")
