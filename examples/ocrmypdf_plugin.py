"""An OCRmyPDF plug-in: `ocrmypdf --plugin examples/ocrmypdf_plugin.py IN.pdf OUT.pdf`.

OCRmyPDF rasterises, straightens and writes the PDF; ocr2 reads the pages. The model gives boxes of
blocks, so lines and words are spread over each block as `--format pdf` spreads them: their places
are estimated.
OCRmyPDF refuses a PDF that has text already (PriorOcrFoundError), unless `--skip-text` leaves such
pages as they are or `--force-ocr` has them read anew.
OCR2_MODEL and OCR2_SERVER choose model and server, as for `ocr2 run`; a server saves loading the
model once a page. Needs no tesseract and no Ghostscript (`--output-type pdf`).
"""

import os

import numpy as np
import ocrmypdf
from ocrmypdf import BoundingBox, OcrClass, OcrElement, OrientationConfidence

# The built-in engine is blocked below, but OCRmyPDF goes on asking for its options.
from ocrmypdf.builtin_plugins.tesseract_ocr import add_options, register_options  # noqa: F401
from PIL import Image

import ocr2cli
from ocr2cli.output.bidi import is_rtl
from ocr2cli.output.searchable_pdf import text_lines


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
            dpi = float(image.info.get("dpi", (72, 72))[0])
            pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = dpi / 72  # pixels of a point
        found = text_lines(page, (width / scale, height / scale), pixels)
        lines = [line_element(line, scale) for line in found]
        box = BoundingBox(0, 0, width, height)
        tree = OcrElement(OcrClass.PAGE, box, children=lines, dpi=dpi, page_number=page_number)
        return tree, page.markdown


def line_element(line, scale):
    """A line with its words by length, in the order of reading; scale: pixels of a point."""
    left, right = line.x * scale, (line.x + line.width) * scale
    top, bottom = (line.y - 0.8 * line.size) * scale, (line.y + 0.2 * line.size) * scale
    column, at, words = (right - left) / len(line.text), 0, []
    for word in line.text.split(" "):
        sides = left + at * column, left + (at + len(word)) * column
        if is_rtl(line.text):
            sides = left + right - sides[1], left + right - sides[0]
        words.append(
            OcrElement(OcrClass.WORD, BoundingBox(sides[0], top, sides[1], bottom), text=word)
        )
        at += len(word) + 1
    return OcrElement(OcrClass.LINE, BoundingBox(left, top, right, bottom), children=words)


@ocrmypdf.hookimpl
def initialize(plugin_manager):
    plugin_manager.set_blocked("ocrmypdf.builtin_plugins.tesseract_ocr")


@ocrmypdf.hookimpl
def get_ocr_engine(options):
    return Ocr2Engine()
