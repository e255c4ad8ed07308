"""Pure: what the stand-in says, computed from the messages of one request and nothing else.

There is no memory here, which is the point: "what is my name?" can be answered only if whoever sent the request
also sent the message that told it. A session store is right exactly when these answers are.

The last user turn decides (neighbouring user messages count as one turn). The first line that applies wins;
case does not matter:

    write the summary of this       (at the end) what must not be forgotten of a transcript, see below
      conversation now
    repeat after me: TEXT           TEXT
    what is my name, who am i       the last "my name is X" or "I am called X" a user message holds, if one does
    count to N                      1 2 3 … N, N up to 5000
    what did i say first            the first user message
    how many messages               the number of messages, as received
    what should you remember        every "remember: …" of the user messages, a line each, in order, if there is one
    list the marks                  every [mark:ID] of the user messages, in order, or "none"
    what are your instructions      the system text, if there is one
    anything else                   the turn quoted (up to 80 characters), the number of messages received, and the
                                    images and documents in them

A request that is answered with tool calls (calls.py) gets these words ahead of them only where one of the lines from
the name to the instructions applies, or there are marks.

Marks prove what an answer was based on. Where the last user turn holds any `[mark:ID]`, the answer ends with
`[seen:ID]` for each of them, then `[after:ID]` naming the last mark of the user turn before it, or
`[after:none]`. Three answers may not keep to that, since their text is the caller's: a summary, `repeat after me` and
`list the marks`.

A summary is made of the text of the request, like everything else: of what stands behind a line `[user]`, and ahead of
the first such line, it holds the last name that was told, each "remember: …" up to the end of its line, and each mark;
what stands behind `[assistant]` was only said. So it is a summary that can be summarized again.

Where the request asks for JSON by a schema, these words are a string in it (schema.py). Two more phrases command how an
answer is thought about (thinking.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from service.simulator.attachments import describe

COUNT_MAX = 5000
QUOTE_CHARS_MAX = 80

_MARK = re.compile(r"\[mark:([^\]\s]{1,200})\]")
_REPEAT = re.compile(r"\brepeat after me:\s*(?P<text>\S.*)", re.IGNORECASE | re.DOTALL)
_ASKS_NAME = re.compile(r"\bwhat(?: is|'s|’s) my name\b|\bwho am i\b", re.IGNORECASE)
# One word, and those behind it that begin with a capital: "Ada and …" is Ada, "Ada Lovelace." is both.
_TELLS_NAME = re.compile(
    r"(?i:\bmy name is|\bi am called|\bi['’]m called)\s+(?P<name>[^\W_][\w'’-]*(?: [A-ZÀ-ÖØ-Þ][\w'’-]*)*)"
)
_COUNT = re.compile(r"\bcount to (?P<number>\d{1,9})\b", re.IGNORECASE)
_ASKS_SUMMARY = re.compile(r"\bwrite the summary of this conversation now\W*\Z", re.IGNORECASE)
_SPEAKER = re.compile(r"^\[(user|assistant|system)\]$", re.MULTILINE)
_TELLS_FACT = re.compile(r"\bremember:[ \t]*(?P<fact>\S[^\n]*)", re.IGNORECASE)
_WORD = re.compile(r"\s*\S+(?:\s+\Z)?")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the answering rules look at, as plain text.

    Attributes:
        system: top-level system text, then that of `system` messages, in order.
        user_messages: the text of each user message as received, oldest first.
        user_turns: the same with neighbours merged.
        message_count: messages as received, of every role.
        attachments: a sentence on the images and documents in them; empty without any.
    """

    system: str
    user_messages: tuple[str, ...]
    user_turns: tuple[str, ...]
    message_count: int
    attachments: str

    @property
    def last(self) -> str:
        """The text of the last user turn."""
        return self.user_turns[-1]


def read(body: dict[str, Any]) -> Conversation:
    """Take the texts out of a request that the rules accepted."""
    messages = body["messages"]
    system = [_text(body.get("system") or "")]
    users: list[str] = []
    turns: list[str] = []
    for role, run in groupby(messages, key=lambda message: message["role"]):
        texts = [_text(message["content"]) for message in run]
        if role == "system":
            system.extend(texts)
        elif role == "user":
            users.extend(texts)
            turns.append("\n".join(filter(None, texts)))
    return Conversation(
        system="\n\n".join(filter(None, system)),
        user_messages=tuple(users),
        user_turns=tuple(turns),
        message_count=len(messages),
        attachments=describe(messages),
    )


def _text(content: Any) -> str:
    """Return the text of a content value: strings, text blocks, and what tool results say."""
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if block["type"] == "text":
            parts.append(block["text"])
        elif block["type"] == "tool_result":
            parts.append(_text(block.get("content") or ""))
    return "\n".join(filter(None, parts))


def answer(conversation: Conversation) -> str:
    """Return the whole answer to a conversation; never empty, the same for the same messages."""
    for rule in _VERBATIM_RULES:
        if (said := rule(conversation)) is not None:
            return said
    for rule in _RULES:
        if (said := rule(conversation)) is not None:
            break
    else:
        said = _acknowledge(conversation)
    return " ".join([said, *_proof(conversation)])


def aside(conversation: Conversation) -> str:
    """Return what is said ahead of tool calls; empty if the conversation asks for nothing but the calls."""
    said = next((said for rule in _RULES if (said := rule(conversation)) is not None), None)
    return " ".join([*filter(None, [said]), *_proof(conversation)])


def split_words(text: str) -> tuple[str, ...]:
    """Cut a text into the deltas of a stream: a word each, with the space before it; joined they are the text."""
    return tuple(_WORD.findall(text))


def _summarize(conversation: Conversation) -> str | None:
    if not _ASKS_SUMMARY.search(conversation.last):
        return None
    before, *spoken = _SPEAKER.split(conversation.last)
    theirs = "\n".join([before, *(said for who, said in zip(spoken[::2], spoken[1::2], strict=True) if who == "user")])
    names, marks = _TELLS_NAME.findall(theirs), dict.fromkeys(_MARK.findall(theirs))
    lines = [f"My name is {names[-1]}."] if names else []
    lines += [f"Remember: {fact}" for fact in dict.fromkeys(_facts(theirs))]
    lines += [" ".join(f"[mark:{mark}]" for mark in marks)] if marks else []
    return "\n".join(lines) or "Nothing was said that must be kept."


def _facts(text: str) -> list[str]:
    return [_MARK.sub("", fact).strip() for fact in _TELLS_FACT.findall(text)]


def _tell_facts(conversation: Conversation) -> str | None:
    if "what should you remember" not in conversation.last.lower():
        return None
    facts = [fact for text in conversation.user_messages for fact in _facts(text)]
    return "\n".join(["I remember:", *facts]) if facts else "There is nothing that I should remember."


def _repeat(conversation: Conversation) -> str | None:
    found = _REPEAT.search(conversation.last)
    return found["text"].rstrip() if found else None


def _list_marks(conversation: Conversation) -> str | None:
    if "list the marks" not in conversation.last.lower():
        return None
    marks = [mark for text in conversation.user_messages for mark in _MARK.findall(text)]
    return " ".join(f"[mark:{mark}]" for mark in marks) or "none"


def _tell_name(conversation: Conversation) -> str | None:
    if not _ASKS_NAME.search(conversation.last):
        return None
    for text in reversed(conversation.user_messages):
        if names := _TELLS_NAME.findall(text):
            return f"Your name is {names[-1]}."
    return "You have not told me your name."


def _count(conversation: Conversation) -> str | None:
    found = _COUNT.search(conversation.last)
    if not found or not 1 <= (number := int(found["number"])) <= COUNT_MAX:
        return None
    return " ".join(map(str, range(1, number + 1)))


def _first_said(conversation: Conversation) -> str | None:
    if "what did i say first" not in conversation.last.lower():
        return None
    return f'You first said: "{conversation.user_messages[0]}"'


def _count_messages(conversation: Conversation) -> str | None:
    if "how many messages" not in conversation.last.lower():
        return None
    return f"This conversation holds {conversation.message_count} messages."


def _tell_instructions(conversation: Conversation) -> str | None:
    if "what are your instructions" not in conversation.last.lower():
        return None
    return f'My instructions are: "{conversation.system}"' if conversation.system else "I have no instructions."


def _acknowledge(conversation: Conversation) -> str:
    quote = " ".join(conversation.last.split())
    if len(quote) > QUOTE_CHARS_MAX:
        quote = quote[: QUOTE_CHARS_MAX - 1] + "…"
    said = f'You said: "{quote}".' if quote else "You sent no text."
    count = conversation.message_count
    received = f"I received {count} message{'' if count == 1 else 's'}."
    return " ".join(filter(None, (said, received, conversation.attachments)))


def _proof(conversation: Conversation) -> list[str]:
    """Name the marks of the last user turn, and the one the turn before it ended with."""
    marks = _MARK.findall(conversation.last)
    if not marks:
        return []
    before = _MARK.findall(conversation.user_turns[-2]) if len(conversation.user_turns) > 1 else []
    return [*(f"[seen:{mark}]" for mark in marks), f"[after:{before[-1] if before else 'none'}]"]


Rule = Callable[[Conversation], str | None]
_VERBATIM_RULES: tuple[Rule, ...] = (_summarize, _repeat, _list_marks)
_RULES: tuple[Rule, ...] = (_tell_name, _tell_facts, _count, _first_said, _count_messages, _tell_instructions)
