"""What getting a page to the encoder costs: render, digest, tile, send. One process, one thread.

Knows nothing about models.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from pathlib import Path
from time import perf_counter

from ocr2cli.config import RasterConfig, TileConfig
from ocr2cli.document.raster import render_page
from ocr2cli.document.tiles import make_views, pixels_sha256
from ocr2cli.pages import PageJob, PageKey, Views
from ocr2cli.pipeline.channel import (
    FrameReader,
    FrameWriter,
    Kind,
    decode_item,
    encode_item,
    open_pipe,
)

_LINES, _NUM_PAGES = 54, 6


def measure_raster(tiles: TileConfig) -> dict[str, float]:
    """Median milliseconds of a full A4 page of text at 144 dpi, by stage; "total" is their sum.

    render: PDF to pixels. digest: of the pixels. tile: 6 tiles and the global view, by the rule
    `tiles`. send: through a pipe, from Views to Views.
    """
    seconds: dict[str, list[float]] = {"render": [], "digest": [], "tile": [], "send": []}
    with tempfile.TemporaryDirectory() as folder:
        path = _write_document(Path(folder) / "pages.pdf")
        for number in range(_NUM_PAGES):
            marks = [perf_counter()]
            job = PageJob(PageKey("bench", number), str(path), "", _NUM_PAGES)
            page = render_page(job, RasterConfig())
            marks.append(perf_counter())
            digest = pixels_sha256(page.rgb)
            marks.append(perf_counter())
            views = make_views(page, tiles, digest=digest)
            marks.append(perf_counter())
            _send(views)
            marks.append(perf_counter())
            for stage, start, stop in zip(seconds, marks, marks[1:], strict=False):
                seconds[stage].append(stop - start)
    # The first page opens the document and touches fresh memory.
    result = {stage: 1e3 * statistics.median(times[1:]) for stage, times in seconds.items()}
    return {**result, "total": sum(result.values())}


def _write_document(path: Path) -> Path:
    """A PDF of full pages of 11 pt Helvetica, every page with words of its own."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(_NUM_PAGES))
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {_NUM_PAGES} /MediaBox [0 0 595 842] "
        f"/Resources << /Font << /F {font} >> >> >>",
    ]
    for number in range(_NUM_PAGES):
        lines = [
            " ".join(f"word{number}{line}{word}" for word in range(10)) for line in range(_LINES)
        ]
        text = "BT /F 11 Tf 14 TL 50 790 Td " + " ".join(f"({line}) '" for line in lines) + " ET"
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {4 + 2 * number} 0 R >>")
        objects.append(f"<< /Length {len(text)} >>\nstream\n{text}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, value in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{value}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    path.write_text(f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}{end}", encoding="ascii")
    return path


def _send(views: Views) -> Views:
    """Through a pipe, as a worker hands its pages on."""
    read_fd, write_fd = open_pipe()
    received: list[Views] = []

    def receive() -> None:
        frame = FrameReader(read_fd).read()
        assert frame is not None
        received.append(decode_item(frame.body))

    receiver = threading.Thread(target=receive)
    receiver.start()
    writer = FrameWriter(write_fd)
    writer.push(Kind.ITEM, 1, encode_item(views))
    writer.flush()
    receiver.join()
    os.close(read_fd)
    os.close(write_fd)
    return received[0]
