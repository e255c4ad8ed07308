"""The messages of a chat: who said what, in the order that Claude takes; pure.

System and developer messages at the front are the system prompt. A later one is a message of role ``system`` in its
place, as near as Claude allows: behind a message of the user's, and last or in front of the assistant's. So it waits
for the end of what the user says next, and those that wait together become one. What stands in front of an assistant's
message never depends on what comes behind it: a conversation that is sent again translates to the same messages.

An assistant's message without any content, which an answer of Claude's may be, is left out: Claude takes no empty
message, and none was stored.
"""

from dataclasses import dataclass
from typing import Any, Final

from service.dialects import chat_content, chat_fields, chat_tools
from service.errors import BatonError, invalid_value

_MESSAGES_MAX: Final = 100_000  # Claude's own limit
_PARTS_MAX: Final = 100_000  # in all messages together: looking at more would keep other callers waiting
_INSTRUCTING: Final = ("system", "developer")
_FIELDS: Final = {
    "system": ("role", "content"),
    "developer": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "refusal", "tool_calls", "reasoning_content", "parsed"),
    "tool": ("role", "content", "tool_call_id"),
}

Block = dict[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a request, in Claude's terms.

    Attributes:
        system: the system prompt, string or blocks; None where there is none.
        messages: the others, oldest first.
        answered: an answer is among them, or was before it was left out as empty.
    """

    system: Any
    messages: list[Message]
    answered: bool


def translated(given: Any, ignored: set[str], *, asks: bool = True) -> Conversation:
    """``messages`` as Claude's. Adds to what is ignored.

    Args:
        given: the field.
        ignored: names.
        asks: they ask for an answer; otherwise they may end with one.

    Raises:
        BatonError: 400 naming the place.
    """
    if given is None:
        raise BatonError("missing_value", "`messages` is required.", param="messages")
    if not isinstance(given, list) or not given:
        raise invalid_value("messages", "must be a list with at least one message")
    _check_size(given)
    order = _Order()
    pairing = chat_tools.Pairing()
    for index, message in enumerate(given):
        where = f"messages.{index}"
        role = _role(message, where, ignored)
        if role in _INSTRUCTING:
            order.instruct(chat_content.translated(message, role, where, ignored))
        elif role == "tool":
            content = chat_content.translated(message, role, where, ignored, blank=True)
            order.add_result(pairing.result(message, content, where))
        elif role == "user":
            pairing.said([])
            order.add(role, chat_content.translated(message, role, where, ignored))
        else:
            calls = chat_tools.calls(message.get("tool_calls"), f"{where}.tool_calls", ignored)
            pairing.said(calls)
            order.add(role, _answer(message, where, ignored, calls))
    return order.finished(asks=asks)


class _Order:
    """Puts messages in the order that Claude takes; fed message by message."""

    def __init__(self) -> None:
        self._prompt: list[str] = []
        self._messages: list[Message] = []
        self._waiting: list[str] = []  # system messages that have no place yet
        self._results: list[Block] = []  # of the tool messages right before; they are one message of Claude's
        self._answered = False

    def instruct(self, content: Any) -> None:
        text = content if isinstance(content, str) else "".join(block["text"] for block in content)
        (self._waiting if self._messages or self._answered else self._prompt).append(text)

    def add_result(self, result: Block) -> None:
        self._results.append(result)
        if len(self._results) == 1:
            self._messages.append({"role": "user", "content": self._results})

    def add(self, role: str, content: Any) -> None:
        """A message of the user's or the assistant's; an empty one is left out."""
        self._results = []
        if role == "assistant":
            self._answered = True
            if not content:
                return
            self._place()
        self._messages.append({"role": role, "content": content})

    def _place(self) -> None:
        """Gives the system messages that wait their place, if it is here."""
        if self._waiting and self._messages and self._messages[-1]["role"] == "user":
            self._messages.append({"role": "system", "content": _joined(self._waiting)})
            self._waiting = []

    def finished(self, *, asks: bool) -> Conversation:
        if asks and (not self._messages or self._messages[-1]["role"] != "user"):
            raise invalid_value("messages", "must end with a user or tool message, but for system messages behind it")
        if self._messages and self._messages[0]["role"] != "user":
            raise invalid_value("messages", "must begin with a user or tool message, after any system messages")
        self._place()
        return Conversation(_joined(self._prompt) if self._prompt else None, self._messages, self._answered)


def _joined(texts: list[str]) -> Any:
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _answer(message: Message, where: str, ignored: set[str], calls: list[Block]) -> Any:
    """The content of a message of the assistant's: what was said, why no more was said, the calls."""
    refusal = message.get("refusal")
    if refusal is not None and not isinstance(refusal, str):
        raise invalid_value(f"{where}.refusal", "must be a string")
    declined = [{"type": "text", "text": refusal}] if refusal and refusal.strip() else []
    if message.get("content") is None and (calls or declined):
        return [*declined, *calls]
    alone = not calls and not declined
    # An answer of nothing is a blank string; a list that shows nothing is no answer's.
    blank = not alone or isinstance(message.get("content"), str)
    said = chat_content.translated(message, "assistant", where, ignored, blank=blank)
    if alone:
        return said
    if isinstance(said, str):
        said = [{"type": "text", "text": said}] if said else []
    return [*said, *declined, *calls]


def _check_size(given: list[Any]) -> None:
    """Refuses more than can be looked at without keeping other callers waiting."""
    if len(given) > _MESSAGES_MAX:
        raise invalid_value("messages", f"may hold at most {_MESSAGES_MAX} messages")
    parts = [message.get(name) for name in ("content", "tool_calls") for message in given if isinstance(message, dict)]
    if sum(len(content) for content in parts if isinstance(content, list)) > _PARTS_MAX:
        raise invalid_value("messages", f"may hold at most {_PARTS_MAX} parts of content and tool calls")


def _role(message: Any, where: str, ignored: set[str]) -> str:
    """The role of a message whose other fields are in order; adds to what is ignored."""
    if not isinstance(message, dict):
        raise invalid_value(where, "must be an object")
    role = message.get("role")
    if role == "function":
        raise BatonError("unsupported", f"{where}: role `{role}` is not supported.", param=f"{where}.role")
    if not isinstance(role, str) or role not in _FIELDS:
        raise invalid_value(f"{where}.role", f"must be one of {', '.join(_FIELDS)}")
    if len(message) > 2:
        # SDK objects sent back carry empty fields of an answer; they ask for nothing.
        others = {name: value for name, value in message.items() if value not in (None, [], {})}
        chat_fields.sort_out(others, "messages", where, ignored, own=_FIELDS[role])
    return role
