"""The remote engine: pages as PNG to an OpenAI-compatible server (vLLM, SGLang, llama-server).

The same raster stage without the tiles (the server cuts them), then one request stage with many
requests in flight. Ends in the same `finish.py`. Knows nothing about models or weights.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ocr2cli.config import OUTPUT_VERSION, DecodeConfig, RasterConfig, RunConfig
from ocr2cli.document.urls import without_password
from ocr2cli.engines.choose import EnginePlan, OpenCache
from ocr2cli.engines.finish import PageFacts, failed, to_result
from ocr2cli.engines.raster import PageCache, chosen_view, early_result, guarded, page_facts
from ocr2cli.errors import EngineError, UsageError
from ocr2cli.pages import FinishReason, Generation, PageJob, PageKey, PageResult
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.text.prompt import split_at_page
from ocr2cli.text.tokenizer import EOS_TOKEN

if TYPE_CHECKING:
    import httpx

_TRIES = 6
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_REFUSED_STATUS = frozenset({401, 403})
_RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# A page in the prompt is at least a global view; fewer tokens mean that the image was not seen.
_LEAST_PAGE_TOKENS = 64
_POLL_S = 0.05

_LLAMA_HINT = (
    "llama-server needs `--chat-template deepseek-ocr --no-jinja --special` with this model"
)


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


@dataclass(frozen=True, slots=True)
class PagePng:
    """One page on its way to the server. png: the whole page, losslessly."""

    key: PageKey
    png: bytes
    facts: PageFacts


def plan_remote(
    cfg: RunConfig, prompt: str, open_cache: OpenCache | None = None
) -> EnginePlan:
    """Probe the server with one page, then plan. Raises: UsageError, EngineError."""
    spec = probe(remote_spec(cfg, prompt))
    facts = {
        "output_version": OUTPUT_VERSION,
        "server_model": spec.model,
        "flavour": spec.flavour,
        "prompt": prompt,
        "decode": asdict(cfg.decode),
        "raster": {k: v for k, v in asdict(cfg.raster).items() if k != "password"},
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    cache = open_cache(fingerprint) if open_cache else None
    rasterizers = cfg.engine.rasterizers or 1
    stages = (
        Stage("raster", partial(PngWorker, cfg.raster, cache), rasterizers, credit=2,
              timeout_s=cfg.page_timeout, recycle_after=cfg.recycle_after, num_threads=1),
        Stage("request", partial(RequestWorker, spec), 1, credit=2 * spec.concurrency,
              timeout_s=cfg.page_timeout, num_threads=1),
    )  # fmt: skip
    return EnginePlan(stages, fingerprint, cache, (rasterizers, 0, 1))


def remote_spec(cfg: RunConfig, prompt: str) -> RemoteSpec:
    """The request worker's settings from the run's. Raises: UsageError without --server."""
    if not cfg.engine.server:
        raise UsageError("--engine openai needs --server URL, e.g. --server http://127.0.0.1:8000")
    server = cfg.engine.server.rstrip("/").removesuffix("/v1")
    return RemoteSpec(
        server=server,
        api_key=cfg.engine.api_key,
        model="" if cfg.engine.model == "nano" else cfg.engine.model,
        flavour="",
        prompt=prompt,
        decode=cfg.decode,
        concurrency=cfg.engine.server_concurrency,
        timeout_s=cfg.page_timeout,
    )


class PngWorker:
    """A job becomes a PNG of the page, or a result that needs no server."""

    def __init__(self, raster: RasterConfig, cache: PageCache | None = None) -> None:
        self.raster = raster
        self.cache = cache

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            emit(guarded(jobs[0], self.read))

    def read(self, job: PageJob) -> PagePng | PageResult:
        from ocr2cli.document.raster import render_page

        started = time.perf_counter()
        page = chosen_view(render_page(job, self.raster), job.ask.view)
        facts = page_facts(page, time.perf_counter() - started)
        early = early_result(job, page, self.raster, facts)
        if early is None and self.cache:
            early = self.cache.find(job.key, facts.pixels_sha256)
        return early or PagePng(job.key, to_png(page.rgb), facts)


def to_png(rgb: Any) -> bytes:
    """rgb: uint8 [H, W, 3]. Fast compression: the network is rarely the slow part."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


class ServerGone(EngineError):
    """No connection, or the key is refused: what every page would meet, and none is to blame for.

    It ends the run, whose pages are read when it is made again.
    """


class RequestWorker:
    """Keeps up to `concurrency` pages with the server; emits results as they come back."""

    def __init__(self, spec: RemoteSpec) -> None:
        self.spec = spec
        self.client = make_client(spec)

    def run(self, inbox: Inbox, emit: Emit) -> None:
        with ThreadPoolExecutor(self.spec.concurrency) as pool:
            under_way: set[Future[PageResult]] = set()
            while True:
                room = self.spec.concurrency - len(under_way)
                pages = inbox.take(room, wait=not under_way) if room else []
                if not pages and not under_way:
                    return
                under_way |= {pool.submit(self.read, page) for page in pages}
                done, under_way = wait(under_way, _POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    emit(future.result())

    def read(self, page: PagePng) -> PageResult:
        """One page's result; a request that fails for good is the page's error.

        Raises: ServerGone.
        """
        started = time.perf_counter()
        try:
            answer = post(self.client, self.spec, request_body(self.spec, page.png))
            choice = first_choice(answer)
            generation = to_generation(page.key, answer, choice, time.perf_counter() - started)
        except ServerGone:
            raise
        except EngineError as error:
            return failed(page.key, "request", str(error), page.facts)
        return to_result(generation, page.facts)


def to_generation(
    key: PageKey, answer: Mapping[str, Any], choice: Mapping[str, Any], seconds: float
) -> Generation:
    """A server's answer as a generation. The visual tokens are what the text does not explain.

    Raises: EngineError for an answer of another shape.
    """
    try:
        return _generation(key, answer, choice, seconds)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise EngineError(
            f"the answer is no chat completion: {_short(json.dumps(answer))}"
        ) from None


def _generation(
    key: PageKey, answer: Mapping[str, Any], choice: Mapping[str, Any], seconds: float
) -> Generation:
    usage = answer.get("usage") or {}
    tokens = [entry for entry in (choice.get("logprobs") or {}).get("content") or []]
    finish = FinishReason.LENGTH if choice.get("finish_reason") == "length" else FinishReason.STOP
    if choice.get("ocr2_finish_reason") in tuple(FinishReason):
        finish = FinishReason(choice["ocr2_finish_reason"])
    # llama-server with --special, which boxes need, writes the end token out as well.
    return Generation(
        key=key,
        token_ids=(),
        text=str((choice.get("message") or {}).get("content") or "").removesuffix(EOS_TOKEN),
        finish_reason=finish,
        num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
        num_visual_tokens=int(usage.get("visual_tokens") or 0),
        logprobs=tuple(float(entry["logprob"]) for entry in tokens),
        seconds={"request": seconds},
        num_unnamed=int(usage.get("completion_tokens") or 0),
    )


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
    if spec.flavour in ("vllm", "ocr2") and decode.no_repeat_ngram:
        return {
            "vllm_xargs": {
                "ngram_size": decode.no_repeat_ngram,
                "window_size": decode.ngram_window,
                "whitelist_token_ids": [128821, 128822],
            }
        }
    return {}


def make_client(spec: RemoteSpec) -> httpx.Client:
    """An HTTP client with the key and the page's deadline. Raises: EngineError without httpx."""
    try:
        import httpx
    except ImportError:
        raise EngineError(
            "--engine openai needs httpx: pip install 'ocr2cli[openai]'"
        ) from None
    headers = {"Authorization": f"Bearer {spec.api_key}"} if spec.api_key else {}
    return httpx.Client(base_url=spec.server, headers=headers, timeout=spec.timeout_s)


def post(
    client: httpx.Client, spec: RemoteSpec, body: Mapping[str, Any], *, tries: int = _TRIES
) -> dict[str, Any]:
    """POST a chat completion, again with growing waits on 429, 5xx and dropped connections.

    Raises: ServerGone when no try reached the server, or it refuses the key; EngineError with the
    last reason.
    """
    import httpx

    reason, is_gone = "", True
    for pause in _waits(tries):
        try:
            answer = client.post("/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            reason, asked = f"{type(error).__name__} {error}".strip(), 0.0
            is_gone &= isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        else:
            if answer.status_code == 200:
                return _json_of(answer)
            if answer.status_code in _REFUSED_STATUS:
                raise ServerGone(_refused(spec, answer.status_code))
            reason, asked = f"status {answer.status_code}: {_short(answer.text)}", _asked(answer)
            is_gone = False
            if answer.status_code not in _RETRY_STATUS:
                break
        time.sleep(min(max(pause, asked), _LONGEST_WAIT_S))
    kind = ServerGone if is_gone else EngineError
    raise kind(f"{_name(spec)}: {reason}. Is the server up, and does it hold this model?")


def _name(spec: RemoteSpec) -> str:
    """The server as messages name it."""
    return without_password(spec.server)


def _refused(spec: RemoteSpec, status: int) -> str:
    return f"{_name(spec)} refuses the key (status {status}). Give the right one with --api-key"


def _waits(tries: int) -> Iterator[float]:
    for number in range(tries):
        yield min(_FIRST_WAIT_S * 2**number, _LONGEST_WAIT_S) if number < tries - 1 else 0.0


def _asked(answer: httpx.Response) -> float:
    """Seconds of a Retry-After header, 0 without one."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def _json_of(answer: httpx.Response) -> dict[str, Any]:
    try:
        parsed = answer.json()
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        url = without_password(str(answer.url))
        raise EngineError(f"{url}: the answer is not a JSON object: {_short(answer.text)}")
    return parsed


def _short(text: str) -> str:
    return " ".join(text.split())[:200]


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer's only choice. Raises: EngineError."""
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise EngineError(f"the answer holds no choice: {_short(json.dumps(answer))}")
    choice: Mapping[str, Any] = choices[0]
    return choice


def probe(spec: RemoteSpec) -> RemoteSpec:
    """Find out, before page one of ten thousand, which model answers and whether it sees pages.

    Returns the spec with model and flavour filled in. Raises: EngineError saying what is wrong.
    """
    import dataclasses

    client = make_client(spec)
    with client:
        model, flavour = _served_model(client, spec)
        spec = dataclasses.replace(spec, model=model, flavour=flavour)
        body = request_body(spec, probe_page()) | {"max_tokens": 64}
        if flavour == "llamacpp":
            _check_template(client, spec, body)
        answer = post(client, spec, body, tries=3)
    first_choice(answer)
    seen = int((answer.get("usage") or {}).get("prompt_tokens") or _LEAST_PAGE_TOKENS)
    if seen < _LEAST_PAGE_TOKENS:
        raise EngineError(
            f"{_name(spec)}: the probe page became {seen} prompt tokens, so the model did not see "
            f"it. {_LLAMA_HINT}"
        )
    text = str((first_choice(answer).get("message") or {}).get("content") or "")
    if "<|grounding|>" in spec.prompt and "<|det|>" not in text:
        raise EngineError(
            f"{_name(spec)}: no boxes came back for the grounding prompt, so the server drops "
            f"special tokens or reads another model. {_LLAMA_HINT}; other servers need "
            "skip_special_tokens off. Or use --prompt ocr"
        )
    return spec


def _check_template(client: httpx.Client, spec: RemoteSpec, body: Mapping[str, Any]) -> None:
    """llama-server wraps a page in the chat template it was started with; this model takes none.

    It tells what it makes of a request. Raises: EngineError when that is not page and prompt alone.
    """
    import httpx

    try:
        answer = client.post("/apply-template", json=body)
    except httpx.TransportError:
        return  # the request that follows says what is wrong
    if answer.status_code == 404:
        return  # a server too old to tell
    made = _json_of(answer).get("prompt") if answer.status_code == 200 else None
    if made is None:
        raise EngineError(
            f"{_name(spec)}: the probe page was refused ({_short(answer.text)}). {_LLAMA_HINT}"
        )
    before, after = split_at_page(spec.prompt)
    # What stands for the page differs from version to version and holds no space.
    page = str(made).removeprefix(before).removesuffix(after.lstrip("\n")).rstrip("\n")
    if not str(made).endswith(after.lstrip("\n")) or len(page.split()) != 1 or len(page) > 80:
        raise EngineError(
            f"{_name(spec)}: the server wraps the page in a chat template ({_short(str(made))!r}). "
            f"{_LLAMA_HINT}"
        )


def _served_model(client: httpx.Client, spec: RemoteSpec) -> tuple[str, str]:
    """(name, flavour) of the model to ask for."""
    import httpx

    try:
        answer = client.get("/v1/models")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{_name(spec)} does not answer ({error}). Start it, or fix --server"
        ) from None
    if answer.status_code in _REFUSED_STATUS:
        raise EngineError(_refused(spec, answer.status_code))
    if answer.status_code != 200:
        raise EngineError(
            f"{_name(spec)}: /v1/models gives status {answer.status_code}: {_short(answer.text)}. "
            "Start the server there, or fix --server"
        )
    rows = _json_of(answer).get("data") or []
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)]
    if not names:
        raise EngineError(f"{_name(spec)}: /v1/models lists no model. Load one there first")
    if spec.model and spec.model not in names:
        raise EngineError(
            f"{_name(spec)} does not serve {spec.model}; it serves {', '.join(names)}"
        )
    owner = str(rows[0].get("owned_by", "")) if isinstance(rows[0], dict) else ""
    return spec.model or names[0], owner


def probe_page() -> bytes:
    """A small page with a title and a line of large print, drawn here: nothing is downloaded."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.text((60, 60), "Probe page", fill="black", font=ImageFont.load_default(56))
    body = ImageFont.load_default(36)
    draw.text((60, 200), "The reading room is open.", fill="black", font=body)
    return to_png(np.asarray(image))
