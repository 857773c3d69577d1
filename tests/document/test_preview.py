"""Pictures of pages drawn by a child: whoever asks for them, however slowly, gets them all."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocr2cli.document import preview

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from processes import children_of, wait_until_gone

BOOT = """
from ocr2cli.document import preview, raster
raster.load_libraries()
preview.SECONDS_PER_PAGE = 2
preview.serve()
"""


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """Four pages, each more than a pipe holds."""
    noise = np.random.default_rng(1).integers(0, 255, (4, 400, 400, 3), dtype=np.uint8)
    first, *rest = map(Image.fromarray, noise)
    first.save(tmp_path / "noisy.tif", save_all=True, append_images=rest)
    return tmp_path / "noisy.tif"


def in_a_thread_that_ends(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_thread_that_asked_for_the_first_page_may_end_before_the_last(noisy: Path) -> None:
    """Linux ended the child with it: a pool does away with a thread that had nothing to do."""
    rows = preview.page_previews(str(noisy), max_pages=9)
    found = []
    in_a_thread_that_ends(lambda: found.append(next(rows)))
    found += rows
    assert [(row["page"], "image" in row) for row in found] == [(n, True) for n in (1, 2, 3, 4)]


def test_a_page_is_not_blamed_for_a_reader_that_takes_its_time(
    noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "_BOOT", BOOT)
    rows = preview.page_previews(str(noisy), max_pages=9)
    found = [next(rows)]
    time.sleep(2.5)
    found += rows
    assert [(row["page"], "image" in row) for row in found] == [(n, True) for n in (1, 2, 3, 4)]


def test_the_child_does_not_outlive_its_parent(noisy: Path) -> None:
    code = (
        "import sys, time\nfrom ocr2cli.document.preview import page_previews\n"
        "rows = page_previews(sys.argv[1], max_pages=9)\n"
        "print(next(rows)['page'], flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, noisy], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"1\n"
    children = children_of(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert len(children) == 1 and wait_until_gone(children, 20) == []
