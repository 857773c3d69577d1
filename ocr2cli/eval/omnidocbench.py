"""OmniDocBench as the user holds it on disk: page images and one JSON file, to cases.

The format is the one its dataset card describes (versions 1.0 to 1.6). Knows nothing about scores.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ocr2cli.errors import InputError
from ocr2cli.eval.cases import Case, Suite, page_ids

TEXT_BLOCKS = frozenset({
    "title", "text_block", "list_group", "reference", "code_txt", "code_txt_caption",
    "figure_caption", "figure_footnote", "table_caption", "table_footnote", "equation_explanation",
})  # fmt: skip
# Text a reader may or may not want: matched, so that it is no stray, and not counted.
OPTIONAL_BLOCKS = frozenset({
    "header", "footer", "page_number", "page_footnote", "abandon", "equation_caption",
})  # fmt: skip


def find_annotations(folder: Path) -> Path | None:
    """The JSON file of an OmniDocBench folder, or None when it is not one."""
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as stream:
            head = stream.read(4096).lstrip()
        if head.startswith(b"[") and b'"layout_dets"' in head:
            return path
    return None


def load_omnidocbench(folder: Path, annotations: Path) -> Suite:
    """Every page of the JSON file; its image is found beside it or in `images/`.

    Raises: InputError when the file is damaged or no image is there.
    """
    try:
        rows = json.loads(annotations.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{annotations}: not readable JSON ({error}). Fetch it again.") from error
    cases = [_read_page(row, folder, f"{annotations}: page {n}") for n, row in enumerate(rows, 1)]
    cases = _with_ids(cases, annotations)
    if all(case.not_run for case in cases):
        raise InputError(
            f"{folder}: none of the {len(cases)} page images is there. Put them in images/."
        )
    return Suite(
        name="omnidocbench",
        folder=folder,
        cases=tuple(cases),
        about="OmniDocBench pages; text and order distance are computed in its manner, "
        "not by its official scorer.",
        facts_gate=False,
        is_benchmark=True,
    )


def _read_page(row: Any, folder: Path, where: str) -> Case:
    try:
        info, blocks = row["page_info"], row["layout_dets"]
        name = Path(str(info["image_path"])).name
        truth = _merge_truncated(_in_order(blocks), row.get("extra") or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not in OmniDocBench's format ({error!r}).") from error
    path = next((p for p in (folder / "images" / name, folder / name) if p.is_file()), None)
    texts = [text for text, kind in truth if kind in TEXT_BLOCKS]
    return Case(
        id=name,
        suite="omnidocbench",
        path=path or folder / "images" / name,
        truth="\n\n".join(texts),
        truth_markdown="\n\n".join(_tables(blocks)),
        has_truth=bool(texts),
        blocks=tuple(texts),
        ignored_blocks=tuple(text for text, kind in truth if kind in OPTIONAL_BLOCKS),
        prompt="markdown",
        not_run="" if path else f"image missing: {name}",
    )


def _with_ids(cases: Sequence[Case], annotations: Path) -> list[Case]:
    """Each page named after its image. Raises: InputError when two pages have the same one."""
    names = [case.path.name for case in cases]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(
            f"{annotations}: two pages have the image {twice}. Rename one, there and in images/."
        )
    ids = page_ids(names)
    return [replace(case, id=name) for case, name in zip(cases, ids, strict=True)]


def _in_order(blocks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    used = [block for block in blocks if not block.get("ignore")]
    return sorted(used, key=lambda block: _order(block.get("order")))


def _order(value: Any) -> float:
    # blocks without a place (running heads) go last
    return float(value) if value is not None else float("inf")


def _merge_truncated(
    blocks: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """(text, category) in order; a paragraph cut by the layout is one text at its first part."""
    joined_to: dict[Any, Any] = {}
    for relation in extra.get("relation") or []:
        kind = relation.get("relation_type") or relation.get("relation")
        if kind == "truncated":
            joined_to[relation["target_anno_id"]] = relation["source_anno_id"]
    texts: dict[Any, list[str]] = {}
    kinds: dict[Any, str] = {}
    for number, block in enumerate(blocks):
        own = block.get("anno_id", f"block {number}")
        head = _first_part(own, joined_to)
        texts.setdefault(head, []).append(_text_of(block))
        kinds.setdefault(head, str(block["category_type"]))
    merged = ((" ".join(filter(None, parts)), kinds[head]) for head, parts in texts.items())
    return [(text, kind) for text, kind in merged if text]


def _first_part(block: Any, joined_to: Mapping[Any, Any]) -> Any:
    seen = set()
    while block in joined_to and block not in seen:  # a ring of relations must end
        seen.add(block)
        block = joined_to[block]
    return block


def _text_of(block: Mapping[str, Any]) -> str:
    if block.get("text"):
        return str(block["text"])
    parts = block.get("merge_list") or []
    return "\n".join(str(part["text"]) for part in parts if part.get("text"))


def _tables(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    ordered = _in_order([block for block in blocks if block.get("category_type") == "table"])
    return [str(block["html"]) for block in ordered if block.get("html")]
