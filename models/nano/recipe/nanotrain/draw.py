"""Draws a laid-out page as an image, clean or as if printed, copied and photographed.

Knows nothing about labels or truth: what pages.py says is what is drawn.
"""

from __future__ import annotations

import io
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nanotrain.fonts import pil_font
from nanotrain.pages import Block, Line, Page

Colour = tuple[int, int, int]


def draw_page(page: Page, rng: Random, *, degrade: bool = True) -> Image.Image:
    """RGB image of the page's size."""
    paper, ink = _colours(rng, page.kind)
    image = Image.new("RGB", (page.width, page.height), paper)
    canvas = ImageDraw.Draw(image)
    if page.kind == "slide" and rng.random() < 0.3:
        _decorate(canvas, page, rng, paper)
    accent = ink if rng.random() < 0.7 else _ink_on(paper, rng)
    for block in page.blocks:
        if block.label == "image":
            _draw_picture(image, block, rng)
            continue
        if block.label == "table":
            _draw_rules(canvas, block, ink)
        colour = ink if block.label in ("text", "list", "table") else accent
        for line in block.lines:
            draw_line(canvas, line, colour)
    if page.skew:
        image = image.rotate(-page.skew, Image.Resampling.BICUBIC, fillcolor=paper)
    return degraded(image, rng) if degrade and rng.random() < page.wear else image


def _draw_rules(canvas: ImageDraw.ImageDraw, block: Block, ink: Colour) -> None:
    """Thin rules above, below the head and below a table."""
    x0, y0, x1, y1 = block.box
    size = block.lines[0].size
    width = max(1, round(size / 16))
    head = block.lines[0].baseline + 0.42 * size
    for y in (y0 - 0.3 * size, head, y1 + 0.25 * size):
        canvas.line((x0 - 0.3 * size, y, x1 + 0.3 * size, y), fill=ink, width=width)


def _draw_picture(image: Image.Image, block: Block, rng: Random) -> None:
    """Something that is no text: smooth blotches, or a small chart without labels."""
    assert block.area is not None
    x0, y0, x1, y1 = (round(value) for value in block.area)
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.randrange(1 << 30))
        coarse = Image.fromarray(noise.integers(40, 220, (5, 6, 3), dtype=np.uint8))
        image.paste(coarse.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC), (x0, y0))
        return
    canvas = ImageDraw.Draw(image)
    colour = tuple(rng.randrange(30, 200) for _ in range(3))
    canvas.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=2)
    bars = rng.randrange(4, 9)
    step = (x1 - x0) / bars
    for index in range(bars):
        top = y1 - (y1 - y0) * rng.uniform(0.15, 0.9)
        left = x0 + step * (index + 0.2)
        canvas.rectangle((left, top, left + 0.6 * step, y1 - 3), fill=colour)


def draw_line(canvas: ImageDraw.ImageDraw, line: Line, colour: Colour) -> None:
    """Word by word, so that pair kerning cannot carry characters away from their boxes."""
    font = pil_font(line.font.path, line.size)
    is_spread = float((line.right - line.left).sum()) > 1.01 * font.getlength(line.text) + 2
    start = 0
    for end in range(len(line.text) + 1):
        if end < len(line.text) and line.text[end] != " " and not is_spread:
            continue
        if is_spread:
            if end < len(line.text):
                canvas.text(
                    (float(line.left[end]), line.baseline),
                    line.text[end],
                    font=font,
                    fill=colour,
                    anchor="ls",
                )
            continue
        if end > start:
            canvas.text(
                (float(line.left[start]), line.baseline),
                line.text[start:end],
                font=font,
                fill=colour,
                anchor="ls",
            )
        start = end + 1


def _colours(rng: Random, kind: str) -> tuple[Colour, Colour]:
    if rng.random() < (0.12 if kind == "slide" else 0.04):
        paper = tuple(rng.randrange(0, 75) for _ in range(3))
    elif rng.random() < 0.6:
        paper = (255, 255, 255)
    else:
        paper = tuple(rng.randrange(215, 256) for _ in range(3))
    return paper, _ink_on(paper, rng)  # type: ignore[return-value]


def _ink_on(paper: Colour, rng: Random) -> Colour:
    if sum(paper) < 300:
        return tuple(rng.randrange(195, 256) for _ in range(3))  # type: ignore[return-value]
    if rng.random() < 0.6:
        return (0, 0, 0)
    return tuple(rng.randrange(0, 110) for _ in range(3))  # type: ignore[return-value]


def _decorate(canvas: ImageDraw.ImageDraw, page: Page, rng: Random, paper: Colour) -> None:
    """A thin bar or rule where no text stands."""
    top = min(block.box[1] for block in page.blocks)
    low = max(block.box[3] for block in page.blocks)
    colour = tuple(rng.randrange(0, 256) for _ in range(3))
    if rng.random() < 0.5 and top > 20:
        canvas.rectangle((0, 0, page.width, rng.uniform(4, 0.6 * top)), fill=colour)
    elif page.height - low > 20:
        canvas.rectangle(
            (0, page.height - rng.uniform(4, 0.6 * (page.height - low)), page.width, page.height),
            fill=colour,
        )


def degraded(image: Image.Image, rng: Random) -> Image.Image:
    """Blur, uneven light, noise and JPEG, each with some chance."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.5:
        image = _noisy(image, rng)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randrange(35, 92))
        image = Image.open(buffer).convert("RGB")
    return image


def _noisy(image: Image.Image, rng: Random) -> Image.Image:
    noise = np.random.default_rng(rng.randrange(1 << 30))
    pixels = np.asarray(image, np.float32)
    height, width, _ = pixels.shape
    if rng.random() < 0.5:
        ramp = np.linspace(rng.uniform(0.8, 1), 1, width, dtype=np.float32)[None, :, None]
        pixels = pixels * (ramp if rng.random() < 0.5 else ramp[:, ::-1])
    if rng.random() < 0.6:
        grain = noise.integers(-128, 128, (height, width, 1), dtype=np.int8)
        pixels = pixels + grain * (rng.uniform(1, 10) / 74)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
