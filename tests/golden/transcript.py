"""Exchanges as text that is the same every time: what varies has a stable name, numbered as it comes.

JSON bodies are indented, with their fields in the order of the wire; streams are shown as they are.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_SHOWN_TO_CLAUDE: Final = ("anthropic-version", "anthropic-beta")
_UNSHOWN: Final = ("date", "content-length", "connection", "transfer-encoding", "cache-control", "x-accel-buffering")
_UNSHOWN_OF_CLAUDE: Final = (*_UNSHOWN, "server", "request-id")
_VARIABLE: Final = re.compile(
    "|".join(
        (
            r"(?P<session>sess_[a-z0-9]{26,})",
            r"(?P<turn>(?<=turn_)[a-z0-9]{26}|(?<=chatcmpl-)[a-z0-9]{26})",
            r"(?P<message>msg_[A-Za-z0-9]+)",
            r"(?P<request>req_[A-Za-z0-9]+)",
            r"(?P<call>toolu_[A-Za-z0-9]+)",
            r"(?P<instant>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00))",
            r'(?P<signature>(?<="signature": ")[^"]+|(?<="signature":")[^"]+)',
            r'(?P<second>(?<="created": )[1-9]\d*|(?<="created":)[1-9]\d*)',
            r"(?P<address>127\.0\.0\.1:\d+)",
        )
    )
)
_UNNUMBERED: Final = ("instant", "second", "address", "request")  # how often they change says nothing


class Transcript:
    """A scenario as it is played.

    Args:
        title: its first line.
    """

    def __init__(self, title: str) -> None:
        self._parts = [f"# {title}\n"]
        self._names: dict[tuple[str, str], int] = {}

    def note(self, text: str) -> None:
        """A line between exchanges."""
        self._parts.append(f"\n# {text}\n")

    def asked(self, who: str, line: str, headers: Mapping[str, str], body: bytes) -> None:
        """A request; ``who`` says from whom to whom."""
        shown = (
            headers
            if who.startswith("client")
            else {name: headers[name] for name in _SHOWN_TO_CLAUDE if name in headers}
        )
        self._add(who, line, shown, body)

    def told(self, who: str, status: str, headers: Mapping[str, str], body: bytes) -> None:
        """An answer."""
        left_out = _UNSHOWN_OF_CLAUDE if who.startswith("claude") else _UNSHOWN
        self._add(who, status, {name: value for name, value in headers.items() if name not in left_out}, body)

    def _add(self, who: str, line: str, headers: Mapping[str, str], body: bytes) -> None:
        head = [line, *(f"{name}: {value}" for name, value in sorted(headers.items()))]
        self._parts.append(f"\n== {who}\n" + "\n".join(head) + "\n" + _shown(body))

    def text(self) -> str:
        """All of it, with stable names."""
        return _VARIABLE.sub(self._named, "".join(self._parts))

    def _named(self, found: re.Match[str]) -> str:
        kind, value = found.lastgroup or "", found[0]
        if kind in _UNNUMBERED:
            return f"<{kind}>"
        alike = [known for known, _ in self._names if known == kind]
        return f"<{kind} {self._names.setdefault((kind, value), len(alike) + 1)}>"


def _shown(body: bytes) -> str:
    if not body:
        return ""
    try:
        value: Any = json.loads(body)
    except ValueError:
        return "\n" + body.decode().rstrip("\n") + "\n"
    return "\n" + json.dumps(value, indent=2, ensure_ascii=False) + "\n"
