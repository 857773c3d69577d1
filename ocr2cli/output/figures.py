"""Figures: cuts the boxes labelled `image` out of a page that is rendered again for it.

Rare enough that no image travels through the queues. Knows nothing about markdown.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.markdown import FIGURE_PLACE
from ocr2cli.output.names import url_path
from ocr2cli.pages import Box, PageResult, Uint8Array
from ocr2cli.text.grounding import FIGURE_LABEL, box_pixels

# libjpeg's limit. Pillow reports what is longer as an OSError without a number.
MAX_JPEG_SIDE = 65_500


def cut_figures(assembly: Assembly) -> None:
    """Stages `<stem>.images/PPPP-K.png` and fills `assembly.links`, for figures the text places.

    A page that cannot be rendered any more leaves its figures out; the text then says so.
    """
    assembly.picture_folders.add(f"{assembly.stem}.images")
    for result in assembly.pages():
        num_places = len(FIGURE_PLACE.findall(result.markdown))
        boxes = figure_boxes(result)[:num_places]
        image = assembly.image(result) if boxes else None
        if image is None:
            continue
        for number, box in enumerate(boxes, 1):
            name = f"{result.key.page + 1:04d}-{number}.png"
            with assembly.new_file(f".images/{name}") as stream:
                stream.write(encode(crop(image.rgb, box), "PNG"))
            target = url_path(f"{assembly.name}.images/{name}")
            assembly.links.setdefault(result.key.page, {})[number] = target


def figure_boxes(result: PageResult) -> list[Box]:
    """The page's figures in reading order; the k-th of them is `PPPP-k.png`."""
    return [box for box in result.boxes if box.label == FIGURE_LABEL]


def pixel_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, inside the page, at least one pixel each way."""
    left, top, right, bottom = box_pixels(box.box, width, height)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width), left + 1), max(min(bottom, height), top + 1)


def crop(rgb: Uint8Array, box: Box) -> Uint8Array:
    """The box's pixels. rgb: uint8 [H, W, 3] of the whole page."""
    left, top, right, bottom = pixel_box(box, rgb.shape[1], rgb.shape[0])
    return rgb[top:bottom, left:right]


def without_colour(rgb: Uint8Array) -> Uint8Array:
    """uint8 [H, W] of a picture whose three channels are alike, for a smaller JPEG; else `rgb`."""
    red = rgb[:, :, 0]
    return red if all(np.array_equal(red, rgb[:, :, other]) for other in (1, 2)) else rgb


def encode(pixels: Uint8Array, kind: str, quality: int = 85) -> bytes:
    """PNG or JPEG bytes, the same for the same pixels. quality: 0-95, JPEG only.

    pixels: uint8 [H, W, 3], or [H, W] for a grey picture. A JPEG has `jpeg_size(pixels)`.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    options = {"quality": quality} if kind == "JPEG" else {}
    if kind == "JPEG" and jpeg_size(pixels) != image.size:
        image = image.resize(jpeg_size(pixels), Image.Resampling.LANCZOS)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_size(pixels: Uint8Array) -> tuple[int, int]:
    """(width, height) of the picture as a JPEG: its own, or smaller where a side is too long."""
    height, width = pixels.shape[:2]
    factor = min(1.0, MAX_JPEG_SIDE / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))
