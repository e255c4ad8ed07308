"""The clients: where each is installed, which program is run, what it must see and Claude must receive.

The page docs/clients.md has a row for each (tests/unit/test_clients_page.py).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

from tests.clients import environments

HEARD: Final = 'You said: "My name is Ada.". I received 1 message.'
KNOWN: Final = "Your name is Ada."


def _weather(city: str, messages: int) -> str:
    return f'You said: "18 degrees in {city}". I received {messages} messages.'


@dataclass(frozen=True, slots=True)
class Client:
    """One client.

    Attributes:
        name: for people.
        environment: where it is installed.
        packages: those whose versions are told.
        program: below ``tests/clients``.
        did: what its program does, for people.
        dialect: which of Baton's it speaks.
        received: how many messages each request had that Claude got, in order.
        saw: what the program prints, as JSON.
        streamed: whether it had its answers streamed: each way in which it had them.
    """

    name: str
    environment: str
    packages: Sequence[str]
    program: str
    did: str
    dialect: str
    received: Sequence[int]
    saw: Mapping[str, Any] = field(default_factory=dict)
    streamed: Set[bool] = frozenset({True, False})

    @property
    def versions(self) -> str:
        """The pinned versions, as ``package version``."""
        pins = environments.pins(self.environment)
        return ", ".join(f"{package} {pins[package]}" for package in self.packages)


_TURNS: Final = "two turns, each sending only what is new, whole and streamed"
_TYPED: Final = "an answer that keeps to a JSON schema"
_RESULT: Final = "a tool call, its result alone sent back"
_LOOP: Final = f"{_TURNS}; {_TYPED}; its own tool loop, twice, the second time with the history of the first"

_PARIS: Final = {"name": "Paris", "country": "France"}
_OSLO: Final = {"name": "Oslo", "country": "Norway"}
_ROME: Final = {"name": "Rome", "country": "Italy"}

_SAW_RESULT: Final = {"first": HEARD, "second": KNOWN, "asked": ["Paris"]}
_SAW_LOOP: Final = {
    "first": HEARD,
    "second": KNOWN,
    "typed": {"name": "Paris"},
    "asked": ["Paris", "Oslo"],
    "tools": _weather("Paris", 3),
    "again": _weather("Oslo", 7),
}

TALKERS: Final = (
    Client(
        name="OpenAI SDK (JavaScript)",
        environment="javascript",
        packages=["openai"],
        program="javascript/openai.mjs",
        did=_LOOP,
        dialect="chat",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="Anthropic SDK (JavaScript)",
        environment="javascript",
        packages=["@anthropic-ai/sdk"],
        program="javascript/anthropic.mjs",
        did=_LOOP,
        dialect="messages",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="Vercel AI SDK, OpenAI",
        environment="javascript",
        packages=["ai", "@ai-sdk/openai"],
        program="javascript/vercel_openai.mjs",
        did=_LOOP,
        dialect="chat",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="Vercel AI SDK, OpenAI-compatible",
        environment="javascript",
        packages=["ai", "@ai-sdk/openai-compatible"],
        program="javascript/vercel_compatible.mjs",
        did=_LOOP,
        dialect="chat",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="Vercel AI SDK, Anthropic",
        environment="javascript",
        packages=["ai", "@ai-sdk/anthropic"],
        program="javascript/vercel_anthropic.mjs",
        did=_LOOP,
        dialect="messages",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="LangChain, OpenAI",
        environment="frameworks",
        packages=["langchain-openai"],
        program="python/langchain_chat.py",
        did=f"{_TURNS}; {_TYPED}; {_RESULT}",
        dialect="chat",
        received=[1, 3, 5, 7, 9],
        saw={**_SAW_RESULT, "typed": {"name": "Paris"}, "tools": _weather("Paris", 9)},
    ),
    Client(
        name="LangChain, Anthropic",
        environment="frameworks",
        packages=["langchain-anthropic"],
        program="python/langchain_messages.py",
        did=f"{_TURNS}; {_TYPED}; {_RESULT}",
        dialect="messages",
        received=[1, 3, 5, 7, 9],
        saw={**_SAW_RESULT, "typed": {"name": "Paris"}, "tools": _weather("Paris", 9)},
    ),
    Client(
        name="pydantic-ai, OpenAI",
        environment="frameworks",
        packages=["pydantic-ai-slim"],
        program="python/pydantic_ai_chat.py",
        did=_LOOP,
        dialect="chat",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="pydantic-ai, Anthropic",
        environment="frameworks",
        packages=["pydantic-ai-slim"],
        program="python/pydantic_ai_messages.py",
        did=_LOOP,
        dialect="messages",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
        streamed={True},  # also where its user does not see it
    ),
    Client(
        name="OpenAI Agents SDK",
        environment="openai",
        packages=["openai-agents"],
        program="python/openai_agents.py",
        did=_LOOP,
        dialect="chat",
        received=[1, 3, 5, 1, 3, 5, 7],
        saw=_SAW_LOOP,
    ),
    Client(
        name="instructor",
        environment="openai",
        packages=["instructor"],
        program="python/instructor_tools.py",
        did="three answers of a type, by forced calls, one of them streamed",
        dialect="chat",
        received=[1, 4, 7],  # what an answer of a type is made of is a call without a result, which Baton adds
        saw={"cities": [_PARIS, _OSLO, _ROME]},
    ),
    Client(
        name="LiteLLM, OpenAI",
        environment="litellm",
        packages=["litellm"],
        program="python/litellm_chat.py",
        did=f"{_TURNS}; {_RESULT}",
        dialect="chat",
        received=[1, 3, 5, 7],
        saw={**_SAW_RESULT, "tools": _weather("Paris", 7)},
    ),
    Client(
        name="LiteLLM, Anthropic",
        environment="litellm",
        packages=["litellm"],
        program="python/litellm_messages.py",
        did=f"{_TURNS}; {_RESULT}",
        dialect="messages",
        received=[1, 3, 5, 7],
        saw={**_SAW_RESULT, "tools": _weather("Paris", 7)},
    ),
)
"""Libraries, whose programs print what they saw."""

LLM: Final = Client(
    name="llm (command line)",
    environment="openai",
    packages=["llm"],
    program="shell/llm.sh",
    did=f"{_TURNS}; its own tool loop, twice, the second time with `-c`",
    dialect="chat",
    received=[1, 3, 1, 3, 5, 7],
)
AIDER: Final = Client(
    name="aider",
    environment="aider",
    packages=["aider-chat"],
    program="shell/aider.sh",
    did="one edit of one file and its commit, without a session",
    dialect="chat",
    received=[9, 1],
)
CLAUDE_CODE: Final = Client(
    name="Claude Code",
    environment="javascript",
    packages=["@anthropic-ai/claude-code"],
    program="shell/claude.sh",
    did="two turns, the second with `--continue`; a third that reads a file with its own tool",
    dialect="messages",
    received=[1, 3, 5, 7],
)
CODEX: Final = Client(
    name="Codex",
    environment="javascript",
    packages=["@openai/codex"],
    program="shell/codex.sh",
    did="one turn, refused",
    dialect="chat",
    received=[],
)

CLIENTS: Final = (*TALKERS, LLM, AIDER, CLAUDE_CODE, CODEX)
