"""Settings are judged as a whole, and no secret is ever shown."""

import os
from pathlib import Path
from typing import Any

import pytest

from service import settings
from service.settings import Settings, SettingsProblem, unknown_variables, variable
from storage.tls import Tls

KEY = "sk-ant-TOPSECRET-0123456789"
SECRET = "TOPSECRET-0123456789abcdef"
PASSWORD_URL = "redis://:TOPSECRET@127.0.0.1:6379/0"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings; a key, which every test but those about it needs."""
    for name in list(os.environ):
        if name.upper().startswith(("BATON_", "ANTHROPIC_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    def read_with(**environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return settings.read()

    return read_with


@pytest.fixture
def problems(read: Any) -> Any:
    def problems_with(**environment: str) -> list[str]:
        with pytest.raises(SettingsProblem) as caught:
            read(**environment)
        found = caught.value.problems
        assert "TOPSECRET" not in "\n".join(found)
        assert all(line.strip() for line in found)
        return found

    return problems_with


def test_a_key_is_enough(read: Any) -> None:
    assert read().store_url() == "embedded"
    assert (read().host, read().port) == ("127.0.0.1", 8000)


def test_a_base_url_is_enough(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert read(ANTHROPIC_BASE_URL="http://127.0.0.1:9").anthropic_api_key is None


@pytest.mark.parametrize("key", [None, "", "  "])
def test_without_claude_it_says_what_to_set(problems: Any, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    (line,) = problems() if key is None else problems(ANTHROPIC_API_KEY=key, ANTHROPIC_BASE_URL="")
    assert "ANTHROPIC_API_KEY" in line
    assert "baton simulate" in line


def test_all_problems_are_told_at_once(problems: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    found = problems(
        BATON_LISTEN="0.0.0.0:8000",
        BATON_REDIS_URL="http://x",
        BATON_LEASE_MS="5",
        BATON_ON_CONFLICT="maybe",
        BATON_SECRET="short",
        BATON_MODEL_ALIASES="gpt-4o",
        BATON_LOG_LEVEL="loud",
    )
    for name in (
        "ANTHROPIC_API_KEY",
        "BATON_LISTEN",
        "BATON_REDIS_URL",
        "BATON_LEASE_MS",
        "BATON_ON_CONFLICT",
        "BATON_SECRET",
        "BATON_MODEL_ALIASES",
        "BATON_LOG_LEVEL",
    ):
        assert any(name in line for line in found), name


def test_an_unreadable_url_file_does_not_hide_other_problems(problems: Any, tmp_path: Path) -> None:
    found = problems(BATON_REDIS_URL_FILE=str(tmp_path / "missing"), BATON_LISTEN="0.0.0.0:1")
    assert any("BATON_REDIS_URL_FILE" in line for line in found)
    assert any("BATON_LISTEN" in line for line in found)


def test_a_url_file(read: Any, problems: Any, tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(PASSWORD_URL + "\n")
    assert read(BATON_REDIS_URL_FILE=str(path), BATON_SECRET=SECRET).store_url() == PASSWORD_URL
    path.write_bytes(b"redis://\xff")
    (line,) = problems()
    assert "BATON_REDIS_URL_FILE" in line
    path.write_text("")
    (line,) = problems()
    assert "BATON_REDIS_URL" in line


def test_a_shared_store_needs_the_secret(problems: Any) -> None:
    (line,) = problems(BATON_REDIS_URL=PASSWORD_URL)
    assert "BATON_SECRET" in line
    assert "openssl rand" in line


@pytest.mark.parametrize("url", ["", "redis", "127.0.0.1:6379", "http://:TOPSECRET@x", "embedded2"])
def test_urls_that_are_no_store(problems: Any, url: str) -> None:
    (line,) = problems(BATON_REDIS_URL=url, BATON_SECRET=SECRET)
    assert "BATON_REDIS_URL" in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:abc/0",
        "redis://h:0/0",
        "redis://h:65536/0",
        "redis://:TOPSECRET@h/0?socket_timeout=abc",
        "redis://:TOPSECRET@h/0?socket_timeout=5",
        "redis://:TOPSECRET#1@h/0",
        "redis://:TOPSECRET/1@h/0",
        "redis://:TOPSECRET@h/zz",
        "redis://:TOPSECRET@h/0/1",
        "redis://:TOPSECRET@h/-1",
        "redis://:TOP SECRET@h/0",
        "redis://:TOPSECRET\u2100@h/0",
        "redis://[::1/0",
        "rediss://",
        "redis:///0",
        "redis://:TOPSECRET@:6379/0",
    ],
)
def test_store_urls_that_would_not_do_what_they_say(problems: Any, url: str) -> None:
    (line,) = problems(BATON_REDIS_URL=url, BATON_SECRET=SECRET)
    assert line.startswith("BATON_REDIS_URL")


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h/", "rediss://user:p%23%3F%20@h:6380/15", "redis://[::1]:6379/0", PASSWORD_URL]
)
def test_store_urls(read: Any, url: str) -> None:
    assert read(BATON_REDIS_URL=url, BATON_SECRET=SECRET).store_url() == url


@pytest.mark.parametrize(
    ("url", "buckets"),
    [
        ("embedded", 1),
        ("redis://h", 1),
        ("rediss+sentinel://u:p@h1:1,h2/service/2", 1),
        ("redis+cluster://h1:1,h2", 64),
        ("rediss+cluster://:p@h", 64),
    ],
)
def test_buckets_unless_told(read: Any, url: str, buckets: int) -> None:
    assert read(BATON_REDIS_URL=url, BATON_SECRET=SECRET).buckets_of(url) == buckets
    assert read(BATON_REDIS_URL=url, BATON_SECRET=SECRET, BATON_BUCKETS="7").buckets_of(url) == 7
    assert read(BATON_REDIS_URL=url, BATON_SECRET=SECRET, BATON_BUCKETS="").buckets_of(url) == buckets


def test_tls_for_redis(read: Any, problems: Any, tmp_path: Path) -> None:
    url = {"BATON_REDIS_URL": "rediss://h", "BATON_SECRET": SECRET}
    assert read(**url, BATON_REDIS_TLS_CA_FILE="", BATON_REDIS_TLS_CHECK_HOSTNAME="false").tls() == Tls(
        check_hostname=False
    )
    (line,) = problems(**url, BATON_REDIS_TLS_CA_FILE=str(tmp_path / "none"))
    assert line.startswith("BATON_REDIS_TLS_") and "cannot be read" in line
    (tmp_path / "file").write_text("no certificate")
    file = str(tmp_path / "file")
    (line,) = problems(**url, BATON_REDIS_TLS_CA_FILE="", BATON_REDIS_TLS_CERT_FILE=file)
    assert "both files" in line
    (line,) = problems(**url, BATON_REDIS_TLS_CA_FILE=file, BATON_REDIS_TLS_CERT_FILE="")
    assert "PEM" in line
    (line,) = problems(**url | {"BATON_REDIS_URL": "redis://h"}, BATON_REDIS_TLS_CA_FILE=file)
    assert "write rediss://" in line


def test_the_credential_for_sentinels_is_not_shown(read: Any) -> None:
    url = {"BATON_REDIS_URL": "redis+sentinel://h/service", "BATON_SECRET": SECRET}
    settings_read = read(**url, BATON_REDIS_SENTINEL_USERNAME="u", BATON_REDIS_SENTINEL_PASSWORD="TOPSECRET")
    assert settings_read.redis_sentinel_password.get_secret_value() == "TOPSECRET"
    assert "TOPSECRET" not in repr(settings_read)
    assert read(**url, BATON_REDIS_SENTINEL_PASSWORD="").redis_sentinel_password is None


@pytest.mark.parametrize(
    "url",
    ["api.anthropic.com", "ftp://h", "http://", "https://:80", "http://h:x", "http://h h", "http://h/?a=1", "//h"],
)
def test_places_that_cannot_be_claude(problems: Any, url: str) -> None:
    (line,) = problems(ANTHROPIC_BASE_URL=url)
    assert line.startswith("ANTHROPIC_BASE_URL")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://gateway.example/claude/", "http://[::1]:8080"])
def test_places_that_can_be_claude(read: Any, url: str) -> None:
    assert read(ANTHROPIC_BASE_URL=url).anthropic_base_url == url


@pytest.mark.parametrize("key", ["sk-TOPSECRET\n", "sk-TOP SECRET", " sk", "sk-\x7f", "sk-é", "Bearer TOPSECRET"])
def test_what_is_no_key(problems: Any, key: str) -> None:
    (line,) = problems(ANTHROPIC_API_KEY=key)
    assert line.startswith("ANTHROPIC_API_KEY")


def test_all_problems_with_claude_are_told_beside_others(problems: Any) -> None:
    found = problems(ANTHROPIC_API_KEY="a b", ANTHROPIC_BASE_URL="h", BATON_LEASE_MS="5")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "BATON_LEASE_MS"):
        assert any(line.startswith(name) for line in found), name


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("url", ["socks5://:TOPSECRET@127.0.0.1:1080", "SOCKS5H://h:1", "ftp://h", "http://"])
def test_a_proxy_that_cannot_be_used_is_told(problems: Any, read: Any, name: str, url: str) -> None:
    (line,) = problems(**{name: url})
    assert "proxy" in line
    assert read(NO_PROXY="api.anthropic.com").anthropic_base_url is None


def test_a_proxy_that_is_not_for_claude_does_not_matter(read: Any) -> None:
    read(ALL_PROXY="socks5://h:1", HTTPS_PROXY="http://h:2")
    assert settings.proxy_for(settings.CLAUDE_URL) == "http://h:2"
    read(HTTPS_PROXY="socks5://h:1", HTTP_PROXY="h:3", ANTHROPIC_BASE_URL="http://elsewhere.example")
    assert settings.proxy_for("http://elsewhere.example") == "http://h:3"


@pytest.mark.parametrize("model", ["", "a b", "m" * 201, "modèle"])
def test_what_is_no_models_name(problems: Any, model: str) -> None:
    (line,) = problems(BATON_DEFAULT_MODEL=model)
    assert line.startswith("BATON_DEFAULT_MODEL")
    for aliases in (f"a={model}", f"{model}=a"):
        (line,) = problems(BATON_DEFAULT_MODEL="m", BATON_MODEL_ALIASES=aliases)
        assert line.startswith("BATON_MODEL_ALIASES")


def test_secrets_are_not_shown(read: Any) -> None:
    shown = read(BATON_REDIS_URL=PASSWORD_URL, BATON_SECRET=SECRET)
    assert "TOPSECRET" not in repr(shown) + str(shown)


@pytest.mark.parametrize("secret", ["TOPSECRET", "x" * 15])
def test_a_short_secret(problems: Any, secret: str) -> None:
    (line,) = problems(BATON_SECRET=secret)
    assert line.startswith("BATON_SECRET")
    assert secret not in line


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("localhost:80", "localhost", 80), ("[::1]:8000", "[::1]", 8000)],
)
def test_loopback_addresses(read: Any, listen: str, host: str, port: int) -> None:
    found = read(BATON_LISTEN=listen)
    assert (found.host, found.port) == (host, port)


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:8000", "[::]:8000", "10.0.0.1:8000", "example.org:80", "[::ffff:1.2.3.4]:1"]
)
def test_other_addresses_need_a_word(read: Any, problems: Any, listen: str) -> None:
    (line,) = problems(BATON_LISTEN=listen)
    assert "BATON_AUTH=open" in line
    assert read(BATON_AUTH="open").listen == listen


@pytest.mark.parametrize(
    "listen", ["", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "a:-1"]
)
def test_what_is_not_an_address(problems: Any, listen: str) -> None:
    (line,) = problems(BATON_LISTEN=listen)
    assert line.startswith("BATON_LISTEN")


def bounds(name: str) -> dict[str, float]:
    """The numeric bounds of a field, by their pydantic names."""
    found: dict[str, float] = {}
    for rule in Settings.model_fields[name].metadata:
        found |= {bound: getattr(rule, bound) for bound in ("ge", "gt", "le", "lt") if hasattr(rule, bound)}
    return found


NUMBERS = sorted(name for name, info in Settings.model_fields.items() if info.annotation in (int, float))


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_bounded_on_both_sides(
    problems: Any, read: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = bounds(name)
    assert len(found) == 2
    low, high = found.get("ge", found.get("gt", 0)), found["le"]
    wrong = [str(high + 1), "many", "", "nan", "inf", str(low - 1), *(["0"] if "gt" in found else [])]
    for value in wrong:
        (line,) = problems(**{variable(name): value})
        assert line.startswith(variable(name))
    assert getattr(read(**{variable(name): str(high)}), name) == high


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_has_a_sentence(name: str) -> None:
    sentence = Settings.model_fields[name].description or ""
    assert sentence.endswith((".", "…"))


@pytest.mark.parametrize("namespace", ["", "Baton", "a b", "a{b", "a:b", "-a", "a" * 33, "a\n"])
def test_namespaces(problems: Any, namespace: str) -> None:
    (line,) = problems(BATON_NAMESPACE=namespace)
    assert line.startswith("BATON_NAMESPACE")


def test_aliases(read: Any, problems: Any) -> None:
    assert read(BATON_MODEL_ALIASES=" a = m-1, b=m-2 ,").model_aliases == {"a": "m-1", "b": "m-2"}
    assert read(BATON_MODEL_ALIASES="").model_aliases == {}
    for wrong in ("a", "=m", "a=", "a=m,b"):
        (line,) = problems(BATON_MODEL_ALIASES=wrong)
        assert line.startswith("BATON_MODEL_ALIASES")


def test_windows_of_models(read: Any, problems: Any) -> None:
    assert read(BATON_MODEL_WINDOWS=" m-1 = 200000,m-2=1000 ").model_windows == {"m-1": 200_000, "m-2": 1_000}
    for wrong in ("m-1", "=1000", "m-1=many", "m-1=999", "m-1=100000001", "m 1=1000"):
        (line,) = problems(BATON_MODEL_WINDOWS=wrong)
        assert line.startswith("BATON_MODEL_WINDOWS")


def test_misspelt_variables_are_found() -> None:
    environment = dict.fromkeys(["BATON_LISTN", "BATON_LISTEN", "BATON_REDIS", "PATH", "ANTHROPIC_API_KEY"], "x")
    assert unknown_variables(environment) == ["BATON_LISTN", "BATON_REDIS"]


def test_what_kubernetes_injects_is_not_warned_about() -> None:
    injected = [
        "BATON_SERVICE_HOST",
        "BATON_SERVICE_PORT",
        "BATON_SERVICE_PORT_HTTP",
        "BATON_PORT",
        "BATON_PORT_8000_TCP",
        "BATON_PORT_8000_TCP_ADDR",
        "BATON_REDIS_SERVICE_HOST",
        "BATON_REDIS_PORT",
        "BATON_REDIS_PORT_6379_TCP_PROTO",
    ]
    assert unknown_variables(dict.fromkeys(injected, "x")) == []


def test_every_variable_is_known() -> None:
    assert unknown_variables(dict.fromkeys(map(variable, Settings.model_fields), "x")) == []
    assert variable("anthropic_api_key") == "ANTHROPIC_API_KEY"
    assert variable("lease_ms") == "BATON_LEASE_MS"


def test_traits_of_models(read: Any) -> None:
    assert read(BATON_MODEL_TRAITS=" ").model_traits == {}
    given = '{"claude-x": {"forced_tools": true, "thinking_always": false}, "claude-y": {}}'
    assert read(BATON_MODEL_TRAITS=given).model_traits == {
        "claude-x": {"forced_tools": True, "thinking_always": False},
        "claude-y": {},
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "valid dictionary"),
        ('{"claude-x": true}', "claude-x: Input should be a valid dictionary"),
        ('{"claude-x": {"colour": true}}', "claude-x: colour: Input should be 'forced_tools', "),
        ('{"claude-x": {"forced_tools": "yes"}}', "claude-x: forced_tools: Input should be a valid boolean"),
        ('{"claude-x": {"forced_tools": 1}}', "claude-x: forced_tools: Input should be a valid boolean"),
        ('{"claude x": {}}', "the name of a model must be"),
    ],
)
def test_traits_that_cannot_be_used_are_told_with_their_place(problems: Any, given: str, told: str) -> None:
    found = problems(BATON_MODEL_TRAITS=given, BATON_LOG_LEVEL="loud")
    assert len(found) == 2
    (line,) = (line for line in found if line.startswith("BATON_MODEL_TRAITS: "))
    assert told in line


ADMIN_KEY = "TOPSECRET-of-an-administrator"


def test_the_administrators_key_is_a_variable_or_a_file(read: Any, tmp_path: Path) -> None:
    assert read().admin_credential() is None
    assert read(BATON_ADMIN_KEY=" ").admin_credential() is None
    given = read(BATON_ADMIN_KEY=ADMIN_KEY, BATON_LISTEN="0.0.0.0:8000")
    assert given.admin_credential() == ADMIN_KEY, "it says who may call, so any address may be listened on"
    assert "TOPSECRET" not in repr(given)
    file = tmp_path / "key"
    file.write_text(f"{ADMIN_KEY}-in-a-file\n")
    assert read(BATON_ADMIN_KEY_FILE=str(file)).admin_credential() == f"{ADMIN_KEY}-in-a-file"


@pytest.mark.parametrize("key", ["TOPSECRET-short", "TOPSECRET with blanks", "TOPSECRET-ümlaut-0123456789", "T" * 1025])
def test_an_administrators_key_that_no_header_takes_or_anybody_guesses(
    problems: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    (line,) = problems(BATON_ADMIN_KEY=key)
    assert line.startswith("BATON_ADMIN_KEY must have 16 to 1024 characters")
    monkeypatch.delenv("BATON_ADMIN_KEY")
    file = tmp_path / "key"
    file.write_text(key)
    assert problems(BATON_ADMIN_KEY_FILE=str(file)) == [line]


def test_a_file_of_the_administrators_key_that_cannot_be_read(problems: Any, tmp_path: Path) -> None:
    (line,) = problems(BATON_ADMIN_KEY_FILE=str(tmp_path / "none"))
    assert line.startswith("BATON_ADMIN_KEY_FILE cannot be read: ")
    file = tmp_path / "key"
    file.write_bytes(b"\xff" * 20)
    assert problems(BATON_ADMIN_KEY_FILE=str(file)) == ["BATON_ADMIN_KEY_FILE is not UTF-8 text."]
    file.write_text(" \n")
    (line,) = problems(BATON_ADMIN_KEY_FILE=str(file))
    assert line.startswith("BATON_ADMIN_KEY must have")


def test_open_and_a_key_contradict_each_other(problems: Any) -> None:
    (line,) = problems(BATON_AUTH="open", BATON_ADMIN_KEY=ADMIN_KEY)
    assert "BATON_AUTH=open" in line
    assert "BATON_ADMIN_KEY" in line
