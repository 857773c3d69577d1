"""Document -> sidecar: one line of JSON a page, with the fields of cli.md.

Knows nothing about how results are stored in between.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.markdown import page_text
from ocr2cli.output.names import output_name
from ocr2cli.pages import PageResult, Status
from ocr2cli.printing import ODD, printable

# JSON allows them as they are.
_ESCAPED = re.compile(f"[{ODD}]")

# Fields that differ between two runs over the same input: see canonical.py.
VARYING_FIELDS = ("seconds",)


def sidecar_row(
    result: PageResult, *, markdown: str, fingerprint: str, has_tokens: bool
) -> dict[str, Any]:
    """The page's row. markdown: the page's text exactly as the document's .md has it."""
    row: dict[str, Any] = {
        "document": output_name(result.key.document),
        "page": result.key.page + 1,
        "status": result.status.value,
        "finish_reason": result.finish_reason.value if result.finish_reason else None,
        "markdown": markdown,
        "raw": result.raw,
        "boxes": [{"label": box.label, "box": list(box.box)} for box in result.boxes],
        "grid": list(result.grid),
        "visual_tokens": result.visual_tokens,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "confidence": rounded(result.confidence, 4),
        "seconds": {name: rounded(value, 4) for name, value in sorted(result.seconds.items())},
        "attempts": [
            {
                "step": attempt.step,
                "finish_reason": attempt.finish_reason.value if attempt.finish_reason else None,
                "new_tokens": attempt.new_tokens,
                "note": attempt.note,
            }
            for attempt in result.attempts
        ],
        "input_sha256": result.input_sha256,
        "fingerprint": fingerprint,
        "warnings": [printable(warning) for warning in result.warnings],
        "error": _error(result),
    }
    if result.extra:
        row["extra"] = dict(result.extra)
    if has_tokens:
        row["token_ids"] = list(result.token_ids)
    return row


def _error(result: PageResult) -> dict[str, str] | None:
    if result.error is None:
        return None
    return {"code": result.error.code, "message": printable(result.error.message)}


def json_line(row: dict[str, Any]) -> bytes:
    """One line of UTF-8 JSON: no character in it ends a line, whatever a reader calls a line."""
    return json_text(row).encode() + b"\n"


def json_text(value: Any) -> str:
    """Compact JSON, readable in any script, valid UTF-8 even for text with lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def rounded(value: float | None, digits: int) -> float | None:
    """None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def write_jsonl(assembly: Assembly) -> None:
    """Stages `<stem>.jsonl`, page by page."""
    with assembly.new_file(".jsonl") as stream:
        for result in assembly.pages():
            stream.write(json_line(assembly_row(assembly, result)))


def assembly_row(assembly: Assembly, result: PageResult) -> dict[str, Any]:
    """The page's row with its text as the document's .md has it; "" for a page that failed."""
    links = assembly.links.get(result.key.page, {})
    return sidecar_row(
        result,
        markdown="" if result.status is Status.FAILED else page_text(result.markdown, links),
        fingerprint=assembly.settings.fingerprint,
        has_tokens=assembly.settings.save_tokens,
    )
