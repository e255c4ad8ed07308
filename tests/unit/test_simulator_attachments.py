"""The stand-in on images and documents: what they are made from, and what it tells of them."""

import base64
from typing import Any

import pytest

from service.simulator import rules
from service.simulator.attachments import IMAGE_BASE64_BYTES_MAX
from service.simulator.errors import ApiError
from tests.unit.simulated import (
    CALL,
    DOCUMENT,
    IMAGE,
    LOOK,
    RESULT,
    SYSTEM_MODEL,
    TEXT,
    Json,
    assistant,
    message_to,
    request,
    user,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(87)
PDF = b"%PDF-1.7" + bytes(292)


def refused(body: Json) -> str:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")
    return caught.value.message


def encoded(kind: str, media_type: str, raw: bytes, **more: Any) -> Json:
    data = base64.b64encode(raw).decode()
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data, **more}}


def source(kind: str, **fields: Any) -> Json:
    return {"type": kind, "source": fields}


ATTACHED: list[tuple[str, Json, str]] = [
    ("no source", {"type": "image"}, "image.source: Field required"),
    ("a source of a wrong type", {"type": "image", "source": "x"}, "image.source: Input should be"),
    ("an unknown source", source("image", type="path"), "image.source.type: Input tag"),
    ("a text as image", source("image", type="text", media_type="text/plain", data="x"), "image.source.type: Input"),
    ("a field too many", encoded("image", "image/png", PNG, detail="low"), "image.source.base64.detail: Extra inputs"),
    ("no data", source("image", type="base64", media_type="image/png"), "image.source.base64.data: Field required"),
    ("a bitmap", encoded("image", "image/bmp", PNG), "image.source.base64.media_type: "),
    ("an image as document", encoded("document", "image/png", PNG), "document.source.base64.media_type: "),
    ("an empty image", encoded("image", "image/png", b""), "image.source.base64.data: image cannot be empty"),
    ("an empty document", encoded("document", "application/pdf", b""), "document.source.base64.data: document cannot"),
    (
        "no base64",
        source("image", type="base64", media_type="image/png", data="data:image/png;base64,AAAA"),
        "image.source.base64.data: invalid base64 data",
    ),
    (
        "signs that base64 has not",
        source("image", type="base64", media_type="image/png", data="iVBO Rw0K"),
        "image.source.base64.data: invalid base64 data",
    ),
    ("another type", encoded("image", "image/jpeg", PNG), "image.source.base64: The image was specified using"),
    ("no PDF", encoded("document", "application/pdf", PNG), "document.source.base64.data: The PDF specified"),
    (
        "too large an image",
        encoded("image", "image/png", PNG + bytes(IMAGE_BASE64_BYTES_MAX * 3 // 4)),
        "image.source.base64: image exceeds 5 MB maximum: ",
    ),
    ("HTTP", source("image", type="url", url="http://example.com/x.png"), "image.source.url.url: Only HTTPS"),
    ("no file", source("document", type="file", file_id=""), "document.source.file.file_id: "),
    ("a text of HTML", source("document", type="text", media_type="text/html", data="x"), "document.source.text.media"),
    ("an empty text", source("document", type="text", media_type="text/plain", data=""), "document.source.text.data: "),
    (
        "a document in a document",
        source("document", type="content", content=[DOCUMENT]),
        "document.source.content.content.0.type: ",
    ),
    ("a field of OpenAI's", {**IMAGE, "detail": "low"}, "image.detail: Extra inputs"),
]


@pytest.mark.parametrize(("block", "message"), [pytest.param(b, m, id=i) for i, b, m in ATTACHED])
def test_a_wrong_attachment_is_refused(block: Json, message: str) -> None:
    assert refused(request(user([TEXT, block]))).startswith(f"messages.0.content.1.{message}")
    result = {**RESULT, "content": [block]}
    refusal = refused(request(user("x"), assistant([CALL]), user([result]), tools=[LOOK]))
    assert refusal.startswith(f"messages.2.content.0.tool_result.content.0.{message}")


def said(*messages: Json, **fields: Any) -> str:
    return "".join(block.get("text", "") for block in message_to(request(*messages, **fields))["content"])


def test_the_answer_tells_what_was_attached() -> None:
    image, document = encoded("image", "image/png", PNG), encoded("document", "application/pdf", PDF)
    assert said(user([image, document, {"type": "text", "text": "look"}])) == (
        'You said: "look". I received 1 message. '
        "I received 1 image (image/png, 95 bytes) and 1 document (application/pdf, 300 bytes)."
    )


def test_it_tells_of_attachments_anywhere_and_in_any_form() -> None:
    result = {**RESULT, "content": [encoded("image", "image/png", PNG), TEXT]}
    content = source("document", type="content", content=[TEXT])
    file = source("document", type="file", file_id="file_1")
    turns = (user([IMAGE, TEXT]), assistant([CALL]), user([result, content, DOCUMENT, file]))
    assert said(*turns, tools=[LOOK]).endswith(
        "I received 2 images (url; image/png, 95 bytes) and 3 documents (content; text/plain, 1 bytes; file)."
    )
    assert "I received 2 images" not in said(*turns, user("count to 3"), tools=[LOOK])


def test_attachments_count_a_fixed_number_of_tokens() -> None:
    def tokens(*blocks: Json) -> int:
        return rules.check_count({"model": SYSTEM_MODEL, "messages": [user([TEXT, *blocks])]})

    assert tokens() == 1
    assert tokens(encoded("image", "image/png", PNG)) == tokens(IMAGE) == 1501
    assert tokens(encoded("document", "application/pdf", PDF)) == 3001
    assert tokens(source("document", type="text", media_type="text/plain", data="x" * 400)) < 110


def test_results_of_failures_are_text() -> None:
    result = {**RESULT, "is_error": True, "content": [IMAGE]}
    body = request(user("x"), assistant([CALL]), user([result]), tools=[LOOK])
    assert "all content must be type `text` if `is_error` is true" in refused(body)
    body["messages"][2] = user([{**result, "is_error": "yes"}])
    assert refused(body) == "messages.2.content.0.tool_result.is_error: Input should be a valid boolean"
