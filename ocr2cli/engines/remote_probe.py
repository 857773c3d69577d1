"""What a server is, found out with one page before page one of ten thousand.

Knows nothing about stages or results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ocr2cli.engines.remote_client import (
    REFUSED_STATUS,
    RemoteSpec,
    first_choice,
    json_of,
    make_client,
    post,
    refused_key,
    request_body,
    short,
    text_of,
    to_png,
    what_of,
)
from ocr2cli.errors import EngineError
from ocr2cli.text.prompt import split_at_page

if TYPE_CHECKING:
    import httpx

# A page in the prompt is at least a global view; fewer tokens mean that the image was not seen.
_LEAST_PAGE_TOKENS = 64

_LLAMA_HINT = (
    "llama-server needs `--chat-template deepseek-ocr --no-jinja --special` with this model"
)


def probe(spec: RemoteSpec) -> RemoteSpec:
    """Find out, before page one of ten thousand, which model answers and whether it sees pages.

    Returns the spec with model and flavour filled in. Raises: EngineError saying what is wrong.
    """
    client = make_client(spec)
    with client:
        model, flavour = _served_model(client, spec)
        spec = dataclasses.replace(spec, model=model, flavour=flavour)
        body = request_body(spec, probe_page()) | {"max_tokens": 64}
        if flavour == "llamacpp":
            _check_template(client, spec, body)
        answer = post(client, spec, body, tries=3)
    choice = first_choice(answer)
    try:
        seen = int((answer.get("usage") or {}).get("prompt_tokens") or _LEAST_PAGE_TOKENS)
        text = text_of(choice["message"].get("content"))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise EngineError(
            f"{spec.shown}: the answer is no chat completion: {short(json.dumps(answer))}"
        ) from None
    if seen < _LEAST_PAGE_TOKENS:
        raise EngineError(
            f"{spec.shown}: the probe page became {seen} prompt tokens, so the model did not see "
            f"it. {_LLAMA_HINT}"
        )
    if "<|grounding|>" in spec.prompt and "<|det|>" not in text:
        raise EngineError(
            f"{spec.shown}: no boxes came back for the grounding prompt, so the server drops "
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
    except httpx.RequestError:
        return  # the request that follows says what is wrong
    if answer.status_code == 404:
        return  # a server too old to tell
    made = json_of(answer).get("prompt") if answer.status_code == 200 else None
    if made is None:
        raise EngineError(
            f"{spec.shown}: the probe page was refused ({short(answer.text)}). {_LLAMA_HINT}"
        )
    before, after = split_at_page(spec.prompt)
    # What stands for the page differs from version to version and holds no space.
    page = str(made).removeprefix(before).removesuffix(after.lstrip("\n")).rstrip("\n")
    if not str(made).endswith(after.lstrip("\n")) or len(page.split()) != 1 or len(page) > 80:
        raise EngineError(
            f"{spec.shown}: the server wraps the page in a chat template ({short(str(made))!r}). "
            f"{_LLAMA_HINT}"
        )


def _served_model(client: httpx.Client, spec: RemoteSpec) -> tuple[str, str]:
    """(name, flavour) of the model to ask for."""
    import httpx

    try:
        answer = client.get("/v1/models")
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{spec.shown} does not answer ({error}). Start it, or fix --server"
        ) from None
    if answer.status_code in REFUSED_STATUS:
        raise EngineError(refused_key(spec, answer.status_code))
    if answer.status_code != 200:
        raise EngineError(
            f"{spec.shown}: /v1/models gives {what_of(answer)}. "
            "Start the server there, or fix --server"
        )
    rows = json_of(answer).get("data") or []
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)]
    if not names:
        raise EngineError(f"{spec.shown}: /v1/models lists no model. Load one there first")
    if spec.model and spec.model not in names:
        raise EngineError(
            f"{spec.shown} does not serve {spec.model}; it serves {', '.join(names)}"
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
