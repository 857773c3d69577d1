"""Document -> one JSON object: the sidecar's rows with what a program needs beside them.

Knows nothing about how results are stored in between.
"""

from __future__ import annotations

import os
from typing import Any

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.jsonl import assembly_row, json_text, rounded
from ocr2cli.output.names import as_utf8, output_name
from ocr2cli.pages import PageResult


def write_json(assembly: Assembly) -> None:
    """Stages `<stem>.json`: document fields, then `pages`; one page a line, one page in memory."""
    with assembly.new_file(".json") as stream:
        head = json_text(_document_row(assembly))
        stream.write(f'{head[:-1]},"pages":['.encode())
        for index, result in enumerate(assembly.pages()):
            comma = "," if index else ""
            stream.write(f"{comma}\n{json_text(_page_row(assembly, result))}".encode())
        stream.write(b"\n]}\n")


def _document_row(assembly: Assembly) -> dict[str, Any]:
    return {
        "document": output_name(assembly.id),
        "source": as_utf8(os.path.basename(assembly.job.path)),
        "input_sha256": assembly.job.sha256,
        "fingerprint": assembly.settings.fingerprint,
        "num_pages": assembly.num_pages,
    }


def _page_row(assembly: Assembly, result: PageResult) -> dict[str, Any]:
    """The sidecar's row, less what the document says once, plus sizes and digests."""
    row = assembly_row(assembly, result)
    for name in ("document", "input_sha256", "fingerprint"):
        del row[name]
    row["page_size"] = list(result.page_size)
    row["confidence_p5"] = rounded(result.confidence_p5, 4)
    row["pixels_sha256"] = result.pixels_sha256
    row["figures"] = list(assembly.links.get(result.key.page, {}).values())
    return row
