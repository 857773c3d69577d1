"""Draw the pages of the bundled suite and write their truth: `python eval/make_pages.py`.

The sentences are our own. The type is DejaVu, as matplotlib carries it, so that every checkout
draws the same pixels. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

OUT = Path(__file__).parent / "bundled"
GOLDEN = Path(__file__).parent / "doctor" / "golden.pdf"

FONTS = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif bold": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
}


@dataclass(frozen=True)
class Block:
    """Printed lines. mark: what stands before the first in the markdown truth ("# " for a title).

    size: em in pixels of the page. space: pixels left free above.
    """

    lines: tuple[str, ...]
    size: int
    font: str = "sans"
    mark: str = ""
    space: int = 30
    colour: str = "black"
    is_centred: bool = False


@dataclass(frozen=True)
class Page:
    """left, top: where the first block begins. columns: blocks after the heading, side by side."""

    id: str
    size: tuple[int, int]
    blocks: tuple[Block, ...]
    paper: str = "white"
    left: int = 60
    top: int = 50
    bar: str = ""
    columns: tuple[tuple[Block, ...], ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


NOTES = (
    Page("note-door", (740, 420), (
        Block(("Back at three",), 62, "bold", "# "),
        Block(("Please leave the parcel", "with Anna next door."), 44),
    )),
    Page("note-kettle", (700, 520), (
        Block(("The kettle is broken.", "Use the pan on the", "left shelf instead.",), 50, "serif"),
        Block(("Thank you, Henrik",), 50, "serif", space=50),
    ), paper="#fff7d6"),
    Page("note-ferry", (760, 560), (
        Block(("Ferry times",), 60, "serif bold", "# "),
        Block(("Out 07:15 and 12:40", "Home 16:05 and 21:30"), 48),
        Block(("Tickets cost 8 euro.",), 48, space=46),
    )),
    Page("note-shelf", (768, 768), (
        Block(("Shelf 14",), 84, "bold", "# "),
        Block(("maps of the north", "maps of the coast", "old tide tables"), 52, space=50),
        Block(("Do not lend out.",), 52, "serif", space=60),
    )),
)  # fmt: skip

SLIDES = (
    Page("slide-harvest", (1280, 720), (
        Block(("A dry summer",), 92, "bold", "# "),
        Block(("Rain fell on nine days only.", "The wheat was cut in July."), 58, space=60),
        Block(("Price per sack: 41",), 58, space=40),
    ), left=110, top=90),
    Page("slide-bridge", (1280, 720), (
        Block(("The new bridge",), 88, "serif bold", "# ", colour="#10305c"),
        Block(("opened after four years", "and carries trams, bicycles", "and people on foot"), 60,
              "serif", space=56),
    ), paper="#eef4fb", bar="#10305c", left=110, top=120),
    Page("slide-steps", (1366, 768), (
        Block(("Three steps",), 84, "bold", "# "),
        Block(("1. Switch off the pump.",), 58, space=60),
        Block(("2. Close the red valve.",), 58, space=30),
        Block(("3. Call 555 0142.",), 58, space=30),
    ), left=120, top=80),
    Page("slide-thanks", (1600, 900), (
        Block(("Thank you",), 150, "bold", "# ", is_centred=True),
        Block(("Questions are welcome until noon.",), 72, space=80, is_centred=True),
    ), paper="#f6f1e7", top=230),
)  # fmt: skip

LETTERS = (
    Page("letter-roof", (1190, 1684), (
        Block(("Dear Ms Okafor,",), 46, "serif"),
        Block(("the roof of the small barn let in", "water again last night. I moved the",
               "seed bags to the dry side and put", "two buckets under the hole."), 46, "serif",
              space=60),
        Block(("Could your men come on Tuesday?",), 46, "serif", space=60),
        Block(("Yours, Pieter Holm",), 46, "serif", space=90),
    ), left=130, top=190),
    Page("letter-piano", (1190, 1684), (
        Block(("Piano for sale",), 72, "bold", "# "),
        Block(("A good upright from 1962, tuned in", "spring. The pedals are new and the",
               "bench comes with it."), 46, space=60),
        Block(("Ask for Lena after six o'clock.",), 46, space=60),
    ), left=120, top=160),
    Page("poster-fair", (1190, 1684), (
        Block(("Winter Fair",), 132, "serif bold", "# ", is_centred=True, colour="#7a1420"),
        Block(("bread, cheese, honey", "wool and candles"), 70, "serif", space=90, is_centred=True),
        Block(("Saturday 12 December",), 70, "bold", space=120, is_centred=True),
        Block(("Old Market Hall",), 70, space=50, is_centred=True),
    ), paper="#fdf6ec", top=300),
    Page("title-lamps", (1224, 1584), (
        Block(("The Lamp", "Keepers"), 128, "serif bold", "# ", is_centred=True),
        Block(("Five stories from the coast",), 60, "serif", space=110, is_centred=True),
        Block(("Ingrid Vale",), 66, space=330, is_centred=True),
    ), top=330),
)  # fmt: skip

STRUCTURE = (
    Page("list-garden", (1190, 1684), (
        Block(("Garden jobs",), 76, "bold", "# "),
        Block(("- tie up the beans",), 52, space=60),
        Block(("- paint the gate green",), 52),
        Block(("- empty the rain barrel",), 52),
        Block(("- sharpen both spades",), 52),
    ), left=130, top=170),
    Page("table-mill", (1280, 720), (
        Block(("Mill, week 9",), 70, "bold", "# "),
    ), left=110, top=60, table=(
        ("Day", "Sacks", "Miller"),
        ("Monday", "31", "Aron"),
        ("Tuesday", "28", "Bea"),
        ("Friday", "40", "Aron"),
    )),
    Page("columns-river", (1280, 720), (
        Block(("River news",), 76, "serif bold", "# "),
    ), left=80, top=50, columns=(
        (Block(("The water fell by", "a hand since May", "and the mill wheel", "stands still."),
               52, "serif"),),
        (Block(("Fish now gather", "below the weir,", "where boys with", "nets wait."),
               52, "serif"),),
    )),
)  # fmt: skip

PAGES = NOTES + SLIDES + LETTERS + STRUCTURE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    for name in ("pages", "truth"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        # few colours: small files, and no shade of the type is lost that a reader would need
        draw_page(page).quantize(32).save(out / "pages" / f"{page.id}.png", optimize=True)
        (out / "truth" / f"{page.id}.txt").write_text(plain_truth(page), encoding="utf-8")
        (out / "truth" / f"{page.id}.md").write_text(markdown_truth(page), encoding="utf-8")
    print(f"{len(PAGES)} pages written to {out}")
    if out == OUT:
        write_golden(GOLDEN)


def draw_page(page: Page) -> Image.Image:
    """The page's pixels, RGB."""
    image = Image.new("RGB", page.size, page.paper)
    pen = ImageDraw.Draw(image)
    if page.bar:
        pen.rectangle((0, 0, page.size[0], 60), fill=page.bar)
    y = page.top
    for block in page.blocks:
        y = _draw_block(pen, block, page.size[0], page.left, y)
    if page.table:
        _draw_table(pen, page.table, page.left, y + 40)
    width = (page.size[0] - 2 * page.left) // max(1, len(page.columns))
    for number, column in enumerate(page.columns):
        down = y + 30
        for block in column:
            down = _draw_block(pen, block, width, page.left + number * (width + 20), down)
    return image


def write_golden(path: Path) -> None:
    """The page of `ocr2 doctor`: drawn type, no image, so that the rasteriser has work to do."""
    import matplotlib
    import pymupdf

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    document = pymupdf.open()
    page = document.new_page(width=640, height=360)
    for name, size, y, text in (
        ("bold", 42, 90, "Lighthouse"),
        ("sans", 30, 160, "The lamp turns every"),
        ("sans", 30, 205, "twelve seconds."),
        ("serif", 30, 275, "Keeper: Odd Marn, 1907"),
    ):
        page.insert_text(
            (52, y), text, fontsize=size, fontname=f"F{y}", fontfile=str(folder / FONTS[name])
        )
    document.subset_fonts()
    document.set_metadata({})
    path.parent.mkdir(parents=True, exist_ok=True)
    document.save(path, garbage=4, deflate=True, no_new_id=True)


def plain_truth(page: Page) -> str:
    """The words in reading order, one printed line a line, a blank line between blocks.

    A dash before a list item is markup to the metrics, so it is left out here.
    """
    parts = ["\n".join(block.lines).removeprefix("- ") for block in _all_blocks(page)]
    parts += ["\n".join(" ".join(row) for row in page.table)] if page.table else []
    return "\n\n".join(parts) + "\n"


def markdown_truth(page: Page) -> str:
    """The same with titles marked and the table as HTML, which is what the model family writes."""
    parts = [block.mark + " ".join(block.lines) for block in _all_blocks(page)]
    if page.table:
        rows = ("".join(f"<td>{cell}</td>" for cell in row) for row in page.table)
        parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
    return "\n\n".join(parts) + "\n"


def _all_blocks(page: Page) -> list[Block]:
    return [*page.blocks, *(block for column in page.columns for block in column)]


def _draw_block(pen: ImageDraw.ImageDraw, block: Block, width: int, left: int, y: int) -> int:
    font = _font(block.font, block.size)
    y += block.space
    for line in block.lines:
        x = (width - round(font.getlength(line))) // 2 if block.is_centred else left
        pen.text((x, y), line, font=font, fill=block.colour)
        y += round(1.34 * block.size)
    return y


def _draw_table(
    pen: ImageDraw.ImageDraw, rows: tuple[tuple[str, ...], ...], left: int, top: int
) -> None:
    font, wide, high = _font("sans", 48), 340, 100
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            x, y = left + c * wide, top + r * high
            pen.rectangle((x, y, x + wide, y + high), outline="black", width=3)
            pen.text((x + 30, y + 20), text, font=font, fill="black")


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    engine = ImageFont.Layout.BASIC  # the other one depends on what else is installed
    return ImageFont.truetype(str(folder / FONTS[name]), size, layout_engine=engine)


if __name__ == "__main__":
    main()
