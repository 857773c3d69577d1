"""A reference reads the same pages as ours; its outputs are cached by content.

A reference is one function, `(case, page) -> ReferenceOutput`, with an identity that says which
weights, versions, device and dtype it stands for. Knows nothing about any particular reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ocr2cli.document.tiles import TILE_RULE, pixels_sha256
from ocr2cli.errors import OutputError
from ocr2cli.eval.cases import Case
from ocr2cli.pages import PageImage
from ocr2cli.pipeline.durable import atomic_write
from ocr2cli.text.prompt import prompt_text

# Bump when a reference's output changes for the same inputs (another rule, another post-process).
CACHE_VERSION = 1

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReferenceOutput:
    """What a reference wrote for a page.

    text: raw model text, end token cut. token_ids: () where the reference does not tell.
    first_logits: float32 [V] of the first new token, or None. notes: rules it could not follow.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    first_logits: Logits | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """name: as given to --ref. identity: everything that could change an output."""

    name: str
    identity: Mapping[str, str]
    read: Callable[[Case, PageImage], ReferenceOutput] = field(repr=False)


def cache_key(reference: Reference, case: Case, page: PageImage) -> str:
    """Hex digest of all that decides the output: identity, pixels, tiles, prompt, settings."""
    parts = {
        "cache_version": CACHE_VERSION,
        "reference": reference.name,
        "identity": dict(reference.identity),
        "pixels": pixels_sha256(page.rgb),
        "tile_rule": TILE_RULE,
        "prompt": [case.prompt_text or prompt_text(case.prompt), case.mode],
        "decode": asdict(case.decode),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_cached(
    reference: Reference, case: Case, page: PageImage, folder: Path | None
) -> ReferenceOutput:
    """The reference's output, from the cache where it is there. folder: None turns it off."""
    if folder is None:
        return reference.read(case, page)
    path = folder / f"{cache_key(reference, case, page)}.json"
    found = _load(path)
    if found is None:
        found = reference.read(case, page)
        _store(path, found)
    return found


def _load(path: Path) -> ReferenceOutput | None:
    """None when it is missing or damaged: then it is made again."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        logits = None
        if row["has_logits"]:
            logits = np.load(path.with_suffix(".npy"), allow_pickle=False).astype(np.float32)
        return ReferenceOutput(
            text=str(row["text"]),
            token_ids=tuple(map(int, row["token_ids"])),
            first_logits=logits,
            notes=tuple(map(str, row["notes"])),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _store(path: Path, output: ReferenceOutput) -> None:
    row: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "has_logits": output.first_logits is not None,
        "notes": output.notes,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if output.first_logits is not None:
            # logits first: a JSON line that promises them must find them
            atomic_write(path.with_suffix(".npy"), _npy_bytes(output.first_logits))
        atomic_write(path, json.dumps(row).encode())
    except OSError as error:
        raise OutputError(
            f"the reference cache {path.parent} cannot be written ({error.strerror}). "
            "Give another folder with --cache DIR."
        ) from error


def _npy_bytes(logits: Logits) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, logits.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()
