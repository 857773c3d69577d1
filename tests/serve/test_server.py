"""The server as its clients see it: a real port, the official client, the limits, the end."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image, ImageDraw

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "tests" / "engines"))
from toy_engine import write_toy_model  # noqa: E402

from ocr2cli.batch import iter_pages  # noqa: E402
from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig  # noqa: E402
from ocr2cli.errors import EngineError, ExitCode  # noqa: E402

KEY = "a-long-key"


def png(words: str, size: tuple[int, int] = (320, 240)) -> bytes:
    page = Image.new("RGB", size, "white")
    ImageDraw.Draw(page).text((20, 20), words, fill="black", font_size=40)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    port = free_port()
    argv = [
        sys.executable, "-m", "ocr2cli", "serve", "--model", str(model), "--port", str(port),
        "--api-key", KEY, "--runner", "inline", "--dtype", "f32", "--max-new-tokens", "16",
        "--max-body", "200000", "--max-pages", "2", "--max-queue", "12", "--batch-size", "4",
        "--kv-tokens", "8000",
    ]  # fmt: skip
    process = subprocess.Popen(argv, cwd=REPO, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    _wait_until_healthy(url, process)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) in (0, -signal.SIGTERM)


def test_a_server_that_ctrl_c_ends_says_so_with_its_exit_code(model: Path) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "ocr2cli", "serve", "--model", str(model), "--port", str(port),
            "--runner", "inline", "--dtype", "f32"]  # fmt: skip
    process = subprocess.Popen(argv, cwd=REPO, stderr=subprocess.PIPE, text=True)
    _wait_until_healthy(f"http://127.0.0.1:{port}", process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=40)
    assert (process.returncode, told.strip()) == (130, "")


def test_all_that_a_server_says_is_a_log_line_also_at_a_second_ctrl_c(model: Path) -> None:
    """It was plain text, and 90 lines of tracebacks."""
    port = free_port()
    argv = [sys.executable, "-m", "ocr2cli", "serve", "--model", str(model), "--port", str(port),
            "--runner", "inline", "--dtype", "f32", "--log-format", "json"]  # fmt: skip
    process = subprocess.Popen(argv, cwd=REPO, stderr=subprocess.PIPE, text=True)
    _wait_until_healthy(f"http://127.0.0.1:{port}", process)
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    httpx.post(f"http://127.0.0.1:{port}/v1/ocr", content=b"xx", headers=head)
    with socket.create_connection(("127.0.0.1", port)) as rubbish:
        rubbish.sendall(b"rubbish\r\n\r\n")
        rubbish.recv(100)
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    rows = [json.loads(line) for line in told.strip().splitlines()]
    assert [row["message"] for row in rows] == ["Invalid HTTP request received."]
    assert process.returncode == 130


def _wait_until_healthy(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise AssertionError(process.stderr.read() if process.stderr else "the server ended")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server never became healthy")


@pytest.fixture
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, timeout=120, max_retries=0)


def messages(page: bytes, words: str = "Free OCR.") -> list[dict[str, object]]:
    url = "data:image/png;base64," + base64.b64encode(page).decode()
    return [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words},
    ]}]  # fmt: skip


def test_the_official_client_gets_what_a_run_gives(client, model, tmp_path) -> None:
    page = png("hello")
    (tmp_path / "page.png").write_bytes(page)
    cfg = RunConfig(
        inputs=(str(tmp_path / "page.png"),), runner="inline",
        engine=EngineConfig(model=str(model), prompt="ocr", dtype="f32", kv_tokens=8000,
                            batch_size=4),
        decode=DecodeConfig(max_new_tokens=16),
    )  # fmt: skip
    (expected,) = iter_pages(cfg)
    name = client.models.list().data[0].id
    answer = client.chat.completions.create(model=name, messages=messages(page))
    assert answer.choices[0].message.content == expected.raw
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_adds_up_to_the_same_text(client) -> None:
    page = png("stream")
    whole = client.chat.completions.create(model="m", messages=messages(page))
    parts = client.chat.completions.create(model="m", messages=messages(page), stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
    assert streamed == whole.choices[0].message.content


def test_requests_at_once_get_each_their_own_page(client) -> None:
    pages = [png(f"page {number}") for number in range(6)]
    ask = lambda page: client.chat.completions.create(  # noqa: E731
        model="m", messages=messages(page), max_tokens=8
    )
    alone = [ask(page).choices[0].message.content for page in pages]
    with ThreadPoolExecutor(6) as pool:
        together = [a.choices[0].message.content for a in pool.map(ask, pages)]
    assert together == alone


def test_a_pdf_becomes_pages_of_json_or_markdown(server) -> None:
    import pymupdf

    pdf = pymupdf.open()
    for number in range(2):
        pdf.new_page().insert_text((72, 72), f"page {number}")
    head = {"Authorization": f"Bearer {KEY}"}
    url = f"{server}/v1/ocr?prompt=ocr&max_new_tokens=3"
    rows = httpx.post(url + "&format=json", content=pdf.tobytes(), headers=head, timeout=120).json()
    assert [row["page"] for row in rows["pages"]] == [1, 2]
    upload = {"file": ("a.pdf", pdf.tobytes(), "application/pdf")}
    text = httpx.post(url, files=upload, headers=head, timeout=120).text
    assert "<!-- page: 2 -->" in text


def test_an_encrypted_pdf_reads_as_the_open_one_with_the_password_of_its_form(server) -> None:
    import pymupdf

    pdf = pymupdf.open()
    pdf.new_page(width=200, height=100).insert_text((20, 50), "page")
    locked = pdf.tobytes(encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="locked")
    ask = lambda body, **form: httpx.post(  # noqa: E731
        f"{server}/v1/ocr?prompt=ocr&max_new_tokens=3", data=form, files={"file": ("a.pdf", body)},
        headers={"Authorization": f"Bearer {KEY}"}, timeout=120,
    )
    answer = ask(locked, password="locked")
    assert (answer.status_code, answer.text) == (200, ask(pdf.tobytes()).text)
    assert ask(locked).status_code == 422


def test_without_the_key_nothing_is_read(server) -> None:
    for path in ("/v1/models", "/metrics"):
        assert httpx.get(server + path).status_code == 401
    assert httpx.post(f"{server}/v1/ocr", content=png("x")).status_code == 401


def test_limits_on_body_pages_and_kind(server) -> None:
    import pymupdf

    head = {"Authorization": f"Bearer {KEY}"}
    ocr = f"{server}/v1/ocr"
    assert httpx.post(ocr, content=b"x" * 300_000, headers=head).status_code == 413
    assert httpx.post(ocr, content=b"plain words", headers=head).status_code == 415
    pdf = pymupdf.open()
    for _ in range(3):
        pdf.new_page()
    assert httpx.post(ocr, content=pdf.tobytes(), headers=head, timeout=60).status_code == 413


def test_a_full_queue_says_when_to_come_back(server) -> None:
    head = {"Authorization": f"Bearer {KEY}"}
    ask = lambda number: httpx.post(  # noqa: E731
        f"{server}/v1/ocr", content=png(f"busy {number}"), headers=head, timeout=300
    )
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(ask, range(30)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert any(answer.status_code == 200 for answer in answers)


def test_metrics_count_the_pages(server) -> None:
    text = httpx.get(f"{server}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert 'ocr2_pages_total{status="truncated"}' in text


def test_an_open_address_needs_a_key() -> None:
    argv = [sys.executable, "-m", "ocr2cli", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE and "--api-key" in done.stderr


def test_a_port_in_use_is_one_line(server) -> None:
    argv = [sys.executable, "-m", "ocr2cli", "serve", "--port", server.rsplit(":", 1)[1]]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == ExitCode.ENGINE and "--port 0" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_pages_come_as_lines_when_each_is_done(server) -> None:
    import pymupdf

    pdf = pymupdf.open()
    for _ in range(2):
        pdf.new_page(width=200, height=100)
    head = {"Authorization": f"Bearer {KEY}"}
    url = f"{server}/v1/ocr?prompt=ocr&format=ndjson"
    text = httpx.post(url, content=pdf.tobytes(), headers=head, timeout=60).text
    first, *rows = map(json.loads, text.splitlines())
    assert first == {"num_pages": 2} and sorted(row["page"] for row in rows) == [1, 2]
    assert not any("html" in row for row in rows)
    text = httpx.post(f"{url}&html=yes", content=pdf.tobytes(), headers=head, timeout=60).text
    assert [row["html"] for row in map(json.loads, text.splitlines()[1:])] == ["", ""]


def test_previews_come_in_page_order_and_a_broken_file_is_one_row(server) -> None:
    import pymupdf

    pdf = pymupdf.open()
    for _ in range(3):
        pdf.new_page(width=200, height=100)
    head = {"Authorization": f"Bearer {KEY}"}
    url = f"{server}/v1/preview"
    text = httpx.post(url, content=pdf.tobytes(), headers=head, timeout=60).text
    rows = [json.loads(line) for line in text.splitlines()]
    # Two, since this server takes documents of two pages.
    assert [(row["page"], row["num_pages"]) for row in rows] == [(1, 3), (2, 3)]
    assert all(row["image"].startswith("data:image/jpeg;base64,") for row in rows)
    (bad,) = httpx.post(url, content=b"%PDF-1.4", headers=head, timeout=60).text.splitlines()
    assert "damaged" in json.loads(bad)["error"] and "/tmp" not in bad
    assert httpx.post(url, content=b"words", headers=head).status_code == 415
    assert httpx.post(url, content=pdf.tobytes()).status_code == 401


def test_the_remote_engine_reads_through_our_own_server(server, model, tmp_path) -> None:
    """`--engine openai` gives the same text as the native engine on the same weights."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(f"remote {number}"))
    (tmp_path / "white.png").write_bytes(png(""))
    native = RunConfig(
        inputs=(str(tmp_path),), runner="inline", decode=DecodeConfig(max_new_tokens=16),
        engine=EngineConfig(model=str(model), prompt="ocr", dtype="f32", batch_size=4,
                            kv_tokens=8000),
    )  # fmt: skip
    there = replace(native.engine, engine="openai", server=server, api_key=KEY, model="nano")
    remote = list(iter_pages(replace(native, engine=there)))
    local = list(iter_pages(native))
    assert [page.raw for page in remote] == [page.raw for page in local]
    assert [page.status for page in remote] == [page.status for page in local]


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png("a"))
    there = EngineConfig(engine="openai", server=f"http://127.0.0.1:{free_port()}", prompt="ocr")
    with pytest.raises(EngineError, match="does not answer"):
        list(iter_pages(RunConfig(inputs=(str(tmp_path),), runner="inline", engine=there)))


os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")
