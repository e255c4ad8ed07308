"""Chat completions, the request: parts of content as Claude's blocks, and what is wrong with them."""

import base64
from typing import Any

import pytest
from openai.types.chat import ChatCompletionContentPartParam
from pydantic import TypeAdapter

from service.dialects import chat
from service.dialects.chat import ChatRequest
from service.errors import BatonError
from service.model_table import ModelTable

Json = dict[str, Any]

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()
PDF = base64.b64encode(b"%PDF-1.7 ...").decode()
URL = "https://example.org/a.png"


def parse(*messages: Json) -> ChatRequest:
    body = {"messages": list(messages)}
    return chat.parse(body, default_model="claude-default", aliases={}, model_of=ModelTable().model)


def user(*parts: Json) -> Json:
    return {"role": "user", "content": list(parts)}


def refusal(*messages: Json) -> BatonError:
    with pytest.raises(BatonError) as caught:
        parse(*messages)
    assert caught.value.status == 400
    assert len(caught.value.message) < 300
    return caught.value


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def image(url: Any, **more: Any) -> Json:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def file(**fields: Any) -> Json:
    return {"type": "file", "file": fields}


def inline(kind: str, data: bytes | str) -> str:
    return f"data:{kind};base64,{data if isinstance(data, str) else base64.b64encode(data).decode()}"


def document(kind: str, data: str, **more: Any) -> Json:
    form = "text" if kind == "text/plain" else "base64"
    return {"type": "document", "source": {"type": form, "media_type": kind, "data": data}, **more}


def picture(kind: str, data: str) -> Json:
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


BLOCKS: list[tuple[Json, Json]] = [
    (text(" a\n"), text(" a\n")),
    *((image(inline(f"image/{kind}", PNG)), picture(f"image/{kind}", PNG)) for kind in ("jpeg", "png", "gif", "webp")),
    (image(inline("image/jpg", PNG)), picture("image/jpeg", PNG)),
    (image(inline("IMAGE/PNG;name=a.png", PNG)), picture("image/png", PNG)),
    (image(URL, detail="auto"), {"type": "image", "source": {"type": "url", "url": URL}}),
    (image("http://x"), {"type": "image", "source": {"type": "url", "url": "http://x"}}),
    (file(file_data=inline("application/pdf", PDF)), document("application/pdf", PDF)),
    (
        file(file_data=inline("application/pdf", PDF), filename="é.pdf", file_id=None),
        document("application/pdf", PDF, title="é.pdf"),
    ),
    (file(file_data=inline("text/plain", "é🙂".encode())), document("text/plain", "é🙂")),
    (file(file_data=inline("text/plain;charset=UTF-8", b"a,b\r\n")), document("text/plain", "a,b\r\n")),
    (file(file_data=inline("text/csv", b"a,b")), document("text/plain", "a,b")),
    (file(file_data=inline('application/json;charset="utf-8"', b"{}")), document("text/plain", "{}")),
    (file(file_data=inline("text/markdown", b"#"), filename="t" * 500), document("text/plain", "#", title="t" * 500)),
]


@pytest.mark.parametrize(("part", "block"), BLOCKS, ids=lambda value: str(value)[:60])
def test_a_part_becomes_a_block(part: Json, block: Json) -> None:
    TypeAdapter(ChatCompletionContentPartParam).validate_python(
        {**part, **({"file": {k: v for k, v in part["file"].items() if v is not None}} if "file" in part else {})}
    )
    request = parse(user(part))
    assert request.ask.messages == [{"role": "user", "content": [block]}]
    assert request.ignored == []


def test_the_order_of_parts_is_kept() -> None:
    request = parse(user(*(part for part, _ in BLOCKS)))
    assert request.ask.messages[0]["content"] == [block for _, block in BLOCKS]


def test_what_only_tunes_a_part_is_told() -> None:
    request = parse(user({**image(URL, detail="high"), "prompt_cache_breakpoint": {"mode": "explicit"}}))
    assert request.ignored == ["messages.content.image_url.detail", "messages.content.prompt_cache_breakpoint"]
    request = parse(user({**file(file_data=inline("text/plain", b"a")), "cache_control": {"type": "ephemeral"}}))
    assert request.ignored == ["messages.content.cache_control"]


@pytest.mark.parametrize(
    ("part", "code", "param"),
    [
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "unsupported", ""),
        ({"type": "video_url", "video_url": {"url": URL}}, "unsupported", ""),
        ({"type": "refusal", "refusal": "no"}, "unsupported", ""),
        ({**text("a"), "image_url": {"url": URL}}, "unsupported", ".image_url"),
        ({**text("a"), "input_audio": {}}, "unsupported", ".input_audio"),
        ({**image(URL), "colour": "red"}, "unknown_field", ".colour"),
        ({"type": "image_url"}, "invalid_value", ".image_url"),
        ({"type": "image_url", "image_url": URL}, "invalid_value", ".image_url"),
        (image(URL, detail=5), "invalid_value", ".image_url.detail"),
        (image(URL, colour="red"), "unknown_field", ".image_url.colour"),
        *(
            (image(url), "invalid_value", ".image_url.url")
            for url in (
                *(None, 5, "", "a.png", "ftp://example.org/a.png", "file:///etc/passwd", "https://", "https://a b"),
                *("https://x/" + "a" * 8200, PNG, "data:", "data:,", f"data:image/png,{PNG}", f"data:;base64,{PNG}"),
                *(inline("image/png", data) for data in ("", "a", "ab", "abc", "ab=c", "abc=\n", "ab-_", "====")),
                *(inline(kind, PNG) for kind in ("image/svg+xml", "image/bmp", "text/plain", "application/pdf", "png")),
                f"data:image/png;{'a=b;' * 300}base64,{PNG}",
            )
        ),
        ({"type": "file"}, "invalid_value", ".file"),
        ({"type": "file", "file": PDF}, "invalid_value", ".file"),
        (file(file_id="file-1"), "unsupported", ".file.file_id"),
        (file(file_id="file-1", file_data=inline("application/pdf", PDF)), "unsupported", ".file.file_id"),
        (file(colour="red"), "unknown_field", ".file.colour"),
        *(
            (file(file_data=data), "invalid_value", ".file.file_data")
            for data in (
                *(None, 5, "", PDF, URL, inline("application/pdf", "abc"), inline("image/png", PNG)),
                *(inline("application/zip", PDF), inline("text/plain", b"\xff"), inline("text/plain", b" \n")),
                inline("text/plain;charset=latin-1", b"a"),
            )
        ),
        *(
            (file(file_data=inline("text/plain", b"a"), filename=name), "invalid_value", ".file.filename")
            for name in (5, "", " ", "t" * 501, ["a"])
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_parts(part: Any, code: str, param: str) -> None:
    error = refusal(user(text("a"), part))
    assert (error.code, error.param) == (code, f"messages.0.content.1{param}")


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
@pytest.mark.parametrize("part", [image(URL), file(file_data=inline("application/pdf", PDF))], ids=["image", "file"])
def test_only_the_user_shows_images_and_files(role: str, part: Json) -> None:
    message = {"role": role, "content": [text("a"), part]}
    if role == "tool":
        message["tool_call_id"] = "call_1"
    hello = {"role": "user", "content": "Hello"}
    error = refusal(*([message] if role == "tool" else [hello, message, hello]))
    assert (error.code, error.param) == ("unsupported", f"messages.{0 if role == 'tool' else 1}.content.1")
    assert role in error.message


def test_a_part_that_refuses_is_text() -> None:
    said = {"role": "assistant", "content": [text("So: "), {"type": "refusal", "refusal": "no."}]}
    hello = {"role": "user", "content": "Hello"}
    assert parse(hello, said, hello).ask.messages[1]["content"] == [text("So: "), text("no.")]


def test_a_large_image_is_looked_at_in_passing() -> None:
    data = "A" * 16_000_000
    blocks = parse(user(image(inline("image/png", data)))).ask.messages[0]["content"]
    assert blocks[0]["source"]["data"] == data
    assert refusal(user(image(inline("image/png", data + "!AAA")))).param == "messages.0.content.0.image_url.url"
