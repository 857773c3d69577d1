"""Small pictures of a document's pages, drawn where a hostile file cannot do harm.

One child process a document: the kernel ends it when a page takes too long, and its next row when
its parent is gone. Knows nothing about text or about who looks at the pictures.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from typing import Any

from ocr2cli.children import child_environment
from ocr2cli.document.files import open_input, shown
from ocr2cli.document.listing import bound_memory
from ocr2cli.errors import PageFault
from ocr2cli.pages import Uint8Array

# Long side in pixels: sharp in half a window, about 100 kB as JPEG.
PREVIEW_SIDE = 1100
SECONDS_PER_PAGE = 20
_QUALITY = 82
_BOOT = "from ocr2cli.document.preview import serve; serve()"


def page_previews(path: str, *, max_pages: int, password: str = "") -> Generator[dict[str, Any]]:
    """One row a page, in order, as each is drawn; the child is gone when the caller stops.

    A row holds `page` (1-based), `num_pages`, and either `image` (a data: URL of a JPEG) or `error`
    (a line for people). A file that cannot be opened, or that ends the child, gives one row with
    an error. At most `max_pages` rows.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, encoding="ascii", start_new_session=True,
        env=child_environment(),
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps([path, max_pages, password]) + "\n")
                child.stdin.flush()
            last = 0
            for line in child.stdout:
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if row is None:
                    return
                last = row["page"]
                yield row
            yield _fault(last + 1, 0, "drawing this page ended its process; it may be damaged")
        finally:
            child.kill()


def serve() -> None:
    """The child: one request on stdin, a JSON line a page on stdout, `null` at the end."""
    # It does not ask to die with its parent: that is the thread that made it, and each row may be
    # asked for by another.
    bound_memory()
    path, max_pages, password = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for row in _rows(path, max_pages, password):
        signal.alarm(0)  # who reads the rows may take any time
        print(json.dumps(row), flush=True)
        signal.alarm(SECONDS_PER_PAGE)  # for the next page: no handler, so C code is ended too
    signal.alarm(0)
    print("null", flush=True)


def _rows(path: str, max_pages: int, password: str) -> Iterator[dict[str, Any]]:
    from ocr2cli.document.raster import open_document

    signal.alarm(SECONDS_PER_PAGE)
    try:
        source = open_input(path)
        document = open_document(source, password)
    except PageFault as fault:
        yield _fault(1, 0, _without(path, fault))
        return
    total = document.num_pages
    for page in range(min(total, max_pages)):
        try:
            # 144 dpi as for reading, bounded: it is scaled down anyway.
            rgb, *_ = document.render(page, 144, 4 * PREVIEW_SIDE**2)
            yield {"page": page + 1, "num_pages": total, "image": data_url(rgb)}
        except PageFault as fault:
            yield _fault(page + 1, total, _without(path, fault))


def data_url(rgb: Uint8Array) -> str:
    """A page as a data: URL of a JPEG no longer than PREVIEW_SIDE. rgb: uint8 [H, W, 3]."""
    from PIL import Image

    image = Image.fromarray(rgb)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _without(path: str, fault: PageFault) -> str:
    """The reason without the path, which is the server's own affair."""
    return fault.message.replace(shown(path), "the document")


def _fault(page: int, num_pages: int, message: str) -> dict[str, Any]:
    return {"page": page, "num_pages": num_pages, "error": message}
