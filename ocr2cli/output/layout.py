"""Document -> PDF of its pages with the model's boxes drawn, one colour a label.

Knows nothing about how a PDF is put together.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.figures import pixel_box
from ocr2cli.output.pdf_file import PdfFile
from ocr2cli.output.searchable_pdf import failed_note, page_points, picture
from ocr2cli.pages import PageResult, Status, Uint8Array
from ocr2cli.printing import printable

SUBJECT = "Pages with the boxes that the OCR model reported."
Colour = tuple[int, int, int]

# Dark enough for white letters, apart enough for one another.
_COLOURS: dict[str, Colour] = {
    "title": (178, 24, 43),
    "sub_title": (214, 96, 20),
    "text": (33, 102, 172),
    "image": (27, 120, 55),
    "image_caption": (90, 140, 20),
    "table": (118, 42, 131),
    "table_caption": (153, 85, 170),
    "equation": (1, 133, 131),
}
_OTHERS: tuple[Colour, ...] = ((140, 81, 10), (90, 90, 90), (197, 27, 125), (53, 63, 140))
_MAX_LABEL = 32
_FILL_ALPHA = 28


def write_layout(assembly: Assembly) -> None:
    """Stages `<stem>.layout.pdf`."""
    write_layout_file(assembly, ".layout.pdf")


def write_layout_file(assembly: Assembly, ending: str) -> None:
    """Stages the drawn pages as `<stem><ending>`; a page that failed has its note instead."""
    with assembly.new_file(ending) as stream:
        pdf = PdfFile(stream, printable(assembly.name), SUBJECT)
        for result in assembly.pages():
            image = None if result.status is Status.FAILED else assembly.image(result)
            drawn = None
            if image is not None:
                drawn = draw_boxes(image.rgb, result)
            elif result.boxes and all(result.page_size):
                width, height = result.page_size
                drawn = draw_boxes(np.full((height, width, 3), 255, np.uint8), result)
            size = page_points(assembly, result, image)
            pdf.add_page(size, picture(drawn), note=failed_note(result))
        pdf.close()


def draw_boxes(rgb: Uint8Array, result: PageResult) -> Uint8Array:
    """A copy of the page (uint8 [H, W, 3]) with the result's boxes and labels."""
    page = Image.fromarray(rgb, "RGB")
    tint = Image.new("RGBA", page.size)
    draw = ImageDraw.Draw(tint)
    line = max(1, min(page.size) // 400)
    for box in result.boxes:
        area = pixel_box(box, *page.size)
        colour = label_colour(box.label)
        draw.rectangle(area, fill=(*colour, _FILL_ALPHA), outline=(*colour, 255), width=line)
    font = ImageFont.load_default(max(9, min(page.size) // 70))
    for box in result.boxes:
        area = pixel_box(box, *page.size)
        _draw_label(draw, printable(box.label)[:_MAX_LABEL], area, label_colour(box.label), font)
    page.paste(tint, (0, 0), tint)
    return np.asarray(page)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    label: str,
    area: tuple[int, int, int, int],
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The label on its colour, above the box where there is room, else inside it."""
    if not label:
        return
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = int(right - left) + 6, int(bottom - top) + 6
    x, y = area[0], area[1] - height
    if y < 0:
        y = area[1]
    draw.rectangle((x, y, x + width, y + height), fill=(*colour, 230))
    draw.text((x + 3 - left, y + 3 - top), label, fill=(255, 255, 255, 255), font=font)


def label_colour(label: str) -> Colour:
    """The label's colour, the same in every document."""
    number = hashlib.sha256(label.encode("utf-8", "replace")).digest()[0]
    return _COLOURS.get(label) or _OTHERS[number % len(_OTHERS)]
