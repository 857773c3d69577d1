"""One request to an OpenAI-compatible server: how a page is asked for, and asked for again.

Knows nothing about stages or results.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ocr2cli.config import DecodeConfig
from ocr2cli.document.urls import without_password
from ocr2cli.errors import EngineError, extra_hint
from ocr2cli.text.prompt import split_at_page

if TYPE_CHECKING:
    import httpx

REFUSED_STATUS = frozenset({401, 403})
_RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TRIES = 6
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_CONNECT_S = 20.0
# Of the published models. vLLM refuses a window of 0, and newer ones one that is longer than this.
_CONTEXT = 8192
# Of an answer, unpacked. The longest page with a probability for each token has a few million.
_MAX_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class RemoteSpec:
    """What the request worker needs; picklable."""

    server: str
    api_key: str
    model: str
    flavour: str  # "vllm", "sglang", "llamacpp", "ocr2" or "": decides how rules are spelled
    prompt: str
    decode: DecodeConfig
    concurrency: int
    timeout_s: float

    @property
    def shown(self) -> str:
        """The server as messages name it."""
        return without_password(self.server)


class ServerGone(EngineError):
    """No connection, or the key is refused: what every page would meet, and none is to blame for.

    It ends the run, whose pages are read when it is made again.
    """


def to_png(rgb: Any) -> bytes:
    """rgb: uint8 [H, W, 3]. Fast compression: the network is rarely the slow part."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def request_body(spec: RemoteSpec, png: bytes) -> dict[str, Any]:
    """The chat completion for one page; rules are spelled as the server's kind wants them."""
    before, after = split_at_page(spec.prompt)
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    if before:
        content.insert(0, {"type": "text", "text": before})
    # Servers put the line break between page and prompt themselves.
    content.append({"type": "text", "text": after.lstrip("\n")})
    messages = [{"role": "user", "content": content}]
    if spec.flavour == "llamacpp":
        # It joins the parts of one message by a line break and adds its own behind the page: two
        # in all. Messages of their own are joined by nothing.
        messages = [{"role": "user", "content": [part]} for part in content]
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": messages,
        "temperature": 0,
        "skip_special_tokens": False,
        "logprobs": True,
        **_rules(spec),
    }
    if spec.decode.max_new_tokens:
        body["max_tokens"] = spec.decode.max_new_tokens
    return body


def _rules(spec: RemoteSpec) -> dict[str, Any]:
    decode = spec.decode
    if spec.flavour == "llamacpp" and decode.dry is not None:
        return {
            "dry_multiplier": decode.dry.multiplier,
            "dry_base": decode.dry.base,
            "dry_allowed_length": decode.dry.allowed_length,
            "dry_penalty_last_n": decode.dry.last_n,
            "dry_sequence_breakers": [],
        }
    if spec.flavour == "vllm" and decode.no_repeat_ngram:
        return {
            "vllm_xargs": {
                "ngram_size": decode.no_repeat_ngram,
                "window_size": min(decode.ngram_window or _CONTEXT, _CONTEXT),
                "whitelist_token_ids": [128821, 128822],
            }
        }
    return {}


def untold_rule(spec: RemoteSpec) -> str:
    """The flag of a rule against repeats that this kind of server cannot be told; "" for none. Our
    own has rules of its own."""
    rules, decode = _rules(spec), spec.decode
    if spec.flavour == "ocr2":
        return ""
    if decode.dry is not None and "dry_multiplier" not in rules:
        return "--dry"
    return "--no-repeat-ngram" if decode.no_repeat_ngram and "vllm_xargs" not in rules else ""


def make_client(spec: RemoteSpec) -> httpx.Client:
    """An HTTP client with the key and the page's deadline. Raises: EngineError without httpx."""
    try:
        import httpx
    except ImportError:
        raise EngineError(f"--engine openai needs httpx. {extra_hint('openai')}") from None
    # httpx itself encodes text as ASCII.
    key = f"Bearer {spec.api_key}".encode("utf-8", "surrogateescape")
    headers = {"Authorization": key} if spec.api_key else {}
    return httpx.Client(base_url=spec.server, headers=headers, timeout=spec.timeout_s)


def post(
    client: httpx.Client, spec: RemoteSpec, body: Mapping[str, Any], *, tries: int = _TRIES
) -> dict[str, Any]:
    """POST a chat completion, again with growing waits on 429, 5xx and dropped connections, all
    within the page's time.

    Raises: ServerGone when no try reached the server, or it refuses the key; EngineError with the
    last reason.
    """
    import httpx

    reason, is_gone = "", True
    until = time.monotonic() + spec.timeout_s
    for pause in _waits(tries):
        try:
            answer = _answer(client, body, until)
        except httpx.ReadTimeout:
            reason, is_gone = no_answer(spec), False
            break
        except httpx.RequestError as error:
            reason, asked = f"{type(error).__name__} {error}".strip(), 0.0
            is_gone &= isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        else:
            table = json_of(answer) if answer.status_code == 200 else {}
            status = _status_within(table) or answer.status_code
            if status == 200:
                return table
            if status in REFUSED_STATUS:
                raise ServerGone(refused_key(spec, status))
            reason, asked = what_of(answer, status), _asked(answer)
            is_gone = False
            if status not in _RETRY_STATUS:
                break
        # After the last try, whose pause is none, there is nothing to wait for.
        wait = min(max(pause, asked), _LONGEST_WAIT_S) if pause else 0.0
        if time.monotonic() + wait > until:
            break
        time.sleep(wait)
    kind = ServerGone if is_gone else EngineError
    raise kind(f"{spec.shown}: {reason}. Is the server up, and does it hold this model?")


def _answer(client: httpx.Client, body: Mapping[str, Any], until: float) -> httpx.Response:
    """The whole answer, given up at `until`: httpx's own timeouts are each piece's.

    Raises: httpx.RequestError; EngineError for more than any page has.
    """
    import httpx

    left = max(until - time.monotonic(), 0.1)
    timeout = httpx.Timeout(left, connect=min(left, _CONNECT_S))
    data = bytearray()
    with client.stream("POST", "/v1/chat/completions", json=body, timeout=timeout) as answer:
        for piece in answer.iter_bytes():
            data += piece
            if len(data) > _MAX_BYTES:
                raise EngineError(f"the answer has more than {_MAX_BYTES} bytes")
            if time.monotonic() > until:
                raise httpx.ReadTimeout("the answer goes on")
    head = answer.headers.copy()
    head.pop("content-encoding", None)  # it is decoded
    return httpx.Response(
        answer.status_code, headers=head, content=bytes(data), request=answer.request
    )


def no_answer(spec: RemoteSpec) -> str:
    return f"no answer in {spec.timeout_s:g} s (--page-timeout)"


def refused_key(spec: RemoteSpec, status: int) -> str:
    return f"{spec.shown} refuses the key (status {status}). Give the right one with --api-key"


def _waits(tries: int) -> Iterator[float]:
    for number in range(tries):
        yield min(_FIRST_WAIT_S * 2**number, _LONGEST_WAIT_S) if number < tries - 1 else 0.0


def what_of(answer: httpx.Response, status: int = 0) -> str:
    """An answer that is none, for people. status: where it is not the answer's own."""
    told = f"status {status or answer.status_code}"
    if place := answer.headers.get("location"):
        return f"{told}, which leads to {short(without_password(place))}"
    return f"{told}: {short(answer.text)}"


def _status_within(table: Mapping[str, Any]) -> int:
    """The status of an error that a gateway sent as 200; 0 without one."""
    error = table.get("error")
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if len(code) == 3 and code.isdecimal() and code[0] in "45" else 0


def _asked(answer: httpx.Response) -> float:
    """Seconds of a Retry-After header, which may name a moment; 0 without one."""
    text = answer.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def json_of(answer: httpx.Response) -> dict[str, Any]:
    try:
        parsed = answer.json()
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        url = without_password(str(answer.url))
        raise EngineError(f"{url}: the answer is not a JSON object: {short(answer.text)}")
    return parsed


def short(text: str) -> str:
    return " ".join(text.split())[:200]


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer's only choice. Raises: EngineError."""
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise EngineError(f"the answer holds no choice: {short(json.dumps(answer))}")
    choice: Mapping[str, Any] = choices[0]
    return choice


def text_of(content: Any) -> str:
    """A message's text, which may come in parts. Raises: TypeError for what is no text."""
    if isinstance(content, list):
        return "".join(text_of(part["text"]) for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError
    return content or ""
