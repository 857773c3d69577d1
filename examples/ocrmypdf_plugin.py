"""An OCRmyPDF plug-in: `ocrmypdf --plugin examples/ocrmypdf_plugin.py IN.pdf OUT.pdf`.

OCRmyPDF rasterises, straightens and writes the PDF; ocr2 reads the pages. The model gives boxes of
blocks, so lines and words are spread over each block: their places are estimated.
OCRmyPDF refuses a PDF that has text already (PriorOcrFoundError), unless `--skip-text` leaves such
pages as they are or `--force-ocr` has them read anew.
OCR2_MODEL and OCR2_SERVER choose model and server, as for `ocr2 run`; a server saves loading the
model once a page. Needs no tesseract and no Ghostscript (`--output-type pdf`).
"""

import os
import re

import ocrmypdf
from ocrmypdf import BoundingBox, OcrClass, OcrElement, OrientationConfidence

# The built-in engine is blocked below, but OCRmyPDF goes on asking for its options.
from ocrmypdf.builtin_plugins.tesseract_ocr import add_options, register_options  # noqa: F401
from PIL import Image

import ocr2cli

BLOCK = re.compile(r"<\|det\|>\[\[(\d+), *(\d+), *(\d+), *(\d+)\]\]<\|/det\|>([^<]*)")


class Ocr2Engine(ocrmypdf.OcrEngine):
    version = staticmethod(lambda: ocr2cli.__version__)
    creator_tag = staticmethod(lambda options: f"ocr2 {ocr2cli.__version__}")
    languages = staticmethod(lambda options: {"eng", *options.languages})
    supports_generate_ocr = staticmethod(lambda: True)
    get_orientation = staticmethod(lambda file, options: OrientationConfidence(0, 0.0))
    generate_hocr = generate_pdf = None  # the older ways: OCRmyPDF asks for generate_ocr instead

    def __str__(self):
        return f"ocr2 {ocr2cli.__version__}"

    @staticmethod
    def generate_ocr(input_file, options, page_number=0):
        server = os.environ.get("OCR2_SERVER", "")
        there = {"engine": "openai", "server": server} if server else {}
        model = os.environ.get("OCR2_MODEL", "nano")
        page = ocr2cli.read(input_file, model=model, **there).pages[0]
        if page.error:
            raise ocrmypdf.exceptions.SubprocessOutputError(page.error.message)
        with Image.open(input_file) as image:
            width, height = image.size
            dpi = float(image.info.get("dpi", (72, 72))[0])
        blocks = [(tuple(map(int, found[:4])), found[4]) for found in BLOCK.findall(page.raw)]
        blocks = blocks or [((50, 50, 949, 949), page.markdown)]
        lines = [line for block in blocks for line in spread(*block, width / 999, height / 999)]
        box = BoundingBox(0, 0, width, height)
        tree = OcrElement(OcrClass.PAGE, box, children=lines, dpi=dpi, page_number=page_number)
        return tree, page.markdown


def spread(box, text, x_scale, y_scale):
    """A block's lines, one below the other over its box, their words by length."""
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])  # corners come in any order
    x1, y1, x2, y2 = x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale
    rows = [row.strip("#* ") for row in text.splitlines() if row.strip("#* ")]
    for number, row in enumerate(rows):
        top, step = y1 + number * (y2 - y1) / len(rows), (y2 - y1) / len(rows)
        column, at, words = (x2 - x1) / max(len(row), 1), 0, []
        for word in row.split(" "):
            place = (x1 + at * column, top, x1 + (at + len(word)) * column, top + step)
            words += [OcrElement(OcrClass.WORD, BoundingBox(*place), text=word)] * bool(word)
            at += len(word) + 1
        yield OcrElement(OcrClass.LINE, BoundingBox(x1, top, x2, top + step), children=words)


@ocrmypdf.hookimpl
def initialize(plugin_manager):
    plugin_manager.set_blocked("ocrmypdf.builtin_plugins.tesseract_ocr")


@ocrmypdf.hookimpl
def get_ocr_engine(options):
    return Ocr2Engine()
