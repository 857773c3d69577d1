"""OUT/index.html: every document with an HTML file, those that need a look first.

Made of the records of documents alone, so a rerun lists what earlier runs wrote. Loads nothing and
runs nothing. Knows nothing about pages.
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Collection, Sequence

from ocr2cli.output.assembly import Listed, listed_documents
from ocr2cli.output.folder import DocumentFault, OutFolder
from ocr2cli.output.html_shell import digest
from ocr2cli.output.names import url_path
from ocr2cli.output.summary import BADLY_READ
from ocr2cli.pages import Status
from ocr2cli.printing import printable

logger = logging.getLogger("ocr2")

INDEX = "index.html"
_MARK = b'<meta name="generator" content="ocr2 index">'
# A browser is slow with more; those that need a look are among the first.
_MAX_ROWS = 5_000

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; padding: 20px; font: 16px/1.5 system-ui, sans-serif; color: #1c1c1e;
  background: #f2f2f4; }
h1 { margin: 0; font-size: 18px; } p { margin: 0 0 14px; color: #6b6b70; }
table { border-collapse: collapse; background: #fff; border: 1px solid #d9d9de; }
th, td { padding: 5px 14px; border-bottom: 1px solid #d9d9de; text-align: left;
  overflow-wrap: anywhere; }
th { font-weight: 600; color: #6b6b70; } .number { text-align: right; }
.bad td:first-child { border-left: 6px solid #c4262e; }
.unsure td:first-child { border-left: 6px solid #e08a00; }
.fine td:first-child { border-left: 6px solid transparent; }
"""


def write_index(
    folder: OutFolder, inputs: Collection[str], min_confidence: float = 0.0
) -> str | None:
    """Writes the index of two documents or more; its SHA-256, or None where there is none.

    inputs: relative paths in OUT that the run reads. What is there and not an earlier index stays,
    with a warning. Raises: OutputError when OUT cannot be written.
    """
    documents = listed_documents(folder.path)
    rows = [one for one in documents if os.path.lexists(folder.path / one.html)]
    if len(rows) < 2:
        return None
    owned = {name.casefold() for one in documents for name in one.files}
    there = folder.read(INDEX)
    is_other = there is None and os.path.lexists(folder.path / INDEX)
    if there is not None:
        is_other = _MARK not in there[:1_000]
    if INDEX in owned or INDEX in inputs or is_other:
        logger.warning("%s is another file: no list of the documents was written", INDEX)
        return None
    try:
        data = _page(rows, max(BADLY_READ, min_confidence)).encode()
        return folder.write(INDEX, data) if data != there else folder.sha256(INDEX)
    except DocumentFault as fault:
        logger.warning("no list of the documents was written: %s", fault)
        return None


def _page(documents: Sequence[Listed], mark: float) -> str:
    ordered = sorted(documents, key=lambda one: (_rank(one, mark), one.id))
    num_to_look_at = sum(_mood(one, mark) != "fine" for one in documents)
    policy = f"default-src 'none'; style-src 'sha256-{digest(_STYLE)}'; base-uri 'none'"
    rows = "\n".join(_row(one, mark) for one in ordered[:_MAX_ROWS])
    left = len(ordered) - _MAX_ROWS
    more = f"<p>And {left:,} more.</p>\n" if left > 0 else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{_MARK.decode()}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Documents</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{len(documents):,} documents</h1>\n<p>{num_to_look_at:,} to look at</p>\n"
        '<table>\n<tr><th>document</th><th class="number">pages</th><th>status</th>'
        f'<th class="number">lowest confidence</th><th></th></tr>\n{rows}\n</table>\n{more}'
        "</body>\n</html>\n"
    )


def _row(one: Listed, mark: float) -> str:
    mood = _mood(one, mark)
    states = ", ".join(f"{one.pages[s.value]} {s.value}" for s in Status if one.pages.get(s.value))
    lowest = "" if one.lowest is None else f"{one.lowest:.2f}"
    words = {"bad": "look at it", "unsure": "low confidence: look at it", "fine": ""}[mood]
    link = html.escape(url_path(one.html)) + ("" if mood == "fine" else "#least-sure")
    return (
        f'<tr class="{mood}"><td><a href="{link}">{html.escape(printable(one.id))}</a></td>'
        f'<td class="number">{sum(one.pages.values()):,}</td><td>{states}</td>'
        f'<td class="number">{lowest}</td><td>{words}</td></tr>'
    )


def _mood(one: Listed, mark: float) -> str:
    if any(one.pages.get(status.value) for status in Status if not status.is_good):
        return "bad"
    return "unsure" if one.lowest is not None and one.lowest < mark else "fine"


def _rank(one: Listed, mark: float) -> tuple[int, float]:
    mood = _mood(one, mark)
    least_sure = 1.0 if one.lowest is None else one.lowest
    return ("bad", "unsure", "fine").index(mood), least_sure if mood == "unsure" else 0.0
