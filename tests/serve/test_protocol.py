"""What the server takes and refuses, without a socket."""

from __future__ import annotations

import base64
import json

import pytest

from ocr2cli.pages import FinishReason, PageError, PageKey, PageResult, Status
from ocr2cli.serve import protocol
from ocr2cli.serve.fetching import is_public
from ocr2cli.serve.protocol import BadRequest, page_html

PNG = b"\x89PNG\r\n\x1a\n rest"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def chat(content: object, **more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], **more}).encode()


def parse(body: bytes) -> protocol.ChatRequest:
    return protocol.parse_chat(body, allow_http=False, max_bytes=1000)


def image(url: str = URL) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, object]:
    return {"type": "text", "text": words}


def test_the_page_stands_before_the_prompt_in_any_part_order() -> None:
    for content in ([image(), text("Free OCR.")], [text("Free OCR."), image()]):
        asked = parse(chat(content))
        assert asked.prompt == "<image>\nFree OCR." and asked.image == PNG


def test_without_words_the_markdown_prompt_is_used() -> None:
    assert "Convert the document to markdown" in parse(chat([image()])).prompt


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"messages": []}', chat("words only"), chat([text("no page")]),
     chat([image(), image()]), chat([image("https://example.org/a.png")]),
     chat([image("file:///etc/passwd")]), chat([image("data:image/png,raw")]),
     chat([image("data:image/png;base64,!!!")]), chat([image("data:image/png;base64,\u00e4")]),
     chat([{"type": "audio"}, image()]),
     chat([image()], max_tokens=0), chat([image()], max_tokens="5"),
     chat([image()], max_tokens=True),
     chat([image(), text("<image> twice")]), chat([image(), text("x" * 5000)]),
     b'{"messages":' + b"[" * 100_000],
)  # fmt: skip
def test_a_request_that_breaks_the_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]"])
def test_a_fetching_server_is_no_way_into_its_own_network(host: str) -> None:
    with pytest.raises(BadRequest, match="public"):
        protocol.fetch_image(f"http://{host}/a.png", allow_http=True, max_bytes=10)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("2606:4700::1111%eth0", True),
        ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True),
        ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::808:808", False), ("2002:7f00:1::", False), ("::7f00:1", False),
        ("::ffff:0:7f00:1", False), ("fe80::1%eth0", False), ("fec0::1", False),
        ("fd00::1", False), ("ff0e::1", False), ("224.0.0.1", False), ("100.64.0.1", False),
    ],
)  # fmt: skip
def test_an_address_that_holds_another_is_as_public_as_that_one(
    address: str, expected: bool
) -> None:
    """A translator or a tunnel on the way leads to the address inside."""
    assert is_public(address) == expected


def test_a_loop_is_told_from_a_stop() -> None:
    result = PageResult(PageKey("a", 0), Status.LOOP, raw="x x", finish_reason=FinishReason.LOOP)
    answer = protocol.chat_answer(result, name="n", created=0, model="m")
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["ocr2_finish_reason"] == "loop"


def test_the_streams_deltas_add_up_to_the_text() -> None:
    result = PageResult(PageKey("a", 0), Status.OK, raw="one\ntwo\n\nthree",
                        finish_reason=FinishReason.STOP)  # fmt: skip
    chunks = protocol.chat_chunks(result, name="n", created=0, model="m")
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == result.raw
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_ends_in_the_token_counts_where_they_are_asked_for() -> None:
    result = PageResult(PageKey("a", 0), Status.OK, raw="one", prompt_tokens=7, new_tokens=2)
    ask = parse(chat([image()], stream=True, stream_options={"include_usage": True}))
    names = {"name": "n", "created": 0, "model": "m"}
    *_, last = protocol.chat_chunks(result, **names, has_usage=ask.has_usage)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 9
    for options in ({}, [], None, {"include_usage": "yes"}):
        assert not parse(chat([image()], stream_options=options)).has_usage
    assert not any("usage" in chunk for chunk in protocol.chat_chunks(result, **names))


@pytest.mark.parametrize(("head", "ending"), [
    (b"\xef\xbb\xbf%PDF-1.7", ".pdf"), (b"\r\n%PDF-1.4", ".pdf"), (b"x" * 1000 + b"%PDF", ".pdf"),
    (b"II+\0\x08", ".tif"), (b"MM\0+\0", ".tif"), (PNG + b"%PDF", ".png"),
])  # fmt: skip
def test_a_file_is_known_by_what_a_run_knows_it_by(head: bytes, ending: str) -> None:
    assert protocol.ending_of(head) == ending
    with pytest.raises(BadRequest):
        protocol.ending_of(b"x" * 1024 + b"%PDF")


def test_a_documents_markdown_is_what_a_run_writes() -> None:
    """What is missing is said, and no page's open fence swallows the next."""
    good = PageResult(PageKey("a", 0), Status.OK, markdown="hello")
    loop = PageResult(PageKey("a", 1), Status.LOOP, markdown="```\nx x x")
    bad = PageResult(PageKey("a", 2), Status.FAILED, error=PageError("unreadable", "broken xref"))
    joined = protocol.as_markdown([good, loop, bad])
    assert joined.startswith("<!-- page: 1 -->\n\nhello\n")
    assert "```\nx x x\n```\n" in joined and "the rest of this page is missing" in joined
    assert "> **Page 3 could not be read:** broken xref" in joined
    assert protocol.as_markdown([good]) == "hello\n"


def test_a_pages_html_is_its_text_and_nothing_that_acts() -> None:
    text = "# A\n\n![](images/0.jpg)\n\n3. <b>b</b><img src=x onerror=alert(1)>"
    result = PageResult(PageKey("a", 0), Status.OK, markdown=text)
    assert page_html(result) == (
        '<h3>A</h3>\n<ol start="3"><li><b>b</b>&lt;img src=x onerror=alert(1)&gt;</li></ol>'
    )
    bad = PageResult(PageKey("a", 2), Status.FAILED, error=PageError("unreadable", "broken xref"))
    assert page_html(bad) == ""
