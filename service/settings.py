"""Every setting: type, unit, bounds, a sentence. The only reader of the environment.

Settings are validated as a whole: all problems are told at once and the process ends with 78 (EX_CONFIG). Secrets are
never shown. A variable that begins with ``BATON_`` and is not known is warned about; ``BATON_*_SERVICE_*`` and
``BATON_*PORT*`` are not, for Kubernetes injects those by itself.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson
from pydantic import Field, SecretStr, StrictBool, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service import model_name
from service.model_table import WINDOW_TOKENS_MAX, WINDOW_TOKENS_MIN, Trait
from storage import address
from storage.tls import Tls

EX_CONFIG = 78
CLAUDE_URL = "https://api.anthropic.com"
"""Where Claude is, unless ANTHROPIC_BASE_URL says otherwise."""

_INJECTED = re.compile(r"^BATON_(.*_)?(SERVICE_|PORT)")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ORIGIN = re.compile(r"https?://[a-z0-9.:\[\]-]+")
_GRAPHIC = re.compile(r"[\x21-\x7e]*")


class SettingsProblem(Exception):
    """Settings that cannot be used; ``problems`` are sentences for the operator, without secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """What a replica is told by its environment."""

    model_config = SettingsConfigDict(env_prefix="BATON_", extra="ignore", frozen=True, validate_default=True)

    anthropic_api_key: SecretStr | None = Field(
        None, validation_alias="ANTHROPIC_API_KEY", description="Claude's key, as the SDK reads it."
    )
    anthropic_base_url: str | None = Field(
        None, validation_alias="ANTHROPIC_BASE_URL", description="Another place that speaks Claude's API."
    )

    listen: str = Field("127.0.0.1:8000", description="host:port; port 0 takes a free one and logs it.")
    auth: Literal["keys", "open"] | None = Field(
        None,
        description="keys: callers need one; open: nobody does. Unset, on loopback: keys as soon as there is one.",
    )
    admin_key: SecretStr | None = Field(
        None, description="16 to 1024 characters; a key with every scope, to make others with. Implies keys."
    )
    admin_key_file: Path | None = Field(None, description="A file that holds it instead.")
    cors_origins: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="Origins whose pages may call, comma-separated: https://app.example.org; * for all."
    )
    redis_url: SecretStr = Field(
        SecretStr("embedded"),
        description="embedded (a private Valkey), redis://, redis+sentinel://, redis+cluster://; rediss… is TLS.",
    )
    redis_url_file: Path | None = Field(None, description="A file that holds the URL instead.")
    redis_sentinel_username: str | None = Field(None, description="For Sentinels; the URL's user is the data nodes'.")
    redis_sentinel_password: SecretStr | None = Field(None, description="For Sentinels.")
    redis_tls_ca_file: Path | None = Field(
        None, description="Who signed Redis's certificates, PEM; those that the system trusts if unset."
    )
    redis_tls_cert_file: Path | None = Field(None, description="This replica's certificate for Redis, PEM.")
    redis_tls_key_file: Path | None = Field(None, description="Its key, PEM without a password.")
    redis_tls_check_hostname: bool = Field(True, description="Redis's certificate must name the host that is asked.")
    redis_connections_max: int = Field(
        64, ge=2, le=10_000, description="Connections of this replica at most, to each Redis server."
    )
    redis_eviction_allowed: bool = Field(
        False, description="Accept a Redis that evicts; conversations may be lost when it is full."
    )
    data_dir: Path = Field(Path(".baton"), description="Files of the embedded store.")
    namespace: str = Field(
        "baton", pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$", description="First part of every key; permanent once used."
    )
    buckets: int | None = Field(
        None, ge=1, le=256, description="Slots a namespace spreads over; permanent once used. 64 on a cluster, else 1."
    )
    secret: SecretStr | None = Field(
        None, description="16+ characters; keys the hashes of names and owners; permanent. Made when embedded."
    )
    store_begin_s: float = Field(
        3.0, gt=0, le=60, description="A begin, renew or read is tried this long before 503, seconds."
    )
    store_settle_s: float = Field(
        15.0, gt=0, le=120, description="A commit or abort of unknown outcome is sent again this long, seconds."
    )

    session_ttl_s: int = Field(3600, ge=1, le=31_536_000, description="Sliding life of a session, seconds.")
    sessions_max: int = Field(
        100_000, ge=1, le=100_000_000, description="Sessions in all; at the cap those not accessed for longest go."
    )
    sessions_per_owner_max: int = Field(
        10_000, ge=1, le=100_000_000, description="Sessions of one owner; at the cap the owner's own oldest go."
    )
    sweep_interval_s: float = Field(
        300.0, ge=0.1, le=86_400, description="Expired sessions leave the indexes this often, seconds."
    )
    turns_per_session_max: int = Field(10_000, ge=1, le=1_000_000, description="Turns of a session, failed ones too.")
    on_conflict: Literal["queue", "reject"] = Field("queue", description="A second turn of a busy session.")
    queue_wait_s: float = Field(30.0, ge=0, le=600, description="How long a queued turn waits, seconds.")
    prefix: Literal["adapt", "strict"] = Field(
        "adapt", description="A turn with another model, system prompt or tools than its session's."
    )
    context_policy: Literal["compact", "truncate", "clear_tool_results", "error"] = Field(
        "compact",
        description="A conversation that outgrows the window: its oldest part is summarized in time, or left out, or "
        "the results of old tool calls are left out before that, or its next turn is refused.",
    )
    cache_ttl: Literal["auto", "5m", "1h"] = Field(
        "auto", description="Life of what a turn leaves in Claude's prompt cache; auto: by how far turns are apart."
    )
    cache_diagnostics: bool = Field(
        True,
        description="Ask Claude why a session's prompt was not in its cache; off for gateways that do not know it.",
    )
    on_disconnect: Literal["cancel", "continue"] = Field("cancel", description="When the caller hangs up.")
    lease_ms: int = Field(20_000, ge=500, le=120_000, description="A turn's lease, renewed every third of it, ms.")
    turn_deadline_s: float = Field(600.0, gt=0, le=3600, description="A turn may take this long in all, seconds.")
    turns_running_max: int = Field(1000, ge=1, le=100_000, description="Turns of this replica at once; more: 503.")

    default_model: str = Field("claude-sonnet-5-5", description="For requests that name no model.")
    model_aliases: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="alias=model, comma-separated: gpt-4o=claude-sonnet-5-5,…"
    )
    model_traits: Annotated[dict[str, dict[Trait, StrictBool]], NoDecode] = Field(
        default_factory=dict,
        description='Over the table of models in docs/api.md, as JSON: {"claude-opus-6":{"forced_tools":true},…}.',
    )
    model_windows: Annotated[dict[str, int], NoDecode] = Field(
        default_factory=dict,
        description="model=tokens, comma-separated: windows that the Models API does not tell: my-model=200000,…",
    )
    compact_model: str = Field("claude-haiku-5-5", description="Writes the summaries that checkpoints are made of.")
    compact_deadline_s: float = Field(
        120.0,
        gt=0,
        le=600,
        description="A summary may take this long; as long others leave the session alone, seconds.",
    )
    compactions_max: int = Field(4, ge=0, le=1000, description="Checkpoints that this replica makes at once; 0: none.")
    max_tokens_default: int = Field(
        32_000, ge=1, le=128_000, description="Answer length where none is asked for; less if the model has less."
    )

    header_bytes_max: int = Field(
        65_536, ge=4096, le=16_777_216, description="Request line and headers of a request, bytes."
    )
    body_bytes_max: int = Field(33_554_432, ge=1024, le=268_435_456, description="Request bodies, bytes.")
    bodies_bytes_max: int = Field(
        268_435_456,
        ge=1024,
        le=1_099_511_627_776,
        description="Bodies of all requests that this replica is answering, bytes; more: 503.",
    )
    body_wait_s: float = Field(
        30.0, gt=0, le=600, description="Headers must arrive within this, and then the body, seconds."
    )
    write_wait_s: float = Field(
        30.0, gt=0, le=3600, description="A caller that takes nothing of its answer for this long is cut off, seconds."
    )
    status_wait_s: float = Field(
        10.0, gt=0, le=60, description="A stream's status line waits this long for Claude; then keep-alives as often."
    )
    drain_notice_s: float = Field(
        3.0,
        ge=0,
        le=300,
        description="After SIGTERM it serves on with a red readiness, so that balancers see it first, seconds.",
    )
    drain_s: float = Field(
        30.0, ge=0, le=3600, description="Running turns may take this long after the notice, seconds."
    )
    keepalive_s: int = Field(75, ge=1, le=3600, description="Idle connections; longer than the balancer's, seconds.")
    replica: str = Field("", pattern=r"^[\x21-\x7e]{0,100}$", description="This replica's name; made if empty.")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")

    @field_validator(
        "admin_key",
        "admin_key_file",
        "anthropic_api_key",
        "anthropic_base_url",
        "auth",
        "buckets",
        "redis_sentinel_username",
        "redis_sentinel_password",
        "redis_tls_ca_file",
        "redis_tls_cert_file",
        "redis_tls_key_file",
        mode="before",
    )
    @classmethod
    def _blank_is_absent(cls, value: Any) -> Any:
        """An empty variable is what a compose file makes of one that is not set."""
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _read_origins(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        origins = frozenset(origin.strip().rstrip("/") for origin in value.split(",") if origin.strip())
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("write origins as browsers do: https://app.example.org,http://localhost:5173")
        return origins

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _read_aliases(cls, value: Any) -> Any:
        return _pairs(value, "alias=model") if isinstance(value, str) else value

    @field_validator("model_windows", mode="before")
    @classmethod
    def _read_windows(cls, value: Any) -> Any:
        return _pairs(value, "model=tokens") if isinstance(value, str) else value

    @field_validator("model_windows")
    @classmethod
    def _check_windows(cls, value: dict[str, int]) -> dict[str, int]:
        if not all(WINDOW_TOKENS_MIN <= tokens <= WINDOW_TOKENS_MAX for tokens in value.values()):
            raise ValueError(f"a window has {WINDOW_TOKENS_MIN} to {WINDOW_TOKENS_MAX} tokens")
        return value

    @field_validator("model_traits", mode="before")
    @classmethod
    def _read_traits(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return orjson.loads(value) if value.strip() else {}
        except orjson.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error.msg} (at {error.pos})") from None

    @field_validator("compact_model", "default_model", "model_aliases", "model_traits", "model_windows")
    @classmethod
    def _check_models(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else [*value, *value.values()]
        if not all(model_name.sound(name) for name in given if isinstance(name, str)):
            raise ValueError(f"the name of a model {model_name.PROBLEM}")
        return value

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("write host:port, for example 127.0.0.1:8000")
        return value

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters (openssl rand -hex 32 makes a good one)")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "Settings":
        problems = []
        if self.anthropic_api_key is None and self.anthropic_base_url is None:
            problems.append(
                "ANTHROPIC_API_KEY is not set, and neither is ANTHROPIC_BASE_URL: there is no Claude to talk to. "
                "Set the key, or point ANTHROPIC_BASE_URL at `baton simulate` to try without one."
            )
        try:
            url = self.store_url()
        except ValueError as problem:
            problems.append(str(problem))
            url = "embedded"
        problems += _store_problems(url) + self._tls_problems(url)
        problems += self._claude_problems()
        if url != "embedded" and self.secret is None:
            problems.append(
                "BATON_SECRET is not set: it keys the hashes of names and owners, every replica needs the same one, "
                "and it is permanent. Make one with: openssl rand -hex 32"
            )
        admin_key = None
        try:
            admin_key = self.admin_credential()
        except ValueError as problem:
            problems.append(str(problem))
        if admin_key is not None and (not 16 <= len(admin_key) <= 1024 or not _GRAPHIC.fullmatch(admin_key)):
            problems.append(
                "BATON_ADMIN_KEY must have 16 to 1024 characters, and no white space or others that no header takes "
                "(openssl rand -hex 32 makes a good one)."
            )
        if self.auth == "open" and admin_key is not None:
            problems.append(
                "BATON_AUTH=open asks nobody for a key, and BATON_ADMIN_KEY is one: take one of the two away, so that "
                "it is clear who may call."
            )
        if self.auth is None and admin_key is None and not self.loopback:
            problems.append(
                f"BATON_LISTEN={self.listen} is not loopback, and nothing says who may call. Set BATON_AUTH=keys (and "
                "make keys with `baton keys create`), or BATON_AUTH=open if everybody who can reach it may use it."
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _tls_problems(self, url: str) -> list[str]:
        if not (self.redis_tls_ca_file or self.redis_tls_cert_file or self.redis_tls_key_file):
            return []
        if not url.startswith("rediss"):
            return ["BATON_REDIS_TLS_… is set, but BATON_REDIS_URL asks for no TLS: write rediss:// or rediss+…://."]
        return [f"BATON_REDIS_TLS_…: {problem}" for problem in self.tls().problems()]

    def tls(self) -> Tls:
        """What TLS to Redis checks and shows."""
        files = self.redis_tls_ca_file, self.redis_tls_cert_file, self.redis_tls_key_file
        return Tls(*files, check_hostname=self.redis_tls_check_hostname)

    def buckets_of(self, url: str) -> int:
        """How many buckets the namespace has, on the store of this URL."""
        return self.buckets or address.BUCKETS["standalone" if url == "embedded" else address.read(url).kind]

    def topology(self, url: str) -> Literal["embedded", "standalone", "sentinel", "cluster"]:
        """The kind of the store that this replica was given, which is at this URL by now."""
        return "embedded" if self.store_url() == "embedded" else address.read(url).kind

    def _claude_problems(self) -> list[str]:
        """Of what was given to reach Claude; the SDK would tell them at the first request, or not at all."""
        problems = []
        key = self.anthropic_api_key.get_secret_value() if self.anthropic_api_key else ""
        if not _GRAPHIC.fullmatch(key):
            problems.append("ANTHROPIC_API_KEY holds white space or other characters that no key has.")
        base_url = self.anthropic_base_url or CLAUDE_URL
        if not _is_base_url(base_url):
            problems.append("ANTHROPIC_BASE_URL must be http://host… or https://host…, without a query.")
        elif (proxy := proxy_for(base_url)) and not _is_base_url(proxy):
            problems.append(
                f"The environment names a proxy for {urlsplit(base_url).hostname} that is no HTTP proxy (SOCKS is not "
                "supported). Set HTTPS_PROXY (HTTP_PROXY for http://) to http://host:port, or put the host in NO_PROXY."
            )
        return problems

    def store_url(self) -> str:
        """The store's URL, from the variable or the file.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.redis_url_file is None:
            return self.redis_url.get_secret_value()
        return _read_file(self.redis_url_file, "BATON_REDIS_URL_FILE")

    def admin_credential(self) -> str | None:
        """The administrator's key, from the variable or the file; None without one.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.admin_key_file is None:
            return self.admin_key.get_secret_value() if self.admin_key else None
        return _read_file(self.admin_key_file, "BATON_ADMIN_KEY_FILE")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address that is listened on."""
        return self.host.strip("[]") in _LOOPBACK

    @property
    def host(self) -> str:
        """The host part of ``listen``."""
        return self.listen.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port part of ``listen``; 0 for any free one."""
        return int(self.listen.rpartition(":")[2])


def _pairs(value: str, form: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if any(not name.strip() or not said.strip() for name, _, said in pairs):
        raise ValueError(f"write {form}, comma-separated")
    return {name.strip(): said.strip() for name, _, said in pairs}


def _read_file(path: Path, name: str) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text.") from None


def _store_problems(url: str) -> list[str]:
    if url == "embedded":
        return []
    if "://" not in url:
        return ["BATON_REDIS_URL must be `embedded`, redis://…, redis+sentinel://… or redis+cluster://…."]
    try:
        address.read(url)
    except ValueError as problem:
        return [f"BATON_REDIS_URL cannot be used: {problem}"]
    return []


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is none
    except ValueError:
        return False
    graphic = _GRAPHIC.fullmatch(url) is not None and "?" not in url and "#" not in url
    return graphic and parts.scheme in ("http", "https") and bool(parts.hostname)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL with a host, if any: HTTPS_PROXY and its kin, less NO_PROXY."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def variable(field: str) -> str:
    """The environment variable of a field."""
    info = Settings.model_fields[field]
    return str(info.validation_alias) if info.validation_alias else f"BATON_{field.upper()}"


def read(**overrides: Any) -> Settings:
    """Reads the environment.

    Raises:
        SettingsProblem: with every problem there is.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = error.errors()
    # Rules between fields are checked only where every field is sound: ask for them with the broken ones at default.
    broken = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
    if broken:
        try:
            defaults = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in broken}
            Settings(**{**overrides, **defaults})
        except ValidationError as error:
            problems += [problem for problem in error.errors() if not problem["loc"]]
    raise SettingsProblem([line for problem in problems for line in _sentences(problem)])


def read_for_store() -> Settings:
    """The same for whoever needs the store alone: what is said of Claude and of listening does not count.

    Raises:
        SettingsProblem: with every problem there is.
    """
    return read(anthropic_api_key=None, anthropic_base_url=CLAUDE_URL, listen="127.0.0.1:0", auth=None)


def _sentences(problem: Any) -> list[str]:
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return text.split("\n")
    field, *within = map(str, problem["loc"])
    places = [field if field.isupper() else variable(field), *(place for place in within if place != "[key]")]
    return [f"{': '.join(places)}: {text}"]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like ours and are not: probably misspelt."""
    known = {variable(field) for field in Settings.model_fields}
    return sorted(
        name for name in environment if name.startswith("BATON_") and name not in known and not _INJECTED.match(name)
    )
