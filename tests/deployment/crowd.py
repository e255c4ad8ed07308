"""Users of a deployment, who only see its balancer: half with OpenAI's SDK, half with Anthropic's, and none retries.

Each has a session of its own and asks one question after the other, streamed and not, in turns. What failed is kept in
words; at the end each user's session must hold exactly what its user was told, in order.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, Self

import aiohttp
import anthropic
import httpx2
import openai

MODEL = "claude-sonnet-5-5"
PATIENCE_S = 60.0
POLL_S = 0.05


class TurnFailed(Exception):
    """A turn that its user did not see end well; says how."""


class User(Protocol):
    """Somebody with an SDK and a session."""

    session: str

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def ask(self, text: str, *, stream: bool) -> str:
        """One turn; returns the whole answer.

        Raises:
            TurnFailed: it was refused, or its stream did not end as a complete one does.
        """
        ...


class OpenAiUser:
    """A user of OpenAI's SDK."""

    def __init__(self, url: str, session: str, *, retries: int = 0) -> None:
        self.session = session
        self._sdk = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._sdk.close()

    async def ask(self, text: str, *, stream: bool) -> str:
        """One turn."""
        asked: Any = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "extra_body": {"session_id": self.session},
        }
        try:
            if not stream:
                whole = await self._sdk.chat.completions.create(**asked)
                return str(whole.choices[0].message.content)
            said, finish = "", None
            async for chunk in await self._sdk.chat.completions.create(**asked, stream=True):
                for choice in chunk.choices:
                    said += choice.delta.content or ""
                    finish = choice.finish_reason or finish
        except (openai.APIError, httpx2.HTTPError) as error:
            raise TurnFailed(_words(error)) from error
        if finish != "stop":
            raise TurnFailed(f"the stream ended with finish_reason {finish}")
        return said


class AnthropicUser:
    """A user of Anthropic's SDK."""

    def __init__(self, url: str, session: str, *, retries: int = 0) -> None:
        self.session = session
        self._sdk = anthropic.AsyncAnthropic(base_url=url, api_key="none", timeout=PATIENCE_S, max_retries=retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._sdk.close()

    async def ask(self, text: str, *, stream: bool) -> str:
        """One turn."""
        asked: Any = {
            "model": MODEL,
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": text}],
            "extra_headers": {"X-Session-Id": self.session},
        }
        try:
            if not stream:
                whole = await self._sdk.messages.create(**asked)
                return "".join(block.text for block in whole.content if block.type == "text")
            said, ended = "", False
            async for event in await self._sdk.messages.create(**asked, stream=True):
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    said += event.delta.text
                ended = ended or event.type == "message_stop"
        except (anthropic.APIError, httpx2.HTTPError) as error:
            raise TurnFailed(_words(error)) from error
        if not ended:
            raise TurnFailed("the stream ended without message_stop")
        return said


def _words(error: Exception) -> str:
    body = getattr(error, "body", None)
    return f"{type(error).__name__}: {body or error}"


class Crowd:
    """Users at work.

    Attributes:
        turns: how many ended well, streamed or not.
        failures: how the others ended, in words.
    """

    def __init__(self, url: str, users: list[User]) -> None:
        self._url = url
        self._users = users
        self._told: dict[str, list[str]] = {user.session: [] for user in users}
        self._over = False
        self.turns = 0
        self.failures: list[str] = []

    async def _works(self, number: int, user: User) -> None:
        stream = bool(number % 3)
        while not self._over:
            text = f"Count to {20 if stream else 3}."
            try:
                self._told[user.session].append(await user.ask(text, stream=stream))
                self.turns += 1
            except TurnFailed as failure:
                self.failures.append(f"{'streamed' if stream else 'whole'}: {failure}")
            stream = not stream

    async def more(self, turns: int, timeout_s: float) -> None:
        """Waits until so many more have ended well."""
        wanted = self.turns + turns
        async with asyncio.timeout(timeout_s):
            while self.turns < wanted:  # noqa: ASYNC110 - it is told by nobody
                await asyncio.sleep(POLL_S)

    async def _end(self) -> None:
        self._over = True

    async def assert_kept(self) -> None:
        """Every session holds what its user was told: nothing lost, nothing twice, nothing out of order."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as http:
            for session, told in self._told.items():
                stored = [text async for text in _answers(http, self._url, session)]
                assert stored == told, session


async def _answers(http: aiohttp.ClientSession, url: str, session: str) -> AsyncIterator[str]:
    offset = 0
    while True:
        page = f"{url}/v1/sessions/{session}/messages?limit=100&offset={offset}"
        async with http.get(page) as response:
            assert response.status == 200, await response.text()
            messages = (await response.json())["messages"]
        if not messages:
            return
        offset += len(messages)
        for message in messages:
            if message["role"] == "assistant":
                yield "".join(block["text"] for block in message["content"])


@asynccontextmanager
async def crowd(url: str, users: int) -> AsyncIterator[Crowd]:
    """Users who work until the block ends; then each ends the turn that it is in."""
    async with AsyncExitStack() as stack:
        run = uuid.uuid4().hex[:8]
        kinds: list[type[OpenAiUser] | type[AnthropicUser]] = [OpenAiUser, AnthropicUser]
        people: list[User] = [
            await stack.enter_async_context(kinds[number % 2](url, f"crowd-{run}-{number}")) for number in range(users)
        ]
        working = Crowd(url, people)
        async with asyncio.TaskGroup() as group:
            for number, user in enumerate(people):
                group.create_task(working._works(number, user))
            try:
                yield working
            finally:
                await working._end()
