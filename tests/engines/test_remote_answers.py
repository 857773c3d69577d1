"""What becomes of a remote server's answer: a page, or that page's error, whatever its shape."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import httpx
import pytest
from remote_stub import chat

from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines import remote, remote_client
from ocr2cli.engines.finish import PageFacts, read_before, to_result
from ocr2cli.engines.recovery import NOTHING
from ocr2cli.engines.remote import PagePng, RequestWorker
from ocr2cli.errors import EngineError
from ocr2cli.pages import PageKey, PageResult, Status
from ocr2cli.text.tokenizer import EOS_TOKEN

NAN = math.nan


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


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error"])
def test_a_page_that_the_server_cut_short_is_not_read_and_asked_for_again(read, reason) -> None:
    cut = {"message": {"content": "Re"}, "finish_reason": reason}
    first = read(lambda number: chat(choices=[cut]) if number == 4 else chat())
    assert first.by_status == {"ok": 5, "failed": 1} and reason in first.bad_pages[0].message
    whole = {"message": {"content": "Read."}}
    assert read(lambda number: chat(choices=[whole])).by_status == {"ok": 6}


def test_an_answer_larger_than_any_page_is_the_error_of_its_page(
    read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "_MAX_BYTES", 1000)
    long = {"message": {"content": "word " * 1000}}
    summary = read(lambda number: chat(choices=[long]) if number == 4 else chat())
    assert summary.by_status == {"ok": 5, "failed": 1}
    assert "more than 1000 bytes" in summary.bad_pages[0].message
