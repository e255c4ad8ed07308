"""What conversations cost in tokens: ``python -m bench.context``, or ``make bench-context``.

One session a row, against the stand-in's prompt cache, with every setting at its default but the policy: what Claude
read in all, what of that was billed at full price or more, and both beside what resending the whole conversation with
every turn would bill. Every turn says about as much; the model is one with a small window, so that the longest
conversations outgrow it, and what the policy does then can be seen. In a conversation of `words` the user says it all;
in one of `tools` every other turn brings the result of a call, twice as long, and those between ask for the calls.
"""

import argparse
import asyncio
import contextlib
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, get_args

import aiohttp

from bench.processes import Process, running
from service.settings import Settings
from storage.embedded import EmbeddedValkey

MODEL: Final = "claude-haiku-4-5"
KINDS: Final = ("words", "tools")
TURNS: Final = (30, 100, 300)
_SAID: Final = "Of what is said here a good part was said before, and is only read again. " * 40
_LOOK: Final = {"name": "look", "input_schema": {"type": "object"}}
_TURN_S: Final = 60.0


@dataclass
class Cost:
    """Of one conversation, in tokens.

    Attributes:
        turns: that were answered.
        naive: what resending everything with every turn bills.
        sent: read by Claude.
        full_price: of these, not read from the cache.
        shortened: turns of which a part of the history was left out.
        refused: the code of the error that ended it early; "" for none.
    """

    turns: int = 0
    naive: int = 0
    sent: int = 0
    full_price: int = 0
    shortened: int = 0
    refused: str = ""

    def row(self, policy: str, kind: str, asked: int) -> str:
        """As it is printed."""
        share = f"{100 * self.full_price / self.naive:.1f} %"
        numbers = f"{self.naive:>13,}{self.sent:>13,}{self.full_price:>12,}{share:>9}{self.shortened:>11}"
        return f"{policy:<20}{kind:<6}{asked:>6}{self.turns:>8}{numbers}   {self.refused}"


def _said(kind: str, number: int, calls: Sequence[str]) -> str | list[dict[str, Any]]:
    """What the turn of this number says.

    Args:
        kind: of the conversation.
        number: of the turn.
        calls: of the last answer.
    """
    mark = f"{secrets.token_hex(8)} {number}"
    if kind == "words":
        return f"{mark}: {_SAID}"
    if not calls:
        return f"{mark}: call look"
    return [{"type": "tool_result", "tool_use_id": call, "content": f"{mark}: {_SAID * 2}"} for call in calls]


async def conversation(http: aiohttp.ClientSession, url: str, kind: str, turns: int) -> Cost:
    """A session of so many turns, or until one is refused."""
    cost, session, whole, calls = Cost(), "new", 0, list[str]()
    for number in range(turns):
        said = _said(kind, number, calls)
        body = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": said}]}
        body |= {"tools": [_LOOK]} if kind == "tools" else {}
        async with http.post(f"{url}/v1/messages", json=body, headers={"x-session-id": session}) as response:
            answer: Any = await response.json()
            if response.status != 200:
                cost.refused = answer["error"]["details"]["error_code"]
                break
            session = response.headers["x-session-id"]
            cost.shortened += "x-baton-context" in response.headers
        usage = answer["usage"]
        written = usage["input_tokens"] + usage["cache_creation_input_tokens"]
        said_tokens = sum(map(len, [said] if isinstance(said, str) else [one["content"] for one in said])) // 4
        calls = [block["id"] for block in answer["content"] if block["type"] == "tool_use"]
        whole += said_tokens
        cost.turns += 1
        cost.naive += whole
        cost.sent += written + usage["cache_read_input_tokens"]
        cost.full_price += written
        whole += usage["output_tokens"]
    return cost


@contextlib.asynccontextmanager
async def replica(policy: str, valkey_url: str, simulator: Process, folder: Path) -> AsyncIterator[Process]:
    """A replica that has this policy."""
    env = {
        "ANTHROPIC_API_KEY": "sk-ant-bench",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{simulator.port}",
        "BATON_LISTEN": "127.0.0.1:0",
        "BATON_NAMESPACE": f"bench-{policy}",
        "BATON_REDIS_URL": valkey_url,
        "BATON_SECRET": secrets.token_hex(16),
        "BATON_CONTEXT_POLICY": policy,
    }
    async with running([sys.executable, "-m", "service.cli", "serve"], folder / f"{policy}.log", env) as process:
        yield process


async def measure(valkey_url: str, folder: Path, policies: Sequence[str], lengths: Sequence[int]) -> list[Cost]:
    """Every policy at every length, printed as it comes."""
    print(f"{MODEL}, about {len(_SAID) // 4} tokens a turn\n")
    columns = f"{'naive':>13}{'sent':>13}{'full price':>12}{'share':>9}{'shortened':>11}"
    print(f"{'policy':<20}{'of':<6}{'asked':>6}{'turns':>8}{columns}")
    costs = []
    simulate = [sys.executable, "-m", "service.cli", "simulate", "--listen", "127.0.0.1:0"]
    async with contextlib.AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(running(simulate, folder / "simulator.log"))
        timeout = aiohttp.ClientTimeout(_TURN_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        for policy in policies:
            async with replica(policy, valkey_url, simulator, folder) as process:
                url = f"http://127.0.0.1:{process.port}"
                async with http.get(f"{url}/v1/models"):
                    pass  # the window is known from here on
                for kind, turns in product(KINDS, lengths):
                    costs.append(await conversation(http, url, kind, turns))
                    print(costs[-1].row(policy, kind, turns), flush=True)
    return costs


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    policies = get_args(Settings.model_fields["context_policy"].annotation)
    parser = argparse.ArgumentParser(prog="python -m bench.context", description="Tokens of conversations.")
    parser.add_argument("--policy", choices=policies, action="append", help="only this one")
    parser.add_argument("--turns", type=int, action="append", help="only this length")
    args = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-") as folder,
        EmbeddedValkey.start(Path(folder) / "store") as valkey,
    ):
        asyncio.run(measure(valkey.url, Path(folder), args.policy or policies, args.turns or TURNS))


if __name__ == "__main__":
    main()
