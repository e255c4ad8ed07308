"""What becomes of every parameter of a chat completion, nested ones too: the tables that decide.

A field is *mapped* to something of Claude's or of Baton's, *told* (left out, and named in ``X-Baton-Ignored``),
*refused* by name, or *passed over*: it is what Baton's answers and OpenAI's SDKs leave in messages that are sent back.
One that is in no table is refused, too. ``null`` is absent everywhere. What is told must still have its form: a caller
who sends something else means something else. Names are paths; places in lists are left out.

Source: OpenAI API reference, "Chat", and the request's type in the openai SDK. docs/api.md shows these tables.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from service.errors import BatonError, invalid_value

MAPPED: Final[dict[str, str]] = {
    "max_completion_tokens": "`max_tokens`",
    "max_tokens": "`max_tokens`, unless `max_completion_tokens` says otherwise",
    "messages": "`messages`, and `system` for the system and developer messages at the front",
    "messages.content": "`content`",
    "messages.content.file": "a block `document`; in messages of the user",
    "messages.content.file.file_data": "its `source`: a PDF, or the text of a file of text or JSON; a data URL",
    "messages.content.file.filename": "its `title`",
    "messages.content.image_url": "a block `image`; in messages of the user",
    "messages.content.image_url.url": "its `source`: a data URL of a JPEG, PNG, GIF or WebP, or an http(s) URL",
    "messages.content.refusal": "a block `text`; in messages of the assistant",
    "messages.content.text": "a block `text`",
    "messages.content.type": "the kind of block",
    "messages.refusal": "a block `text` behind the others",
    "messages.role": "`role`",
    "messages.tool_call_id": "`tool_use_id`",
    "messages.tool_calls": "blocks `tool_use`",
    "messages.tool_calls.function": "a block `tool_use`",
    "messages.tool_calls.function.arguments": "`input`",
    "messages.tool_calls.function.name": "`name`",
    "messages.tool_calls.id": "`id`",
    "messages.tool_calls.type": "`function` only",
    "model": "`model`, after aliases",
    "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use`",
    "reasoning_effort": "`output_config.effort`; `minimal` is `low`, and `none` is `thinking` of type `disabled`",
    "response_format": "`output_config.format`; type `json_object` is refused",
    "response_format.json_schema": "`output_config.format`",
    "response_format.json_schema.description": "the schema's `description`, unless it has one",
    "response_format.json_schema.name": "the schema's `title`, unless it has one",
    "response_format.json_schema.schema": "`output_config.format.schema`",
    "response_format.json_schema.strict": "Claude keeps to the schema in any case",
    "response_format.type": "`text` asks for nothing",
    "safety_identifier": "`metadata.user_id`, hashed with SHA-256",
    "service_tier": "`service_tier`: `auto`, or `default` as `standard_only`; the other tiers are refused",
    "session_id": "the session",
    "session_input": "whether the messages are new or everything",
    "stop": "`stop_sequences`",
    "stream": "the form of the answer",
    "stream_options": "the form of the answer",
    "stream_options.include_usage": "a last chunk with the usage",
    "thinking": "`thinking`; with `display` `summarized` the answer has `reasoning_content`",
    "thinking.budget_tokens": "`thinking.budget_tokens`",
    "thinking.display": "`thinking.display`",
    "thinking.type": "`thinking.type`",
    "tool_choice": "`tool_choice`; types other than `function` are refused",
    "tool_choice.function": "`tool_choice` of type `tool`",
    "tool_choice.function.name": "`tool_choice.name`",
    "tool_choice.type": "`function` only",
    "tools": "`tools`",
    "tools.function": "a tool",
    "tools.function.description": "`description`",
    "tools.function.name": "`name`",
    "tools.function.parameters": "`input_schema`",
    "tools.function.strict": "`strict`",
    "tools.type": "`function` only",
    "user": "as `safety_identifier`, which goes first",
}

TOLD: Final[dict[str, Any]] = {
    "frequency_penalty": 0,
    "messages.annotations": None,
    "messages.content.cache_control": None,
    "messages.content.image_url.detail": "auto",
    "messages.content.prompt_cache_breakpoint": None,
    "messages.name": None,
    "metadata": None,
    "presence_penalty": 0,
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "seed": None,
    "store": False,
    "stream_options.include_obfuscation": False,
    "temperature": 1,
    "top_p": 1,
    "verbosity": "medium",
}
"""Left out; named in the answer unless it has the value here, which asks for nothing."""

REFUSED: Final[dict[str, Any]] = {
    "audio": None,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "messages.audio": None,
    "messages.content.file.file_id": None,
    "messages.content.input_audio": None,
    "messages.function_call": None,
    "messages.tool_calls.custom": None,
    "modalities": ["text"],
    "moderation": None,
    "n": 1,
    "prediction": None,
    "tool_choice.allowed_tools": None,
    "tool_choice.custom": None,
    "tools.custom": None,
    "top_logprobs": 0,
    "web_search_options": None,
}
"""Refused unless it has the value here, which asks for nothing."""

PASSED_OVER: Final = frozenset(
    {
        "messages.parsed",
        "messages.reasoning_content",
        "messages.tool_calls.function.parsed_arguments",
        "messages.tool_calls.index",
    }
)
"""Left by Baton's answers and OpenAI's SDKs in what is sent back; says nothing that is not said elsewhere."""

METADATA_PAIRS_MAX: Final = 16  # OpenAI's own bounds, like the two below
METADATA_KEY_CHARS_MAX: Final = 64
METADATA_VALUE_CHARS_MAX: Final = 512

_Form = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(low: int, high: int) -> _Form:
    return f"a number between {low} and {high}", lambda value: _is_number(value) and low <= value <= high


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= METADATA_PAIRS_MAX
        and all(0 < len(key) <= METADATA_KEY_CHARS_MAX for key in value)
        and all(isinstance(each, str) and len(each) <= METADATA_VALUE_CHARS_MAX for each in value.values())
    )


_TEXT: Final[_Form] = ("a string", lambda value: isinstance(value, str))
_OBJECT: Final[_Form] = ("an object", lambda value: isinstance(value, dict))
_OBJECTS: Final[_Form] = (
    "a list of objects",
    lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
)
_PAIRS: Final[_Form] = (
    f"an object of at most {METADATA_PAIRS_MAX} pairs, with keys of 1 to "
    f"{METADATA_KEY_CHARS_MAX} characters and strings of at most "
    f"{METADATA_VALUE_CHARS_MAX}",
    _is_metadata,
)
_YES_OR_NO: Final[_Form] = ("true or false", lambda value: isinstance(value, bool))
_WHOLE: Final[_Form] = ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))

FORMS: Final[dict[str, _Form]] = {
    "frequency_penalty": _between(-2, 2),
    "messages.annotations": _OBJECTS,
    "messages.content.cache_control": _OBJECT,
    "messages.content.image_url.detail": _TEXT,
    "messages.content.prompt_cache_breakpoint": _OBJECT,
    "messages.name": _TEXT,
    "metadata": _PAIRS,
    "presence_penalty": _between(-2, 2),
    "prompt_cache_key": _TEXT,
    "prompt_cache_options": _OBJECT,
    "prompt_cache_retention": _TEXT,
    "seed": _WHOLE,
    "store": _YES_OR_NO,
    "stream_options.include_obfuscation": _YES_OR_NO,
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "verbosity": _TEXT,
}
"""What a value of `TOLD` must be, in words and as a test."""


def inside(names: Iterable[str], place: str) -> dict[str, str]:
    """Those of the names that are fields of ``place`` (of the request, if it is empty): by field, the whole name."""
    start = f"{place}." if place else ""
    return {
        name.removeprefix(start): name
        for name in names
        if name.startswith(start) and "." not in name.removeprefix(start)
    }


_PLACES: Final = {name.rpartition(".")[0] for name in (*MAPPED, *TOLD, *REFUSED, *PASSED_OVER)}
_PASSING: Final = {place: inside((*MAPPED, *PASSED_OVER), place).keys() for place in _PLACES}


def sort_out(
    given: dict[str, Any], place: str, where: str, ignored: set[str], *, own: Collection[str] | None = None
) -> None:
    """Refuses what an object may not hold; what is left out is added to what is ignored, if it is worth telling.

    Args:
        given: the object.
        place: its name in the tables; empty for the request.
        where: where it was found.
        ignored: added to.
        own: the fields that this kind of object has, of those that pass at its place; all of them if None.

    Raises:
        BatonError: 400 naming the field.
    """
    passing = _PASSING[place] if own is None else own
    for name, value in given.items():
        if name in passing or value is None:
            continue
        path = f"{place}.{name}" if place else name
        field = f"{where}.{name}"[:128] if where else name[:64]
        if path in TOLD:
            words, is_so = FORMS[path]
            if not is_so(value):
                raise invalid_value(field, f"must be {words}")
            if not _is_neutral(value, TOLD[path]):
                ignored.add(path)
        elif path in REFUSED:
            if not _is_neutral(value, REFUSED[path]):
                raise unsupported(field)
        elif path in MAPPED or path in PASSED_OVER:  # of another kind of object at this place
            raise unsupported(field)
        else:
            raise BatonError("unknown_field", f"There is no parameter `{field}`.", param=field)


def unsupported(field: str, instead: str = "") -> BatonError:
    """A field, or a value of it, whose loss would change the answer; ``instead`` goes on from that it is not taken."""
    return BatonError("unsupported", f"`{field}` is not supported{instead}.", param=field)


def _is_neutral(value: Any, neutral: Any) -> bool:
    """Whether they are the same JSON; to Python, true is 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
