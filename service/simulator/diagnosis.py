"""Cache diagnostics: why the prefix of an earlier request could not be used again.

A request that has `diagnostics` is remembered under the id of its answer, and compared with the one whose answer it
names in `previous_message_id`. The answer says in `diagnostics.cache_miss_reason` what differs: the model or the
speed, the system prompt, the tools, an earlier message, or else (`unavailable`) thinking rules or the choice of a
tool; in this order, since the reasons further down presuppose that those above are the same. `null` stands for no
difference, and for requests that do not ask. The comparison is of what the model reads (prompt.py), not of
bytes, and is never pending.

The last `KEPT` requests are remembered.
"""

import json
from collections import OrderedDict
from typing import Any

from service.simulator.prompt import Chain, Prompt

KEPT = 10_000


class Fingerprint:
    """What is compared of one request.

    Args:
        body: as accepted.
        prompt: the same, read.
    """

    def __init__(self, body: dict[str, Any], prompt: Prompt) -> None:
        self.model = (body["model"], body.get("speed") or "standard")
        self.rules = json.dumps([body.get("thinking"), body.get("tool_choice")], sort_keys=True)
        self.tokens = prompt.tokens
        self.tools = _digests(prompt, ("tools",))
        self.system = _digests(prompt, ("system",))
        self.messages = _digests(prompt, ("user", "assistant", "system_message"))

    def reason(self, before: "Fingerprint") -> dict[str, Any] | None:
        """Why the prefix of an earlier request is not one of this; `None` if it is."""
        if self.model != before.model:
            kind = "model_changed"
        elif self.system != before.system:
            kind = "system_changed"
        elif self.tools != before.tools:
            kind = "tools_changed"
        elif self.messages[: len(before.messages)] != before.messages:
            kind = "messages_changed"
        else:
            return None if self.rules == before.rules else {"type": "unavailable"}
        return {"type": kind, "cache_missed_input_tokens": before.tokens}


def _digests(prompt: Prompt, roles: tuple[str, ...]) -> list[bytes]:
    """A digest for each prefix of the blocks of these roles."""
    chain = Chain("")
    return [chain.add(part.role, part.block) for part in prompt.parts if part.role in roles]


class Diagnoses:
    """The requests that later ones may be compared with."""

    def __init__(self) -> None:
        self._asked: OrderedDict[str, Fingerprint] = OrderedDict()

    def of(self, body: dict[str, Any], prompt: Prompt, message_id: str) -> dict[str, Any] | None:
        """The `diagnostics` of an answer; the request is remembered under the answer's id."""
        if body.get("diagnostics") is None:
            return None
        this = self._asked[message_id] = Fingerprint(body, prompt)
        if len(self._asked) > KEPT:
            self._asked.popitem(last=False)
        named = body["diagnostics"].get("previous_message_id")
        if named is None:
            return None
        before = self._asked.get(named)
        reason = {"type": "previous_message_not_found"} if before is None else this.reason(before)
        return None if reason is None else {"cache_miss_reason": reason}
