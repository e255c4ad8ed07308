"""Chat → Claude → chat: what the translation loses is a list, and the list is checked here and shown in docs/api.md.

A generated chat is translated, and translated back by this file. What comes out is the chat with the `LOSSES` applied,
no more and no less: each is a sentence of the docs and the function that does to a chat what the sentence says.

The other way: a generated answer of Claude's, put together from its chunks, is the whole answer; and sent back by a
caller it is recognised as what is stored.
"""

import base64
import json
from collections.abc import Callable
from functools import reduce
from itertools import groupby
from typing import Any, Final

import orjson
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from service.dialects import chat
from service.dialects.chat import ChatRequest
from service.dialects.chat_out import ChatAnswer, Envelope
from service.model_table import ModelTable
from service.transcript import Answer, visible
from tests.unit.claude_events import answer_events, as_events, block, text_block

Json = dict[str, Any]
Chat = list[Json]


def parse(messages: Chat) -> ChatRequest:
    body = {"messages": messages}
    return chat.parse(body, default_model="claude-default", aliases={}, model_of=ModelTable().model)


# What is lost.


def _contents(change: Callable[[Json], Json]) -> Callable[[Chat], Chat]:
    """A loss within the parts of messages."""

    def lose(messages: Chat) -> Chat:
        return [
            {**message, "content": [change(part) for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else message
            for message in messages
        ]

    return lose


def _fields(*names: str) -> Callable[[Chat], Chat]:
    return lambda messages: [{k: v for k, v in message.items() if k not in names} for message in messages]


def _text_kind(part: Json) -> Json:
    head, comma, data = part.get("file", {}).get("file_data", "").partition(",")
    if not comma or head.lower().startswith("data:application/pdf"):
        return part
    return {**part, "file": {**part["file"], "file_data": f"data:text/plain;base64,{data}"}}


def _spelling(part: Json) -> Json:
    url = part.get("image_url", {}).get("url", "")
    head, comma, data = url.partition(";base64,")
    if not comma:
        return part
    kind = head.lower().partition(";")[0].replace("image/jpg", "image/jpeg")
    return {**part, "image_url": {**part["image_url"], "url": f"{kind};base64,{data}"}}


def _tuning(part: Json) -> Json:
    kept = {k: v for k, v in part.items() if k not in ("cache_control", "prompt_cache_breakpoint")}
    if "image_url" in kept:
        kept["image_url"] = {k: v for k, v in kept["image_url"].items() if k != "detail"}
    return kept


def _refusals(messages: Chat) -> Chat:
    lost = []
    for message in _contents(lambda part: _text(part["refusal"]) if part["type"] == "refusal" else part)(messages):
        refusal = message.get("refusal") or ""
        message = {k: v for k, v in message.items() if k != "refusal"}
        if refusal.strip():
            message["content"] = [*_as_parts(message.get("content")), _text(refusal)]
        lost.append(message)
    return lost


def _blanks(messages: Chat) -> Chat:
    lost = []
    for message in messages:
        if message["role"] in ("assistant", "tool"):
            content = message.get("content") or ""
            shown = [p for p in content if p["text"].strip()] if isinstance(content, list) else content
            message = {**message, "content": shown if isinstance(shown, list) or shown.strip() else ""}
            if not message["content"] and not message.get("tool_calls") and message["role"] == "assistant":
                continue
        lost.append(message)
    return lost


def _strings(messages: Chat) -> Chat:
    """Content of an answer or a result, as parts."""
    return [
        {**message, "content": _as_parts(message.get("content"))}
        if message["role"] in ("assistant", "tool")
        else message
        for message in messages
    ]


def _instructions(messages: Chat) -> Chat:
    return [
        {"role": "system", "content": "".join(part["text"] for part in _as_parts(message["content"]))}
        if message["role"] in ("system", "developer")
        else message
        for message in messages
    ]


def _places(messages: Chat) -> Chat:
    """Between two answers, the instructions go behind what the user says; where that is nothing, they go on."""
    first = next(n for n, message in enumerate(messages) if message["role"] != "system")
    placed, waiting = messages[:first], []
    for answers, group in groupby(messages[first:], key=lambda message: message["role"] == "assistant"):
        run = list(group)
        said = [message for message in run if message["role"] != "system"]
        waiting += [message for message in run if message["role"] == "system"]
        placed += said
        if said and not answers:
            placed, waiting = placed + waiting, []
    return placed


def _arguments(messages: Chat) -> Chat:
    def spelled(call: Json) -> Json:
        arguments = orjson.dumps(json.loads(call["function"]["arguments"])).decode()
        return {"id": call["id"], "type": "function", "function": {**call["function"], "arguments": arguments}}

    lost = []
    for message in messages:
        calls = [spelled(call) for call in message.get("tool_calls") or ()]
        lost.append(
            {**message, "tool_calls": calls} if calls else {k: v for k, v in message.items() if k != "tool_calls"}
        )
    return lost


LOSSES: Final[dict[str, Callable[[Chat], Chat]]] = {
    "What is told or passed over in messages: `name`, `annotations`, `reasoning_content`, `parsed`.": _fields(
        "name", "annotations", "reasoning_content", "parsed"
    ),
    "What is told in parts: `detail`, `cache_control`, `prompt_cache_breakpoint`.": _contents(_tuning),
    "That a refusal is one: it becomes text behind the rest of the answer.": _refusals,
    "Blank text in answers and results, and answers that are nothing else.": _blanks,
    "Whether the text of an answer or a result was a string or one part.": _strings,
    "Whether an instruction was the system's or the developer's, and its parts: they are joined.": _instructions,
    "The place of an instruction among what is said between two answers: it goes behind that.": _places,
    "The kind of a file of text or JSON: it is plain text.": _contents(_text_kind),
    "How the kind of an image is spelled: parameters, capitals, `image/jpg`.": _contents(_spelling),
    "How the arguments of a call are spelled: white space, escapes.": _arguments,
}
"""By sentence, in the order in which they are applied."""


def _text(said: str) -> Json:
    return {"type": "text", "text": said}


def _as_parts(content: Any) -> Chat:
    if isinstance(content, str):
        return [_text(content)] if content else []
    return list(content or ())


# Back again.


def back(request: ChatRequest) -> Chat:
    """A translated chat as a chat."""
    messages = [{"role": "system", "content": one["text"]} for one in _as_parts(request.ask.system)]
    for message in request.ask.messages:
        blocks = _as_parts(message["content"])
        if message["role"] == "system":
            messages += [{"role": "system", "content": one["text"]} for one in blocks]
        elif message["role"] == "assistant":
            said: Json = {"role": "assistant", "content": [one for one in blocks if one["type"] == "text"]}
            calls = [_call_back(one) for one in blocks if one["type"] == "tool_use"]
            messages.append({**said, "tool_calls": calls} if calls else said)
        elif blocks[0]["type"] == "tool_result":
            for one in blocks:
                content = _as_parts(one.get("content"))
                messages.append({"role": "tool", "tool_call_id": one["tool_use_id"], "content": content})
        elif isinstance(message["content"], str):
            messages.append(message)
        else:
            messages.append({"role": "user", "content": [_part_back(one) for one in blocks]})
    return messages


def _call_back(called: Json) -> Json:
    function = {"name": called["name"], "arguments": orjson.dumps(called["input"]).decode()}
    return {"id": called["id"], "type": "function", "function": function}


def _part_back(shown: Json) -> Json:
    if shown["type"] == "text":
        return shown
    source = shown["source"]
    if source["type"] == "url":
        return {"type": "image_url", "image_url": {"url": source["url"]}}
    data = source["data"]
    if source["type"] == "text":
        data = base64.b64encode(data.encode()).decode()
    url = f"data:{source['media_type']};base64,{data}"
    if shown["type"] == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    name = {"filename": shown["title"]} if "title" in shown else {}
    return {"type": "file", "file": {"file_data": url, **name}}


# Chats.

CHARS: Final = st.characters(exclude_categories=["Cs"])
ANY_TEXT: Final = st.text(CHARS, max_size=12)
TEXT: Final = ANY_TEXT.filter(str.strip)
DATA: Final = st.binary(min_size=1, max_size=12).map(lambda data: base64.b64encode(data).decode())
TOLD: Final = st.sampled_from([{}, {}, {"cache_control": {"type": "ephemeral"}}])
TEXT_PART: Final = st.builds(lambda text, told: {**_text(text), **told}, TEXT, TOLD)
IMAGE: Final = st.builds(
    lambda url, detail, told: {"type": "image_url", "image_url": {"url": url, **detail}, **told},
    st.sampled_from(["https://example.org/a.png", "http://a"])
    | st.builds(
        "data:{};base64,{}".format,
        st.sampled_from(["image/png", "image/jpg", "IMAGE/GIF", "image/webp;name=a.webp"]),
        DATA,
    ),
    st.sampled_from([{}, {"detail": "auto"}, {"detail": "high"}]),
    TOLD,
)
TEXT_FILE: Final = st.builds(
    lambda kind, text: f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}",
    st.sampled_from(["text/plain", "text/csv;charset=utf-8", "application/json"]),
    TEXT,
)
FILE: Final = st.builds(
    lambda data, name, told: {"type": "file", "file": {"file_data": data, **name}, **told},
    TEXT_FILE | DATA.map("data:application/pdf;base64,{}".format),
    st.just({}) | TEXT.map(lambda name: {"filename": name}),
    TOLD,
)
USER: Final = st.builds(
    lambda content, name: {"role": "user", "content": content, **name},
    TEXT | st.lists(TEXT_PART | IMAGE | FILE, min_size=1, max_size=4),
    st.sampled_from([{}, {"name": "Ada"}]),
)
INSTRUCTION: Final = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "developer"]),
    TEXT | st.lists(TEXT_PART, min_size=1, max_size=3),
)
SPOKEN: Final = ANY_TEXT | st.lists(
    TEXT_PART | TEXT.map(lambda text: {"type": "refusal", "refusal": text}) | st.just(_text(" ")), max_size=3
)
LEFT: Final[st.SearchStrategy[Json]] = st.sampled_from(
    [{}, {"refusal": None}, {"reasoning_content": "Hm."}, {"parsed": {"a": 1}, "annotations": []}]
)
INPUT: Final = st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | ANY_TEXT | st.lists(st.booleans()), max_size=3)


def _contents_shown(parts: Chat) -> Chat:
    return [part for part in parts if part != _text(" ")]


@st.composite
def answers(draw: st.DrawFn, number: int) -> Chat:
    """An answer, and the results of its calls with instructions between them."""
    message: Json = {"role": "assistant", "content": draw(SPOKEN), **draw(LEFT)}
    if draw(st.booleans()):
        message["refusal"] = draw(ANY_TEXT)
    calls = draw(st.lists(INPUT, max_size=2))
    if not calls:
        if isinstance(message["content"], list):  # alone it must show something
            message["content"] = [_text(draw(TEXT)), *_contents_shown(message["content"])]
        return [message]
    message["tool_calls"] = [
        {"id": f"call_{number}_{n}", "type": "function", "function": {"name": "f", "arguments": json.dumps(each)}}
        for n, each in enumerate(calls)
    ]
    following: Chat = [message]
    for call in message["tool_calls"]:
        content = draw(ANY_TEXT | st.lists(TEXT_PART, max_size=2))
        following.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        following += draw(st.lists(INSTRUCTION, max_size=1))
    return following


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    """A chat as a caller may send it: it ends with the user's words, or with results."""
    messages: Chat = draw(st.lists(INSTRUCTION, max_size=2))
    messages.append(draw(USER))
    for number in range(draw(st.integers(0, 3))):
        messages += draw(st.lists(INSTRUCTION | USER, max_size=2))
        messages += draw(answers(number))
    if messages[-1]["role"] == "assistant" or draw(st.booleans()):
        messages += [*draw(st.lists(INSTRUCTION, max_size=2)), draw(USER)]
    return messages + draw(st.lists(INSTRUCTION, max_size=2))


def ends_with_the_user(messages: Chat) -> bool:
    roles = [message["role"] for message in messages if message["role"] not in ("system", "developer")]
    return bool(roles) and roles[-1] != "assistant"


@given(chats().filter(ends_with_the_user))
def test_a_chat_loses_only_what_is_listed(messages: Chat) -> None:
    assert back(parse(messages)) == reduce(lambda lost, lose: lose(lost), LOSSES.values(), messages)


@given(chats().filter(ends_with_the_user))
def test_what_stands_before_an_answer_does_not_depend_on_what_comes_behind_it(messages: Chat) -> None:
    """A conversation that is sent again, with more behind it, begins with what is stored."""
    whole = parse(messages).ask
    for end in range(1, len(messages)):
        answer = messages[end] if messages[end]["role"] == "assistant" else None
        if answer and _blanks(_refusals([answer])) and ends_with_the_user(messages[:end]):
            before = parse(messages[:end]).ask
            assert before.system == whole.system
            assert whole.messages[: len(before.messages)] == before.messages


@given(chats().filter(ends_with_the_user))
def test_instructions_stand_where_claude_takes_them(messages: Chat) -> None:
    roles = [message["role"] for message in parse(messages).ask.messages]
    for number, role in enumerate(roles):
        if role == "system":
            assert roles[number - 1] == "user"
            assert roles[number + 1 : number + 2] in ([], ["assistant"])


# Answers.

CITATION: Final = st.sampled_from(
    [
        {
            "type": "web_search_result_location",
            "url": "https://a",
            "title": "A",
            "cited_text": "",
            "encrypted_index": "",
        },
        {
            "type": "web_search_result_location",
            "url": "https://b",
            "title": None,
            "cited_text": "",
            "encrypted_index": "",
        },
        {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": None},
    ]
)


def cited(index: int, pieces: list[str], citations: list[Json]) -> list[Json]:
    *begun, end = text_block(index, *pieces)
    return [
        *begun,
        *(
            {"type": "content_block_delta", "index": index, "delta": {"type": "citations_delta", "citation": citation}}
            for citation in citations
        ),
        end,
    ]


def thought(index: int, pieces: list[str]) -> list[Json]:
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
    begun = {"type": "thinking", "thinking": "", "signature": ""}
    return block(index, begun, *deltas, {"type": "signature_delta", "signature": "c2ln"})


def called(index: int, given_input: Json, size: int) -> list[Json]:
    said = json.dumps(given_input) if given_input else ""
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    begun = {"type": "tool_use", "id": f"toolu_{index}", "name": "f", "input": {}}
    return block(index, begun, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


PIECES: Final = st.lists(ANY_TEXT | st.sampled_from(["", " ", "\n"]), max_size=4)
Made = Callable[[int], list[Json]]
"""Makes the events of a block, given its index."""


def _cited(pieces: list[str], citations: list[Json]) -> Made:
    return lambda index: cited(index, pieces, citations)


def _thought(pieces: list[str]) -> Made:
    return lambda index: thought(index, pieces)


def _called(given_input: Json, size: int) -> Made:
    return lambda index: called(index, given_input, size)


BLOCK: Final = st.builds(_cited, PIECES, st.lists(CITATION, max_size=2)) | st.builds(_thought, PIECES)
CALL: Final = st.builds(_called, INPUT, st.integers(1, 9))


@st.composite
def answered(draw: st.DrawFn) -> list[Json]:
    """The events of an answer; one that is refused or cut makes no calls (these cannot be taken back from a stream)."""
    reason = draw(st.sampled_from(["end_turn", "tool_use", "max_tokens", "refusal", "pause_turn"]))
    made = draw(st.lists(BLOCK | CALL if reason in ("end_turn", "tool_use") else BLOCK, max_size=5))
    usage: Json = {"output_tokens": draw(st.integers(0, 9)), "output_tokens_details": {"thinking_tokens": 1}}
    details = draw(st.sampled_from([None, {"type": "refusal", "explanation": "Not this."}]))
    events = answer_events(
        *(make(n) for n, make in enumerate(made)), stop_reason=reason, stop_details=details, usage=usage
    )
    if tier := draw(st.sampled_from([None, "standard", "priority", "batch"])):
        events[0]["message"]["usage"]["service_tier"] = tier
    return events


@given(answered(), st.booleans(), st.integers(1, 4))
def test_a_stream_put_together_is_the_whole_answer(events: list[Json], reasoning: bool, batch: int) -> None:
    """Put together by the openai SDK; and the whole answer is what the SDK's type says."""
    answer = Answer()
    rendered = ChatAnswer(Envelope("chatcmpl-1", 1, None), answer, include_usage=True, reasoning=reasoning)
    frames: list[bytes] = []
    for start in range(0, len(events), batch):
        frames += rendered.frames(answer.feed(as_events(events[start : start + batch])))
    frames += rendered.frames(answer.held)
    assert frames.pop() == b"data: [DONE]\n\n"
    whole = ChatCompletion.model_validate_json(rendered.whole(), strict=True)
    joined = ChatCompletionStreamState()
    for frame in frames:
        joined.handle_chunk(ChatCompletionChunk.model_validate_json(frame[6:], strict=True))
    assert comparable(joined.current_completion_snapshot) == comparable(whole)


def comparable(completion: ChatCompletion) -> Json:
    """Without what only tells how it came, and with arguments parsed."""
    told = completion.model_dump()
    (choice,) = told["choices"]
    message = choice["message"]
    message.pop("parsed", None)
    message["content"] = message["content"] or ""
    for call in message["tool_calls"] or ():
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    message["annotations"] = message.get("annotations") or None
    told["object"] = None
    return told


@given(answered())
def test_an_answer_that_is_sent_back_is_recognised(events: list[Json]) -> None:
    """What a caller can see of it is the same as of what is stored; an answer of nothing leaves nothing."""
    answer = Answer()
    answer.feed(as_events(events))
    rendered = ChatAnswer(Envelope("chatcmpl-1", 1, None), answer, include_usage=False, reasoning=True)
    message = ChatCompletion.model_validate_json(rendered.whole()).choices[0].message.model_dump()
    message.pop("refusal")  # of a refused turn nothing is stored
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in message["tool_calls"] or ()]
    sent = [{"role": "user", "content": "Hello"}, message, *results, {"role": "user", "content": "Go on"}]
    if message["content"] is None and not results:
        return  # refused before a word was said
    again = [one for one in parse(sent).ask.messages if one["role"] == "assistant"]
    shown = [one for one in answer.content() if one["type"] != "thinking"]
    stored = [{"role": "assistant", "content": shown}] if shown else []
    assert [visible(one) for one in again] == [visible(one) for one in stored]
