"""A Messages request that belongs to no session: its bytes go to Claude, and Claude's come back.

Nothing is stored, translated or judged. Of the body one thing is replaced, the name of a model that is an alias; of the
caller's headers the API's version and its betas go along, its credential does not. An answer that is one JSON body
comes back as the same bytes; the events of a stream come back with the same JSON, in frames that are whole. What Baton
adds is what it adds everywhere: its own credential and retries, the deadline, an honest end, and its own keep-alives in
the place of Claude's pings.
"""

import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

import orjson

from service.claude import Claude
from service.dialects import messages_out
from service.exchange import Exchange

_STRING: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKEN: Final = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_VALUE: Final = re.compile(rb"\s*:\s*(" + _STRING + rb")", re.DOTALL)


class Passage(Exchange):
    """An exchange whose answer is Claude's own bytes.

    Args:
        claude: where it goes.
        path: of Claude's API.
        body: as it came, but for an alias.
        headers: of the caller's that Claude should see.
        streamed: whether the body asks for a stream.
        deadline_s: of all of it.
    """

    def __init__(
        self, claude: Claude, path: str, body: bytes, headers: Mapping[str, str], *, streamed: bool, deadline_s: float
    ) -> None:
        super().__init__(
            claude,
            body,
            headers,
            render=messages_out.rendering,
            streamed=streamed,
            on_disconnect="cancel",
            deadline_s=deadline_s,
        )
        self._path = path
        self._whole = b""

    def _facts(self) -> dict[str, str | int | float | None]:
        return {"route": self._path}

    async def _converse(self) -> None:
        self.opened.set()
        if not self._streamed:
            self._whole = await self._claude.whole(self._path, self._body, self._claude_headers)
            return
        async with aclosing(self._claude.stream(self._body, self._claude_headers)) as batches:
            async for batch in batches:
                await self._hand_over.put(b"".join(map(messages_out.frame, batch)))

    def whole(self) -> bytes:
        """Claude's answer; after an end without ``error``."""
        return self._whole


def with_model(raw: bytes, model: str) -> bytes:
    """A request with another model, and otherwise byte by byte as it was. Cost: one pass over it.

    Args:
        raw: a JSON object that names a model.
        model: to be named in the place of that.
    """
    depth, start, end = 0, 0, 0
    for token in _TOKEN.finditer(raw):
        first = raw[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif depth == 1 and (value := _VALUE.match(raw, token.end())) and orjson.loads(token[0]) == "model":
            start, end = value.span(1)  # of a field that is there twice, the last one counts
    return raw[:start] + orjson.dumps(model) + raw[end:]
