"""The page at `/` of `ocr2 serve`, used as a person uses it: real server, real model, real browser.

Needs Chromium. Where CI is set a missing one is a failure, elsewhere the tests say what to install.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pymupdf
import pytest
from PIL import Image
from rapidfuzz.fuzz import ratio

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "tests" / "browser"))
from chromium import Chromium  # noqa: E402

TITLE = "The Harbour Ledger"
ALL_DONE = "document.querySelectorAll('article').length === {0} && " + (
    "document.querySelectorAll('article[data-done]').length === {0}"
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    argv = [
        sys.executable, "-u", "-m", "ocr2cli", "serve", "--port", "0", "--runner", "inline",
        "--max-new-tokens", "60",
    ]  # fmt: skip
    process = subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    _wait_until_healthy(url)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) in (0, -signal.SIGTERM)


def _wait_until_healthy(url: str) -> None:
    for _ in range(300):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server never became healthy")


@pytest.fixture
def browser(server: str, chromium: Chromium) -> Chromium:
    chromium.open(server)
    return chromium


@pytest.fixture(scope="module")
def two_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's title page, and a small one after it."""
    path = tmp_path_factory.mktemp("documents") / "two <b>pages.pdf"
    with pymupdf.open(REPO / "examples" / "documents" / "letter.pdf") as pdf:
        pdf.select([0])
        pdf.new_page(width=300, height=160).insert_text((24, 70), "Lamps", fontsize=40)
        pdf.save(path)
    return path


def text_of(browser: Chromium, page: int, article: int = 0) -> str:
    return str(browser.evaluate(
        f"document.querySelectorAll('article')[{article}]"
        f".querySelector('section[data-page=\"{page}\"] pre').textContent"
    ))  # fmt: skip


def articles(browser: Chromium) -> list[str]:
    """The documents from the top down, as text."""
    texts = "[...document.querySelectorAll('article')].map(a => a.textContent)"
    return [str(text) for text in browser.evaluate(texts)]


def test_pages_appear_beside_their_pictures_as_they_are_read(browser, server, two_pages) -> None:
    browser.evaluate("document.getElementById('prompt').value = 'ocr'")
    browser.choose_files("#file", two_pages)
    # The pictures come before the text: a person sees at once what is being read.
    browser.wait_for("document.querySelector('section[data-page=\"1\"] figure img')")
    browser.wait_for(ALL_DONE.format(1))
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure img')].map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[777, 1100], [600, 320]]
    rows = httpx.post(
        f"{server}/v1/ocr?prompt=ocr&format=json", content=two_pages.read_bytes(), timeout=120
    ).json()["pages"]
    assert [text_of(browser, 1), text_of(browser, 2)] == [row["markdown"] for row in rows]
    assert ratio(text_of(browser, 1)[: len(TITLE)], TITLE) > 85
    title = browser.evaluate("document.querySelector('h2').textContent")
    assert "two <b>pages.pdf" in title and "2 pages" in title


def test_a_pages_text_is_shown_as_markdown_or_laid_out(browser, two_pages) -> None:
    browser.choose_files("#file", two_pages)
    browser.wait_for(ALL_DONE.format(1))
    shown = "[...document.querySelectorAll('section pre, section .view')].filter(node => " \
            "node.checkVisibility()).map(node => node.className)"  # fmt: skip
    assert browser.evaluate(shown) == ["", ""]
    browser.evaluate("document.getElementById('view').value = 'text'")
    browser.evaluate("document.getElementById('view').dispatchEvent(new Event('change'))")
    assert browser.evaluate(shown) == ["view", "view"]
    text = browser.evaluate("document.querySelector('.view').innerText")
    assert ratio(text[: len(TITLE)], TITLE) > 85 and "#" not in text[: len(TITLE)]


def test_no_element_or_attribute_that_acts_comes_into_the_page(browser) -> None:
    hostile = (
        "<h3 onclick='x()' id=drop>A</h3><img src=x onerror='x()'><script>x()</script>"
        "<svg><a href='javascript:x()'>s</a></svg><iframe src='//evil'></iframe><form><input>"
        "</form><table style='position:fixed'><tr><td colspan=2 rowspan='x'>c</td></tr></table>"
        "<ol start=7><li value=9>d</li></ol>"
    )
    browser.evaluate(f"layOut(byId('documents'), parsed({json.dumps(hostile)}))")
    assert browser.evaluate("byId('documents').innerHTML") == (
        '<h3>A</h3><table><tbody><tr><td colspan="2">c</td></tr></tbody></table>'
        '<ol start="7"><li value="9">d</li></ol>'
    )


def test_boxes_stand_over_the_picture(browser, tmp_path) -> None:
    page = tmp_path / "note.png"
    page.write_bytes((REPO / "eval" / "bundled" / "pages" / "note-door.png").read_bytes())
    browser.choose_files("#file", page)
    browser.wait_for(ALL_DONE.format(1))
    inside = browser.evaluate("""(() => {
        const scan = document.querySelector('figure img').getBoundingClientRect();
        return [...document.querySelectorAll('figure i')].map(frame => {
            const box = frame.getBoundingClientRect();
            return box.left >= scan.left - 1 && box.right <= scan.right + 3
                && box.top >= scan.top - 1 && box.bottom <= scan.bottom + 3 && box.width > 0;
        });
    })()""")
    assert inside and all(inside)


def test_a_broken_file_and_a_stranger_say_what_is_wrong(browser, tmp_path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (tmp_path / "words.txt").write_text("plain words")
    browser.choose_files("#file", tmp_path / "broken.pdf", tmp_path / "words.txt")
    browser.wait_for(ALL_DONE.format(2))
    # In the order in which they were chosen.
    broken, stranger = articles(browser)
    assert "send a PDF or an image" in stranger
    assert "the document is damaged" in broken and "reading" not in broken
    assert "ocr2-serve-" not in broken and "Copy all" not in broken
    (tmp_path / "large.pdf").write_bytes(bytes(64_000_001))
    browser.choose_files("#file", tmp_path / "large.pdf")
    browser.wait_for(ALL_DONE.format(3))
    # The newest stands on top.
    assert "large.pdf" in (large := articles(browser)[0]) and "larger than the 64 MB" in large


def test_what_may_be_dropped_is_said_before_anything_is(browser) -> None:
    text = browser.evaluate("document.querySelector('#drop').textContent")
    assert "PDF, PNG, JPEG, TIFF, WebP, BMP, GIF; up to 64 MB and 200 pages" in text


def test_an_encrypted_document_is_read_when_its_password_is_typed(browser, tmp_path) -> None:
    with pymupdf.open() as pdf:
        pdf.new_page(width=300, height=160).insert_text((24, 70), "Lamps", fontsize=40)
        pdf.save(tmp_path / "locked.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="key")
    browser.choose_files("#file", tmp_path / "locked.pdf")
    for password, said in (("kex", "needs its password"), ("key", "does not open it")):
        browser.wait_for(ALL_DONE.format(1))
        (article,) = articles(browser)
        assert said in article
        browser.evaluate(f"document.querySelector('article input').value = '{password}'")
        browser.evaluate("document.querySelector('article form button').click()")
    browser.wait_for(ALL_DONE.format(1))
    assert ratio(text_of(browser, 1), "Lamps") > 60
    assert browser.evaluate("document.querySelector('article form')") is None


def test_a_documents_text_is_saved_under_its_name(browser, two_pages, tmp_path) -> None:
    folder = tmp_path / "saved"
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.choose_files("#file", two_pages)
    browser.wait_for(ALL_DONE.format(1))
    browser.evaluate("document.querySelector('article h2 a').click()")
    end = time.monotonic() + 30
    while not (found := list(folder.glob("*.md"))) and time.monotonic() < end:
        time.sleep(0.05)
    # A browser keeps some letters out of a file's name.
    assert found and found[0].name.startswith("two ")
    text = found[0].read_text()
    assert "<!-- page: 2 -->" in text and text_of(browser, 1) in text


def test_a_dropped_file_is_read_and_no_request_leaves_the_server(browser, server, tmp_path) -> None:
    Image.new("RGB", (120, 80), "white").save(tmp_path / "white.png")
    browser.drop_file(tmp_path / "white.png", 300, 110)
    browser.wait_for(ALL_DONE.format(1))
    assert text_of(browser, 1) == "(no text)"
    assert "blank" in browser.evaluate("document.querySelector('h3').textContent")
    outside = [url for url in browser.requests if not url.startswith((server, "data:"))]
    assert outside == []
    assert [line for line in browser.console if "favicon" not in line] == []
