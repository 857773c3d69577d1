"""Compares what two runs wrote: the bytes of every file, less the fields that measure time.

Two runs over the same inputs give byte-equal .md, figures, .html, .ocr.pdf, .layout.pdf and mmd
files; .jsonl and .json are equal once `seconds` is dropped, the only field that no two runs share.
Knows nothing about how files come to be; used by tests and the soak script.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ocr2cli.output.folder import STATE
from ocr2cli.output.jsonl import VARYING_FIELDS, json_line


def canonical_bytes(name: str, data: bytes) -> bytes:
    """A file's bytes with the varying fields of its JSON dropped; other files as they are."""
    if name.endswith((".jsonl", ".json")):
        lines = data.splitlines() if name.endswith(".jsonl") else [data]
        return b"".join(json_line(_drop(json.loads(line))) for line in lines)
    return data


def _drop(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop(one) for key, one in value.items() if key not in VARYING_FIELDS}
    return [_drop(one) for one in value] if isinstance(value, list) else value


def canonical_tree(out: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of the canonical bytes, of every file below OUT but OUT/.ocr2."""
    digests = {}
    for folder, names, files in os.walk(out):
        if Path(folder) == out:
            names[:] = [name for name in names if name != STATE]
        for name in files:
            path = Path(folder) / name
            data = canonical_bytes(name, path.read_bytes())
            digests[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return digests
