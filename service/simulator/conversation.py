"""The rules on `messages`: which roles may follow which, what a message may hold, calls and their results.

The service merges neighbouring messages of one role before it looks at them as turns, so the rules on order are
checked on merged turns while the paths in errors count the messages as they were sent. Rules on order:

- the first message is the user's; the last is not the assistant's, where the model refuses a prefill;
- a `system` message stands behind a user turn (or an assistant turn that ended in Anthropic's own tool call)
  and is the last or is followed by the assistant; on some models only;
- each `tool_use` is answered by a `tool_result` at the beginning of the next user turn, and nothing else is.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from service.simulator.attachments import check_source
from service.simulator.cache import check_control
from service.simulator.errors import invalid
from service.simulator.headers import PRESENT, Terms
from service.simulator.models import Model

SERVER_TOOL_RESULTS = (
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
)
SHARED_BLOCKS = frozenset({"text", "image", "search_result"})
BLOCKS_BY_ROLE = {
    "user": SHARED_BLOCKS | {"document", "tool_result", "container_upload", *SERVER_TOOL_RESULTS},
    # Under API version 2023-06-01 a document may also stand in an assistant message.
    "assistant": SHARED_BLOCKS
    | {"thinking", "redacted_thinking", "tool_use", "server_tool_use", "container_upload", *SERVER_TOOL_RESULTS},
    "system": frozenset({"text"}),
}
BLOCK_TYPES = frozenset().union(*BLOCKS_BY_ROLE.values())
TOOL_RESULT_BLOCKS = SHARED_BLOCKS | {"document", "tool_reference", "browser_state"}

# Required fields with their types, then the optional ones, of the blocks a caller sends back to the API. A block
# not listed is accepted by its type alone: its insides mean nothing to the stand-in.
BLOCK_FIELDS: dict[str, tuple[dict[str, type], frozenset[str]]] = {
    "text": ({"text": str}, frozenset({"cache_control", "citations"})),
    "thinking": ({"thinking": str, "signature": str}, frozenset()),
    "redacted_thinking": ({"data": str}, frozenset()),
    "image": ({"source": dict}, frozenset({"cache_control"})),
    "document": ({"source": dict}, frozenset({"cache_control", "citations", "context", "title"})),
    "search_result": (
        {"source": str, "title": str, "content": list},
        frozenset({"cache_control", "citations"}),
    ),
    "tool_use": (
        {"id": str, "name": str, "input": dict},
        frozenset({"cache_control", "caller", "toolset_name"}),
    ),
    "tool_result": (
        {"tool_use_id": str},
        frozenset({"cache_control", "content", "is_error", "toolset_name"}),
    ),
}
# Fields of messages that beta features add.
BETA_MESSAGE_FIELDS: dict[str, tuple[str, ...]] = {"system": ("clear_at", "output_config")}
CALL_ID = re.compile(r"[a-zA-Z0-9_-]+")
CALL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
CALL_FIELDS = {"id": CALL_ID, "tool_use_id": CALL_ID, "name": CALL_NAME}
TYPE_NAMES: dict[type, str] = {str: "string", dict: "dictionary", list: "list"}

Run = list[tuple[int, dict[str, Any]]]
"""Neighbouring messages of one role, each with its index as received."""


def check_messages(messages: list[Any], model: Model, terms: Terms) -> None:
    """Judge the conversation of a request.

    Args:
        messages: as received, oldest first; not empty.
        model: decides whether `system` messages and a prefill are legal.
        terms: decide about documents of the assistant, citations of the user and fields of beta features.

    Raises:
        ApiError: 400, the message naming the index as received.
    """
    for index, message in enumerate(messages):
        _check_message(message, f"messages.{index}", model, terms)
    runs = [list(run) for _, run in groupby(enumerate(messages), key=lambda item: item[1]["role"])]
    _check_order(runs, model)
    _check_tool_pairs(runs)


def check_text_blocks(blocks: Any, path: str) -> None:
    """Require a list of text blocks: what `system` holds when it is not a string.

    Raises:
        ApiError: 400 naming `path`.
    """
    if not isinstance(blocks, list):
        raise invalid(f"{path}: Input should be a valid string or a list of text blocks")
    for index, block in enumerate(blocks):
        _check_block(block, f"{path}.{index}", "system", PRESENT)


def _check_message(message: Any, path: str, model: Model, terms: Terms) -> None:
    """One message by itself: fields, role, blocks."""
    if not isinstance(message, dict):
        raise invalid(f"{path}: Input should be an object")
    for name in ("role", "content"):
        if name not in message:
            raise invalid(f"{path}.{name}: Field required")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in BLOCKS_BY_ROLE:
        raise invalid(f"{path}.role: Input should be 'user', 'assistant' or 'system'")
    more = BETA_MESSAGE_FIELDS.get(role, ()) if terms.beta else ()
    for name in message:
        if name not in ("role", "content", *more):
            raise invalid(f"{path}.{name}: Extra inputs are not permitted")
    if role == "system" and not model.system_messages:
        raise invalid(f"{path}.role: role 'system' is not supported on this model")
    if isinstance(content, str):
        _check_text(content, f"{path}.content")
    elif not isinstance(content, list):
        raise invalid(f"{path}.content: Input should be a valid string or a valid list")
    elif not content:
        raise invalid(f"{path}.content: all messages must have non-empty content")
    else:
        for index, block in enumerate(content):
            _check_block(block, f"{path}.content.{index}", role, terms)


def _check_text(text: str, path: str) -> None:
    if not text:
        raise invalid(f"{path}: text content blocks must be non-empty")
    if text.isspace():
        raise invalid(f"{path}: text content blocks must contain non-whitespace text")


def _check_block(block: Any, path: str, role: str, terms: Terms) -> None:
    """One block by itself: a known type, legal in this role, sound inside."""
    if not isinstance(block, dict):
        raise invalid(f"{path}: Input should be an object")
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in BLOCK_TYPES:
        raise invalid(f"{path}.type: Input tag {kind!r} does not match any of the expected tags")
    if kind not in BLOCKS_BY_ROLE[role] and not (terms.old and (role, kind) == ("assistant", "document")):
        raise invalid(f"{path}.type: `{kind}` blocks are not permitted in {role} messages")
    if kind in BLOCK_FIELDS:
        _check_block_fields(block, kind, path)
    check_control(block.get("cache_control"), f"{path}.cache_control")
    if kind == "text":
        _check_text(block["text"], f"{path}.text")
        if role == "user" and block.get("citations") and not terms.old:
            raise invalid(f"{path}.text.citations: citations are not permitted in user messages")
    elif kind in ("image", "document"):
        _check_attachment(block, path, terms)
    elif kind == "search_result":
        _check_inner(block["content"], f"{path}.search_result.content", frozenset({"text"}), terms)
    elif kind in ("tool_use", "tool_result"):
        _check_call(block, f"{path}.{kind}")
    if kind == "tool_result":
        _check_tool_result(block, f"{path}.tool_result", terms)


def _check_block_fields(block: dict[str, Any], kind: str, path: str) -> None:
    required, optional = BLOCK_FIELDS[kind]
    for name, wanted in required.items():
        if name not in block:
            raise invalid(f"{path}.{kind}.{name}: Field required")
        if not isinstance(block[name], wanted):
            raise invalid(f"{path}.{kind}.{name}: Input should be a valid {TYPE_NAMES[wanted]}")
    for name in block:
        if name != "type" and name not in required and name not in optional:
            raise invalid(f"{path}.{kind}.{name}: Extra inputs are not permitted")


def _check_call(block: dict[str, Any], path: str) -> None:
    for field, pattern in CALL_FIELDS.items():
        if field in block and pattern.fullmatch(block[field]) is None:
            raise invalid(f"{path}.{field}: String should match pattern '^{pattern.pattern}$'")


def _check_tool_result(block: dict[str, Any], path: str, terms: Terms) -> None:
    """A result may be absent or an empty string; blocks in it follow the rules of blocks."""
    content, is_error = block.get("content"), block.get("is_error")
    if is_error is not None and not isinstance(is_error, bool):
        raise invalid(f"{path}.is_error: Input should be a valid boolean")
    if content is None or isinstance(content, str):
        return
    _check_inner(content, f"{path}.content", TOOL_RESULT_BLOCKS, terms)
    if is_error and any(inner["type"] != "text" for inner in content):
        raise invalid(f"{path}: all content must be type `text` if `is_error` is true")


def _check_inner(content: Any, path: str, kinds: frozenset[str], terms: Terms) -> None:
    """The blocks inside another: of these kinds, and as sound as those of the user's."""
    if not isinstance(content, list):
        raise invalid(f"{path}: Input should be a valid string or a valid list")
    for index, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise invalid(f"{path}.{index}.type: Input tag {kind!r} does not match any of the expected tags")
        if kind in BLOCK_TYPES:
            _check_block(block, f"{path}.{index}", "user", terms)
        else:
            check_control(block.get("cache_control"), f"{path}.{index}.cache_control")


def _check_attachment(block: dict[str, Any], path: str, terms: Terms) -> None:
    """An image's or a document's source, and the blocks a document is made of, if it is."""
    check_source(block, path)
    source = block["source"]
    if source["type"] == "content" and not isinstance(source["content"], str):
        where = f"{path}.document.source.content.content"
        _check_inner(source["content"], where, frozenset({"text", "image"}), terms)


def _check_order(runs: list[Run], model: Model) -> None:
    """The rules on which turn may stand where; `runs` alternate in role by construction."""
    first_role = runs[0][0][1]["role"]
    if first_role != "user":
        raise invalid(f'messages.0.role: first message must use the "user" role, not "{first_role}"')
    for position, run in enumerate(runs):
        if run[0][1]["role"] != "system":
            continue
        path = f"messages.{run[0][0]}.role"
        before = runs[position - 1]
        if before[0][1]["role"] == "assistant" and not _ends_in_server_tool(before[-1][1]):
            raise invalid(f"{path}: a system message must follow a user message")
        if position + 1 < len(runs) and runs[position + 1][0][1]["role"] != "assistant":
            raise invalid(f"{path}: a system message must be last or be followed by an assistant message")
    last_index, last = runs[-1][-1]
    if last["role"] == "assistant":
        _check_prefill(last["content"], f"messages.{last_index}", model)


def _check_prefill(content: Any, path: str, model: Model) -> None:
    """The last message being the assistant's: refused by most models, and bound to be continued by the others."""
    if not model.prefill:
        raise invalid(
            f"{path}.role: This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    last = {"type": "text", "text": content} if isinstance(content, str) else content[-1]
    if last["type"] == "text" and last["text"] != last["text"].rstrip():
        raise invalid(f"{path}: final assistant content cannot end with trailing whitespace")


def _ends_in_server_tool(message: dict[str, Any]) -> bool:
    content = message["content"]
    return isinstance(content, list) and content[-1]["type"] in ("server_tool_use", *SERVER_TOOL_RESULTS)


def _blocks(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the blocks of a merged turn with their paths; a string is one text block."""
    for index, message in run:
        content = message["content"]
        if isinstance(content, str):
            yield f"messages.{index}.content", {"type": "text", "text": content}
        else:
            for position, block in enumerate(content):
                yield f"messages.{index}.content.{position}", block


def _check_tool_pairs(runs: list[Run]) -> None:
    """Every call has its one result, at the beginning of the user turn behind it; no result is without a call."""
    open_calls: dict[str, str] = {}
    seen: set[str] = set()
    for run in runs:
        if run[0][1]["role"] == "user":
            _close_calls(run, open_calls)
        if open_calls:
            path = next(iter(open_calls.values()))
            raise invalid(
                f"{path}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(open_calls)}. Each `tool_use` block must have a corresponding `tool_result` "
                "block in the next message."
            )
        for path, block in _blocks(run):
            if block["type"] == "tool_use":
                if block["id"] in seen:
                    raise invalid(f"{path}: `tool_use` ids must be unique")
                seen.add(block["id"])
                open_calls[block["id"]] = path
    if open_calls:
        path = next(iter(open_calls.values()))
        raise invalid(f"{path}: `tool_use` ids were found without `tool_result` blocks immediately after")


def _close_calls(run: Run, open_calls: dict[str, str]) -> None:
    """Take the leading results of a user turn out of `open_calls`; a result behind other content is late."""
    leading = True
    for path, block in _blocks(run):
        if block["type"] != "tool_result":
            leading = False
            continue
        call_id = block["tool_use_id"]
        if call_id not in open_calls:
            raise invalid(
                f"{path}: unexpected `tool_use_id` found in `tool_result` blocks: {call_id}. Each `tool_result` "
                "block must have a corresponding `tool_use` block in the previous message."
            )
        if leading:
            del open_calls[call_id]
