"""Requests and answers of the HTTP server: what is accepted, and the shapes that go back.

Knows nothing about sockets or how pages are read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ocr2cli.output.html_text import text_html
from ocr2cli.output.markdown import FIGURE_PLACE, document_markdown
from ocr2cli.pages import Document, FinishReason, PageResult
from ocr2cli.serve.fetching import FETCH_ERRORS, NotPublic, TooLarge, download
from ocr2cli.text.prompt import PROMPTS, is_text

_MAX_PROMPT = 4_000
_ENDINGS = {
    b"%PDF": ".pdf", b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp",
    b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif", b"MM\0+": ".tif", b"RIFF": ".webp",
}  # fmt: skip
# What stands before a PDF's mark, as a BOM or a line break, is passed over by whatever reads one.
_PDF_WITHIN = 1024
IMAGES = "PNG, JPEG, TIFF, WebP, BMP, GIF"

# Names in the query of /v1/ocr, and the words that some take.
QUERY = {
    "prompt": (), "pages": (), "max_new_tokens": (), "format": ("markdown", "json", "ndjson"),
    "html": ("yes", "no"),
}  # fmt: skip


class BadRequest(Exception):
    """The request's fault. status: HTTP; the message tells what to send instead."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion with one page image."""

    image: bytes
    prompt: str
    max_tokens: int
    is_stream: bool
    has_usage: bool = False  # a stream is to end in the token counts


def parse_chat(body: bytes, *, allow_http: bool, max_bytes: int) -> ChatRequest:
    """Strict reading of a chat completion. Raises: BadRequest."""
    try:
        table = json.loads(body)
        content = table["messages"][-1]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise BadRequest("send JSON with messages[].content holding an image_url part") from None
    texts, images = _parts(content)
    if len(images) != 1:
        raise BadRequest(f"send exactly one image_url part a request, not {len(images)}")
    # Part order in a chat is not the prompt's: the page always stands first.
    text = "".join(texts).strip()
    options = table.get("stream_options")
    return ChatRequest(
        image=fetch_image(images[0], allow_http=allow_http, max_bytes=max_bytes),
        prompt=_prompt(text),
        max_tokens=_whole(table, "max_tokens") or _whole(table, "max_completion_tokens"),
        is_stream=table.get("stream") is True,
        has_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _parts(content: object) -> tuple[list[str], list[str]]:
    if not isinstance(content, list):
        raise BadRequest("content must be a list with an image_url part and a text part")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            images.append(str(part["image_url"].get("url", "")))
        else:
            raise BadRequest("content parts are {type: text} and {type: image_url}")
    return texts, images


def _prompt(text: str) -> str:
    """The model's prompt for a request's text; empty text asks for markdown."""
    if len(text) > _MAX_PROMPT or "<image>" in text or not is_text(text):
        raise BadRequest(f"a prompt has up to {_MAX_PROMPT} characters, all whole, and no <image>")
    return f"<image>\n{text}" if text else PROMPTS["markdown"]


def _whole(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{name} must be a whole number above 0")
    return value


def fetch_image(url: str, *, allow_http: bool, max_bytes: int) -> bytes:
    """Bytes of a data: URL; of http(s) only where the server was told to. Raises: BadRequest."""
    if url.startswith("data:"):
        head, _, data = url.partition(",")
        if not head.endswith(";base64"):
            raise BadRequest("send the image as data:image/png;base64,...")
        try:
            return base64.b64decode(data, validate=True)
        except ValueError:  # binascii's, or another for letters that are not ASCII
            raise BadRequest("the data URL is not valid base64") from None
    if not url.startswith(("http://", "https://")):
        raise BadRequest("image_url takes a data: URL")
    if not allow_http:
        raise BadRequest("http image URLs are off; send a data: URL, or start with --allow-http")
    try:
        return download(url, max_bytes=max_bytes)
    except NotPublic:
        raise BadRequest("the image's host is not a public address") from None
    except TooLarge:
        raise BadRequest(f"the image is larger than {max_bytes} bytes", 413) from None
    except FETCH_ERRORS as error:
        raise BadRequest(f"the image could not be fetched: {error}") from None


def check_query(query: Mapping[str, str]) -> None:
    """Raises: BadRequest for a name of `/v1/ocr`'s query, or a word there, that is none."""
    for name in query:
        if name not in QUERY:
            close = get_close_matches(name, QUERY, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(QUERY)}"
            raise BadRequest(f"the query has no {name!r}; {hint}")
    for name, words in QUERY.items():
        if words and query.get(name, "") not in ("", *words):
            raise BadRequest(f"{name}={query[name]!r}: choose from {', '.join(words)}")


def ending_of(body: bytes) -> str:
    """A file name's ending for the bytes, by their first ones. Raises: BadRequest."""
    for magic, ending in _ENDINGS.items():
        if body.startswith(magic):
            return ending
    if b"%PDF" in body[:_PDF_WITHIN]:
        return ".pdf"
    raise BadRequest(f"send a PDF or an image ({IMAGES})", 415)


def usage(results: Sequence[PageResult]) -> dict[str, int]:
    """Token counts in OpenAI's form; visual_tokens is ours."""
    prompt = sum(result.prompt_tokens for result in results)
    new = sum(result.new_tokens for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "visual_tokens": sum(result.visual_tokens for result in results),
    }


def chat_answer(result: PageResult, *, name: str, created: int, model: str) -> dict[str, Any]:
    """A chat completion. ocr2_finish_reason tells a loop from a stop, which OpenAI's cannot."""
    return {
        "id": name,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": result.raw},
                "finish_reason": _finish(result),
                "ocr2_finish_reason": result.finish_reason,
                "logprobs": None,
            }
        ],
        "usage": usage([result]),
        "ocr2": {
            "status": result.status,
            "confidence": result.confidence,
            "grid": list(result.grid),
        },
    }


def chat_chunks(
    result: PageResult, *, name: str, created: int, model: str, has_usage: bool = False
) -> list[dict[str, Any]]:
    """The same as a stream of deltas, a line at a time, closed by the finish reason. has_usage:
    then a chunk without a choice follows, with the token counts."""

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {
            "id": name, "object": "chat.completion.chunk", "created": created, "model": model,
            "choices": [choice],
        }  # fmt: skip

    lines = result.raw.splitlines(keepends=True)
    counts = {**chunk({}), "choices": [], "usage": usage([result])}
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": line}) for line in lines),
        chunk({}, _finish(result)),
        *([counts] if has_usage else []),
    ]


def _finish(result: PageResult) -> str:
    return "length" if result.finish_reason is FinishReason.LENGTH else "stop"


def page_row(result: PageResult) -> dict[str, Any]:
    """One page of `POST /v1/ocr` as JSON."""
    return {
        "page": result.key.page + 1,
        "status": result.status,
        "finish_reason": result.finish_reason,
        "markdown": result.markdown,
        "boxes": [{"label": box.label, "box": list(box.box)} for box in result.boxes],
        "grid": list(result.grid),
        "confidence": result.confidence,
        "new_tokens": result.new_tokens,
        "warnings": list(result.warnings),
        "error": None if result.error is None else {
            "code": result.error.code, "message": result.error.message,
        },
    }  # fmt: skip


def page_html(result: PageResult) -> str:
    """The page's text as `ocr2 run --format html` lays it out, escaped and without figures."""
    return text_html(FIGURE_PLACE.sub("", result.markdown))


def as_markdown(results: Sequence[PageResult]) -> str:
    """The pages as one text, as `ocr2 run` writes them; no file holds figures here."""
    return document_markdown(Document("", "", tuple(results)))
