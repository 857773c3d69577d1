"""What is wrong with a request is said in a request's words, at once, and costs nobody else.

Knows nothing about models: a stub reads.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from stub_server import LIMIT_BYTES, advice, chat, page, pdf, talk

from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.document.preview import page_previews
from ocr2cli.engines.remote import remote_spec
from ocr2cli.engines.remote_client import make_client
from ocr2cli.serve.engine import ServeEngine


@pytest.mark.parametrize("kind", ["TIFF", "PDF"])
def test_a_chat_answers_one_page_and_refuses_a_document_of_more(
    engine: ServeEngine, kind: str
) -> None:
    """It read the first and said nothing of the others."""

    def document(num_pages: int) -> str:
        buffer = io.BytesIO()
        first, *others = [Image.new("RGB", (40, 30), "white") for _ in range(num_pages)]
        first.save(buffer, kind, save_all=True, append_images=others)
        return "data:;base64," + base64.b64encode(buffer.getvalue()).decode()

    async def work(client: httpx.AsyncClient) -> None:
        one = await client.post("/v1/chat/completions", content=chat(document(1)))
        assert one.status_code == 200
        more = await client.post("/v1/chat/completions", content=chat(document(2)))
        assert more.status_code == 400 and "/v1/ocr reads them all" in more.text

    talk(engine, work)
    assert engine.num_queued == 0 and engine.pages_by_status == {"ok": 1}


def test_a_form_without_a_length_is_read_no_further_than_the_limit(engine: ServeEngine) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        yield (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
               b"Content-Type: image/png\r\n\r\n")  # fmt: skip
        for _ in range(1000):
            sent += 10_000
            yield bytes(10_000)
        yield b"\r\n--b--\r\n"

    async def work(client: httpx.AsyncClient) -> None:
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        for path in ("/v1/ocr", "/v1/preview"):
            answer = await client.post(path, content=pieces(), headers=head)
            assert answer.status_code == 413

    talk(engine, work)
    assert sent <= 2 * (LIMIT_BYTES + 20_000)


def test_a_form_within_the_limit_is_read(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", files={"file": ("a.png", page())})
        assert answer.text == "text\n"

    talk(engine, work)


@pytest.mark.parametrize("shape", ["markdown", "json", "ndjson"])
@pytest.mark.parametrize(("body", "pages", "code", "words"), [
    (pdf(password="locked"), "", "encrypted", "the form's field `password`"),
    (b"%PDF-1.4 and no more", "", "unreadable", "the document is damaged"),
    (pdf(3), "40", "empty", "has 3 pages; `pages` 40 asks for none of them"),
])  # fmt: skip
def test_a_document_without_a_page_to_read_is_refused_whatever_the_format(
    engine: ServeEngine, shape: str, body: bytes, pages: str, code: str, words: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        query = {"format": shape, "pages": pages}
        answer = await client.post("/v1/ocr", params=query, content=body)
        assert answer.status_code == 422 and words in advice(answer)
        assert answer.json()["error"]["code"] == code

    talk(engine, work)
    assert engine.num_queued == 0 and list(Path(engine._spool.name).iterdir()) == []


@pytest.mark.parametrize("shape", ["markdown", "json"])
def test_a_document_is_refused_when_every_page_failed_and_answered_when_one_was_read(
    engine: ServeEngine, shape: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        query = {"format": shape, "prompt": "figure"}
        answer = await client.post("/v1/ocr", params=query, content=pdf(1))
        assert answer.status_code == 422 and "the document" in advice(answer)
        (row,) = answer.json()["pages"]
        assert (row["page"], row["error"]["code"]) == (1, "out_of_memory")
        answer = await client.post("/v1/ocr", params=query, content=pdf(2))
        assert answer.status_code == 200 and "text" in answer.text

    talk(engine, work)


@pytest.mark.parametrize(("query", "words"), [
    ({"format": "jsn"}, "choose from markdown, json, ndjson"), ({"html": "true"}, "yes, no"),
    ({"max_new_token": "3"}, "did you mean 'max_new_tokens'"), ({"dpi": "200"}, "choose from"),
])  # fmt: skip
def test_what_a_query_has_no_use_for_is_refused(
    engine: ServeEngine, query: dict[str, str], words: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", params=query, content=page())
        assert answer.status_code == 400 and words in advice(answer)

    talk(engine, work)


def test_every_refusal_has_the_same_form(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        form = await client.post("/v1/ocr", content=b"xx", headers=head)
        assert form.status_code == 400 and "multipart" in advice(form)
        assert (await client.get("/v1/nothing")).json()["error"]["code"] == "not_found"
        wrong = await client.get("/v1/ocr")
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        assert wrong.json()["error"]["code"] == "method_not_allowed"

    talk(engine, work)


def test_the_model_is_found_by_its_name_alone(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        (row,) = (await client.get("/v1/models")).json()["data"]
        assert (await client.get("/v1/models/hub/name")).json() == row
        other = await client.get("/v1/models/gpt-4")
        assert other.status_code == 404 and "hub/name" in advice(other)

    talk(engine, work, model="hub/name")


@pytest.mark.parametrize("query", [
    {"pages": "abc"}, {"prompt": "markdwn"}, {"prompt": "locate:"}, {"prompt": "locate:<|x"},
])  # fmt: skip
def test_what_is_wrong_in_a_query_is_said_in_a_querys_words(
    engine: ServeEngine, query: dict[str, str]
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", params=query, content=page())
        assert answer.status_code == 400 and advice(answer)

    talk(engine, work)


def test_the_password_of_a_form_opens_its_document_alone(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        files = {"file": ("a.pdf", pdf(2, "locked"))}
        given = {"password": "locked"}
        answer = await client.post("/v1/ocr", files=files, data=given)
        assert answer.status_code == 200 and "<!-- page: 2 -->" in answer.text
        pictures = await client.post("/v1/preview", files=files, data=given)
        assert pictures.text.count("data:image/jpeg") == 2
        for wrong in ({"password": "lock"}, {}):
            assert (await client.post("/v1/ocr", files=files, data=wrong)).status_code == 422
            (row,) = (await client.post("/v1/preview", files=files, data=wrong)).text.splitlines()
            assert "--password" not in row and "password" in json.loads(row)["error"]
        long = await client.post("/v1/ocr", files=files, data={"password": "x" * 2000})
        assert long.status_code == 400

    talk(engine, work)


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", "1.5", ""])
def test_a_token_limit_that_is_no_number_is_the_requests_fault(
    engine: ServeEngine, number: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", params={"max_new_tokens": number}, content=page())
        assert answer.status_code == 400 and "whole number" in answer.text

    talk(engine, work)


def test_half_a_character_in_a_prompt_is_the_requests_fault(engine: ServeEngine) -> None:
    """JSON can hold it, no tokenizer takes it, and the decoder is every client's."""
    url = "data:image/png;base64," + base64.b64encode(page()).decode()

    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions", content=chat(url, "Free OCR. \ud83d"))
        assert answer.status_code == 400 and "whole" in answer.text

    talk(engine, work)


def test_a_key_may_have_any_letters(engine: ServeEngine) -> None:
    key = "schl\u00fcssel"
    sent = {}

    def answer(request: httpx.Request) -> httpx.Response:
        sent["Authorization"] = dict(request.headers.raw)[b"Authorization"]
        return httpx.Response(200)

    spec = remote_spec(RunConfig(engine=EngineConfig(server="http://ocr2", api_key=key)), "x")
    with make_client(spec) as ours:
        ours._transport = httpx.MockTransport(answer)
        ours.get("/")

    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/models", headers=sent)).status_code == 200
        for wrong in (b"Bearer schlussel", b"Bearer schl\xfcssel", b""):
            refused = await client.get("/v1/models", headers={"Authorization": wrong})
            assert refused.status_code == 401

    talk(engine, work, api_key=key)


def test_a_page_that_cannot_be_drawn_does_not_tell_where_the_server_keeps_its_files(
    tmp_path: Path,
) -> None:
    import numpy as np

    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (row,) = page_previews(str(tmp_path / "cut.png"), max_pages=2)
    assert "cannot be decoded" in row["error"] and str(tmp_path) not in row["error"]
