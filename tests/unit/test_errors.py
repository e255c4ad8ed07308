"""The table of codes, the code that uses it, and the two renderings."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import errors
from service.dialects.errors import anthropic_error, is_anthropic, openai_error
from service.errors import CODES, BatonError
from service.interrupt import Interrupt

SERVICE = Path(errors.__file__).parent
ALIKE_ON_BOTH = (401, 403, 404, 409, 429)


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SERVICE.rglob("*.py")):
        if "simulator" not in path.parts:
            yield path, ast.parse(path.read_text("utf-8"))


def raised_codes() -> Iterator[tuple[str, ast.expr]]:
    """The code of every ``BatonError(…)`` in the service, with its place."""
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BatonError":
                yield f"{path.relative_to(SERVICE)}:{node.lineno}", node.args[0]


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_status_and_a_sentence(code: str) -> None:
    meant = CODES[code]
    assert 400 <= meant.status <= 504
    assert meant.meaning[0].isupper()
    assert meant.meaning.endswith(".")
    assert code == code.lower()
    assert str(meant.status) in (errors.__doc__ or "")


def test_every_code_that_is_raised_is_in_the_table() -> None:
    constant = {place: node.value for place, node in raised_codes() if isinstance(node, ast.Constant)}
    assert len(constant) > 30
    assert {place: code for place, code in constant.items() if code not in CODES} == {}


def test_codes_are_written_out_where_they_are_raised_but_for_interrupts() -> None:
    others = [place for place, node in raised_codes() if not isinstance(node, ast.Constant)]
    assert len(others) == 1
    assert others[0].startswith("interrupt.py")
    for interrupt in Interrupt:
        assert interrupt.told().code in CODES


def test_every_code_of_the_table_is_raised_somewhere() -> None:
    raised = {node.value for _, node in raised_codes() if isinstance(node, ast.Constant)}
    raised |= {interrupt.told().code for interrupt in Interrupt}
    assert CODES.keys() - raised == set()


@pytest.mark.parametrize("code", CODES)
def test_both_renderings(code: str) -> None:
    error = BatonError(code, "What to do.", param="messages")
    openai = json.loads(openai_error(error))
    assert openai.keys() == {"error"}
    assert openai["error"].keys() == {"message", "type", "param", "code"}
    assert openai["error"] | {"type": ""} == {"message": "What to do.", "type": "", "param": "messages", "code": code}
    anthropic = json.loads(anthropic_error(error, "req_1"))
    assert anthropic == {
        "type": "error",
        "error": {"type": anthropic["error"]["type"], "message": "What to do.", "details": {"error_code": code}},
        "request_id": "req_1",
    }
    types = (openai["error"]["type"], anthropic["error"]["type"])
    if error.status in ALIKE_ON_BOTH:
        assert types[0] == types[1]
    elif error.status < 500 and error.status not in (408, 413):
        assert types == ("invalid_request_error", "invalid_request_error")
    elif error.status >= 500:
        assert types[0] == "server_error"
        assert types[1] in ("api_error", "overloaded_error", "timeout_error")


def test_headers_of_an_error() -> None:
    error = BatonError("turn_in_progress", "Wait.", retry_after_s=2.4, headers={"x-turn-id": "turn_1"})
    assert error.response_headers() == {"x-should-retry": "true", "retry-after": "2", "x-turn-id": "turn_1"}
    assert BatonError("invalid_json", "No.").response_headers() == {"x-should-retry": "false"}
    assert BatonError("overloaded", "Wait.", retry_after_s=0.01).response_headers()["retry-after"] == "1"


@pytest.mark.parametrize("code", CODES)
def test_what_the_caller_got_wrong_is_not_sent_again(code: str) -> None:
    meant = CODES[code]
    if meant.status in (400, 404, 405, 413):
        assert not meant.retry
    if meant.status in (408, 429):
        assert meant.retry


@pytest.mark.parametrize(
    ("path", "plain", "versioned"),
    [
        ("/v1/messages", True, True),
        ("/v1/messages/count_tokens", True, True),
        ("/v1/messages/", True, True),
        ("/v1/messagesx", False, False),
        ("/v1/models", False, True),
        ("/v1/models/claude-x", False, True),
        ("/v1/models/a/b", False, True),
        ("/v1/modelsx", False, False),
        ("/v1/chat/completions", False, False),
        ("/v1/sessions/a/messages", False, False),
        ("/", False, False),
    ],
)
def test_whose_dialect_a_request_speaks(path: str, plain: bool, versioned: bool) -> None:
    headers = [(b"host", b"x"), (b"x-anthropic-version", b"1")]
    assert is_anthropic({"path": path, "headers": headers}) is plain
    for version in (b"2026-10-21", b"2023-06-01", b""):
        assert is_anthropic({"path": path, "headers": [*headers, (b"anthropic-version", version)]}) is versioned
