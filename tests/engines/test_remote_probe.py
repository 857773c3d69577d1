"""The probe before page one, against a server that answers as llama-server does when it was
started with the right flags, and without them. The real one: `make parity-llama-server`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines.remote import remote_spec, to_generation
from ocr2cli.engines.remote_client import request_body
from ocr2cli.engines.remote_probe import probe
from ocr2cli.errors import EngineError
from ocr2cli.pages import PageKey
from ocr2cli.text.prompt import PROMPTS

TEXT = "<|ref|>title<|/ref|><|det|>[[1, 1, 9, 9]]<|/det|>\nProbe page"
MARKER = "<__media_7f3a__>"


class Answers(BaseHTTPRequestHandler):
    """What this server says to each path: (status, body). `prompt_tokens` as it counts them."""

    table: ClassVar[dict[str, tuple[int, dict[str, Any]]]] = {}

    def do_GET(self) -> None:
        self._say(200, {"data": [{"id": "nano", "owned_by": "llamacpp"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(*self.table.get(self.path, (404, {})))

    def _say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Answers, "table", {"/v1/chat/completions": (200, chat(TEXT))})
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def chat(text: str, prompt_tokens: int = 268) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 20},
    }


def run_probe(server: str, prompt: str = PROMPTS["markdown"]) -> str:
    cfg = RunConfig(engine=EngineConfig(engine="openai", server=server))
    return probe(remote_spec(cfg, prompt)).flavour


def asked(prompt: str) -> str:
    return prompt.removeprefix("<image>").lstrip("\n")


@pytest.mark.parametrize("name", ["markdown", "ocr"])
def test_page_and_prompt_alone_are_taken(server: str, name: str) -> None:
    for between in ("", "\n"):
        made = MARKER + between + asked(PROMPTS[name])
        Answers.table["/apply-template"] = (200, {"prompt": made})
        assert run_probe(server, PROMPTS[name]) == "llamacpp"


def test_llama_server_gets_page_and_prompt_in_messages_of_their_own(server: str) -> None:
    cfg = RunConfig(engine=EngineConfig(engine="openai", server=server))
    spec = remote_spec(cfg, PROMPTS["ocr"])
    (whole,) = request_body(spec, b"png")["messages"]
    parts = request_body(replace(spec, flavour="llamacpp"), b"png")["messages"]
    assert [message["content"] for message in parts] == [[part] for part in whole["content"]]


def test_an_end_token_that_is_written_out_is_no_text() -> None:
    answer = chat("words<\uff5cend\u2581of\u2581sentence\uff5c>")
    assert to_generation(PageKey("a", 0), answer, answer["choices"][0], 1.0).text == "words"


def test_tokens_that_a_server_only_counts_get_no_ids() -> None:
    answer = chat("words")
    generation = to_generation(PageKey("a", 0), answer, answer["choices"][0], 1.0)
    assert generation.token_ids == () and generation.num_new_tokens == 20


def test_a_server_too_old_to_tell_is_believed(server: str) -> None:
    assert run_probe(server) == "llamacpp"


@pytest.mark.parametrize(
    "made",
    [
        f"<|im_start|>user\n{MARKER}{asked(PROMPTS['markdown'])}<|im_end|>\n<|im_start|>assistant\n",
        f"<|User|>: {MARKER}{asked(PROMPTS['markdown'])}",
        asked(PROMPTS["markdown"]),
    ],
)
def test_a_chat_template_is_named_with_the_flags_that_turn_it_off(server: str, made: str) -> None:
    Answers.table["/apply-template"] = (200, {"prompt": made})
    with pytest.raises(EngineError, match="--chat-template deepseek-ocr --no-jinja"):
        run_probe(server)


def test_a_template_that_breaks_is_named_with_the_flags(server: str) -> None:
    Answers.table["/apply-template"] = (500, {"error": {"message": "jinja: no such filter"}})
    with pytest.raises(EngineError, match=r"no such filter.*--no-jinja"):
        run_probe(server)


def test_a_page_that_was_not_seen_or_lost_its_boxes_is_named(server: str) -> None:
    Answers.table["/v1/chat/completions"] = (200, chat(TEXT, prompt_tokens=12))
    with pytest.raises(EngineError, match="12 prompt tokens"):
        run_probe(server)
    Answers.table["/v1/chat/completions"] = (200, chat("Probe page"))
    with pytest.raises(EngineError, match=r"no boxes.*--special"):
        run_probe(server)
