"""Runs through a remote server: what a server does wrong costs no page that it does not concern."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from ocr2cli.batch import run_batch
from ocr2cli.config import DecodeConfig, DryConfig, EngineConfig, RasterConfig, RunConfig
from ocr2cli.engines import remote, remote_client, remote_probe
from ocr2cli.engines.finish import PageFacts, read_before, to_result
from ocr2cli.engines.recovery import NOTHING
from ocr2cli.engines.remote import PagePng, RequestWorker
from ocr2cli.engines.remote_client import ServerGone, request_body
from ocr2cli.errors import EngineError
from ocr2cli.output.summary import Summary
from ocr2cli.pages import PageKey, PageResult, Status
from ocr2cli.pipeline.stop import StopRequests
from ocr2cli.text.tokenizer import EOS_TOKEN

Answer = Callable[[int], httpx.Response]
NAN = math.nan


def chat(**changes: Any) -> httpx.Response:
    message = {"message": {"content": "Read."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 268, "completion_tokens": 20}
    table = {"choices": [message], "usage": usage} | changes
    return httpx.Response(200, content=json.dumps(table))  # with numbers that JSON does not know


class Server:
    """Answers `/v1/models` itself and page number n (the probe is 0) by `answer(n)`."""

    def __init__(self, answer: Answer, owner: str) -> None:
        self.answer, self.owner, self.num_asked = answer, owner, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": self.owner}]})
        if request.url.path == "/apply-template":
            return httpx.Response(404)
        self.num_asked += 1
        return self.answer(self.num_asked - 1)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """One run over six pages, one request at a time, without waits between tries."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        page = Image.new("RGB", (120, 80), "white")
        ImageDraw.Draw(page).text((9, 30), f"page {number}", fill="black")
        page.save(tmp_path / "in" / f"{number}.png")
    monkeypatch.setattr(remote_client.time, "sleep", lambda seconds: None)

    def run(
        answer: Answer, server: str = "http://host:1", owner: str = "vllm", **changes: Any
    ) -> Summary:
        transport = httpx.MockTransport(Server(answer, owner))
        for module in (remote, remote_probe):
            monkeypatch.setattr(
                module,
                "make_client",
                lambda spec: httpx.Client(base_url=server, transport=transport),
            )
        engine = EngineConfig(
            engine="openai", server=server, server_concurrency=1, prompt="ocr", rasterizers=1
        )
        return run_batch(RunConfig(
            inputs=(str(tmp_path / "in"),), out=tmp_path / "out", engine=engine, runner="inline",
            **changes,
        ))  # fmt: skip

    return run


def test_a_server_that_goes_away_ends_the_run_and_the_next_one_reads_what_is_missing(read) -> None:
    def gone_after_two(number: int) -> httpx.Response:
        if number > 2:
            raise httpx.ConnectError("Connection refused")
        return chat()

    with pytest.raises(EngineError, match=r"Connection refused\. Is the server up"):
        read(gone_after_two)
    summary = read(lambda number: chat())
    assert summary.by_status == {"ok": 6} and summary.pages_resumed == 2


def test_a_key_that_is_refused_in_mid_run_ends_it_by_name(read) -> None:
    with pytest.raises(EngineError, match=r"refuses the key .status 401.*--api-key"):
        read(lambda number: chat() if number < 3 else httpx.Response(401))
    assert read(lambda number: chat()).by_status == {"ok": 6}


def test_a_page_the_server_cannot_read_fails_alone_and_is_asked_for_again(read) -> None:
    first = read(lambda number: httpx.Response(400, text="no") if number == 4 else chat())
    assert first.by_status == {"ok": 5, "failed": 1}
    asked = []
    again = read(lambda number: asked.append(number) or chat())
    assert again.by_status == {"ok": 6}
    assert asked == [0, 1]  # the probe, and that page


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "a"}]}}]},
        {"usage": [1, 2]},
        {"usage": {"completion_tokens": "many"}},
        {"usage": {"completion_tokens": math.inf}},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"logprob": 1000}]}}]},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"logprob": NAN}]}}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": {"text": "x"}}}]},
        {"choices": [{"message": {"content": ["x"]}}]},
        {"choices": [{"message": {"content": None}}]},  # of 20 tokens
    ],
)
def test_an_answer_of_another_shape_is_the_error_of_its_page(read, changes) -> None:
    summary = read(lambda number: chat(**changes) if number == 4 else chat())
    assert summary.by_status == {"ok": 5, "failed": 1}


@pytest.mark.parametrize(
    ("status", "data", "head"),
    [
        (200, b"[" * 100_000, {}),
        (200, b"no gzip", {"Content-Encoding": "gzip"}),
        (429, b"", {"Retry-After": b"\xb2"}),
    ],
)
def test_an_answer_that_cannot_be_taken_apart_is_the_error_of_its_page(
    read, status: int, data: bytes, head: dict[str, Any]
) -> None:
    def answer(number: int) -> httpx.Response:
        return httpx.Response(status, stream=httpx.ByteStream(data), headers=head)

    summary = read(lambda number: chat() if number < 6 else answer(number))
    assert summary.by_status == {"ok": 5, "failed": 1}
    assert summary.bad_pages[0].code == "request"


@pytest.mark.parametrize("usage", [[1], {"prompt_tokens": math.inf}, {"prompt_tokens": "many"}])
def test_an_answer_of_another_shape_to_the_probe_is_one_clear_error(read, usage) -> None:
    with pytest.raises(EngineError, match="no chat completion"):
        read(lambda number: chat(usage=usage))


def test_logprobs_that_no_number_can_sum_up_are_a_page_without_any_confidence(read) -> None:
    lows = [{"logprob": -1e308}, {"logprob": -1e308}, {"logprob": 1e-7}]
    choice = {"message": {"content": "x"}, "logprobs": {"content": lows}}
    assert read(lambda number: chat(choices=[choice])).by_status == {"ok": 6}


REF = "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"


@pytest.mark.parametrize("tokens", [
    [{"token": "<|ref|>text<|/ref|>"}, {"token": "<|det|>[[1, 2, 3, 4]]<|/det|>"}, {"token": "Hé"}],
    [{"token": REF[:9]}, {"token": REF[9:]}, {"token": "H", "bytes": [72]},
     {"token": "\ufffd", "bytes": [0xC3]}, {"token": "\ufffd", "bytes": [0xA9]}],
], ids=["tokens", "bytes"])  # fmt: skip
def test_a_servers_box_tokens_do_not_count_for_confidence(tokens) -> None:
    chances = [0.1, 0.1, *(0.8 for _ in tokens[2:]), 0.8]
    content = [
        token | {"logprob": math.log(chance)}
        for token, chance in zip([*tokens, {"token": EOS_TOKEN}], chances, strict=True)
    ]
    choice = {"message": {"content": REF + "Hé"}, "logprobs": {"content": content}}
    written = remote.to_generation(PageKey("a", 0), {}, choice, 1.0)
    assert to_result([written], PageFacts()).confidence == pytest.approx(0.8)


def result_of(choice: dict[str, Any], **answer: Any) -> PageResult:
    worker = RequestWorker(remote.remote_spec(
        RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx"
    ))  # fmt: skip
    worker.spec = replace(worker.spec, flavour=answer.pop("flavour", "ocr2"))
    told = {"choices": [choice]} | answer
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=told))
    worker.client = httpx.Client(base_url="http://host", transport=transport)
    return worker.read(PagePng(PageKey("a", 0), b"png", PageFacts()))


def test_a_text_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "refusal"}, {"type": "text", "text": "b"}]
    assert result_of({"message": {"content": parts}}).markdown == "a b"


@pytest.mark.parametrize("content", [None, "", " \n", EOS_TOKEN, []])
def test_a_page_of_which_nothing_was_read_says_so(content: Any) -> None:
    result = result_of({"message": {"content": content}}, usage={"completion_tokens": 1})
    assert result.status is Status.OK and result.warnings == (NOTHING,)
    assert read_before(result, ("of the page",), "").warnings == ("of the page", NOTHING)
    assert result_of({"message": {"content": "x"}}).warnings == ()


@pytest.mark.parametrize(("told", "finish", "status", "confidence"), [
    ({"status": "ok", "confidence": 0.5}, "stop", "ok", 0.5),
    ({"status": "recovered", "confidence": 1}, "stop", "recovered", 1.0),
    ({"status": "truncated", "confidence": None}, "length", "truncated", None),
    ({"status": "recovered", "confidence": 1.5}, "length", "truncated", None),
    ({"status": "blank", "confidence": True}, "stop", "ok", None),
    ({"status": ["ok"], "confidence": "0.5"}, "stop", "ok", None),
    ({"status": "failed", "confidence": -1}, "stop", "ok", None),
    ("ok", "stop", "ok", None),
])  # fmt: skip
def test_our_own_server_tells_a_pages_status_and_confidence(
    told: Any, finish: str, status: str, confidence: float | None
) -> None:
    choice = {"message": {"content": "x"}, "finish_reason": finish}
    result = result_of(choice, ocr2=told)
    assert (result.status, result.confidence) == (status, confidence)
    assert result_of(choice, ocr2=told, flavour="vllm").confidence is None


@pytest.mark.parametrize(
    ("told", "grid"),
    [([2, 3], (2, 3)), ([1, 1], (1, 1)), (None, (0, 0)), ([2], (0, 0)), ([0, 3], (0, 0)),
     ([True, 2], (0, 0)), ("12", (0, 0)), ([1.5, 2], (0, 0))],
)  # fmt: skip
def test_the_grid_is_what_our_own_server_tells_and_unknown_otherwise(
    told: Any, grid: tuple[int, int]
) -> None:
    """Every page that a server read was said to have no tiles."""
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    assert result_of(choice, ocr2={"grid": told}).grid == grid
    assert result_of(choice, ocr2={"grid": told}, flavour="vllm").grid == (0, 0)


def test_a_page_that_our_own_server_found_blank_is_blank() -> None:
    told = {"status": "blank", "confidence": None}
    result = result_of({"message": {"content": ""}, "finish_reason": "stop"}, ocr2=told)
    assert (result.status, result.finish_reason, result.warnings) == (Status.BLANK, None, ())


@pytest.mark.parametrize("code", [503, "503"])
def test_an_error_that_came_as_a_good_answer_is_asked_again(read, code: Any) -> None:
    busy = {"error": {"message": "overloaded", "code": code}}
    asked = []

    def answer(number: int) -> httpx.Response:
        asked.append(number)
        return httpx.Response(200, json=busy) if number == 3 else chat()

    assert read(answer).by_status == {"ok": 6} and len(asked) == 8
    read(lambda number: chat())


def test_an_error_that_came_as_a_good_answer_and_says_more_is_the_pages(read) -> None:
    bad = {"error": {"message": "no such model", "code": 404}}
    summary = read(lambda number: httpx.Response(200, json=bad) if number == 3 else chat())
    assert "status 404" in summary.bad_pages[0].message
    assert "no such model" in summary.bad_pages[0].message


def test_where_a_server_has_moved_to_is_said(read) -> None:
    moved = httpx.Response(307, headers={"Location": "https://me:pw@new/v1/chat/completions"})
    with pytest.raises(EngineError, match="status 307, which leads to https://") as caught:
        read(lambda number: moved)
    assert "new/v1/chat" in str(caught.value) and "pw" not in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [
    ("3", 3), ("2.5", 2.5), ("-1", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("", 0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Oct 99999 07:28:00 GMT", 0),
])  # fmt: skip
def test_a_server_may_say_in_any_form_when_to_come_back(text: str, seconds: float) -> None:
    answer = httpx.Response(429, headers={"Retry-After": text})
    assert remote_client._asked(answer) == seconds
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    answer = httpx.Response(429, headers={"Retry-After": moment})
    assert 10 < remote_client._asked(answer) <= 20


OK = 200
NOWHERE = httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("answers", "num_asked", "error"),
    [
        *(([status, status, OK], 3, None) for status in (408, 409, 425, 429, 500, 502, 503, 504)),
        ([400], 1, EngineError), ([404], 1, EngineError),
        ([401], 1, ServerGone), ([403], 1, ServerGone),
        ([NOWHERE] * 6, 6, ServerGone), ([NOWHERE, OK], 2, None),
        # Some try has reached it: the page is at fault, and the run goes on.
        ([500, *[NOWHERE] * 5], 6, EngineError), ([*[NOWHERE] * 5, 500], 6, EngineError),
        ([httpx.ReadError("reset"), *[NOWHERE] * 5], 6, EngineError),
        ([NOWHERE, httpx.ReadTimeout("slow")], 2, EngineError),
    ],
)  # fmt: skip
def test_what_is_asked_again_how_often_and_what_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], num_asked: int, error: Any
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote_client.time, "sleep", waits.append)
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        return chat() if one == OK else httpx.Response(one)

    spec = remote.remote_spec(RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx")
    client = httpx.Client(base_url="http://host", transport=httpx.MockTransport(answer))
    if error is None:
        assert remote_client.post(client, spec, {})["choices"]
    else:
        with pytest.raises(EngineError) as caught:
            remote_client.post(client, spec, {})
        assert type(caught.value) is error
    assert len(answers) - len(left) == num_asked
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 0.0][: len(waits)]


def test_a_server_is_not_waited_for_longer_than_half_a_minute_nor_past_the_pages_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote_client.time, "sleep", waits.append)
    busy = httpx.MockTransport(lambda _: httpx.Response(429, headers={"Retry-After": "90"}))
    spec = remote.remote_spec(RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx")
    client = httpx.Client(base_url="http://host", transport=busy)
    with pytest.raises(EngineError, match="429"):
        remote_client.post(client, replace(spec, timeout_s=1000.0), {}, tries=3)
    assert waits == [30.0, 30.0, 0.0], "after the last try there is nothing to wait for"
    with pytest.raises(EngineError, match="429"):
        remote_client.post(client, replace(spec, timeout_s=20.0), {})
    assert waits == [30.0, 30.0, 0.0]


def test_a_page_is_asked_for_word_by_word_as_the_prompt_has_it() -> None:
    cfg = RunConfig(
        engine=EngineConfig(server="http://host"), decode=DecodeConfig(max_new_tokens=7)
    )
    body = request_body(remote.remote_spec(cfg, "Look: <image>\nRead."), b"png")
    first, image, last = body["messages"][0]["content"]
    assert first["text"].startswith("Look:") and image["type"] == "image_url"
    assert last["text"] == "Read."
    assert (body["temperature"], body["max_tokens"], body["skip_special_tokens"]) == (0, 7, False)


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error"])
def test_a_page_that_the_server_cut_short_is_not_read_and_asked_for_again(read, reason) -> None:
    cut = {"message": {"content": "Re"}, "finish_reason": reason}
    first = read(lambda number: chat(choices=[cut]) if number == 4 else chat())
    assert first.by_status == {"ok": 5, "failed": 1} and reason in first.bad_pages[0].message
    whole = {"message": {"content": "Read."}}
    assert read(lambda number: chat(choices=[whole])).by_status == {"ok": 6}


def test_a_page_without_an_answer_is_waited_for_once(read) -> None:
    asked = []

    def hangs(number: int) -> httpx.Response:
        asked.append(number)
        if number == 4:
            raise httpx.ReadTimeout("timed out")
        return chat()

    first = read(hangs)
    assert first.by_status == {"ok": 5, "failed": 1} and asked == list(range(7))
    assert "--page-timeout" in first.bad_pages[0].message
    assert read(lambda number: chat()).by_status == {"ok": 6}


def test_a_changed_files_old_pages_are_not_asked_for_again(read, tmp_path: Path) -> None:
    assert read(lambda number: chat()).by_status == {"ok": 6}
    with Image.open(tmp_path / "in" / "2.png") as page:
        page.save(tmp_path / "in" / "2.png", compress_level=1)
    asked = []
    summary = read(lambda number: asked.append(number) or chat())
    assert (asked, summary.pages_reused, summary.by_status["ok"]) == ([0], 1, 6)  # the probe


def test_only_what_changes_the_text_makes_pages_be_read_again(read) -> None:
    def num_resumed(**changes: Any) -> int:
        return read(lambda number: chat(), **changes).pages_resumed

    assert num_resumed() == 0
    assert num_resumed(decode=DecodeConfig(draft="text-layer"),
                       raster=RasterConfig(text_layer="draft")) == 6  # fmt: skip
    assert num_resumed(recover_loops=False) == 0


@pytest.mark.parametrize("rule", [{}, {"no_repeat_ngram": 0, "dry": DryConfig()}])
@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", "ocr2", ""])
def test_a_rule_that_a_server_cannot_be_told_is_named(read, caplog, owner, rule) -> None:
    read(lambda number: chat(), owner=owner, decode=DecodeConfig(**rule))
    notes = [record.getMessage() for record in caplog.records]
    is_told = owner in {True: ("llamacpp", "ocr2"), False: ("vllm", "ocr2")}["dry" in rule]
    assert len(notes) == (not is_told)
    assert all(("--dry" if "dry" in rule else "--no-repeat-ngram") in note for note in notes)


@pytest.mark.parametrize(("owner", "flag"), [("vllm", "--dry"), ("llamacpp", "--no-repeat-ngram")])
def test_of_two_rules_the_one_that_a_server_cannot_be_told_is_named(
    read, caplog, owner, flag
) -> None:
    read(lambda number: chat(), owner=owner, decode=DecodeConfig(dry=DryConfig()))
    (record,) = caplog.records
    assert f"cannot be told {flag}" in record.getMessage()


@pytest.mark.parametrize(("window", "sent"), [(90, 90), (0, 8192), (9000, 8192)])
def test_a_window_without_an_end_is_the_whole_context_for_vllm(window: int, sent: int) -> None:
    """Its processor refuses a window of 0."""
    cfg = RunConfig(
        engine=EngineConfig(server="http://host"), decode=DecodeConfig(ngram_window=window)
    )
    spec = replace(remote.remote_spec(cfg, "<image>\nx"), flavour="vllm")
    assert request_body(spec, b"png")["vllm_xargs"]["window_size"] == sent


def test_our_own_server_is_sent_no_rules_that_it_does_not_read() -> None:
    spec = remote.remote_spec(RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx")
    assert "vllm_xargs" not in request_body(replace(spec, flavour="ocr2"), b"png")
    assert "vllm_xargs" in request_body(replace(spec, flavour="vllm"), b"png")


def test_an_endless_page_timeout_is_one_that_a_socket_takes() -> None:
    cfg = RunConfig(engine=EngineConfig(server="http://host"), page_timeout=math.inf)
    socket.socket().settimeout(remote.remote_spec(cfg, "<image>\nx").timeout_s)


class Hangs(BaseHTTPRequestHandler):
    """Answers the probe, then nobody until it is well; then everybody."""

    is_well = False
    num_asked = 0
    may_end = threading.Event()

    def do_GET(self) -> None:
        self._say({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Hangs.num_asked += 1
        if self.num_asked > 1 and not self.is_well:
            self.may_end.wait(60)
            return
        self._say(chat().json())

    def _say(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_pages_of_a_server_that_hangs_are_asked_for_again_by_the_next_run(tmp_path: Path) -> None:
    """The watchdog over the worker was quicker than the request, and its `timeout` is settled."""
    page = Image.new("RGB", (120, 80), "white")
    ImageDraw.Draw(page).text((9, 30), "page", fill="black")
    page.save(tmp_path / "a.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hangs) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        engine = EngineConfig(
            engine="openai", server=f"http://127.0.0.1:{http.server_address[1]}", prompt="ocr",
            rasterizers=1,
        )  # fmt: skip
        cfg = RunConfig(
            inputs=(str(tmp_path / "a.png"),), out=tmp_path / "out", engine=engine, runner="local",
            page_timeout=5.0,
        )  # fmt: skip
        first = run_batch(cfg)
        assert [page.code for page in first.bad_pages] == ["request"] and Hangs.num_asked == 2
        Hangs.is_well = True
        Hangs.may_end.set()
        assert run_batch(cfg).by_status == {"ok": 1}
        http.shutdown()


class Drips(Hangs):
    """Answers until `part` says where an answer is to have no end, "head" or "body"."""

    part = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.part:
            self._say(chat().json())
            return
        end = b"" if self.part == "head" else b"\r\n"
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + end)
            while not self.may_end.wait(0.1):
                self.wfile.write(b"A: b\r\n")


@pytest.fixture
def dripping() -> Iterator[str]:
    Drips.part, Drips.may_end = "", threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Drips) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        Drips.may_end.set()
        http.shutdown()


def drip_run(tmp_path: Path, server: str, **changes: Any) -> RunConfig:
    page = Image.new("RGB", (120, 80), "white")
    ImageDraw.Draw(page).text((9, 30), "page", fill="black")
    page.save(tmp_path / "a.png")
    engine = EngineConfig(
        engine="openai", server=server, prompt="ocr", rasterizers=1, server_concurrency=1
    )
    return RunConfig(inputs=(str(tmp_path / "a.png"),), out=tmp_path / "out", engine=engine,
                     runner="inline", **changes)  # fmt: skip


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_comes_drop_by_drop_is_given_up_in_time(
    dripping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Each read had the whole time: the inline runner waited for ever."""
    begin_dripping_after_the_probe(monkeypatch, part)
    started = time.monotonic()
    summary = run_batch(drip_run(tmp_path, dripping, page_timeout=1.0))
    assert time.monotonic() - started < 10
    assert "no answer in 1 s (--page-timeout)" in summary.bad_pages[0].message


def test_a_stop_is_heeded_while_the_inline_runner_waits_for_a_server(
    dripping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_dripping_after_the_probe(monkeypatch, "body")
    stop = StopRequests()
    threading.Timer(1.0, stop.request).start()
    started = time.monotonic()
    summary = run_batch(drip_run(tmp_path, dripping, drain=0.5), stop=stop)
    assert time.monotonic() - started < 5 and summary.by_status == {}


def begin_dripping_after_the_probe(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    real = remote.probe

    def probe(spec: Any) -> Any:
        spec = real(spec)
        monkeypatch.setattr(Drips, "part", part)
        return spec

    monkeypatch.setattr(remote, "probe", probe)


def test_an_answer_larger_than_any_page_is_the_error_of_its_page(
    read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "_MAX_BYTES", 1000)
    long = {"message": {"content": "word " * 1000}}
    summary = read(lambda number: chat(choices=[long]) if number == 4 else chat())
    assert summary.by_status == {"ok": 5, "failed": 1}
    assert "more than 1000 bytes" in summary.bad_pages[0].message


def test_a_password_in_the_servers_address_is_in_no_message(read) -> None:
    def refused(number: int) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(EngineError) as caught:
        read(refused, "http://user:hunter2@host:1")
    assert "hunter2" not in str(caught.value) and "host:1" in str(caught.value)
