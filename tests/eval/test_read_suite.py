"""Suites on disk: what loads, and the one line each mistake gets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pymupdf
import pytest
from eval_toys import SEED_FILES
from PIL import Image

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.document.files import ENDINGS
from ocr2cli.errors import InputError, UsageError
from ocr2cli.eval.cases import suites_folder
from ocr2cli.eval.facts import CellIs
from ocr2cli.eval.metrics import Scores
from ocr2cli.eval.read_suite import find_suite_folder, load_suite

MakeSuite = Callable[..., Path]


def test_the_bundled_suite_has_a_page_and_a_truth_for_every_case() -> None:
    suite = load_suite(find_suite_folder("bundled"))
    assert len(suite.cases) >= 12
    for case in suite.cases:
        assert case.path.is_file() and case.truth.strip() and not case.not_run
    assert sum(case.path.stat().st_size for case in suite.cases) < 3_000_000
    assert any("<table>" in case.truth_markdown for case in suite.cases)


def test_the_seed_suite_holds_llama_cpps_five_cases_with_their_numbers() -> None:
    suite = load_suite(find_suite_folder("seed"))
    numbers = {
        case.id: (case.recorded.cer, case.recorded.chrf, case.tolerance.cer_tol,
                  case.tolerance.chrf_tol, case.decode.max_new_tokens)
        for case in suite.cases
        if case.recorded and case.tolerance
    }  # fmt: skip
    assert numbers == {
        "v1-single-view": (0.3140, 67.57, 0.04, 5.0, 512),
        "v2-single-view": (0.7761, 28.70, 0.12, 8.0, 2048),
        "v1-multi-tile": (0.0, 100.0, 0.03, 3.0, 512),
        "v2-multi-tile": (0.0236, 97.05, 0.03, 3.0, 2048),
        "unlimited-single-view": (0.1869, 75.23, 0.06, 6.0, 4096),
    }
    dry = {case.id: case.decode.dry for case in suite.cases}
    assert dry["v2-single-view"] == DryConfig(0.8, 1.75, 2, 64)
    assert dry["v1-single-view"] is None
    assert all(case.decode.no_repeat_ngram == 0 for case in suite.cases)


def test_seed_pages_that_are_not_there_are_reported_with_what_to_do(tmp_path: Path) -> None:
    for images, part in ((None, "--images DIR"), (tmp_path, "is not below")):
        suite = load_suite(find_suite_folder("seed"), images=images)
        for case in suite.cases:
            assert case.not_run.startswith("image missing: test-1") and part in case.not_run


def test_a_seed_page_with_another_digest_is_not_taken(tmp_path: Path) -> None:
    for name in SEED_FILES:
        (tmp_path / name).write_bytes(b"something else")
    suite = load_suite(find_suite_folder("seed"), images=tmp_path)
    assert all("another sha256" in case.not_run for case in suite.cases)


def test_seed_pages_are_found_below_the_folder_by_name_and_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pages may not be here, so the suite is read with the digests of stand-ins."""
    text = (suites_folder() / "seed" / "suite.toml").read_text(encoding="utf-8")
    deep = tmp_path / "images" / "deep"
    deep.mkdir(parents=True)
    for name, digest in SEED_FILES.items():
        (deep / name).write_bytes(name.encode())
        text = text.replace(digest, hashlib.sha256(name.encode()).hexdigest())
    folder = tmp_path / "seed"
    folder.mkdir()
    (folder / "suite.toml").write_text(text, encoding="utf-8")
    suite = load_suite(folder, images=tmp_path / "images")
    assert [case.not_run for case in suite.cases] == [""] * 5
    assert suite.cases[0].truth == "test-1-ground-truth.txt"


def test_the_digests_are_those_of_the_real_pages(shared_reference: Path | None) -> None:
    folder = shared_reference / "eval-llama-cpp" if shared_reference else None
    if folder is None or not folder.is_dir():
        folder = None
    suite = load_suite(find_suite_folder("seed"), images=folder)
    expected = "" if folder else "image missing"
    assert all(case.not_run.startswith(expected) for case in suite.cases)
    assert bool(suite.cases[0].truth) is (folder is not None)


def test_a_plain_folder_is_a_suite_when_every_page_has_its_truth(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "a.txt", "b.md", "notes.csv"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    suite = load_suite(tmp_path)
    assert [(c.id, c.prompt) for c in suite.cases] == [("a", "ocr"), ("b", "markdown")]
    (tmp_path / "c.pdf").write_text("%PDF", encoding="utf-8")
    with pytest.raises(InputError, match=r"c\.pdf: no truth\. Put c\.txt or c\.md beside it"):
        load_suite(tmp_path)


def test_whatever_a_run_reads_is_a_page_of_a_plain_folder(tmp_path: Path) -> None:
    for ending in ENDINGS:
        (tmp_path / f"{ending[1:]}{ending.upper()}").write_text("text", encoding="utf-8")
        (tmp_path / f"{ending[1:]}.txt").write_text("text", encoding="utf-8")
    assert {case.path.suffix.lower() for case in load_suite(tmp_path).cases} == ENDINGS


def test_pages_of_one_name_in_a_plain_folder_keep_their_endings(tmp_path: Path) -> None:
    for name in ("scan.jpg", "scan.png", "a.png", "a.png.tif", "scan.txt", "a.txt", "a.png.txt"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    ids = {case.path.name: case.id for case in load_suite(tmp_path).cases}
    assert ids == {
        "scan.jpg": "scan.jpg", "scan.png": "scan.png", "a.png": "a", "a.png.tif": "a.png.tif",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.pdf", "a.tif"])
def test_a_document_of_several_pages_in_a_plain_folder_is_refused(
    tmp_path: Path, name: str
) -> None:
    if name == "a.pdf":
        with pymupdf.open() as document:
            for _ in range(3):
                document.new_page(width=50, height=50)
            document.save(tmp_path / name)
    else:
        frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / "a.txt").write_text("text of three pages", encoding="utf-8")
    said = rf"{name} has 3 pages.*suite\.toml.*page_number"
    with pytest.raises(InputError, match=said) as caught:
        load_suite(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_plain_folder_has_the_scores_that_were_recorded_for_it(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "b.png", "b.txt"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    rows = '{"scores": {"b": {"cer": 0.25}}}'
    (tmp_path / "recorded.json").write_text(rows, encoding="utf-8")
    assert [case.recorded for case in load_suite(tmp_path).cases] == [None, Scores(cer=0.25)]


def test_an_empty_folder_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no suite\.toml and no page image"):
        load_suite(tmp_path)


def test_facts_are_read_with_their_fields(make_suite: MakeSuite) -> None:
    extra = '[[case.fact]]\nkind = "cell"\ncell = "Mon"\nright = "31"'
    (case,) = load_suite(make_suite(case_extra=extra)).cases
    assert case.facts[0].fact == CellIs("Mon", right="31")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('thruth = "x"', r"unknown key 'thruth'\. Did you mean 'truth'\?"),
        ("page_number = 0", "pages count from 1"),
        ("page_number = true", "'page_number' must be a whole number"),
        ('needs = "v3"', r"no kind of model\. Did you mean 'v[12]'"),
        ("decode = { max_tokens = 3 }", r"Did you mean 'max_new_tokens'\?"),
        ("decode = { dry = { basis = 2 } }", r"Did you mean 'base'\?"),
        ('decode = { max_new_tokens = "100" }', "'max_new_tokens' must be a whole number"),
        ("decode = { detect_loops = 1 }", "'detect_loops' must be true or false"),
        ("decode = { draft = 3 }", "'draft' must be a text"),
        ('decode = { draft = "text" }', r"draft = 'text'\. Did you mean 'text-layer'\?"),
        ("decode = { dry = 2 }", "'dry' must be a table"),
        ('decode = { dry = { base = "2" } }', "'base' must be a number"),
        ("decode = { dry = { last_n = 1.5 } }", "'last_n' must be a whole number"),
        ("recorded = 5", "must be a table, not 5"),
        ("tolerance = 5", "must be a table, not 5"),
        ("fact = [5]", "must be a table, not 5"),
        ('recorded = { cerr = 0.1, by = "me" }', r"Did you mean 'cer'\?"),
        ("recorded = { cer = 0.1 }", "'by' is missing"),
        ("tolerance = { cer_tol = 0.1, chrf_tol = 1 }", "'reason' is missing"),
        ('tolerance = { cer_tol = 0.1, chrf_tol = 1, reason = " " }', "'reason' is empty"),
        ('[[case.fact]]\nkind = "presence"\ntext = "x"', r"Did you mean 'present'\?"),
        ('[[case.fact]]\nkind = "present"\ntxt = "x"', r"Did you mean 'text'\?"),
        ('[[case.fact]]\nkind = "present"\ntext = 5', "'text' must be a text, not 5"),
        ('[[case.fact]]\nkind = "cell"\ncell = ["x"]', "'cell' must be a text"),
        ('[[case.fact]]\nkind = "present"\ntext = "x"\nfirst_n = "9"', "must be a whole number"),
        ('[[case.fact]]\nkind = "present"', "missing 1 required positional argument: 'text'"),
        ('[[case.fact]]\nkind = "present"\ntext = "x"\nmax_edits = 2', "needs a 'reason'"),
        ('[[case.fact]]\nkind = "absent"\ntext = " \u00a0 "', "fact 1: 'text' is empty"),
        ('[[case.fact]]\nkind = "order"\nbefore = "x"\nafter = ""', "'after' is empty"),
        ('sha256 = "00"', "is not the page the truth was written for"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_that_names_the_case(
    make_suite: MakeSuite, extra: str, message: str
) -> None:
    with pytest.raises((UsageError, InputError), match=message) as caught:
        load_suite(make_suite(case_extra=extra))
    assert "'one'" in str(caught.value) and "\n" not in str(caught.value)


def test_a_case_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text('name = "toy"\ncase = ["one"]', encoding="utf-8")
    with pytest.raises(UsageError, match=r"case 1: must be a table, not 'one'"):
        load_suite(tmp_path)


def test_a_whole_number_will_do_where_a_number_is_asked_for(make_suite: MakeSuite) -> None:
    extra = "decode = { max_new_tokens = 9, dry = { base = 2, last_n = -1 } }"
    (case,) = load_suite(make_suite(case_extra=extra)).cases
    assert case.decode == DecodeConfig(max_new_tokens=9, dry=DryConfig(base=2.0, last_n=-1))


def test_recorded_scores_that_are_no_numbers_are_refused(make_suite: MakeSuite) -> None:
    folder = make_suite()
    for cer in ('"0.1"', "[0.1]", "true"):
        recorded = f'{{"scores": {{"one": {{"cer": {cer}}}}}}}'
        (folder / "recorded.json").write_text(recorded, encoding="utf-8")
        with pytest.raises(UsageError, match="not recorded scores"):
            load_suite(folder)


def test_missing_files_and_broken_toml_are_one_line(make_suite: MakeSuite) -> None:
    folder = make_suite()
    (folder / "one.txt").unlink()
    with pytest.raises(InputError, match=r"truth .*one\.txt is missing\. Write it"):
        load_suite(folder)
    (folder / "one.png").unlink()
    with pytest.raises(InputError, match=r"the page .*one\.png is missing"):
        load_suite(folder)
    (folder / "suite.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_suite(folder)


def test_two_cases_with_one_id_are_refused(make_suite: MakeSuite) -> None:
    folder = make_suite()
    text = (folder / "suite.toml").read_text(encoding="utf-8")
    (folder / "suite.toml").write_text(text + text.partition("\n")[2], encoding="utf-8")
    with pytest.raises(UsageError, match="two cases have the id 'one'"):
        load_suite(folder)


def test_a_page_named_as_the_mean_of_all_pages_is_refused(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    folder = make_suite(("overall",))
    for _ in range(2):
        with pytest.raises(UsageError, match="cannot have the id 'overall'"):
            load_suite(folder)
        (folder / "suite.toml").unlink(missing_ok=True)  # then as a plain folder


def test_a_suite_without_a_case_says_so(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text('name = "toy"\ncase = []', encoding="utf-8")
    with pytest.raises(UsageError, match=r"suite\.toml: there is no case in it"):
        load_suite(tmp_path)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=re.escape("Did you mean 'bundled'?")):
        find_suite_folder("bundle")
