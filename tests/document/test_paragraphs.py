"""A text layer's lines become paragraphs that a reader can read."""

from __future__ import annotations

from ocr2cli.document.paragraphs import LayerLine, paragraphs


def _line(text: str, left: float, row: int, right: float, **how: object) -> LayerLine:
    return LayerLine(text, (left, row * 14.0, right, row * 14.0 + 12), **how)  # type: ignore[arg-type]


def _texts(*lines: LayerLine) -> list[str]:
    return [paragraph.text for paragraph in paragraphs(lines)]


def test_lines_of_prose_flow_and_a_line_that_ends_early_keeps_its_end() -> None:
    prose = [_line(f"word {row} of a full line of prose", 0, row, 200 - row) for row in range(4)]
    (text,) = _texts(*prose, _line("and its end.", 0, 4, 70))
    assert text.count("\n") == 4 and "  \n" not in text
    (text,) = _texts(*prose, _line("Short.", 0, 4, 40), _line("Then more of it", 0, 5, 190))
    assert text.endswith("\nShort.  \nThen more of it")


def test_every_line_of_code_keeps_its_end_the_longest_too() -> None:
    code = [_line("for x in y:", 0, 0, 60), _line("print(x, end=1)", 20, 1, 160),
            _line("done()", 0, 2, 30), _line("exit()", 0, 3, 30)]  # fmt: skip
    assert _texts(*code) == ["for x in y:  \nprint(x, end=1)  \ndone()  \nexit()"]


def test_cells_of_a_row_stand_in_one_line() -> None:
    row = [_line("Item 1", 0, 0, 40), _line("97.52", 100, 0, 130), _line("-3.40", 200, 0, 230)]
    assert _texts(*row, _line("Item 2", 0, 1, 40)) == ["Item 1 97.52 -3.40  \nItem 2"]


def test_a_short_line_in_another_type_is_a_paragraph_of_its_own() -> None:
    heading = _line("Wells", 0, 0, 50, size=14.0)
    body = [_line("The first line of the body is full", 0, 1, 200, size=10.0),
            _line("and the second one, too, is it not", 0, 2, 200, size=10.0)]  # fmt: skip
    first, second = paragraphs((heading, *body))
    assert first.text == "Wells" and first.box == (0, 0, 50, 12)
    assert second.text.count("\n") == 1 and second.box == (0, 14, 200, 40)
    assert len(_texts(_line("Bold", 0, 0, 50, is_bold=True), *body)) == 2


def test_ligatures_are_letters_and_a_soft_hyphen_joins_its_word() -> None:
    assert _texts(_line("a \ufb01le is su\ufb03cient", 0, 0, 100)) == ["a file is sufficient"]
    assert _texts(_line("a foot\u00ad", 0, 0, 100), _line("note x", 0, 1, 100)) == ["a footnote x"]
    assert _texts(_line("real-", 0, 0, 100), _line("hyphen x", 0, 1, 100)) == ["real-\nhyphen x"]


def test_no_line_is_empty_or_has_a_line_end_of_its_own() -> None:
    lines = [_line("  ", 0, 0, 9), _line("a\u2028# b", 0, 1, 200), _line("\xa0", 0, 2, 9)]
    assert _texts(*lines) == ["a # b"] and _texts(_line(" ", 0, 0, 9)) == []


def test_lines_that_stand_on_their_side_are_no_rows_of_a_table() -> None:
    sides = [LayerLine(text, (x, 0, x + 12, 200), is_level=False)
             for text, x in (("one", 0), ("two", 14))]  # fmt: skip
    assert _texts(*sides) == ["one  \ntwo"]
