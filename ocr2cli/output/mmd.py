"""Document -> the files of deepseek-ai's own scripts: `.mmd`, `_det.mmd`, `_layouts.pdf`, images.

Differences: no page is dropped, figures are counted by box, and `images/` has one folder a
document, because one OUT holds many. Knows nothing about our markdown's page markers.

Source: model-spec 10.4 and 10.5.
"""

from __future__ import annotations

import re

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.figures import crop, encode, figure_boxes
from ocr2cli.output.layout import write_layout_file
from ocr2cli.output.markdown import FIGURE_PLACE, page_body
from ocr2cli.output.names import url_path
from ocr2cli.pages import PageResult, Status
from ocr2cli.text.markup import neutralise

PAGE_SPLIT = "\n\n<--- Page Split --->\n"
_JPEG_QUALITY = 95
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write_mmd(assembly: Assembly) -> None:
    """Stages `<stem>.mmd` (cleaned), `<stem>_det.mmd` (with boxes), `<stem>_layouts.pdf` and
    `images/<name>/<page>_<k>.jpg`, both numbers from 0."""
    assembly.picture_folders.add(_beside(assembly, f"images/{assembly.name}"))
    with assembly.new_file(".mmd") as stream:
        for result in assembly.pages():
            stream.write((_page(assembly, result) + PAGE_SPLIT).encode())
    with assembly.new_file("_det.mmd") as stream:
        for result in assembly.pages():
            stream.write((_raw(result) + PAGE_SPLIT).encode())
    write_layout_file(assembly, "_layouts.pdf")


def _page(assembly: Assembly, result: PageResult) -> str:
    return _unsplit(page_body(result, _cut_figures(assembly, result)).rstrip("\n"))


def _raw(result: PageResult) -> str:
    """The model's text with its tags, or the note of a page without text."""
    if result.status is Status.FAILED:
        return page_body(result, {}).rstrip("\n")
    return _unsplit(neutralise(_CONTROL.sub("\ufffd", result.raw)))


def _unsplit(text: str) -> str:
    """A page whose text holds the separator stays one page."""
    return text.replace("<---", "&lt;---")


def _cut_figures(assembly: Assembly, result: PageResult) -> dict[int, str]:
    """Stages the page's figures; figure number (from 1) -> link."""
    boxes = figure_boxes(result)[: len(FIGURE_PLACE.findall(result.markdown))]
    image = assembly.image(result) if boxes else None
    if image is None:
        return {}
    links = {}
    for number, box in enumerate(boxes):
        link = f"images/{assembly.name}/{result.key.page}_{number}.jpg"
        with assembly.new_file_at(_beside(assembly, link)) as stream:
            stream.write(encode(crop(image.rgb, box), "JPEG", _JPEG_QUALITY))
        links[number + 1] = url_path(link)
    return links


def _beside(assembly: Assembly, link: str) -> str:
    """The path below OUT of what the document's own files link to."""
    folder = assembly.stem.rpartition("/")[0]
    return f"{folder}/{link}" if folder else link
