"""The OCRmyPDF plug-in writes every word that the model wrote, near its place."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import pytest
from PIL import Image

from ocr2cli.pages import Document, PageKey, PageResult, Status
from ocr2cli.text.grounding import parse, to_markdown

pytest.importorskip("ocrmypdf")

PLUGIN = Path(__file__).parents[1] / "examples" / "ocrmypdf_plugin.py"
LAST = "<|ref|>text<|/ref|><|det|>[[50, 600, 900, 700]]<|/det|>\nother\n"


def head(label: str, boxes: str = "[[50, 100, 900, 300]]") -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{boxes}<|/det|>\n"


def lines_of(plugin: types.ModuleType, folder: Path, raw: str, monkeypatch: pytest.MonkeyPatch,
             status: Status = Status.OK) -> list[tuple[str, tuple[float, ...]]]:  # fmt: skip
    """(text, box in pixels) of each line that the plug-in makes of what a model wrote."""
    parsed = parse(raw)
    markdown = to_markdown(parsed.blocks, lambda n: f"figure:{n + 1}")
    page = PageResult(PageKey("d", 0), status, markdown, raw, boxes=parsed.boxes)
    monkeypatch.setattr(plugin.ocr2cli, "read", lambda *_, **__: Document("d", "", (page,)),
                        raising=False)  # fmt: skip
    Image.new("RGB", (1000, 1400), "white").save(folder / "page.png", dpi=(144, 144))
    tree, _ = plugin.Ocr2Engine.generate_ocr(folder / "page.png", None)
    found = []
    for line in tree.children:
        box = line.bbox
        for word in line.children:
            inside = word.bbox
            assert box.left - 1 <= inside.left <= inside.right <= box.right + 1, word.text
            assert (inside.top, inside.bottom) == (box.top, box.bottom)
        words = " ".join(word.text for word in line.children)
        found.append((words, (box.left, box.top, box.right, box.bottom)))
    return found


@pytest.fixture
def plugin() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("ocrmypdf_plugin", PLUGIN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (head("table") + "<table><tr><td>Cell one</td><td>Cell two</td></tr></table>\n",
         "Cell one Cell two"),
        (head("image_caption") + "<center>Figure 1: **A** picture</center>\n",
         "Figure 1: A picture"),
        (head("text") + "if a < b then c\nsecond line\n", "if a < b then c second line"),
        (head("text", "[[50, 100, 900, 300], [50, 400, 900, 500]]") + "Two box words\n",
         "Two box words"),
        ("loose words first\n", "loose words first"),
        (head("text", "[[900, 300, 50, 100]]") + "a box without sense\n", "a box without sense"),
    ],
    ids=["table", "caption", "less than", "two boxes", "no box", "senseless box"],
)  # fmt: skip
def test_ocrmypdf_is_given_every_word_above_the_words_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: types.ModuleType, raw: str, words: str
) -> None:
    *lines, last = lines_of(plugin, tmp_path, raw + LAST, monkeypatch)
    assert " ".join(text for text, _ in lines) == words
    assert all(box[1] >= 0 and box[3] <= last[1][1] + 1 for _, box in lines)
    assert last[0] == "other" and last[1] == pytest.approx((50, 841, 901, 981), abs=2)


def test_ocrmypdf_is_given_a_page_without_boxes_and_none_of_a_blank_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: types.ModuleType
) -> None:
    lines = lines_of(plugin, tmp_path, "# only words", monkeypatch)
    assert " ".join(text for text, _ in lines) == "only words"
    assert all(box[0] > 0 and box[3] < 1400 for _, box in lines)
    assert lines_of(plugin, tmp_path, "", monkeypatch, Status.BLANK) == []


def test_ocrmypdf_is_given_hebrew_from_right_to_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: types.ModuleType
) -> None:
    text = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05d0"
    page = lines_of(plugin, tmp_path, head("text") + text, monkeypatch)
    assert [words for words, _ in page] == [text]
    tree, _ = plugin.Ocr2Engine.generate_ocr(tmp_path / "page.png", None)
    places = [word.bbox.left for line in tree.children for word in line.children]
    assert places == sorted(places, reverse=True)
